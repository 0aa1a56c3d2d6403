"""A program that holds its update lock is not updated until it lets go, on real processes."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING

import pytest

from batuta.demo.stage import wait_for
from batuta.kinds import Application

if TYPE_CHECKING:
    from pathlib import Path

    from batuta.demo.stage import Stage

pytestmark = [pytest.mark.e2e, pytest.mark.slow]

WORKER = """
import os, signal, sys, time
signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
diary, word, go = sys.argv[1:]
lock = os.environ["BATUTA_UPDATE_LOCK"]
if word == "first":
    open(lock, "w").close()
with open(diary, "a") as out:
    out.write(word + "\\n")
while True:
    if os.path.exists(go) and os.path.exists(lock):
        os.unlink(lock)
    time.sleep(0.1)
"""
MANIFEST = """\
apiVersion: batuta.dev/v1
kind: Application
metadata: {name: reader}
spec:
  components:
  - name: read
    process: {command: [PYTHON, WORKER, DIARY, "WORD", GO], stopGrace: 2s}
    resources: {cpu: 10m, memory: 64Mi}
"""


def test_what_holds_its_update_lock_is_updated_once_it_lets_go(stage: Stage, tmp_path: Path) -> None:
    worker, diary, go = tmp_path / "worker.py", tmp_path / "diary", tmp_path / "go"
    worker.write_text(WORKER)
    diary.write_text("")
    manifest = MANIFEST.replace("PYTHON", sys.executable).replace("WORKER", str(worker))
    manifest = manifest.replace("DIARY", str(diary)).replace("GO", str(go))
    stage.start_hub()
    stage.start_node("pi", "home")
    wait_for("the node", lambda: stage.online("pi"), 120, alive=stage.nodes["pi"].running)
    stage.client.apply(manifest.replace("WORD", "first"))
    stage.client.wait(Application, "reader", lambda found: found.status["ready"] == "1/1", timeout_s=120)
    lock = next((stage.nodes["pi"].state / "node" / "instances").glob("default/reader/*/update/lock"))
    client = stage.client
    wait_for("the hub to hear of it", lambda: any(i.get("locked") for i in stage.instances("reader")) or None, 60)

    def reasons() -> set[str]:
        return {reason["code"] for reason in client.get(Application, "reader").status["reasons"]}

    client.apply(manifest.replace("WORD", "second"))
    wait_for("the lock to be said", lambda: "update_locked" in reasons() or None, 120)
    assert diary.read_text().split() == ["first"]
    go.touch()
    wait_for("the update", lambda: diary.read_text().split() == ["first", "second"] or None, 120)
    wait_for("the first to be gone", lambda: not lock.exists() or None, 60)
    wait_for("rest", lambda: "update_locked" not in reasons() or None, 60)
