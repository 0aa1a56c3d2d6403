"""Policies by the command line, against a real hub and a real node: declared, told of, and asked why."""

from __future__ import annotations

import json
import sys
from typing import TYPE_CHECKING

import pytest

from batuta.demo.stage import Stage
from batuta.kinds import Application, Node
from tests.cli.running import Ran, run

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

pytestmark = pytest.mark.e2e

APPLICATION = """\
apiVersion: batuta.dev/v1
kind: Application
metadata: {name: sleeper}
spec:
  components:
  - name: sleep
    process: {command: [PYTHON, -c, "import time; time.sleep(3600)"], stopGrace: 1s}
    resources: {cpu: 10m, memory: 16Mi, ports: [9071]}
"""
POLICY = """\
apiVersion: batuta.dev/v1
kind: Policy
metadata: {name: only-in-zone-1}
spec: {require: 'node.labels.zone == "1"', existing: stay, message: keep it in zone 1}
"""


@pytest.fixture(scope="module")
def stage(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stage]:
    made = Stage(tmp_path_factory.mktemp("stage"))
    try:
        made.start_hub()
        made.start_node("pi-1", "lab")
        made.client.wait(Node, "pi-1", lambda found: found.status["link"]["word"] == "online", timeout_s=90)
        yield made
    finally:
        killed = made.close()
    assert killed == [], "these did not end when asked to"


def batuta(stage: Stage, *arguments: str, stdin: str = "") -> Ran:
    return run(*arguments, state=stage.hub_state, stdin=stdin)


def test_a_policy_keeps_things_away_and_says_so(stage: Stage, tmp_path: Path) -> None:
    assert batuta(stage, "apply", "-f", "-", stdin=POLICY).out == "policies/only-in-zone-1 created\n"
    told = batuta(stage, "get", "policies").out.splitlines()[1].split()
    assert told[:4] == ["only-in-zone-1", "idle", "require", "0"]
    file = tmp_path / "sleeper.yaml"
    file.write_text(APPLICATION.replace("PYTHON", sys.executable))
    assert batuta(stage, "apply", "-f", str(file)).code == 0
    stage.client.wait(Application, "sleeper", lambda found: bool(found.status.get("reasons")), timeout_s=90)

    said = batuta(stage, "why", "sleeper").out
    assert "pi-1: only-in-zone-1: there is no node.labels.zone here" in said
    assert "policy only-in-zone-1 turns 1 node away" in said
    (slot,) = json.loads(batuta(stage, "why", "sleeper", "-o", "json").out)
    assert (slot["refused"], slot["policies"]) == ({"policy_fault": 1}, {"only-in-zone-1": 1})
    described = batuta(stage, "describe", "application", "sleeper").out
    assert "policy only-in-zone-1 turns 1 node away" in described
    assert "it cannot be answered on pi-1" in batuta(stage, "describe", "policy", "only-in-zone-1").out

    guarded = POLICY.replace("'node", "'!has(node.labels.zone) || node")
    assert batuta(stage, "apply", "-f", "-", stdin=guarded).out == "policies/only-in-zone-1 configured\n"
    stage.client.wait(Application, "sleeper", lambda found: found.status.get("state") == "ok", timeout_s=90)
    (slot,) = json.loads(batuta(stage, "why", "sleeper", "-o", "json").out)
    assert slot["holders"][0]["node"] == "pi-1"
    assert slot["holders"][0]["parts"]["stays"] > 0
    told = batuta(stage, "get", "policies").out.splitlines()[1].split()
    assert told[:5] == ["only-in-zone-1", "ok", "require", "1", "0"]
    assert batuta(stage, "delete", "app/sleeper").code == 0
    assert batuta(stage, "delete", "policy/only-in-zone-1").code == 0


def test_a_policy_that_makes_no_sense_is_refused_with_its_place(stage: Stage) -> None:
    ran = batuta(stage, "apply", "-f", "-", stdin=POLICY.replace("labels.zone ==", "labls.zone =="))
    assert ran.code == 3
    assert "4:23: spec.require: node has no field 'labls', did you mean 'labels'?" in ran.err
