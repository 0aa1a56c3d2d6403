"""Golden inputs on a real node: what answers them is switched in; what does not is refused, and that is remembered."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from msgspec.structs import replace

from batuta.demo.stage import wait_for
from batuta.kinds import Node
from batuta.kinds.model import Model
from batuta.model_push import push
from batuta.tuning import golden, sketch
from batuta.tuning.session import Session
from tests.cli.running import run
from tests.e2e.playing import READER, Device, play, ready, workers
from tests.e2e.test_model_signing import doctor

if TYPE_CHECKING:
    from pathlib import Path

    from batuta.demo.digits import Digits
    from batuta.demo.stage import Stage

pytestmark = [pytest.mark.e2e, pytest.mark.slow]


def cases(digits: Digits, path: Path, off: float = 0.0) -> bytes:
    """What the first version says of eight images, or what it would say if it were off."""
    inputs = np.array([image.pixels for image in digits.held_out[:8]], np.float32)
    made = golden.make(Session(digits.first), {"image": inputs})
    outputs = {"probabilities": made.outputs["probabilities"] + np.float32(off)}
    golden.write(path, made._replace(outputs=outputs))
    return path.read_bytes()


def undone(stage: Stage, release: int) -> dict[str, Any] | None:
    """The status of the rollout of this release, once it was taken back."""
    found = [each.status for each in stage.client.rollouts.list() if each.resource.spec.release == release]
    return dict(found[0]) if found and found[0]["phase"] == "undone" else None


def test_only_what_answers_its_golden_inputs_is_switched_in(stage: Stage, digits: Digits, tmp_path: Path) -> None:
    play(stage)
    right, wrong = cases(digits, tmp_path / "right.npz"), cases(digits, tmp_path / "wrong.npz", off=0.5)
    push(stage.client, digits.first, name="digits", version="1", golden=right)
    stage.client.apply(READER.format(version="1"))
    wait_for("the proved model", lambda: ready(stage), 120)
    assert doctor(stage)["proofs"] == {"passed": 1}
    with Device(stage.mqtt_of("pi")) as device:
        device.show("proved", digits.held_out[0])
        assert device.read("proved", 120)["model"] == "digits:1"

        # Another version, that is not what it should be: it is turned down with its Reason, and the first one goes on.
        push(stage.client, digits.second, name="digits", version="2", golden=wrong)
        stage.client.apply(READER.format(version="2"))
        told = wait_for("the refusal", lambda: undone(stage, release=2), 120)
        assert [each["node"] for each in told["turnedDown"]] == ["pi"]
        assert "golden inputs" in told["firstError"], told
        assert "output probabilities of case" in told["firstError"], told
        assert doctor(stage)["proofs"] == {"passed": 1, "golden_mismatch": 1}
        device.show("still", digits.held_out[1])
        assert device.read("still", 120)["model"] == "digits:1"
    why = run("why", "reader", state=stage.hub_state)
    assert "does not answer its golden inputs" in why.out, why.out
    described = run("describe", "application", "reader", state=stage.hub_state)
    assert "golden inputs" in described.out, described.out

    # A node agent that comes back remembers both: the one goes on, the other is turned down under another number too,
    # and nothing is proved again.
    stage.kill_node("pi")
    stage.restart_node("pi")
    wait_for("the node", lambda: stage.online("pi"), 60, alive=stage.nodes["pi"].running)
    wait_for("the first version again", lambda: len(workers(stage)) == 1 or None, 120)
    wait_for("its being ready", lambda: ready(stage, revision=1), 60)
    stage.client.apply(READER.format(version="2").replace("cpu: 100m", "cpu: 101m"))
    told = wait_for("the second refusal", lambda: undone(stage, release=3), 120)
    assert "golden inputs" in told["firstError"], told
    assert doctor(stage)["proofs"] == {}

    # Pushed anew with golden inputs that are right, it is proved and switched in.
    inputs = np.array([image.pixels for image in digits.held_out[:8]], np.float32)
    golden.write(tmp_path / "third.npz", golden.make(Session(digits.second), {"image": inputs}))
    push(stage.client, digits.second, name="digits", version="3", golden=(tmp_path / "third.npz").read_bytes())
    stage.client.apply(READER.format(version="3"))
    wait_for("the third version", lambda: ready(stage, revision=4), 120)
    assert doctor(stage)["proofs"] == {"passed": 1}


def test_golden_inputs_are_made_from_data_by_push(stage: Stage, digits: Digits, tmp_path: Path) -> None:
    stage.start_hub()
    np.savez(tmp_path / "data.npz", x=[image.pixels for image in digits.held_out], y=[i.label for i in digits.held_out])
    words = ["model", "push", str(digits.first), "--name", "digits", "--version", "1"]
    pushed = run(*words, "--golden-from", str(tmp_path / "data.npz"), state=stage.hub_state)
    assert (pushed.code, "golden inputs: 32 cases" in pushed.err) == (0, True), pushed.err
    assert "drift reference: " in pushed.err
    (version,) = stage.client.get(Model, "digits").resource.spec.versions
    assert version.drift is not None
    stage.client.pull_artifact(version.drift, tmp_path / "drift.json")
    assert sum(sketch.read(tmp_path / "drift.json").counts) == len(digits.held_out) // 2
    cases(digits, tmp_path / "wrong.npz", off=0.5)
    words[-1] = "2"
    refused = run(*words, "--golden", str(tmp_path / "wrong.npz"), state=stage.hub_state)
    assert (refused.code, "does not answer so" in refused.err) == (2, True), refused.err


def test_nodes_measure_in_idle_time_what_nobody_knows(stage: Stage, digits: Digits, tmp_path: Path) -> None:
    stage.start_hub()
    stage.start_node("pi", "home", more=["--measure-below", "1000"])
    wait_for("the node", lambda: stage.online("pi"), 60, alive=stage.nodes["pi"].running)
    stage.client.update(Node, "pi", lambda node: replace(node, spec=replace(node.spec, hardware="test-box")))
    push(stage.client, digits.second, name="digits", version="1", task="classification")
    np.savez(tmp_path / "data.npz", x=[image.pixels for image in digits.held_out], y=[i.label for i in digits.held_out])
    words = ["model", "optimize", "digits:1", "--int8", "dynamic", "--evaluate", str(tmp_path / "data.npz")]
    optimized = run(*words, "--hardware", "workshop", state=stage.hub_state)
    assert optimized.code == 0, optimized.err
    stage.client.apply(READER.format(version="1"))
    wait_for("the model", lambda: ready(stage), 120)

    def profiles() -> dict[str, dict[str, Any]] | None:
        found = {p["variant"]: p for p in stage.client.get(Model, "digits").status["profiles"]}
        return found if set(found) == {"fp32", "int8-dynamic"} else None

    found = wait_for("both variants to be measured", profiles, 400)
    for profile in found.values():
        assert (profile["hardware"], profile["by"]) == ("test-box", "node/pi")
        assert 0 < profile["p50Us"] <= profile["p99Us"]
        assert profile["runtime"].startswith("onnxruntime ")
    # The file that does not run here was fetched for it, and is no longer needed.
    assert doctor(stage)["measuring"]["measured"] == 2
    described = run("model", "describe", "digits", state=stage.hub_state)
    rows = [line.split() for line in described.out.splitlines() if "test-box" in line or "workshop" in line]
    assert sorted((row[0], row[1], row[-1]) for row in rows) == [
        ("fp32", "test-box", "node/pi"), ("fp32", "workshop", "optimize"),
        ("int8-dynamic", "test-box", "node/pi"), ("int8-dynamic", "workshop", "optimize"),
    ]  # fmt: skip
