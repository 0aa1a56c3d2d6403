"""The guide to models: every command of it is run on a real hub, and what it prints is what the page shows.

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

from batuta.demo.stage import Stage
from batuta.kinds.manifest import parse

if TYPE_CHECKING:
    from collections.abc import Iterator

pytestmark = pytest.mark.e2e

PAGE = Path(__file__).parents[2] / "docs" / "guide" / "models.md"
CONSOLE = re.compile(r"^```console\n(.*?)^```", re.MULTILINE | re.DOTALL)


@pytest.fixture
def stage(tmp_path: Path) -> Iterator[Stage]:
    made = Stage(tmp_path / "stage")
    made.directory.mkdir()
    try:
        made.start_hub()
        yield made
    finally:
        killed = made.close()
    assert killed == [], "these did not end when asked to"


def test_the_page_shows_what_its_commands_print(stage: Stage, tmp_path: Path) -> None:
    here = tmp_path / "here"
    here.mkdir()
    for name, operator in (("digits", "Relu"), ("better", "Sigmoid")):
        ends = [onnx.helper.make_tensor_value_info(n, onnx.TensorProto.FLOAT, ["n", 64]) for n in ("image", "scores")]
        node = onnx.helper.make_node(operator, ["image"], ["scores"])
        graph = onnx.helper.make_graph([node], "g", ends[:1], ends[1:])
        model = onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 17)], ir_version=8)
        model.producer_name = "guide"
        onnx.save(model, here / f"{name}.onnx")
    (here / "train.csv").write_text("1,2,3\n")

    def played(block: re.Match[str]) -> str:
        commands = [line[2:] for line in block[1].splitlines() if line.startswith("$ ")]
        return "```console\n" + "".join(f"$ {c}\n{said(stage, here, c)}" for c in commands) + "```"

    text = PAGE.read_text("utf-8")
    now = CONSOLE.sub(played, text)
    assert now.count("$ batuta") >= 10
    if os.environ.get("BATUTA_REWRITE"):
        PAGE.write_text(now, "utf-8")
    assert now == text, "run it with BATUTA_REWRITE=1, then read every line"


def test_the_policy_of_the_page_is_one() -> None:
    (block,) = re.findall(r"^```yaml\n(.*?)^```", PAGE.read_text("utf-8"), re.MULTILINE | re.DOTALL)
    (policy,) = parse(block)
    assert list(policy.problems()) == []


def said(stage: Stage, here: Path, command: str) -> str:
    words = shlex.split(command)
    clean = {k: v for k, v in os.environ.items() if not k.startswith("BATUTA_")}
    done = subprocess.run(
        [sys.executable, "-m", *words], cwd=here, capture_output=True, text=True, timeout=120, check=False,
        env={**clean, "BATUTA_HOME": str(stage.hub_state), "PYTHONPATH": str(PAGE.parents[2])},
    )  # fmt: skip
    assert (done.returncode, done.stderr) == (0, ""), f"{command}: {done.stderr}"
    # Digests of keys and of times differ from run to run; those of files are for readers no more than dots.
    lines = re.sub(r"sha256:[0-9a-f]+", lambda m: "sha256:…".ljust(len(m[0])), done.stdout).splitlines()
    return "".join(f"{line.rstrip()}\n" for line in lines)
