"""The guide to rollouts: every command of it is run on a real hub and three real nodes, and what it prints is what the
page shows.

`BATUTA_REWRITE=1` writes what is printed now into the page; then read every line.
"""

from __future__ import annotations

import os
import re
import shlex
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import onnx
import onnx.helper
import pytest

from batuta.demo.stage import Stage, wait_for
from batuta.errors import NotFound
from batuta.kinds import Node
from batuta.kinds.manifest import parse

if TYPE_CHECKING:
    from collections.abc import Iterator

pytestmark = [pytest.mark.e2e, pytest.mark.slow]

PAGE = Path(__file__).parents[2] / "docs" / "guide" / "rollouts.md"
CONSOLE = re.compile(r"^```console\n(.*?)^```", re.MULTILINE | re.DOTALL)
NAMED = re.compile(r"^```yaml\n# (\S+\.yaml)\n(.*?)^```", re.MULTILINE | re.DOTALL)
NODES = ("pi-1", "pi-2", "pi-3")
REFUSED = ("batuta rollout resume watcher",)
"""Commands of the page that show a refusal."""


@pytest.fixture
def stage(tmp_path: Path) -> Iterator[Stage]:
    made = Stage(tmp_path / "stage")
    made.directory.mkdir()
    try:
        made.start_hub()
        for name in NODES:
            made.start_node(name, "lab")
        for name in NODES:
            made.client.wait(Node, name, lambda found: found.status["link"]["word"] == "online", timeout_s=120)
        yield made
    finally:
        killed = made.close()
    assert killed == [], "these did not end when asked to"


def test_the_page_shows_what_its_commands_print(stage: Stage, tmp_path: Path) -> None:
    here, text = tmp_path / "here", PAGE.read_text("utf-8")
    here.mkdir()
    files = dict(NAMED.findall(text))
    files["watcher-two.yaml"] = files["watcher.yaml"].replace("echo one", "echo two")
    files["watcher-broken.yaml"] = files["watcher.yaml"].replace(
        "echo one; exec sleep 86400", "echo no such device >&2; exit 3"
    )
    for name, written in files.items():
        (here / name).write_text(written)
    for name, operator in (("digits", "Relu"), ("better", "Sigmoid")):
        ends = [onnx.helper.make_tensor_value_info(n, onnx.TensorProto.FLOAT, ["n", 64]) for n in ("image", "scores")]
        node = onnx.helper.make_node(operator, ["image"], ["scores"])
        graph = onnx.helper.make_graph([node], "g", ends[:1], ends[1:])
        model = onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 17)], ir_version=8)
        model.producer_name = "guide"
        onnx.save(model, here / f"{name}.onnx")

    def played(block: re.Match[str]) -> str:
        commands = [line[2:] for line in block[1].splitlines() if line.startswith("$ ")]
        return "```console\n" + "".join(f"$ {c}\n{said(stage, here, c)}" for c in commands) + "```"

    now = CONSOLE.sub(played, text)
    assert now.count("$ batuta") >= 15
    if os.environ.get("BATUTA_REWRITE"):
        PAGE.write_text(now, "utf-8")
    assert now == text, "run it with BATUTA_REWRITE=1, then read every line"


def test_the_manifests_of_the_page_are_good() -> None:
    for name, text in NAMED.findall(PAGE.read_text("utf-8")):
        (application,) = parse(text, name)
        assert list(application.problems()) == []


def said(stage: Stage, here: Path, command: str) -> str:
    if command.startswith(("batuta rollout", "batuta get")):
        wait_for("nothing more to happen by itself", lambda: at_rest(stage) or None, 240)
    words = shlex.split(command)
    clean = {k: v for k, v in os.environ.items() if not k.startswith("BATUTA_")}
    done = subprocess.run(
        [sys.executable, "-m", *words], cwd=here, capture_output=True, text=True, timeout=300, check=False,
        env={**clean, "BATUTA_HOME": str(stage.hub_state), "PYTHONPATH": str(PAGE.parents[2]), "TZ": "UTC"},
    )  # fmt: skip
    is_refused = command in REFUSED
    assert done.returncode == (3 if is_refused else 0), f"{command}: {done.stdout}{done.stderr}"
    return "".join(f"{plain(line)}\n" for line in (done.stderr if is_refused else done.stdout).splitlines())


def at_rest(stage: Stage) -> bool:
    """Does the rollout wait for somebody, or is it over, and every node as it shall be?"""
    try:
        status = stage.client.rollouts.get("watcher").status
    except NotFound:
        return True
    nodes = status["nodes"]
    return nodes["updating"] == 0 and (
        status["phase"] in ("paused", "done", "undone", "aborted") or status["awaitsApproval"]
    )


def plain(line: str) -> str:
    """What differs from run to run is shown as it was once; digests of files are for readers no more than dots."""
    line = re.sub(r"sha256:[0-9a-f]+", lambda m: "sha256:…".ljust(len(m[0])), line)
    line = re.sub(r"begun \w+ ago(; through in about \w+, at [0-9:]+)?", "begun 20s ago", line)
    line = re.sub(r"[0-9.]+ s after it was first ready", "0.1 s after it was first ready", line)
    line = re.sub(r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d", "2026-11-21 12:00:00", line)
    return re.sub(r" +\d+m?\d*s$", "  20s", line).rstrip()
