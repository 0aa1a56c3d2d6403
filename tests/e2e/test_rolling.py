"""A release that arrives in waves on real processes, and one that does not work: its nodes go back by themselves."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Any

import pytest

from batuta.client import Client
from batuta.demo.stage import Stage, wait_for
from batuta.errors import NotFound
from batuta.kinds import Application, Node

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

pytestmark = [pytest.mark.e2e, pytest.mark.slow]

NODES = ("pi-1", "pi-2", "pi-3")
WORKER = """
import signal, sys, time
signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
with open(sys.argv[1], "a") as diary:
    diary.write(sys.argv[2] + "\\n")
if sys.argv[2] == "broken":
    sys.exit("it cannot work")
open("ready", "w").close()
while True:
    time.sleep(3600)
"""
READER = """\
apiVersion: batuta.dev/v1
kind: Application
metadata: {name: reader}
spec:
  components:
  - name: read
    process:
      command: [PYTHON, WORKER, DIARY, "WORD"]
      stopGrace: 2s
      ready: {exec: [test, -e, ready]}
    replicas: {everyNode: true}
    resources: {cpu: 10m, memory: 16Mi}
  rollout:
    waves: [1 node, 100%]
    soak: 10s
    probation: 20s
"""


@pytest.fixture
def stage(tmp_path: Path) -> Iterator[Stage]:
    made = Stage(tmp_path / "stage")
    try:
        made.start_hub()
        for name in NODES:
            made.start_node(name, "lab")
        for name in NODES:
            made.client.wait(Node, name, lambda found: found.status["link"]["word"] == "online", timeout_s=120)
        yield made
    finally:
        killed = made.close()
    assert killed == [], "these did not end when asked to"


def running(client: Client, word: str) -> int:
    """Ready instances of the release that came with this word."""
    component = client.get(Application, "reader").status["components"][0]
    return sum(i["ready"] for i in component["instances"] if i["revision"] == int(word))


def rollout(client: Client, release: int) -> dict[str, Any]:
    """The status of this release's rollout; empty while there is none."""
    try:
        found = client.rollouts.get("reader")
    except NotFound:
        return {}
    return dict(found.status) if found.resource.spec.release == release else {}


def test_a_release_comes_in_waves_and_one_that_does_not_work_is_taken_back(stage: Stage, tmp_path: Path) -> None:
    worker, diary = tmp_path / "worker.py", tmp_path / "diary"
    worker.write_text(WORKER)
    manifest = READER.replace("PYTHON", sys.executable).replace("WORKER", str(worker)).replace("DIARY", str(diary))
    client = stage.client
    client.apply(manifest.replace("WORD", "first"))
    client.wait(Application, "reader", lambda found: found.status["ready"] == "3/3", timeout_s=120)

    client.apply(manifest.replace("WORD", "second"))
    wait_for("the first wave to be watched", lambda: rollout(client, 2).get("phase") == "soaking" or None, 120)
    assert (running(client, "2"), running(client, "1")) == (1, 2)
    wait_for("the release to be seen through", lambda: rollout(client, 2).get("phase") == "done" or None, 120)
    client.wait(
        Application,
        "reader",
        lambda found: (found.status["state"], found.status["ready"]) == ("ok", "3/3"),
        timeout_s=120,
    )
    assert running(client, "2") == 3

    client.apply(manifest.replace("WORD", "broken"))
    wait_for("it to be taken back", lambda: rollout(client, 3).get("phase") == "undone" or None, 180)
    found = client.wait(
        Application, "reader", lambda found: found.status["ready"] == "3/3" and running(client, "2") == 3, timeout_s=120
    )
    assert found.status["state"] == "degraded"
    assert found.status["reasons"][0]["code"] == "release_turned_down"
    told = rollout(client, 3)
    assert len(told["turnedDown"]) == 3
    assert told["firstError"]
    # Those that were there all the while never ended, and nobody tries the broken one again.
    words = diary.read_text().split()
    assert words.count("first") == words.count("second") == 3
    assert words.count("broken") >= 3
