"""Tokens, kubeconfig and audit as people use them: real commands, a real hub, and the real kubectl when it is here."""

from __future__ import annotations

import json
import os
import shutil
import signal
import stat
import statistics
import subprocess
import sys
import time
from typing import TYPE_CHECKING, Any

import pytest
import yaml

from batuta.cli.kubeconfig import merged
from batuta.demo.stage import Stage
from tests.cli.running import Ran, run

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

pytestmark = pytest.mark.e2e

APPLICATION = """\
apiVersion: batuta.dev/v1
kind: Application
metadata: {name: sleeper}
spec:
  components:
  - name: sleep
    process: {command: [sleep, "3600"], env: {DB_PASSWORD: hunter2}}
"""


@pytest.fixture(scope="module")
def stage(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stage]:
    made = Stage(tmp_path_factory.mktemp("stage"))
    try:
        made.start_hub()
        yield made
    finally:
        killed = made.close()
    assert killed == [], "these did not end when asked to"


@pytest.fixture
def manifest(tmp_path: Path) -> Path:
    path = tmp_path / "sleeper.yaml"
    path.write_text(APPLICATION)
    return path


def as_json(ran: Ran) -> Any:
    assert ran.code == 0, ran.err
    return json.loads(ran.out)


def test_an_api_token_may_what_its_role_says_until_it_is_revoked(stage: Stage, tmp_path: Path, manifest: Path) -> None:
    state = stage.hub_state
    made = run("token", "create", "--api", "--role", "viewer", "--ttl", "1d", "--name", "guest", state=state)
    assert made.code == 0, made.err
    assert "viewer in default, for 1d" in made.err
    file = tmp_path / "guest.token"
    file.write_text(made.out)
    guest = {"BATUTA_TOKEN_FILE": str(file)}
    assert run("get", "applications", state=state, env=guest).code == 0
    refused = run("apply", "-f", str(manifest), state=state, env=guest)
    assert refused.code == 1
    assert "guest may not apply" in refused.err
    assert "it takes role operator, and this token has viewer" in refused.err
    assert run("audit", state=state, env=guest).code == 1

    rows = {row["name"]: row for row in as_json(run("token", "ls", "-o", "json", state=state)) if row["sort"] == "api"}
    assert (rows["guest"]["role"], rows["guest"]["namespaces"], rows["guest"]["state"]) == ("viewer", "default", "open")
    assert rows["guest"]["last_used_from"] == "127.0.0.1"
    assert made.out.strip().rpartition(".")[2] not in json.dumps(rows)
    listed = run("token", "ls", state=state)
    assert "viewer in default" in listed.out
    assert run("token", "revoke", rows["guest"]["id"], state=state).code == 0
    gone = run("get", "applications", state=state, env=guest)
    assert (gone.code, "not one of this hub's" in gone.err) == (1, True)


def test_join_tokens_stay_the_default_and_options_of_the_other_sort_are_refused(stage: Stage) -> None:
    made = run("token", "create", "--site", "lab", state=stage.hub_state)
    assert made.out.startswith("batuta join batuta1.")
    for words in (("--role", "admin"), ("--namespace", "lab"), ("--api", "--site", "lab"), ("--api", "--uses", "2")):
        assert run("token", "create", *words, state=stage.hub_state).code == 2
    assert run("token", "create", "--api", "--ttl", "soon", state=stage.hub_state).code == 2


def test_the_audit_says_who_did_what_and_keeps_no_secret(stage: Stage, manifest: Path) -> None:
    state = stage.hub_state
    assert run("apply", "-f", str(manifest), state=state).code == 0
    assert run("delete", "application", "sleeper", state=state).code == 0
    lines = run("audit", "--kind", "app", "--name", "sleeper", "--since", "1h", "-o", "json", state=state).out
    entries = [json.loads(line) for line in lines.splitlines()][-2:]
    assert [(e["who"], e["verb"], e["outcome"]) for e in entries] == [
        ("local", "apply", "accepted"),
        ("local", "delete", "accepted"),
    ]
    assert entries[0]["after"]["spec"] == entries[1]["before"]["spec"]
    assert "hunter2" not in lines
    plain = run("audit", "--verb", "delete", "--who", "local", state=state)
    assert "applications/default/sleeper" in plain.out
    assert "Nothing that fits" in run("audit", "--who", "nobody", state=state).err
    assert run("audit", "--kind", "nothing", state=state).code == 2


def test_the_audit_is_followed(stage: Stage, manifest: Path) -> None:
    following = subprocess.Popen(
        [sys.executable, "-m", "batuta", "audit", "-f", "--kind", "app", "--limit", "1", "-o", "json"],
        stdout=subprocess.PIPE, text=True, env={**os.environ, "BATUTA_HOME": str(stage.hub_state)},
    )  # fmt: skip
    try:
        assert following.stdout is not None
        assert run("apply", "-f", str(manifest), state=stage.hub_state).code == 0
        assert run("delete", "application", "sleeper", state=stage.hub_state).code == 0
        seen = []
        while not seen or seen[-1] != "delete" or len(seen) < 2:
            seen.append(json.loads(following.stdout.readline())["verb"])
        assert seen[-2:] == ["apply", "delete"]
        following.send_signal(signal.SIGINT)
        assert following.wait(10) == 130
    finally:
        following.kill()
        following.wait()
        following.stdout.close()


def test_the_audit_survives_the_hub(stage: Stage, manifest: Path) -> None:
    assert run("apply", "-f", str(manifest), state=stage.hub_state).code == 0
    before = run("audit", "-o", "json", "--limit", "5000", state=stage.hub_state).out
    stage.kill_hub()
    stage.start_hub()
    after = run("audit", "-o", "json", "--limit", "5000", state=stage.hub_state).out
    assert after == before
    assert run("delete", "application", "sleeper", state=stage.hub_state).code == 0
    last = json.loads(run("audit", "-o", "json", "--limit", "1", state=stage.hub_state).out)
    assert last["sequence"] == json.loads(before.splitlines()[-1])["sequence"] + 1


def test_answers_on_a_kept_connection_wait_for_no_acknowledgement(stage: Stage) -> None:
    took_s = []
    for _ in range(21):
        began = time.perf_counter()
        stage.client.hub()
        took_s.append(time.perf_counter() - began)
    # Small pieces held back by the kernel would make it 40 ms each.
    assert statistics.median(took_s) < 0.02


KUBECTL = shutil.which("kubectl")


def kubectl(config: Path, *words: str) -> Ran:
    assert KUBECTL is not None
    clean = {k: v for k, v in os.environ.items() if k != "KUBECONFIG"}
    done = subprocess.run(
        [KUBECTL, "--kubeconfig", str(config), *words],
        capture_output=True, text=True, timeout=60, check=False, env={**clean, "HOME": str(config.parent)},
    )  # fmt: skip
    return Ran(done.returncode, done.stdout, done.stderr)


@pytest.mark.skipif(KUBECTL is None, reason="kubectl is not here")
def test_kubectl_works_with_the_written_file_within_its_rights(stage: Stage, tmp_path: Path, manifest: Path) -> None:
    state, file = stage.hub_state, tmp_path / "config"
    made = run("kubeconfig", "--out", str(file), state=state)
    assert made.code == 0, made.err
    assert "cannot be used" not in made.err
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    assert kubectl(file, "get", "nodes").code == 0
    assert "kubeconfig-batuta" in kubectl(file, "auth", "whoami").out
    applied = kubectl(file, "apply", "-f", str(manifest))
    assert applied.code == 0, applied.err
    assert kubectl(file, "auth", "can-i", "create", "applications", "-n", "lab").out.strip() == "yes"
    assert kubectl(file, "auth", "can-i", "delete", "nodes").out.startswith("no")
    assert kubectl(file, "delete", "application", "sleeper").code == 0
    lines = run("audit", "--who", "kubeconfig-batuta", "-o", "json", state=state).out.splitlines()
    assert json.loads(lines[-1])["verb"] == "delete"

    # A second one goes into the same file, beside the first.
    more = run("kubeconfig", "--out", str(file), "--name", "lab", "--role", "viewer", "-n", "lab", state=state)
    assert more.code == 0, more.err
    assert yaml.safe_load(file.read_text())["current-context"] == "batuta"
    assert kubectl(file, "get", "nodes").code == 0
    assert kubectl(file, "--context", "lab", "get", "applications").code == 0
    refused = kubectl(file, "--context", "lab", "get", "applications", "-A")
    assert "(Forbidden)" in refused.err
    assert kubectl(file, "--context", "lab", "auth", "can-i", "create", "applications").out.startswith("no")


def test_a_kubeconfig_is_refused_before_a_token_is_made(stage: Stage, tmp_path: Path) -> None:
    file = tmp_path / "config"
    file.write_text("kind: Secret\n")
    count = len(stage.client.tokens())
    assert run("kubeconfig", "--out", str(file), state=stage.hub_state).code == 1
    assert run("kubeconfig", "--server", "http://127.0.0.1:1", state=stage.hub_state).code == 2
    assert file.read_text() == "kind: Secret\n"
    assert len(stage.client.tokens()) == count
    printed = run("kubeconfig", "--out", "-", "--server", "https://elsewhere.invalid:8443", state=stage.hub_state)
    assert yaml.safe_load(printed.out)["clusters"][0]["cluster"]["server"] == "https://elsewhere.invalid:8443"
    assert "cannot be used from here yet" in printed.err


def test_merging_replaces_what_is_ours_and_keeps_the_rest() -> None:
    theirs = {"name": "work", "cluster": {"server": "https://work"}}
    known = {"kind": "Config", "clusters": [theirs, {"name": "hub"}], "current-context": "work", "extensions": [1]}
    document = merged(known, "hub", server="https://h", authority="PEM", token="t", namespace="lab")
    assert [c["name"] for c in document["clusters"]] == ["work", "hub"]
    assert document["clusters"][0] == theirs
    assert document["clusters"][1]["cluster"]["server"] == "https://h"
    assert (document["current-context"], document["extensions"]) == ("work", [1])
