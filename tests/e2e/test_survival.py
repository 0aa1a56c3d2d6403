"""What outlives what: agents, workers, hubs and machines are killed -9, and nothing is started that already runs."""

from __future__ import annotations

import contextlib
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import psutil
import pytest

from batuta.demo.stage import processes_in, wait_for
from batuta.errors import BatutaError
from batuta.fabric import identity
from tests.e2e.playing import decided

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

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
    wait_for("the node", lambda: stage.online("pi"), 120)
    book = stage.directory / "book"
    program = stage.directory / "count.py"
    program.write_text(COUNTING.format(book=str(book)))
    stage.client.apply(MANIFEST.format(python=sys.executable, program=program))
    wait_for("the program", lambda: (ready(stage) and starts(book) == 1) or None, 120)
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


def heard_after(stage: Stage, at: float) -> bool | None:
    """The node has said how it is since that instant, in milliseconds: what the hub knew before does not count."""
    return stage.node_status("pi")["reportedAt"] > at or None


def next_hub(stage: Stage, epoch: int) -> bool | None:
    """A hub that began after that one answers, and has heard the node itself: it remembers no one else's hearing."""
    with contextlib.suppress(BatutaError, OSError):  # nobody answers yet
        return (stage.client.hub()["epoch"] > epoch and stage.online("pi")) or None
    return None


def test_a_killed_agent_finds_its_instances_running(stage: Stage) -> None:
    book = play_counter(stage)
    program, serial = pids(stage, "count.py"), stage.node_status("pi")["serial"]
    agent = stage.nodes["pi"].running
    agent.kill()
    agent.wait(5)
    assert pids(stage, "count.py") == program, "the instance must not die with the node agent"
    killed_at = time.time() * 1000
    stage.restart_node("pi")
    wait_for("the agent again", lambda: heard_after(stage, killed_at) and ready(stage), 120)
    assert pids(stage, "count.py") == program
    assert starts(book) == 1
    assert (instance(stage)["starts"], stage.node_status("pi")["serial"]) == (1, serial)


def test_a_killed_instance_is_started_again_and_said(stage: Stage) -> None:
    book = play_counter(stage)
    for pid in pids(stage, "count.py"):
        psutil.Process(pid).kill()
    wait_for("a second start", lambda: starts(book) == 2 or None, 120)
    wait_for("ready again", lambda: (ready(stage) and instance(stage)["starts"] == 2) or None, 120)


def test_a_killed_hub_changes_nothing_at_the_node(stage: Stage) -> None:
    book = play_counter(stage)
    node = {process.pid for process in processes_in(stage.directory / "pi")} | pids(stage, "count.py")
    before, serial = decided(stage), stage.node_status("pi")["serial"]
    assert {key.partition(".")[0] for key in before} >= {"assignment", "release"}
    hub = [p for p in processes_in(stage.hub_state) if "batuta.web" in p.cmdline()]
    assert len(hub) == 1, "the hub is a process of its own"
    epoch = stage.client.hub()["epoch"]
    hub[0].kill()
    wait_for("the next hub to hear the node", lambda: next_hub(stage, epoch), 120)
    assert ready(stage)
    # Every row that was decided is the same row: it was not even written again.
    assert decided(stage) == before
    assert stage.node_status("pi")["serial"] == serial
    assert {process.pid for process in processes_in(stage.directory / "pi")} | pids(stage, "count.py") == node
    assert starts(book) == 1
    assert "the hub process ended with -9" in stage.log_tail("hub")


def test_a_machine_comes_up_without_its_hub(stage: Stage) -> None:
    book = play_counter(stage)
    stage.kill_node("pi")
    stage.kill_hub()
    assert processes_in(stage.directory) == []
    began = time.monotonic()
    stage.restart_node("pi")
    wait_for("the program from the ledger", lambda: starts(book) == 2 or None, 120)
    assert time.monotonic() - began < 10


# --- Ctrl-C while a node begins ---


def holds_back(process: subprocess.Popen[bytes]) -> bool | None:
    """It has begun, and holds SIGINT back until it can act on it."""
    lines = Path(f"/proc/{process.pid}/status").read_text().splitlines()
    blocked = next(int(line.split()[1], 16) for line in lines if line.startswith("SigBlk:"))
    return bool(blocked & 1 << (signal.SIGINT - 1)) or None


def test_ctrl_c_before_the_agent_is_there_still_ends_what_an_earlier_one_left(stage: Stage) -> None:
    play_counter(stage)
    agent = stage.nodes["pi"].running
    for moment in (holds_back, is_the_agent):
        agent.kill()
        agent.wait(5)
        assert pids(stage, "count.py")
        assert pids(stage, "nats-server")
        stage.restart_node("pi")
        agent = stage.nodes["pi"].running
        wait_for("the moment", lambda agent=agent, moment=moment: moment(agent), 120)  # type: ignore[misc]
        agent.send_signal(signal.SIGINT)
        assert agent.wait(20) == 0
        assert processes_in(stage.directory / "pi") == []
        assert pids(stage, "count.py") == set()
        assert "Traceback" not in stage.log_tail("pi", 50)
        stage.restart_node("pi")
        agent = stage.nodes["pi"].running
        wait_for("the program", lambda: pids(stage, "count.py") or None, 120)


def is_the_agent(process: subprocess.Popen[bytes]) -> bool | None:
    """The command line has become the bare agent, which loads its modules."""
    return "batuta.agent" in psutil.Process(process.pid).cmdline() or None


@pytest.fixture
def mute() -> Iterator[int]:
    """A port where somebody listens and never says a word."""
    with socket.socket() as listening:
        listening.bind(("127.0.0.1", 0))
        listening.listen()
        yield listening.getsockname()[1]


@pytest.mark.parametrize(("how", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, -signal.SIGTERM)])
def test_ctrl_c_while_it_asks_a_hub_leaves_nothing_behind(
    tmp_path: Path, mute: int, how: signal.Signals, code: int
) -> None:
    token, _ = identity.make_token(
        hubs=[f"https://127.0.0.1:{mute}"], pin="ab" * 32, chance=bytes(30), expires_at=2**50, site="home"
    )
    process = subprocess.Popen(
        [sys.executable, "-m", "batuta", "join", "-", "--state", str(tmp_path), "--name", "pi"],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    try:
        assert process.stdin is not None
        process.stdin.write(identity.write_token(token))
        process.stdin.close()
        process.stdin = None

        def asking() -> psutil.Process | None:
            children = psutil.Process(process.pid).children()
            # Its key is on disk before anybody is asked.
            return children[0] if children and (tmp_path / "node" / "identity" / "key.pem").exists() else None

        child = wait_for("the process that asks", asking, 120)
        process.send_signal(how)
        out, err = process.communicate(timeout=10)
        assert (process.returncode, out, err.strip()) == (code, "", "")
        child.wait(5)
        assert not (tmp_path / "node" / "identity" / "node.json").exists()
    finally:
        process.kill()
        process.wait(5)
