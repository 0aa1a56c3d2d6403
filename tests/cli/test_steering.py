"""Steering a small fleet as people do: diff, hold, drain, top, wide rows, logs of the dead; and from Python."""

from __future__ import annotations

import asyncio
import re
import sys
import threading
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from msgspec.structs import replace

from batuta.client import Client, connect
from batuta.client_async import AsyncClient
from batuta.client_async import connect as connect_async
from batuta.demo.stage import Stage
from batuta.errors import NotFound, Stale
from batuta.kinds import Application, Node, Site
from tests.cli.running import Ran, run

if TYPE_CHECKING:
    from collections.abc import Iterator

pytestmark = pytest.mark.e2e

GUIDE = Path(__file__).parents[2] / "docs" / "guide" / "python.md"
SLEEPER = """\
apiVersion: batuta.dev/v1
kind: Application
metadata: {name: sleeper}
spec:
  components:
  - name: sleep
    process: {command: [PYTHON, -u, -c, "import time; print('good night'); time.sleep(3600)"], stopGrace: 1s}
    resources: {cpu: 10m, memory: 16Mi}
"""


@pytest.fixture(scope="module")
def stage(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stage]:
    """A hub and two nodes; `sleeper` runs on one of them. The tests of this file follow each other."""
    made = Stage(tmp_path_factory.mktemp("stage"))
    try:
        made.start_hub()
        for name in ("pi-1", "pi-2"):
            made.start_node(name, "lab")
        for name in ("pi-1", "pi-2"):
            made.client.wait(Node, name, lambda found: found.status["link"]["word"] == "online", timeout_s=90)
        made.client.apply(SLEEPER.replace("PYTHON", sys.executable))
        made.client.wait(Application, "sleeper", _is_well, timeout_s=90)
        yield made
    finally:
        killed = made.close()
    assert killed == [], "these did not end when asked to"


def _is_well(found: object) -> bool:
    return found.status["state"] == "ok"  # type: ignore[attr-defined, no-any-return]


def batuta(stage: Stage, *arguments: str, stdin: str = "") -> Ran:
    return run(*arguments, state=stage.hub_state, stdin=stdin)


def where(stage: Stage) -> str:
    (only,) = stage.instances("sleeper")
    return str(only["node"])


def test_diff_tells_fields_and_moves_by_its_exit_code_too(stage: Stage) -> None:
    same = SLEEPER.replace("PYTHON", sys.executable)
    ran = batuta(stage, "diff", "-f", "-", stdin=same)
    assert (ran.code, ran.out, ran.err) == (0, "", "")
    ran = batuta(stage, "diff", "-f", "-", stdin=same + "    replicas: {count: 2}\n")
    assert ran.code == 1
    assert ran.out.splitlines()[0] == "~ applications/sleeper changes"
    assert "spec.components[0].replicas" in ran.out
    assert re.search(r"^  \+  sleep-1-1 +pi-\d +start", ran.out, re.MULTILINE)
    assert len(stage.instances("sleeper")) == 1
    assert batuta(stage, "diff", "-f", "-", stdin=same.replace("cpu: 10m", "cpu: much")).code == 3


def test_hold_keeps_and_drain_moves_new_before_old(stage: Stage) -> None:
    here = where(stage)
    there = {"pi-1": "pi-2", "pi-2": "pi-1"}[here]
    held = batuta(stage, "node", "hold", there, "--reason", "audit", "--for", "1h")
    assert held.code == 0, held.err
    assert held.out.startswith(f"nodes/{there} held until 20")
    assert stage.node_status(there)["sync"]["word"] == "held"
    foreseen = batuta(stage, "node", "drain", here, "--dry-run")
    assert "No instance would move." in foreseen.out
    assert "! sleeper: component/sleep/0: no node can take it (1 node_unschedulable, 1 node_held)" in foreseen.out
    assert batuta(stage, "node", "release", there).code == 0
    foreseen = batuta(stage, "node", "drain", here, "--dry-run")
    assert f"{here} → {there}" in foreseen.out
    drained = batuta(stage, "node", "drain", here, "--wait", "--timeout", "60s")
    assert drained.code == 0, drained.err
    assert drained.out.endswith(f"nodes/{here} drained\n")
    assert where(stage) == there
    assert batuta(stage, "node", "release", here).code == 0
    assert stage.client.get(Node, here).resource.spec.drain is False


def test_apply_waits_for_what_stays_well_and_not_for_what_was_so_for_a_moment(stage: Stage) -> None:
    ends = SLEEPER.replace("PYTHON", sys.executable).replace("sleeper", "ender").replace("3600", "1")
    ran = batuta(stage, "apply", "-f", "-", "--wait", "--timeout", "6s", stdin=ends)
    assert ran.code == 1, ran.out
    assert "ok" not in ran.out
    assert "its process ended" in ran.err
    stage.client.delete(Application, "ender")


def test_top_says_once_off_a_terminal_what_all_use(stage: Stage) -> None:
    ran = batuta(stage, "top", "--every", "300ms")
    assert ran.code == 0, ran.err
    assert [line.split()[0] for line in ran.out.splitlines()] == ["NODE", "pi-1", "pi-2"]
    assert "MiB" in ran.out
    assert "\x1b" not in ran.out
    ran = batuta(stage, "top", "instances", "--every", "300ms", "--sort", "rss")
    assert ran.out.splitlines()[1].split()[:4] == ["sleep-1-0", "sleeper", where(stage), "ready"]


def test_get_wide(stage: Stage) -> None:
    heading, *rows = batuta(stage, "get", "nodes", "-o", "wide").out.splitlines()
    assert {"ARCH", "CPU", "MEMORY", "RUNTIMES", "MQTT", "AGENT"} <= set(heading.split())
    assert all("512Mi" in row and "127.0.0.1:" in row for row in rows)
    wide = batuta(stage, "get", "applications", "-o", "wide").out
    assert {"COMPONENTS", "NODES"} <= set(wide.splitlines()[0].split())
    assert where(stage) in wide


def test_the_guide_does_what_it_says(
    stage: Stage, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("BATUTA_HOME", str(stage.hub_state))
    for name in ("BATUTA_SERVER", "BATUTA_TOKEN_FILE"):
        monkeypatch.delenv(name, raising=False)
    names: dict[str, object] = {"__name__": "guide"}
    examples = re.findall(r"^```python\n(.*?)^```", GUIDE.read_text(), re.MULTILINE | re.DOTALL)
    assert len(examples) == 7
    for example in examples:
        exec(compile(example, str(GUIDE), "exec"), names)
    said = capsys.readouterr().out
    for word in ("pi-1 lab", "'some'", "1/1", "ADDED ok", "tick", "start tock", "held", "2 nodes, 2 applications"):
        assert word in said, f"{word!r} is not in what the guide printed:\n{said}"
    with pytest.raises(NotFound):
        stage.client.get(Application, "ticker")


# --- The asynchronous client ------------------------------------------------------------------------------------------


async def test_many_at_once_and_a_watch_that_hangs_up(stage: Stage) -> None:
    before = {t.name for t in threading.enumerate()}
    async with connect_async(stage.hub_state) as hub:
        found = await asyncio.gather(*(hub.get(Node, f"pi-{k % 2 + 1}") for k in range(20)))
        assert [f.resource.metadata.name for f in found[:2]] == ["pi-1", "pi-2"]
        with pytest.raises(NotFound):
            await hub.get(Node, "pi-9")

        async def watch_for(wanted: str, seen: asyncio.Event) -> None:
            async for event in hub.watch(Site):
                if event.found.resource.metadata.name == wanted:
                    seen.set()

        seen = asyncio.Event()
        watching = asyncio.create_task(watch_for("quay", seen))
        await hub.apply("apiVersion: batuta.dev/v1\nkind: Site\nmetadata: {name: quay}\nspec: {}\n")
        async with asyncio.timeout(60):
            await seen.wait()
        watching.cancel()
        async with asyncio.timeout(2):
            await asyncio.gather(watching, return_exceptions=True)
        await hub.delete(Site, "quay")
        one = await hub.wait(Application, "sleeper", lambda f: f.status["state"] == "ok", timeout_s=90)
        assert one.resource.metadata.name == "sleeper"
    for thread in [t for t in threading.enumerate() if t.name not in before and t.name.startswith("batuta")]:
        await asyncio.to_thread(thread.join, 10)
        assert not thread.is_alive(), f"{thread.name} goes on"


async def test_an_update_is_made_again_when_somebody_wrote_first(stage: Stage) -> None:
    other: Client = connect(stage.hub_state)
    calls: list[str] = []

    def labelled(node: Node) -> Node:
        calls.append("")
        if len(calls) == 1:  # Somebody is quicker, once.
            other.update(Node, "pi-1", lambda n: _with_label(n, "quick", "yes"))
        return _with_label(node, "mine", "yes")

    async with AsyncClient(stage.client.server, *_credentials(stage)) as hub:
        written = await hub.update(Node, "pi-1", labelled)
        assert (len(calls), written.resource.metadata.labels) == (2, {"quick": "yes", "mine": "yes"})
        calls.clear()
        with pytest.raises(Stale):
            await hub.update(Node, "pi-1", lambda n: labelled(_with_label(n, "again", "1")), tries=1)
    other.close()


def _with_label(node: Node, key: str, value: str) -> Node:
    labels = {**node.metadata.labels, key: value + ("!" if node.metadata.labels.get(key) == value else "")}
    return replace(node, metadata=replace(node.metadata, labels=labels))


def _credentials(stage: Stage) -> tuple[str, str]:
    from batuta.context import context

    known = context(stage.hub_state)
    return known.token, known.ca


# --- The end of a node ------------------------------------------------------------------------------------------------


def test_logs_of_a_dead_node_say_what_is_known(stage: Stage) -> None:
    here = where(stage)
    assert batuta(stage, "logs", "sleeper").out == "good night\n"
    stage.kill_node(here)
    ran = batuta(stage, "logs", "sleeper", "--tail", "5")
    first, *rest = ran.out.splitlines()
    assert first.startswith(f"({here} does not answer: its link is ")
    assert "what follows is from " in first
    assert rest == ["good night"]
    stage.restart_node(here)
    stage.client.wait(Node, here, lambda found: found.status["link"]["word"] == "online", timeout_s=60)
