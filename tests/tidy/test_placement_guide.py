"""The guide to placement is played: its manifests are applied to its fleet, and what `why` says is what it prints.

`BATUTA_REWRITE=1` writes what is said now into the guide; then read every line.
"""

from __future__ import annotations

import os
import re

import click
import msgspec

from batuta.cli.why import told
from batuta.core.constraints import FILTERS
from batuta.core.decide import decide
from batuta.core.observed import Accelerator, Inventory, Report, Sighting
from batuta.core.preferences import SCORERS
from batuta.core.reasons import CATALOGUE
from batuta.core.state import Change, State
from batuta.core.why import why
from batuta.kinds.base import Bytes, Millicores
from batuta.kinds.manifest import parse
from batuta.kinds.policy import PREFERENCES
from tests.core.fleets import NOW, obeys
from tests.tidy.sources import ROOT

GUIDE = ROOT / "docs" / "guide" / "placement.md"
MIB, GIB = 2**20, 2**30

MACHINES = {
    "pi-1": Inventory(architecture="arm64", hardware="raspberry-pi-4-model-b", devices=("/dev/video0",)),
    "pi-2": Inventory(architecture="arm64", hardware="raspberry-pi-4-model-b", devices=("/dev/video0",)),
    "box-1": Inventory(architecture="amd64", accelerators=(Accelerator(kind="nvidia", name="RTX A2000"),)),
    "van-1": Inventory(architecture="arm64", hardware="raspberry-pi-4-model-b"),
    "us-1": Inventory(architecture="amd64"),
}
SIZES = {"box-1": (16_000, 32 * GIB), "us-1": (8_000, 16 * GIB)}


def _played() -> State:
    text = GUIDE.read_text("utf-8")
    rows = []
    for block in re.findall(r"^```yaml\n(.*?)^```", text, re.MULTILINE | re.DOTALL):
        rows += [Change("desired", r.ref.key, r) for r in parse(block)]
    for name, told_of in MACHINES.items():
        cpu, memory = SIZES.get(name, (4_000, 2 * GIB))
        inventory = msgspec.structs.replace(
            told_of, cpu_millis=Millicores(cpu), memory_bytes=Bytes(memory), disk_bytes=Bytes(30 * GIB),
            runtimes=("onnx", "process"),
        )  # fmt: skip
        report = Report(node=name, boot="1", sequence=1, at=NOW, inventory=inventory, address=f"{name}:7422")
        rows += [Change("observed", name, report)]
        rows += [Change("sightings", name, Sighting(last_seen=NOW, online_since=NOW - 7_200_000))]
    state = State(hub_since=NOW - 7_200_000).with_changes(rows)
    for _ in range(20):
        decision = decide(state, NOW)
        if not decision.changes:
            return state
        state = obeys(state.with_changes(decision.changes))
    raise AssertionError("the guide's fleet never comes to rest")


def _said(state: State, application: str) -> str:
    lines = [line for answer in why(state, NOW, f"default/{application}") for line in told(answer)]
    return "".join(f"{click.unstyle(line)}\n" for line in lines)


def _table(head: str, rows: list[str]) -> str:
    width = head.count("|") - 1
    return f"{head}\n|{'---|' * width}\n" + "".join(f"{row}\n" for row in rows)


def rendered() -> str:
    """The guide with everything in it that follows from the code."""
    text, state = GUIDE.read_text("utf-8"), _played()
    for application in re.findall(r"<!-- why: (\S+) -->", text):
        block = rf"(<!-- why: {application} -->\n```text\n).*?(```)"
        said = _said(state, application)
        text = re.sub(block, lambda m, said=said: m[1] + said + m[2], text, flags=re.DOTALL)
    preferences = [f"| `{s.name}` | {s.weight} | {s.sentence} |" for s in SCORERS]
    constraints = [f"| `{f.code}` | {CATALOGUE[f.code].sentence} |" for f in FILTERS]
    for head, rows in (
        ("| preference | weight | a node is preferred when |", preferences),
        ("| reason | it means |", constraints),
    ):
        block = re.escape(head) + r"\n\|[-|]+\n(?:\|.*\n)*"
        text = re.sub(block, lambda _, head=head, rows=rows: _table(head, rows), text)
    return text


def test_the_guide_says_what_is_so():
    now = rendered()
    if os.environ.get("BATUTA_REWRITE"):
        GUIDE.write_text(now)
    assert GUIDE.read_text("utf-8") == now


def test_everything_lands_where_the_guide_means_it_to():
    state = _played()
    held = {f"{h.instance.component}-{h.instance.slot}": h for rows in state.held.values() for h in rows}
    assert {held["camera-0"].node, held["camera-1"].node} == {"pi-1", "pi-2"}
    assert held["plates-0"].node == "box-1"
    assert held["archive-0"].node in ("pi-1", "pi-2", "box-1")
    variants = {h.node: h.instance.model.variant.name for h in held.values() if h.instance.model is not None}
    assert variants == {"box-1": "fp32", "pi-1": "int8", "pi-2": "int8"}


def test_the_words_for_preferences_are_those_that_weigh():
    assert tuple(s.name for s in SCORERS) == PREFERENCES


def test_every_constraint_is_in_the_catalogue_and_in_its_order():
    codes = [f.code for f in FILTERS]
    assert codes == [code for code in CATALOGUE if code in codes]
