"""`batuta rollout` and `--wait` on a real hub and two real nodes: what is told on the way, and how it ends."""

from __future__ import annotations

import asyncio
import json
import sys
from typing import TYPE_CHECKING

import pytest

from batuta.client_async import AsyncClient
from batuta.context import context
from batuta.demo.stage import Stage, wait_for
from batuta.errors import Refused
from batuta.kinds import Rollout
from tests.cli.running import Ran, run

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

pytestmark = [pytest.mark.e2e, pytest.mark.slow]

READER = """
apiVersion: batuta.dev/v1
kind: Application
metadata: {name: reader}
spec:
  rollout: {waves: [1 node, 100%], soak: 3s, probation: 10s, approvals: APPROVALS}
  components:
  - name: run
    process: {command: [PYTHON, -u, -c, "import sys, time; 'WORD' == 'broken' and sys.exit('no lens'); time.sleep(86400)"], stopGrace: 1s}
    replicas: {everyNode: true}
    resources: {cpu: 50m, memory: 32Mi}
"""  # noqa: E501


@pytest.fixture(scope="module")
def stage(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stage]:
    made = Stage(tmp_path_factory.mktemp("stage"))
    try:
        made.start_hub()
        for name in ("pi-1", "pi-2"):
            made.start_node(name, "lab")
        wait_for("the nodes", lambda: (made.online("pi-1") and made.online("pi-2")) or None, 120)
        yield made
    finally:
        killed = made.close()
    assert killed == []


@pytest.fixture
def manifest(tmp_path: Path) -> Path:
    return tmp_path / "reader.yaml"


def batuta(stage: Stage, *arguments: str) -> Ran:
    return run(*arguments, state=stage.hub_state)


def write(manifest: Path, word: str, *, approvals: bool = False) -> None:
    text = READER.replace("PYTHON", sys.executable).replace("WORD", word)
    manifest.write_text(text.replace("APPROVALS", str(approvals).lower()))


def test_from_the_first_release_to_one_that_is_taken_back(stage: Stage, manifest: Path) -> None:
    write(manifest, "one")
    assert batuta(stage, "apply", "-f", str(manifest), "--wait").code == 0
    nothing = batuta(stage, "rollout", "status", "reader")
    assert nothing.code == 1
    assert "rollouts.batuta.dev" in nothing.err

    write(manifest, "two")
    ran = batuta(stage, "apply", "-f", str(manifest), "--wait")
    assert ran.code == 0, ran.err
    assert "applications/reader is ok: 2/2 ready" in ran.out
    assert "wave " in ran.err
    watched = batuta(stage, "rollout", "status", "reader", "--watch")
    assert watched.out == "done  (2 done of 2)\n"

    write(manifest, "broken")
    refused = batuta(stage, "apply", "-f", str(manifest), "--wait")
    assert refused.code == 1
    assert "rollouts/reader is und" in refused.err
    assert "no lens" in refused.err
    assert "batuta rollout retry reader" in refused.err
    watched = batuta(stage, "rollout", "status", "reader", "--watch")
    assert "undone: every node has what it had" in watched.out.splitlines()[-1]
    history = json.loads(batuta(stage, "rollout", "history", "reader", "-o", "json").out)
    assert [(c["revision"], c["rollout"], c["by"]) for c in history] == [
        (3, "undone", "local"),
        (2, "", "local"),
        (1, "", "local"),
    ]
    assert "release 3 is undone" in batuta(stage, "rollout", "pause", "reader").err
    assert batuta(stage, "rollout", "diff", "reader", "2", "2").err == "Releases 2 and 2 of reader are the same.\n"
    assert "release 9 of default/reader is not kept" in batuta(stage, "rollout", "diff", "reader", "1", "9").err

    write(manifest, "three", approvals=True)
    assert batuta(stage, "apply", "-f", str(manifest)).code == 0
    client = stage.client
    wait_for(
        "the approval to be asked for", lambda: client.rollouts.get("reader").status["awaitsApproval"] or None, 120
    )
    undone = batuta(stage, "rollout", "undo", "reader", "--reason", "not today", "--wait")
    assert (undone.code, undone.out.splitlines()[0]) == (0, "rollouts/reader: release 4 is being undone")
    retried = batuta(stage, "rollout", "retry", "reader", "--reason", "now")
    assert (retried.code, retried.out) == (0, "rollouts/reader: release 4 begins anew\n")
    wait_for(
        "the approval to be asked for", lambda: client.rollouts.get("reader").status["awaitsApproval"] or None, 120
    )
    approved = batuta(stage, "rollout", "approve", "reader", "--wait")
    assert (approved.code, approved.out.splitlines()[-1]) == (0, "done  (2 done of 2)")
    told = batuta(stage, "audit", "--kind", "rollouts", "--name", "reader")
    assert [word in told.out for word in ("undo", "retry", "approve", "pause")] == [True] * 4


def test_programs_ask_the_same_with_and_without_await(stage: Stage) -> None:
    async def ask() -> None:
        async with AsyncClient(*context(stage.hub_state)) as hub:
            found = await hub.rollouts.get("reader")
            assert found.resource.spec.release == 4
            assert [each.resource.metadata.name for each in await hub.rollouts.list()] == ["reader"]
            assert (await hub.rollouts.wait("reader")).status["phase"] == "done"
            chapters = await hub.rollouts.history("reader")
            assert [chapter.revision for chapter in chapters] == [4, 3, 2, 1]
            assert chapters == stage.client.rollouts.history("reader")
            (change,) = await hub.rollouts.difference("reader", 1, 2)
            assert change["op"] == "~"
            assert "declared again" in await hub.rollouts.undo("reader", to=2, reason="try")
            await hub.wait(
                Rollout,
                "reader",
                lambda found: found.resource.spec.release == 5 and bool(found.status["awaitsApproval"]),
                timeout_s=120,
            )
            assert "approved" in await hub.rollouts.approve("reader")
            assert (await hub.rollouts.wait("reader", 5, timeout_s=120)).status["phase"] == "done"
            await hub.rollouts.resume("reader")

    with pytest.raises(Refused) as refused:
        asyncio.run(ask())
    assert "resume is for one that is paused" in refused.value.problems[0].message


def test_to_go_back_from_one_that_is_done_is_waited_for_too(stage: Stage, manifest: Path) -> None:
    write(manifest, "five")
    ran = batuta(stage, "apply", "-f", str(manifest), "--wait")
    assert ran.code == 0, ran.err
    before = stage.client.rollouts.get("reader").resource.spec.release
    undone = batuta(stage, "rollout", "undo", "reader", "--wait")
    assert undone.code == 0, undone.err
    assert f"release {before - 1} is declared again" in undone.out
    assert "applications/reader is ok: 2/2 ready" in undone.out
    found = stage.client.rollouts.get("reader")
    assert (found.resource.spec.release, found.status["phase"]) == (before + 1, "done")
