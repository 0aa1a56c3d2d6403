"""A drain within a disruption budget, on real processes: what they wrote down of themselves is held against it."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING

import pytest

from batuta.client import Client
from batuta.demo.stage import Stage, wait_for
from batuta.kinds import Application, Node
from tests.cli.running import Ran, run

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

pytestmark = [pytest.mark.e2e, pytest.mark.slow]

WORKER = """
import os, signal, sys, time

def note(word):
    with open(sys.argv[1], "a") as diary:
        diary.write(f"{word} {os.getpid()} {time.monotonic_ns()}\\n")

def end(*_):
    note("end")
    os._exit(0)

signal.signal(signal.SIGTERM, end)
note("begin")
while True:
    time.sleep(3600)
"""
PRESSES = """\
apiVersion: batuta.dev/v1
kind: Application
metadata: {name: presses}
spec:
  components:
  - name: press
    process: {command: [PYTHON, WORKER, DIARY], stopGrace: 2s}
    replicas: {count: 3}
    resources: {cpu: 10m, memory: 16Mi}
    runs: never-twice
  rollout:
    disruption: {perSite: BUDGET}
"""


@pytest.fixture
def stage(tmp_path: Path) -> Iterator[Stage]:
    made = Stage(tmp_path / "stage")
    try:
        made.start_hub()
        made.start_node("pi-1", "lab")
        made.client.wait(Node, "pi-1", lambda found: found.status["link"]["word"] == "online", timeout_s=90)
        yield made
    finally:
        killed = made.close()
    assert killed == [], "these did not end when asked to"


def batuta(stage: Stage, *arguments: str) -> Ran:
    return run(*arguments, state=stage.hub_state)


def homes(client: Client) -> set[str]:
    status = client.get(Application, "presses").status
    return {i["node"] for c in status["components"] for i in c["instances"]}


def least_at_once(diary: Path) -> int:
    """How many worked at the worst instant since all three did."""
    entries = sorted((int(at), word) for word, _, at in (line.split() for line in diary.read_text().splitlines()))
    working, least = 0, 3
    was_whole = False
    for _, word in entries:
        working += 1 if word == "begin" else -1
        was_whole = was_whole or working == 3
        least = min(least, working) if was_whole else least
    return least


def test_a_drain_never_has_more_missing_than_the_budget_allows(stage: Stage, tmp_path: Path) -> None:
    worker, diary = tmp_path / "worker.py", tmp_path / "diary"
    worker.write_text(WORKER)
    manifest = PRESSES.replace("PYTHON", sys.executable).replace("WORKER", str(worker)).replace("DIARY", str(diary))
    client = stage.client
    client.apply(manifest.replace("BUDGET", "0"))
    client.wait(Application, "presses", lambda found: found.status["ready"] == "3/3", timeout_s=90)
    assert homes(client) == {"pi-1"}
    stage.start_node("pi-2", "lab")
    client.wait(Node, "pi-2", lambda found: found.status["link"]["word"] == "online", timeout_s=90)

    # With none allowed to be missing it waits, and says for what and what to do.
    assert batuta(stage, "node", "drain", "pi-1").code == 0
    waits = wait_for("the drain to wait", lambda: _waits(client) if len(_waits(client)) == 3 else None, 60)
    assert {w["code"] for w in waits} == {"disruption_budget"}
    described = batuta(stage, "describe", "node", "pi-1").out
    assert "none may be missing at lab" in described
    assert "rollout.disruption" in described
    assert "none may be missing at lab" in batuta(stage, "why", "presses").out
    assert homes(client) == {"pi-1"}

    client.apply(manifest.replace("BUDGET", "1"))
    drained = batuta(stage, "node", "drain", "pi-1", "--wait", "--timeout", "120s")
    assert drained.code == 0, drained.err
    client.wait(Application, "presses", lambda found: found.status["state"] == "ok", timeout_s=90)
    assert homes(client) == {"pi-2"}
    assert client.get(Node, "pi-1").status["drain"] == {"left": 0, "stays": 0, "waits": []}
    words = [line.split()[0] for line in diary.read_text().splitlines()]
    assert (words.count("begin"), words.count("end")) == (6, 3)
    assert least_at_once(diary) == 2


def _waits(client: Client) -> list[dict[str, str]]:
    return list(client.get(Node, "pi-1").status.get("drain", {}).get("waits", []))
