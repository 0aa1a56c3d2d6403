"""Moves that a policy makes by itself, on real processes: what is crowded parts, it is told, and it is audited."""

from __future__ import annotations

import json
import sys
import time
from typing import TYPE_CHECKING

import pytest

from batuta.demo.stage import Stage
from batuta.kinds import Application, Node
from tests.cli.running import run

if TYPE_CHECKING:
    from pathlib import Path

pytestmark = [pytest.mark.e2e, pytest.mark.slow]

APPLICATION = """\
apiVersion: batuta.dev/v1
kind: Application
metadata: {name: sleeper}
spec:
  components:
  - name: sleep
    process: {command: [PYTHON, -c, "import time; time.sleep(3600)"], stopGrace: 1s}
    replicas: {count: 4}
    resources: {cpu: 10m, memory: 16Mi}
"""
POLICY = """\
apiVersion: batuta.dev/v1
kind: Policy
metadata: {name: tidy}
spec:
  moves: {every: 1m, atMost: 2, leastGain: 1}
"""


def test_a_policy_parts_a_crowd_and_tells(tmp_path: Path) -> None:
    stage = Stage(tmp_path / "stage")

    def batuta(*arguments: str, stdin: str = "") -> str:
        return run(*arguments, state=stage.hub_state, stdin=stdin).out

    def is_up(name: str) -> None:
        stage.client.wait(Node, name, lambda found: found.status["link"]["word"] == "online", timeout_s=90)

    def is_whole(found: Application) -> bool:
        return bool(found.status["state"] == "ok" and found.status["ready"] == "4/4")

    try:
        stage.start_hub()
        stage.start_node("pi-1", "lab")
        is_up("pi-1")
        batuta("apply", "-f", "-", stdin=APPLICATION.replace("PYTHON", sys.executable))
        stage.client.wait(Application, "sleeper", is_whole, timeout_s=90)
        stage.start_node("pi-2", "lab")
        is_up("pi-2")
        assert batuta("apply", "-f", "-", stdin=POLICY) == "policies/tidy created\n"
        ends = time.monotonic() + 120
        while time.monotonic() < ends:
            told = json.loads(batuta("moves", "-o", "json"))
            if [m["state"] for m in told] == ["moved", "moved"]:
                break
            time.sleep(0.5)
        assert {(m["node"], m["to"], m["state"], m["by"]) for m in told} == {("pi-1", "pi-2", "moved", "policy/tidy")}
        stage.client.wait(Application, "sleeper", is_whole, timeout_s=90)
        table = batuta("moves")
        assert "default/" not in table
        assert table.splitlines()[1].split()[:5] == ["sleeper/sleep/0", "pi-1", "pi-2", "moved", "policy/tidy"]
        assert "moved by policy tidy from pi-1: pi-2 scores" in batuta("why", "sleeper")
        entries = [json.loads(line) for line in batuta("audit", "--verb", "move", "-o", "json").splitlines()]
        assert {(e["who"], e["what"]) for e in entries} == {("policy/tidy", "applications/default/sleeper")}
        policy = json.loads(batuta("get", "policies", "tidy", "-o", "json"))
        assert policy["status"]["moves"]["remembered"] == 2
    finally:
        stage.close()
