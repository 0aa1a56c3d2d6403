"""Approval as people do it: a token, a machine that waits, a look at its key, a word; and a refusal."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from typing import TYPE_CHECKING

import pytest

from batuta.demo.stage import Stage, processes_in, wait_for
from tests.cli.running import Ran, run

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

pytestmark = pytest.mark.e2e


@pytest.fixture
def stage(tmp_path: Path) -> Iterator[Stage]:
    made = Stage(tmp_path)
    try:
        made.start_hub()
        yield made
    finally:
        killed = made.close()
    assert killed == [], "these did not end when asked to"


def batuta(stage: Stage, *words: str) -> Ran:
    return run(*words, "--state", str(stage.hub_state))


class Machine:
    """`batuta join -` with a token, as its own process, and what it has said so far."""

    def __init__(self, stage: Stage, name: str, line: str) -> None:
        self.state, self.log = stage.directory / name, stage.directory / f"{name}.err"
        words = ["join", "-", "--name", name, "--mqtt-port", "0", "--state", str(self.state)]
        with self.log.open("wb") as err:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "batuta", *words], stdin=subprocess.PIPE, stdout=err, stderr=err, text=True
            )
        assert self.process.stdin is not None
        self.process.stdin.write(line)
        self.process.stdin.close()

    def said(self) -> str:
        return self.log.read_text()

    def end(self) -> None:
        if self.process.poll() is None:
            self.process.terminate()
        self.process.wait(30)


def row(stage: Stage, name: str) -> list[str]:
    rows = [line.split() for line in batuta(stage, "get", "nodes").out.splitlines()]
    return next((each for each in rows if each[0] == name), [])


def test_a_machine_waits_until_it_is_approved(stage: Stage) -> None:
    made = batuta(stage, "token", "create", "--site", "lab", "--approve", "--uses", "2")
    assert "batuta node approve NAME" in made.err
    first, second = Machine(stage, "pi-1", made.out), Machine(stage, "pi-2", made.out)
    try:
        waiting = wait_for("its word", lambda: t if "waits for approval" in (t := first.said()) else None, 120)
        key = re.search(r"its key is ([0-9a-f-]{19})", waiting)
        assert key is not None, waiting
        assert "batuta node approve pi-1" in waiting
        wait_for("the other", lambda: "waits for approval" in second.said() or None, 120)

        # It is seen, and has nothing: no certificate, no broker, no assignment, no link.
        assert row(stage, "pi-1")[1:3] == ["lab", "pending"]
        seen = batuta(stage, "describe", "node", "pi-1").out
        assert "batuta node approve pi-1" in seen
        node = json.loads(batuta(stage, "get", "node", "pi-1", "-o", "json").out)
        assert node["spec"]["pending"] is True
        assert "serial" not in node["status"]
        assert sorted(p.name for p in (first.state / "node").rglob("*.pem")) == ["key.pem"]
        assert not [p for p in processes_in(first.state) if "nats-server" in p.name()]
        doctor = json.loads(batuta(stage, "doctor", "-o", "json").out)["checks"]
        check = next(c for c in doctor if c["name"] == "nodes")
        assert (check["result"], check["nextStep"]) == ("warn", "batuta node approve pi-1")
        # Not by a manifest, and not by an operator.
        text = batuta(stage, "get", "node", "pi-1", "-o", "yaml").out.replace("  pending: true\n", "")
        (stage.directory / "node.yaml").write_text(text)
        batuta(stage, "apply", "-f", str(stage.directory / "node.yaml"))
        assert row(stage, "pi-1")[2] == "pending"
        operator = batuta(stage, "token", "create", "--api", "--role", "operator", "-n", "*", "--name", "ops").out
        (stage.directory / "operator").write_text(operator)
        denied = batuta(stage, "node", "approve", "pi-1", "--token-file", str(stage.directory / "operator"))
        assert denied.code == 1
        assert "it takes role admin" in denied.err

        approved = batuta(stage, "node", "approve", "pi-1")
        assert (approved.code, approved.out) == (0, f"nodes/pi-1 approved, its key is {key[1]}\n")
        wait_for("the node", lambda: stage.online("pi-1"), 120)
        assert row(stage, "pi-1")[2] == "unassigned"

        # Refused is removed, and the machine is told so and ends.
        assert batuta(stage, "node", "remove", "pi-2").out == "nodes/pi-2 removed\n"
        assert second.process.wait(60) == 1
        assert "refused this machine" in second.said()
        assert row(stage, "pi-2") == []
        assert batuta(stage, "node", "approve", "pi-2").code == 1

        # Who did what is in the audit; that a machine asks again and again is not.
        items = [json.loads(line) for line in batuta(stage, "audit", "--limit", "1000", "-o", "json").out.splitlines()]
        did = [(e["verb"], e["who"], e["outcome"]) for e in items if e["what"].startswith("nodes/pi-1")]
        assert did.count(("enrol", "anonymous", "accepted")) == 2, "its enrolment and its declaration, once each"
        assert ("approve", "local", "accepted") in did
        assert [d for d in did if d[0] == "approve" and d[2] == "refused"]
        assert len([e for e in items if e["verb"] == "enrol"]) <= 7
    finally:
        first.end()
        second.end()


def test_a_waiting_machine_outlives_the_hub(stage: Stage) -> None:
    made = batuta(stage, "token", "create", "--approve")
    machine = Machine(stage, "pi-1", made.out)
    try:
        wait_for("its word", lambda: "waits for approval" in machine.said() or None, 120)
        stage.kill_hub()
        wait_for("that it notices", lambda: "cannot be reached" in machine.said() or None, 120)
        stage.start_hub()
        assert row(stage, "pi-1")[2] == "pending"
        assert batuta(stage, "node", "approve", "pi-1").code == 0
        wait_for("the node", lambda: stage.online("pi-1"), 90)
    finally:
        machine.end()


# --- The last words of a machine ---

COUGHING = """
apiVersion: batuta.dev/v1
kind: Application
metadata: {name: cough}
spec:
  components:
  - name: cough
    process: {command: [/bin/sh, -c, "echo last words; exit 3"]}
    resources: {cpu: 10m, memory: 8Mi}
  - name: sing
    process: {command: [/bin/sh, -c, "echo la la; while true; do sleep 60; done"], stopGrace: 1s}
    resources: {cpu: 10m, memory: 8Mi}
"""


def test_the_logs_of_a_machine_that_died_are_known_though_nobody_had_asked(stage: Stage) -> None:
    stage.start_node("pi-1", "lab")
    wait_for("the node", lambda: stage.online("pi-1"), 60)
    stage.client.apply(COUGHING)
    tails = stage.hub_state / "hub" / "tails"

    def kept() -> bool | None:
        said = "".join(path.read_text() for path in tails.glob("*.json"))
        return ("last words" in said and "la la" in said) or None

    wait_for("what is kept", kept, 60)
    stage.kill_node("pi-1")
    for _ in range(2):
        for component, words in (("cough", "last words"), ("sing", "la la")):
            ran = batuta(stage, "logs", f"cough/{component}", "--tail", "1")
            first, *rest = ran.out.splitlines()
            assert first.startswith("(pi-1 does not answer: its link is "), ran
            assert re.search(r"what follows is from \d+\w* ago\)$", first)
            assert rest == [words]
        # The next hub knows it too.
        stage.kill_hub()
        stage.start_hub()
