"""The command line against a real hub and a real node, started with the commands that people type."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import time
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import onnx
import onnx.helper
import pytest
from onnx import TensorProto, numpy_helper

from batuta.client import Client, connect
from batuta.demo.stage import Stage
from batuta.errors import NotFound
from batuta.kinds import Application, Model, Node, Site
from tests.cli.running import Ran, run

if TYPE_CHECKING:
    from collections.abc import Iterator

pytestmark = pytest.mark.e2e

APPLICATION = """\
apiVersion: batuta.dev/v1
kind: Application
metadata: {name: sleeper, labels: {team: night}}
spec:
  components:
  - name: sleep
    process: {command: [PYTHON, -u, -c, "import time; print('good night'); time.sleep(3600)"], stopGrace: 1s}
    resources: {cpu: 10m, memory: 16Mi}
"""


@pytest.fixture(scope="module")
def stage(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stage]:
    """One hub and one node for all tests of this file; each test leaves behind what it found."""
    made = Stage(tmp_path_factory.mktemp("stage"))
    try:
        made.start_hub()
        made.start_node("pi-1", "lab")
        made.client.wait(Node, "pi-1", lambda found: found.status["link"]["word"] == "online", timeout_s=90)
        yield made
    finally:
        killed = made.close()
    assert killed == [], "these did not end when asked to"


@pytest.fixture
def hub(stage: Stage) -> Client:
    return stage.client


@pytest.fixture
def manifest(tmp_path: Path) -> Path:
    path = tmp_path / "sleeper.yaml"
    path.write_text(APPLICATION.replace("PYTHON", sys.executable))
    return path


@pytest.fixture
def sleeper(stage: Stage, manifest: Path) -> Iterator[str]:
    """The application, running."""
    ran = batuta(stage, "apply", "-f", str(manifest), "--wait", "--timeout", "30s")
    assert ran.code == 0, ran.err
    yield "sleeper"
    assert batuta(stage, "delete", "-f", str(manifest)).code == 0


def batuta(stage: Stage, *arguments: str, **options: str) -> Ran:
    return run(*arguments, state=stage.hub_state, **options)  # type: ignore[arg-type]


def onnx_file(path: Path, *, width: int = 4, value: float = 0.0) -> Path:
    weight = numpy_helper.from_array(np.full((width, 3), value, dtype=np.float32), "W")
    graph = onnx.helper.make_graph(
        [onnx.helper.make_node("MatMul", ["x", "W"], ["y"])],
        "affine",
        [onnx.helper.make_tensor_value_info("x", TensorProto.FLOAT, [None, width])],
        [onnx.helper.make_tensor_value_info("y", TensorProto.FLOAT, [None, 3])],
        [weight],
    )
    onnx.save_model(onnx.helper.make_model(graph), path)
    return path


# --- Looking ---


def test_get_nodes(stage: Stage) -> None:
    ran = batuta(stage, "get", "nodes")
    assert (ran.code, ran.err) == (0, "")
    heading, row = ran.out.splitlines()
    assert heading.split()[:3] == ["NAME", "SITE", "STATE"]
    assert row.split()[:2] == ["pi-1", "lab"]
    assert "online" in row
    assert "\x1b" not in ran.out


@pytest.mark.parametrize("words", [("node", "pi-1"), ("no/pi-1",), ("Nodes", "pi-1")])
def test_a_kind_has_many_names(stage: Stage, words: tuple[str, ...]) -> None:
    assert batuta(stage, "get", *words, "-o", "name").out == "nodes/pi-1\n"


def test_get_as_json_and_yaml_is_the_whole_document(stage: Stage) -> None:
    import yaml

    one = json.loads(batuta(stage, "get", "node", "pi-1", "-o", "json").out)
    assert (one["kind"], one["metadata"]["name"], one["spec"]["site"]) == ("Node", "pi-1", "lab")
    assert one["status"]["link"]["word"] == "online"
    every = yaml.safe_load(batuta(stage, "get", "nodes", "-o", "yaml").out)
    assert (every["kind"], [item["metadata"]["name"] for item in every["items"]]) == ("List", ["pi-1"])


def test_what_is_not_there_is_said_with_a_next_step(stage: Stage) -> None:
    ran = batuta(stage, "get", "node", "pi-9")
    assert (ran.code, ran.out) == (1, "")
    assert "pi-9" in ran.err
    assert "next: " in ran.err


def test_an_empty_list_says_what_to_do(stage: Stage) -> None:
    ran = batuta(stage, "get", "applications")
    assert (ran.code, ran.out) == (0, "")
    assert ran.err == "No applications yet. Declare one: `batuta apply -f FILE`.\n"
    assert batuta(stage, "get", "applications", "-l", "team=day").err == "No applications with labels team=day.\n"


def test_describe_a_node(stage: Stage) -> None:
    ran = batuta(stage, "describe", "node", "pi-1")
    assert ran.code == 0, ran.err
    assert ran.out.startswith("Node pi-1\n")
    assert "online" in ran.out


def test_doctor_finds_the_hub_well(stage: Stage) -> None:
    ran = batuta(stage, "doctor", "-o", "json")
    assert ran.code == 0, ran.out
    results = {(c["section"], c["name"]): c["result"] for c in json.loads(ran.out)["checks"]}
    assert results["the hub", "nodes"] == "pass"
    assert results["the hub", "broker"] == "pass"


def test_doctor_finds_the_node_well(stage: Stage) -> None:
    ran = run("doctor", "-o", "json", state=stage.directory / "pi-1")
    results = {c["name"]: c["result"] for c in json.loads(ran.out)["checks"] if c["section"] == "this node"}
    assert set(results.values()) == {"pass"}, ran.out
    assert {"enrolment", "certificate", "node agent", "link to the hub"} <= results.keys()


# --- Declaring ---


def test_apply_wait_get_describe_why_logs_delete(stage: Stage, sleeper: str) -> None:
    row = batuta(stage, "get", "app", sleeper).out.splitlines()[1]
    assert row.split()[0] == "sleeper"
    wide = batuta(stage, "get", "apps", "-o", "wide", "-A").out
    assert "NAMESPACE" in wide
    assert "team=night" in wide
    assert "pi-1" in batuta(stage, "describe", "application", sleeper).out
    why = batuta(stage, "why", sleeper)
    assert why.code == 0, why.err
    assert "pi-1" in why.out
    logs = batuta(stage, "logs", sleeper, "--tail", "1")
    assert (logs.code, logs.out) == (0, "good night\n")


def test_apply_twice_changes_nothing(stage: Stage, sleeper: str, manifest: Path) -> None:
    assert batuta(stage, "apply", "-f", str(manifest)).out == "applications/sleeper unchanged\n"
    changed = batuta(stage, "apply", "-f", "-", "--dry-run", stdin=manifest.read_text().replace("10m", "11m"))
    assert changed.out == "applications/sleeper configured (dry run)\n"
    assert batuta(stage, "apply", "-f", str(manifest)).out == "applications/sleeper unchanged\n"


def test_logs_follow_until_interrupted(stage: Stage, sleeper: str) -> None:
    process = subprocess.Popen(
        [sys.executable, "-m", "batuta", "logs", sleeper, "-f", "--tail", "1", "--state", str(stage.hub_state)],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    assert process.stdout is not None
    assert process.stdout.readline() == "good night\n"
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=10)
    assert (process.returncode, out, err.strip()) == (130, "", "")


def test_watch_prints_rows_as_they_change(stage: Stage, manifest: Path) -> None:
    process = subprocess.Popen(
        [sys.executable, "-m", "batuta", "get", "apps", "-w", "-o", "json", "--state", str(stage.hub_state)],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    assert process.stdout is not None
    assert batuta(stage, "apply", "-f", str(manifest)).code == 0
    first = json.loads(process.stdout.readline())
    assert (first["type"], first["object"]["metadata"]["name"]) == ("ADDED", "sleeper")
    assert batuta(stage, "delete", "app", "sleeper").code == 0
    while json.loads(process.stdout.readline())["type"] != "DELETED":
        pass
    process.send_signal(signal.SIGINT)
    process.communicate(timeout=10)
    assert process.returncode == 130


def test_watch_as_a_table_prints_a_row_only_when_it_changed(stage: Stage, manifest: Path) -> None:
    process = subprocess.Popen(
        [sys.executable, "-m", "batuta", "get", "apps", "-w", "--state", str(stage.hub_state)],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    assert process.stdout is not None
    assert batuta(stage, "apply", "-f", str(manifest), "--wait").code == 0
    assert batuta(stage, "delete", "app", "sleeper").code == 0
    lines = []
    while not (lines and lines[-1].endswith("deleted")):
        lines.append(process.stdout.readline().rstrip())
    process.send_signal(signal.SIGINT)
    process.communicate(timeout=10)
    heading, *rows = lines
    assert heading.split() == ["NAME", "STATE", "READY", "RELEASE", "REASON", "AGE"]
    assert all(row.startswith("sleeper ") for row in rows)
    without_age = [row.split()[:-1] for row in rows[:-1]]
    assert all(before != after for before, after in pairwise(without_age))
    assert any(row.split()[1:3] == ["ok", "1/1"] for row in rows)


def test_waiting_in_vain_ends_with_the_first_real_reason(stage: Stage, manifest: Path) -> None:
    manifest.write_text(manifest.read_text().replace("memory: 16Mi", "memory: 900Gi"))
    ran = batuta(stage, "apply", "-f", str(manifest), "--wait", "--timeout", "2s")
    try:
        assert ran.code == 1
        assert "too little memory is free" in ran.err
        assert "batuta why sleeper" in ran.err
        why = batuta(stage, "why", "sleeper/sleep", "--node", "pi-1")
        assert "too little memory is free" in why.out
    finally:
        assert batuta(stage, "delete", "app/sleeper").code == 0


def test_what_only_the_hub_can_refuse_changes_nothing(stage: Stage, tmp_path: Path) -> None:
    """Two files become one request: each is well by itself, together they close a ring."""
    site = "apiVersion: batuta.dev/v1\nkind: Site\nmetadata: {{name: {0}}}\nspec: {{parent: {1}}}\n"
    (tmp_path / "a.yaml").write_text(site.format("attic", "cellar"))
    (tmp_path / "b.yaml").write_text(site.format("cellar", "attic"))
    assert batuta(stage, "apply", "--offline", "-f", str(tmp_path)).code == 0
    ran = batuta(stage, "apply", "-f", str(tmp_path))
    assert (ran.code, ran.out) == (3, "")
    assert "attic → cellar → attic" in ran.err
    assert batuta(stage, "get", "site", "attic").code == 1, "all or nothing"


def test_delete_what_others_need_is_refused(stage: Stage) -> None:
    ran = batuta(stage, "delete", "site", "lab")
    assert (ran.code, ran.out) == (3, "")
    assert "pi-1" in ran.err


def test_delete_what_is_not_there(stage: Stage) -> None:
    assert batuta(stage, "delete", "site", "nowhere").code == 1
    assert batuta(stage, "delete", "site", "nowhere", "--ignore-missing").code == 0


# --- Models ---


def test_push_a_model_its_next_version_and_another_file_under_its_name(stage: Stage, tmp_path: Path) -> None:
    first, other = onnx_file(tmp_path / "a.onnx"), onnx_file(tmp_path / "b.onnx", value=1.0)
    name = ("--name", "affine", "--labels", "a,b,c", "--task", "classification")
    ran = batuta(stage, "model", "push", str(first), *name, "--version", "1")
    assert ran.code == 0, ran.err
    assert ran.out.splitlines()[:3] == [
        f"models/affine created: version 1, variant fp32, {first.stat().st_size} B",
        "  in   x float32[?,4]",
        "  out  y float32[?,3]",
    ]
    assert "unchanged" in batuta(stage, "model", "push", str(first), *name, "--version", "1").out
    refused = batuta(stage, "model", "push", str(other), *name, "--version", "1")
    assert refused.code == 3
    assert "other bytes" in refused.err
    assert "version added" in batuta(stage, "model", "push", str(other), *name, "--version", "2").out
    rows = [line.split()[:4] for line in batuta(stage, "model", "ls").out.splitlines()]
    assert rows == [
        ["NAME", "VERSION", "VARIANT", "FORMAT"], ["affine", "1", "fp32", "onnx"], ["affine", "2", "fp32", "onnx"],
    ]  # fmt: skip
    found = stage.client.get(Model, "affine").resource.spec
    assert [v.labels for v in found.versions] == [("a", "b", "c")] * 2
    assert batuta(stage, "delete", "model", "affine").code == 0


def test_what_is_no_model_is_not_uploaded(stage: Stage, tmp_path: Path) -> None:
    (tmp_path / "x.onnx").write_text("hello")
    ran = batuta(stage, "model", "push", str(tmp_path / "x.onnx"), "--name", "x", "--version", "1")
    assert ran.code == 1
    assert "not an ONNX model" in ran.err
    with pytest.raises(NotFound):
        stage.client.get(Model, "x")


# --- Tokens ---


def test_tokens_are_made_listed_and_revoked(stage: Stage) -> None:
    made = json.loads(batuta(stage, "token", "create", "--site", "attic", "--ttl", "5m", "-o", "json").out)
    assert made["site"] == "attic"
    listed = batuta(stage, "token", "ls").out
    assert made["id"] in listed
    assert made["token"] not in listed
    assert batuta(stage, "token", "revoke", made["id"]).code == 0
    ran = run("join", made["token"], "--name", "late-comer", state=stage.directory / "late")
    assert ran.code == 1
    assert "next: " in ran.err


def test_token_create_prints_the_line_to_paste_and_nothing_else(stage: Stage) -> None:
    ran = batuta(stage, "token", "create")
    assert ran.out.startswith("batuta join ")
    assert len(ran.out.splitlines()) == 1
    assert "works once" in ran.err
    (mine,) = [t for t in stage.client.tokens() if t.state == "open"]
    stage.client.revoke_token(mine.id)


def test_a_node_shows_no_token_in_its_arguments_and_carries_no_command_line(stage: Stage) -> None:
    """The process that `batuta join TOKEN` became is the bare agent."""
    import psutil

    process = psutil.Process(stage.nodes["pi-1"].running.pid)
    assert process.cmdline()[1:3] == ["-m", "batuta.agent"]


# --- Python ---


def test_the_client_waits_and_lists(hub: Client) -> None:
    assert [f.resource.metadata.name for f in hub.list(Node)] == ["pi-1"]
    assert "lab" in [f.resource.metadata.name for f in hub.list(Site)]
    assert hub.list(Application, namespace=None) == ()
    began = time.monotonic()
    found = hub.wait(Node, "pi-1", lambda f: f.status["link"]["word"] == "online", timeout_s=90)
    assert found.resource.spec.site == "lab"
    assert time.monotonic() - began < 5


def test_a_wrong_token_is_turned_away(stage: Stage, tmp_path: Path) -> None:
    (tmp_path / "token").write_text("wrong")
    server = connect(stage.hub_state).server
    ran = run("get", "nodes", "--server", server, "--token-file", str(tmp_path / "token"))
    assert ran.code == 1
    assert "token" in ran.err
