"""Flags as programs have them: a real hub, real nodes, a program that asks by a stock OpenFeature provider."""

from __future__ import annotations

import json
import subprocess
import sys
import time
import urllib.request
from typing import TYPE_CHECKING, Any

import pytest

from batuta.demo.stage import wait_for
from batuta.errors import NotFound, Refused
from batuta.kinds import Application
from batuta.kinds.flag import Flag

if TYPE_CHECKING:
    from pathlib import Path

    from batuta.demo.stage import Stage

pytestmark = [pytest.mark.e2e, pytest.mark.slow]

FLAG = """\
apiVersion: batuta.dev/v1
kind: Flag
metadata: {name: overlay}
spec:
  variants: {new: true, old: false}
  default: old
  rules:
  - {when: 'site.name == "north"', split: {new: NEW, old: OLD}}
"""
# Asks ten times a second, and writes down what it was told and why.
PROGRAM = """
import os, time
from openfeature import api
from openfeature.contrib.provider.ofrep import OFREPProvider
from openfeature.evaluation_context import EvaluationContext
url = os.environ["BATUTA_FLAGS_URL"]
open("url", "w").write(url)
api.set_provider_and_wait(OFREPProvider(url, timeout=60))
client = api.get_client()
while True:
    said = client.get_boolean_details("overlay", False, EvaluationContext(os.environ["BATUTA_NODE"]))
    with open("new", "w") as file:
        file.write(f"{said.value} {said.variant} {said.reason}")
    os.replace("new", "said")
    time.sleep(0.1)
"""
READER = """\
apiVersion: batuta.dev/v1
kind: Application
metadata: {name: reader}
spec:
  components:
  - name: read
    process: {command: [PYTHON, -c, PROGRAM]}
    replicas: {everyNode: true}
    resources: {cpu: 10m, memory: 128Mi}
"""


def flag(new: int) -> str:
    return FLAG.replace("NEW", str(new)).replace("OLD", str(100 - new))


def said(stage: Stage, node: str) -> str:
    """What the program there was told last."""
    found = sorted((stage.nodes[node].state / "node" / "instances").glob("default/reader/*/said"))
    return found[-1].read_text() if found else ""


def told(stage: Stage, node: str, words: str, patience_s: float = 120) -> None:
    wait_for(f"{node} to be told {words!r}", lambda: said(stage, node) == words or None, patience_s)


def asked(url: str, key: str = "k") -> dict[str, Any]:
    body = json.dumps({"context": {"targetingKey": key}}).encode()
    request = urllib.request.Request(f"{url}/ofrep/v1/evaluate/flags/overlay", body, method="POST")
    with urllib.request.urlopen(request, timeout=60) as answer:
        found: dict[str, Any] = json.loads(answer.read())
        return found


def batuta(stage: Stage, *words: str) -> str:
    command = [sys.executable, "-m", "batuta", *words, "--state", str(stage.hub_state)]
    return subprocess.run(command, capture_output=True, text=True, check=True, timeout=120).stdout


def test_programs_are_told_what_people_declare_with_and_without_a_hub(stage: Stage) -> None:
    stage.start_hub()
    for name in ("north", "south"):
        stage.start_node(f"{name}-1", name)
    for name in ("north", "south"):
        wait_for(name, lambda name=name: stage.online(f"{name}-1"), 60)  # type: ignore[misc]
    stage.client.apply(flag(100))
    stage.client.apply(READER.replace("PYTHON", sys.executable).replace("PROGRAM", json.dumps(PROGRAM)))
    # No model is anywhere: the first question starts the gateway.
    told(stage, "north-1", "True new SPLIT")
    told(stage, "south-1", "False old DEFAULT")
    _is_told_at_once(stage)
    _is_seen_and_audited(stage)

    # Nobody decides any more; then the machine is switched off and on, and its program starts anew.
    stage.client.apply(flag(100))
    told(stage, "north-1", "True new SPLIT")
    url = _url(stage)
    stage.kill_hub()
    assert asked(url)["variant"] == "new"
    stage.kill_node("north-1")
    for each in (stage.nodes["north-1"].state / "node" / "instances").glob("default/reader/*/said"):
        each.unlink()
    stage.restart_node("north-1")
    told(stage, "north-1", "True new SPLIT")
    assert asked(_url(stage))["reason"] == "SPLIT"

    # What was changed while it was away reaches it when the hub is back.
    stage.start_hub()
    stage.client.apply(flag(0))
    told(stage, "north-1", "False old SPLIT")
    stage.client.delete(Flag, "overlay")
    told(stage, "north-1", "False None ERROR")
    with pytest.raises(NotFound):
        stage.client.flag_evaluation("overlay")
    stage.client.delete(Application, "reader")


def _is_told_at_once(stage: Stage) -> None:
    """Changes, as a program sees them that asks its node all the time; printed, because machines differ."""
    url, took_ms = _url(stage), []
    for new in (0, 100, 0, 100, 0):
        stage.client.apply(flag(new))
        began = time.perf_counter()
        wait_for("the change", lambda new=new: asked(url)["value"] == (new == 100) or None, 60)  # type: ignore[misc]
        took_ms.append(round((time.perf_counter() - began) * 1000))
    print(f"changes of a flag seen at the node after {took_ms} ms")


def _is_seen_and_audited(stage: Stage) -> None:
    wait_for("all", lambda: stage.client.get(Flag, "overlay").status["state"] == "ok" or None, 120)
    status = stage.client.get(Flag, "overlay").status
    assert (status["current"], status["given"]) == ("2/2", "old: 2")
    assert "overlay" in batuta(stage, "get", "flags")
    with pytest.raises(Refused, match="percent"):
        stage.client.apply(flag(0).replace("old: 100", "old: 99"))
    stage.client.apply(flag(20))

    def evaluated(key: str) -> dict[str, Any]:
        (item,) = stage.client.flag_evaluation("overlay", node="north-1", key=key)["items"]
        return dict(item)

    wait_for("the node to have it", lambda: evaluated("camera-1")["hasIt"] or None, 60)
    for n in range(8):
        here, there = evaluated(f"camera-{n}"), asked(_url(stage), f"camera-{n}")
        assert (here["variant"], here["value"], here["why"]) == (there["variant"], there["value"], "SPLIT")
    text = batuta(stage, "flag", "eval", "overlay", "--node", "south-1", "--key", "camera-1")
    assert "overlay on south-1 for camera-1 is old, false" in text
    assert "rule 1: no: site.name" in text
    kept = stage.client.audit({"what": "flags/default/overlay", "limit": 100})["items"]
    assert [entry["verb"] for entry in kept] == ["apply"] * 7


def _url(stage: Stage) -> str:
    found = sorted((stage.nodes["north-1"].state / "node" / "instances").glob("default/reader/*/url"))
    return _text(found[-1])


def _text(path: Path) -> str:
    return path.read_text()
