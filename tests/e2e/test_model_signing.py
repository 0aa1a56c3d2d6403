"""A policy asks for a signer: on real processes, what is not signed, wrongly signed or changed is never loaded."""

from __future__ import annotations

import asyncio
import json
from typing import TYPE_CHECKING, Any

import msgspec
import numpy as np
import pytest

from batuta.demo.stage import wait_for
from batuta.fabric import subjects
from batuta.fabric.nats import connect_hub
from batuta.kinds import Application
from batuta.kinds.model import Model
from batuta.model_push import push
from batuta.model_sign import make_key
from tests.cli.running import run
from tests.e2e.playing import READER, Device, instance, play, ready, workers

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from batuta.demo.digits import Digits
    from batuta.demo.stage import Stage

pytestmark = pytest.mark.e2e

POLICY = """\
apiVersion: batuta.dev/v1
kind: Policy
metadata: {{name: signed-only}}
spec:
  applies: 'component.type == "model"'
  requireSigner:
  - |
{key}
"""


def asked_for(public: Path) -> str:
    return POLICY.format(key="".join(f"    {line}\n" for line in public.read_text().splitlines()))


def reason_of(stage: Stage) -> Mapping[str, Any]:
    return instance(stage).get("reason") or {}


def codes(stage: Stage) -> list[str]:
    """Why no release is made of what was declared."""
    return [reason["code"] for reason in stage.client.get(Application, "reader").status["reasons"]]


def untrusted(stage: Stage) -> Mapping[str, int]:
    """How often the node would not run something, by code, as its doctor says."""
    return doctor(stage)["untrusted"]


def doctor(stage: Stage) -> Mapping[str, Any]:
    """What the node says of itself."""
    home = stage.hub_state / "hub"
    port = json.loads((home / "run.json").read_bytes())["ports"]["client"]
    password = json.loads((home / "secrets.json").read_bytes())["hubPassword"]

    async def ask() -> Mapping[str, Any]:
        fabric = await connect_hub(f"nats://127.0.0.1:{port}", "hub", password)
        try:
            return msgspec.json.decode(await fabric.request(subjects.tell("pi", "doctor"), b"{}", 10.0))
        finally:
            await fabric.close()

    return asyncio.run(ask())


def test_only_what_a_trusted_key_signed_is_loaded(stage: Stage, digits: Digits, tmp_path: Path) -> None:
    private, public = make_key(tmp_path / "ours")
    stranger, _ = make_key(tmp_path / "theirs")
    play(stage)
    client = stage.client
    client.apply(asked_for(public))
    digest = push(client, digits.first, name="digits", version="1", task="classification").digest
    client.apply(READER.format(version="1"))

    # Nobody has signed it: it is not even tried.
    wait_for("the refusal of an unsigned model", lambda: "signature_missing" in codes(stage) or None, 60)
    assert workers(stage) == []

    # Somebody has whom nobody trusts: the node fetches it, and does not load it.
    signed = run("model", "sign", "digits", "--key", str(stranger), state=stage.hub_state)
    assert signed.code == 0, signed.err
    wait_for("the refusal of a stranger", lambda: reason_of(stage).get("code") == "signer_unknown" or None, 90)
    assert workers(stage) == []
    assert untrusted(stage) == {"signer_unknown": 1}
    verified = run("model", "verify", "digits", "--key", str(public), state=stage.hub_state)
    assert (verified.code, "signer_unknown" in verified.out) == (1, True)

    # The right one signs too: it is loaded, and answers.
    signed = run("model", "sign", "digits", "--key", str(private), state=stage.hub_state)
    assert signed.code == 0, signed.err
    wait_for("the signed model", lambda: ready(stage), 120)
    with Device(stage.mqtt_of("pi")) as device:
        device.show("signed", digits.held_out[0])
        assert device.read("signed", 120)["model"] == "digits:1"
    assert run("model", "verify", "digits", "--key", str(public), state=stage.hub_state).code == 0
    (variant,) = client.get(Model, "digits").resource.spec.versions[0].variants
    assert (variant.digest, len(variant.signatures)) == (digest, 2)


TRANSFORM = """
import numpy as np
def before(inputs):
    return {"image": next(iter(inputs.values())).astype(np.float32).reshape(1, -1)}
def after(outputs):
    return {"seen": np.argmax(outputs["probabilities"], axis=1).astype(np.int64) + 100}
"""


@pytest.mark.slow
def test_a_versions_own_python_runs_when_it_is_signed_as_well(stage: Stage, digits: Digits, tmp_path: Path) -> None:
    private, public = make_key(tmp_path / "ours")
    (tmp_path / "transform.py").write_text(TRANSFORM)
    # Its golden inputs are what callers send, and what they are told comes out of it.
    pixels = np.float32([image.pixels for image in digits.held_out[:6]])
    np.savez(tmp_path / "sent.npz", **{"request.picture": pixels})
    play(stage)
    home, client = stage.hub_state, stage.client
    client.apply(asked_for(public))
    words = ["model", "push", str(digits.first), "--name", "digits", "--version", "1"]
    words += ["--shaping", str(tmp_path / "transform.py"), "--golden-from", str(tmp_path / "sent.npz")]
    pushed = run(*words, state=home)
    assert (pushed.code, "golden inputs: 6 cases" in pushed.err) == (0, True), pushed.err
    client.apply(READER.format(version="1"))
    only = run("model", "sign", "digits", "--key", str(private), "--variant", "fp32", state=home)
    assert only.code == 0, only.err

    def refused() -> bool | None:
        said = [(r["code"], r["detail"]) for r in client.get(Application, "reader").status["reasons"]]
        return ("signature_missing", "the transform of digits 1") in said or None

    wait_for("the refusal of its Python", refused, 60)
    verified = run("model", "verify", "digits", "--key", str(public), state=home)
    assert (verified.code, verified.out.count("signature_missing")) == (1, 1), verified.out
    assert workers(stage) == []

    signed = run("model", "sign", "digits", "--key", str(private), "--variant", "transform.py", state=home)
    assert (signed.code, "transform.py" in signed.out) == (0, True), signed.err
    wait_for("the signed model", lambda: ready(stage), 120)
    assert run("model", "verify", "digits", "--key", str(public), state=home).code == 0
    with Device(stage.mqtt_of("pi")) as device:
        device.show("signed", digits.held_out[0])
        assert device.read("signed", 120)["seen"] >= 100
    # Pushing the same files again takes no signature away.
    again = run(*words, state=home)
    assert again.code == 0, again.err
    assert doctor(stage)["proofs"] == {"passed": 1}
    assert len(client.get(Model, "digits").resource.spec.versions[0].transform_signatures) == 1
