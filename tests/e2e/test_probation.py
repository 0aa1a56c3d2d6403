"""A release that works at first and then leaks, with the hub gone: its node goes back by itself, and stays there."""

from __future__ import annotations

import os
import signal
import sys
from typing import TYPE_CHECKING

import pytest

from batuta.agent.ledger import read
from batuta.demo.stage import Stage, wait_for
from batuta.kinds import Application

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

pytestmark = [pytest.mark.e2e, pytest.mark.slow]

WORKER = """
import os, signal, sys, time
signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
diary, word, go = sys.argv[1:]
kept = []
open("ready", "w").close()
while True:
    with open(diary, "a") as out:
        out.write(f"{word} {time.time()}\\n")
    if word == "leaky" and os.path.exists(go):
        kept.append(b"x" * (24 << 20))
    time.sleep(0.1)
"""
MANIFEST = """\
apiVersion: batuta.dev/v1
kind: Application
metadata: {name: reader}
spec:
  components:
  - name: read
    process:
      command: [PYTHON, WORKER, DIARY, "WORD", GO]
      ready: {exec: [test, -e, ready]}
      stopGrace: 2s
    resources: {cpu: 10m, memory: 96Mi}
  rollout: {probation: 10m}
"""


@pytest.fixture
def stage(tmp_path: Path) -> Iterator[Stage]:
    made = Stage(tmp_path / "stage")
    try:
        made.start_hub()
        made.start_node("pi", "lab")
        wait_for("the node", lambda: made.online("pi"), 120)
        yield made
    finally:
        killed = made.close()
    assert killed == [], "these did not end when asked to"


def test_with_the_hub_gone_a_node_goes_back_by_itself(stage: Stage, tmp_path: Path) -> None:
    worker, diary, go = tmp_path / "worker.py", tmp_path / "diary", tmp_path / "go"
    worker.write_text(WORKER)
    diary.write_text("")
    manifest = MANIFEST.replace("PYTHON", sys.executable).replace("WORKER", str(worker))
    manifest = manifest.replace("DIARY", str(diary)).replace("GO", str(go))

    def words() -> list[str]:
        return [line.split()[0] for line in diary.read_text().splitlines()]

    def works(word: str, times: int = 5) -> bool | None:
        return words()[-times:] == [word] * times or None

    stage.client.apply(manifest.replace("WORD", "sound"))
    stage.client.wait(Application, "reader", lambda found: found.status["ready"] == "1/1", timeout_s=120)
    stage.client.apply(manifest.replace("WORD", "leaky"))
    wait_for("the new release alone", lambda: works("leaky"), 120)
    ledger = stage.nodes["pi"].state / "node" / "ledger"

    def is_on_probation() -> bool | None:
        return any(each.first_ready_at is not None for each in read(ledger).locals) or None

    wait_for("its probation", is_on_probation, 60)
    stage.kill_hub()
    go.touch()
    wait_for("the old release again", lambda: works("sound"), 120)
    assert words().index("leaky") < len(words()) - 5

    def refused() -> str | None:
        found = [each for each in read(ledger).locals if each.phase == "refused"]
        return found[0].reason.detail if found and found[0].reason is not None else None

    why = wait_for("the verdict to be written down", refused, 30)
    assert "memory" in why
    assert "after it was first ready" in why

    # The node agent dies and comes back, still without a hub: what runs goes on, and nothing is tried again.
    count = words().count("leaky")
    agent = stage.nodes["pi"].running
    os.kill(agent.pid, signal.SIGKILL)
    agent.wait(10)
    stage.restart_node("pi")
    before = len(words())
    wait_for("it to have gone on for a while", lambda: len(words()) > before + 50 or None, 60)
    assert works("sound", 50)
    assert words().count("leaky") == count
