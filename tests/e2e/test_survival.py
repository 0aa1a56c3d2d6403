"""What outlives what: agents, workers, hubs and machines are killed -9, and nothing is started that already runs."""

from __future__ import annotations

import contextlib
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import psutil
import pytest

from batuta.demo.stage import processes_in, wait_for

if TYPE_CHECKING:
    from collections.abc import Mapping

    from batuta.demo.stage import Stage

pytestmark = pytest.mark.e2e

# The program counts its own starts: nobody but a real start can raise this number.
COUNTING = """\
import pathlib, time
book = pathlib.Path({book!r})
book.write_text(book.read_text() + 'x' if book.exists() else 'x')
while True:
    time.sleep(3600)
"""

MANIFEST = """\
apiVersion: batuta.dev/v1
kind: Application
metadata: {{name: counter}}
spec:
  components:
  - name: count
    process:
      command: [{python}, {program}]
    replicas: {{count: 1}}
    resources: {{cpu: 50m, memory: 64Mi}}
    failover: {{after: 1h}}
"""


def starts(book: Path) -> int:
    return len(book.read_text()) if book.exists() else 0


def play_counter(stage: Stage) -> Path:
    """One node, one program that counts its starts, running."""
    stage.start_hub()
    stage.start_node("pi", "home")
    wait_for("the node", lambda: stage.online("pi"), 30)
    book = stage.directory / "book"
    program = stage.directory / "count.py"
    program.write_text(COUNTING.format(book=str(book)))
    stage.client.apply(MANIFEST.format(python=sys.executable, program=program))
    wait_for("the program", lambda: ready(stage), 20)
    assert starts(book) == 1
    return book


def instance(stage: Stage) -> Mapping[str, Any]:
    found = stage.instances("counter")
    return found[0] if found else {"phase": "none"}


def ready(stage: Stage) -> bool | None:
    return instance(stage)["phase"] == "ready" or None


def pids(stage: Stage, word: str) -> set[int]:
    """Processes of the node whose command line has `word`."""
    found = set()
    for process in processes_in(stage.directory):
        with contextlib.suppress(psutil.NoSuchProcess):
            if any(word in part for part in process.cmdline()):
                found.add(process.pid)
    return found


def test_a_killed_agent_finds_its_instances_running(stage: Stage) -> None:
    book = play_counter(stage)
    program = pids(stage, "count.py")
    agent = stage.nodes["pi"].running
    agent.kill()
    agent.wait(5)
    assert pids(stage, "count.py") == program, "the instance must not die with the node agent"
    stage.restart_node("pi")
    wait_for("the agent again", lambda: stage.online("pi") and ready(stage), 30)
    assert pids(stage, "count.py") == program
    assert starts(book) == 1


def test_a_killed_instance_is_started_again_and_said(stage: Stage) -> None:
    book = play_counter(stage)
    for pid in pids(stage, "count.py"):
        psutil.Process(pid).kill()
    wait_for("a second start", lambda: starts(book) == 2 or None, 20)
    wait_for("ready again", lambda: (ready(stage) and instance(stage)["starts"] == 2) or None, 20)


def test_a_killed_hub_changes_nothing_at_the_node(stage: Stage) -> None:
    book = play_counter(stage)
    program = pids(stage, "count.py")
    serial = stage.node_status("pi")["serial"]
    hub = [p for p in processes_in(stage.hub_state) if "batuta.hub" in p.cmdline()]
    assert hub, "the hub is a process of its own"
    for process in hub:
        process.kill()
    wait_for("the hub again", lambda: _answers(stage), 30)
    wait_for("the node again", lambda: stage.online("pi") and ready(stage), 30)
    # Every change of an assignment raises its serial: the same serial means that nothing was decided anew.
    assert stage.node_status("pi")["serial"] == serial
    assert pids(stage, "count.py") == program
    assert starts(book) == 1


def test_a_machine_comes_up_without_its_hub(stage: Stage) -> None:
    book = play_counter(stage)
    stage.kill_node("pi")
    stage.kill_hub()
    assert processes_in(stage.directory) == []
    began = time.monotonic()
    stage.restart_node("pi")
    wait_for("the program from the ledger", lambda: starts(book) == 2 or None, 10)
    assert time.monotonic() - began < 10


def _answers(stage: Stage) -> bool | None:
    with contextlib.suppress(Exception):  # any failure to answer means: not yet
        stage.node_status("pi")
        return True
    return None
