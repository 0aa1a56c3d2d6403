"""The node agent as a real process, beside a real broker and under a real hub: crashes, damage, enrolment, weight."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec
import psutil
import pytest

from batuta.agent import identity as kept
from batuta.demo.stage import processes_in
from batuta.errors import BatutaError, NotFound
from batuta.fabric import identity

if TYPE_CHECKING:
    from collections.abc import Callable

    from batuta.demo.stage import Stage

pytestmark = pytest.mark.e2e

AGENT_RSS_BYTES_MAX = 35 * 2**20
HEAVY = (
    "numpy",
    "onnxruntime",
    "starlette",
    "jsonschema",
    "cel",
    "rich",
    "pydantic",
    "aiohttp",
    "ssl",
    "_ssl",
    "cryptography",
    "click",
)

PROGRAM = """\
import pathlib, time
book = pathlib.Path({book!r})
book.write_text(book.read_text() + 'x' if book.exists() else 'x')
print('counting', flush=True)
time.sleep(86400)
"""

MANIFEST = """\
apiVersion: batuta.dev/v1
kind: Application
metadata: {{name: counter}}
spec:
  components:
  - name: count
    process: {{command: [{python}, {program}], stopGrace: 2s}}
    replicas: {{count: 1}}
    failover: {{after: 1h}}
"""


PATIENCE = 4.0
"""How many times longer than usual a busy machine may take."""


def until(what: str, ask: Callable[[], Any], within_s: float = 30.0) -> Any:
    """The first answer that is true; what it was waiting for, when there is none."""
    deadline, last = time.monotonic() + within_s * PATIENCE, None
    while time.monotonic() < deadline:
        with contextlib.suppress(NotFound, KeyError, IndexError):
            last = ask()
            if last:
                return last
        time.sleep(0.05)
    raise AssertionError(f"{what} did not come true in {within_s} s; last: {last}")


class Play:
    """A hub, the node `pi`, and a program that counts its own starts."""

    def __init__(self, stage: Stage) -> None:
        self.stage = stage
        self.book = stage.directory / "book"
        self.state = stage.directory / "pi"
        self.home = self.state / "node"

    def begin(self) -> None:
        self.stage.start_hub()
        self.stage.start_node("pi", "home")
        until("the node", lambda: self.status()["link"]["word"] == "online" and self.status()["mqtt"])
        program = self.stage.directory / "count.py"
        program.write_text(PROGRAM.format(book=str(self.book)))
        self.stage.client.apply(MANIFEST.format(python=sys.executable, program=program))
        until("the program", lambda: self.ready() and self.starts() == 1)

    def status(self) -> Any:
        return self.stage.node_status("pi")

    def ready(self) -> bool:
        found = self.stage.instances("counter")
        return bool(found) and found[0]["phase"] == "ready"

    def heard_after(self, at: float) -> None:
        until("a report", lambda: self.status()["reportedAt"] > at and self.ready())

    def codes(self) -> list[str]:
        return [problem["code"] for problem in self.status()["problems"]]

    def starts(self) -> int:
        return len(self.book.read_text()) if self.book.exists() else 0

    def processes(self, word: str) -> list[psutil.Process]:
        found = []
        for process in processes_in(self.state):
            with contextlib.suppress(psutil.NoSuchProcess):
                if word in " ".join(process.cmdline()):
                    found.append(process)
        return found

    def agent(self) -> psutil.Process:
        return self.processes("batuta.agent")[0]

    def broker(self) -> psutil.Process:
        return self.processes("nats-server")[0]

    def counting(self) -> list[int]:
        return [
            p.pid
            for p in psutil.process_iter(["cmdline"])
            if str(self.stage.directory / "count.py") in (p.info["cmdline"] or [])
        ]

    def client_port(self) -> int:
        return int(json.loads((self.home / "broker" / "place.json").read_bytes())["clientPort"])


@pytest.fixture
def play(stage: Stage) -> Play:
    made = Play(stage)
    made.begin()
    return made


def test_the_agent_is_light_and_says_what_it_and_its_broker_weigh(play: Play) -> None:
    time.sleep(3)  # it settles two seconds after its start; there is nothing else to wait for
    agent, broker = play.agent().memory_info().rss, play.broker().memory_info().rss
    print(f"agent {agent / 2**20:.1f} MiB, broker {broker / 2**20:.1f} MiB")
    assert agent <= AGENT_RSS_BYTES_MAX
    assert until("vitals", lambda: play.status()["vitals"].get("agentRss"))


def test_the_agent_loads_nothing_heavy(play: Play) -> None:
    play.stage.nodes["pi"].running.send_signal(signal.SIGHUP)
    play.stage.nodes["pi"].running.wait(20)
    seen = play.stage.directory / "modules"
    agent = subprocess.Popen(
        [
            sys.executable,
            "-m",
            "batuta.agent",
            "--state",
            str(play.state),
            "--mqtt-port",
            "0",
            "--debug-modules",
            str(seen),
        ]
    )
    try:
        until("the list", seen.exists, 20)
        modules = set(until("the list", lambda: seen.read_text().split()))
        assert "batuta.agent.loop" in modules
        assert modules.isdisjoint(HEAVY)
        assert play.starts() == 1, "SIGHUP left the instance running and the next agent adopted it"
    finally:
        agent.terminate()
        assert agent.wait(30) == 0


def test_kill_9_of_the_agent_leaves_instances_and_broker_to_be_adopted(play: Play) -> None:
    broker, counting = play.broker().pid, play.counting()
    for _ in range(2):
        play.agent().kill()
        play.stage.nodes["pi"].running.wait(10)
        assert play.counting() == counting
        play.stage.restart_node("pi")
        play.heard_after(time.time() * 1000)
    # At once: ending it while it starts must still end what the first one left.
    assert (play.broker().pid, play.counting(), play.starts()) == (broker, counting, 1)


def test_ended_while_it_starts_it_still_ends_what_was_left(play: Play) -> None:
    for after_s in (0.1, 0.3):
        play.agent().kill()
        play.stage.nodes["pi"].running.wait(10)
        play.stage.restart_node("pi")
        until("the bare agent", lambda: play.processes("-m batuta.agent"))
        time.sleep(after_s)
        play.stage.nodes["pi"].running.terminate()
        assert play.stage.nodes["pi"].running.wait(30) == 0
        assert (play.counting(), processes_in(play.state)) == ([], [])
        play.stage.restart_node("pi")
        until("the program", lambda: play.counting() and play.agent())


def test_a_cold_boot_without_a_hub_runs_what_the_ledger_says(play: Play) -> None:
    until("the ledger", lambda: b'"phase":"ready"' in (play.home / "ledger").read_bytes(), 10)
    play.stage.kill_hub()
    play.stage.kill_node("pi")
    for pid in play.counting():
        os.kill(pid, signal.SIGKILL)
    play.stage.restart_node("pi")
    until("the program", lambda: play.starts() == 2 and play.counting(), 15)


def test_a_corrupt_ledger_stops_nothing_and_is_reported(play: Play) -> None:
    counting = play.counting()
    play.agent().kill()
    play.stage.nodes["pi"].running.wait(10)
    for name in ("ledger", "ledger.old"):
        with contextlib.suppress(FileNotFoundError):
            (play.home / name).write_bytes(b"\0" * 100)
    play.stage.restart_node("pi")
    until("the report", lambda: "ledger_corrupt" in play.codes())
    until("the program", play.ready)
    assert (play.counting(), play.starts()) == (counting, 1), "found again, not started again"


@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGSTOP])
def test_a_broker_that_dies_or_freezes_is_started_again_in_its_place(play: Play, how: signal.Signals) -> None:
    before, port, mqtt = play.broker(), play.client_port(), play.status()["mqtt"]
    before.send_signal(how)
    until("another broker", lambda: [p for p in play.processes("nats-server") if p.pid != before.pid], 40)
    until("the report", lambda: "broker_restarted" in play.codes(), 30)
    assert (play.client_port(), play.status()["mqtt"]) == (port, mqtt)
    assert play.starts() == 1


def test_a_port_that_is_taken_is_replaced_and_said(stage: Stage) -> None:
    stage.start_hub()
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        token = stage.client.create_token("home", name="pi").token
        agent = subprocess.Popen(
            [sys.executable, "-m", "batuta", "join", "-", "--name", "pi", "--state", str(stage.directory / "pi"),
             "--mqtt-port", str(port)],
            stdin=subprocess.PIPE,
        )  # fmt: skip
        try:
            assert agent.stdin is not None
            agent.stdin.write(token.encode())
            agent.stdin.close()
            until("the report", lambda: "port_taken" in [p["code"] for p in stage.node_status("pi")["problems"]])
            assert stage.node_status("pi")["mqtt"] != f"127.0.0.1:{port}"
        finally:
            agent.terminate()
            assert agent.wait(30) == 0


def test_two_agents_cannot_share_a_state(play: Play) -> None:
    second = subprocess.run(
        [sys.executable, "-m", "batuta.agent", "--state", str(play.state)],
        capture_output=True,
        text=True,
        timeout=30,
        check=False,
    )
    assert second.returncode == 1
    assert f"another node agent (process {play.agent().pid})" in second.stderr
    assert "--state" in second.stderr


def test_an_orderly_end_leaves_nothing_and_the_next_start_brings_it_back(play: Play) -> None:
    play.stage.nodes["pi"].running.terminate()
    assert play.stage.nodes["pi"].running.wait(30) == 0
    assert (play.counting(), processes_in(play.state)) == ([], [])
    play.stage.restart_node("pi")
    until("the program", lambda: play.starts() == 2 and play.ready())


def test_a_certificate_is_renewed_before_it_ends(play: Play) -> None:
    here = kept.load(play.home / "identity")
    assert here is not None
    play.stage.nodes["pi"].running.send_signal(signal.SIGHUP)
    play.stage.nodes["pi"].running.wait(20)
    # As if most of its life were over: only what the agent wrote down about it is changed.
    now = time.time_ns() // 1_000_000
    kept.keep(play.home / "identity", msgspec.structs.replace(here, begins_at=now - 900_000, ends_at=now + 100_000))
    play.stage.restart_node("pi")

    def renewed() -> Any:
        after = kept.load(play.home / "identity")
        return after if after is not None and after.chain != here.chain else None

    after = until("a new certificate", renewed, 30)
    assert identity.node_in_certificate((play.home / "identity" / after.chain).read_text()) == "pi"
    assert after.renew_at() > now + 100_000
    play.heard_after(now + 2_000)
    assert play.starts() == 1


# --- Enrolment and its traps ---


def join(state: Path, token: str, name: str = "trap") -> dict[str, Any]:
    """What the enrolment child answers, asked as the agent asks it."""
    task = {"type": "join", "directory": str(state / "node" / "identity"), "token": token, "node": name}
    child = subprocess.run(
        [sys.executable, "-m", "batuta.agent.enrol"],
        input=json.dumps(task).encode(),
        capture_output=True,
        timeout=60,
        check=True,
    )
    said: dict[str, Any] = json.loads(child.stdout)
    return said


def test_every_trap_of_joining_has_a_name_and_a_next_step(stage: Stage, tmp_path: Path) -> None:
    stage.start_hub()
    text = stage.client.create_token("home").token
    token = identity.read_token(text)

    def refused(code: str, words: str, changed: str, name: str = "trap") -> None:
        said = join(tmp_path / "trap", changed, name)
        assert (said["type"], said.get("code")) == ("no", code), said
        assert words in said["message"]
        assert said["nextStep"]

    def like(**changes: Any) -> str:
        return identity.write_token(msgspec.structs.replace(token, **changes))

    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))
        nobody = closed.getsockname()[1]
    refused("token_garbled", "whole", text[:-12])
    refused("not_connected", "name is not known", like(hubs=("https://no-such-host.invalid:8443",)))
    refused("not_connected", "nobody listens", like(hubs=(f"https://127.0.0.1:{nobody}",)))
    refused("hub_not_trusted", "another root certificate", like(pin="ab" * 32))
    refused("token_unknown", "", like(secret="x" * 40))
    refused("name_invalid", "", text, "Not A Name")
    assert not (tmp_path / "trap" / "node" / "identity" / "node.json").exists()

    # One dead address in front does no harm; the token is spent; asking again with the same key is no second use.
    joined = join(tmp_path / "one", like(hubs=(f"https://127.0.0.1:{nobody}", *token.hubs)), "one")
    assert joined["identity"]["node"] == "one"
    directory = tmp_path / "one" / "node" / "identity"
    assert {oct(path.stat().st_mode & 0o777) for path in directory.iterdir()} == {"0o600"}
    (directory / "node.json").unlink()
    assert join(tmp_path / "one", text, "one")["identity"]["site"] == "home"
    refused("token_used", "", text)
    refused("name_taken", "", stage.client.create_token("home").token, "one")
    said = join(tmp_path / "one", like(pin="cd" * 32), "one")
    assert said["code"] == "other_hub"
    assert join(tmp_path / "one", like(secret="spent"), "one")["type"] == "done", "already a node of this hub: go on"


def test_a_machine_that_is_no_node_says_how_to_become_one(tmp_path: Path) -> None:
    agent = subprocess.run(
        [sys.executable, "-m", "batuta.agent", "--state", str(tmp_path)],
        capture_output=True,
        text=True,
        timeout=30,
        check=False,
    )
    assert agent.returncode == 1
    assert "batuta token create" in agent.stderr
    assert issubclass(NotFound, BatutaError)
