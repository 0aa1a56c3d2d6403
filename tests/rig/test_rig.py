"""Six nodes at two sites, and what can happen to them. Each test plays minutes in a fraction of a second."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

from batuta.fabric.clock import run_virtually
from tests.rig.rig import Rig

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine
    from pathlib import Path

    from batuta.fabric.base import Table

PER_SITE = """
apiVersion: batuta.dev/v1
kind: Application
metadata: {name: one}
spec:
  components:
  - name: run
    process: {command: [serve, "1"]}
    replicas: {perSite: 1}
    failover: {after: 3s}
"""
NEVER_TWICE = PER_SITE.replace("replicas: {perSite: 1}", "replicas: {count: 1}\n    runs: never-twice")


def play(directory: Path, scene: Callable[[Rig], Coroutine[Any, Any, None]]) -> Rig:
    """The scene on a stage of six nodes that have all been heard."""

    async def whole() -> Rig:
        rig = Rig(directory)
        try:
            await rig.start_hub()
            for n in range(6):
                await rig.add_node(f"n{n}", "berlin" if n < 3 else "madrid")
            await rig.until("all are heard", lambda: len(rig.hub.loop.state.observed) == 6)
            await scene(rig)
        finally:
            await rig.close()
        return rig

    return run_virtually(whole())


def ready(rig: Rig, app: str = "one") -> bool:
    status = rig.status("applications", app, "default")
    return bool(status["state"] == "ok")


def decided(rig: Rig) -> int:
    return rig.hub.counters["decisions"]


def test_six_nodes_converge_and_then_nothing_happens(tmp_path: Path) -> None:
    async def scene(rig: Rig) -> None:
        await rig.apply(PER_SITE)
        await rig.until("one at each site", lambda: len(rig.running()) == 2 and ready(rig), 10)
        before, stories = decided(rig), rig.stories()
        # Six assignments with their neighbours, a release, two placements: nothing near a storm.
        assert before <= 40
        await rig.settle(300)
        assert decided(rig) == before
        assert rig.stories() == stories
        assert rig.hub.counters["passes_full"] >= 4
        assert rig.hub.counters["incremental_differences"] == 0

    play(tmp_path, scene)


def test_a_crashed_node_is_replaced_within_its_time_and_comes_back_to_peace(tmp_path: Path) -> None:
    async def scene(rig: Rig) -> None:
        await rig.apply(PER_SITE)
        await rig.until("one at each site", lambda: len(rig.running()) == 2 and ready(rig))
        lost = rig.holders("berlin-0")[0]
        await rig.crash(lost)
        took_s = await rig.until("a substitute", lambda: len(rig.holders("berlin-0")) == 1 and ready(rig), 10)
        # Three seconds of silence, counted from the last heartbeat, and a start.
        assert 2 <= took_s <= 5
        before = decided(rig)
        rig.start_agent(lost)
        await rig.settle(60)
        assert rig.status("nodes", lost)["link"]["word"] == "online"
        assert len(rig.holders("berlin-0")) == 1
        assert decided(rig) - before <= 6
        assert rig.hub.counters["incremental_differences"] == 0

    play(tmp_path, scene)


def test_a_cut_node_goes_on_and_gives_back_what_was_replaced(tmp_path: Path) -> None:
    async def scene(rig: Rig) -> None:
        await rig.apply(PER_SITE)
        await rig.until("one at each site", lambda: len(rig.running()) == 2 and ready(rig))
        away = rig.holders("berlin-0")[0]
        rig.cut(away)
        await rig.until("a substitute", lambda: len(rig.holders("berlin-0")) == 2, 15)
        await rig.settle(60)
        # Nobody told it to stop, and its data would be lost: it goes on.
        assert away in rig.holders("berlin-0")
        rig.heal(away)
        await rig.until("one again", lambda: len(rig.holders("berlin-0")) == 1 and ready(rig), 15)
        before = decided(rig)
        await rig.settle(120)
        assert decided(rig) == before
        assert rig.hub.counters["incremental_differences"] == 0

    play(tmp_path, scene)


def test_never_twice_is_never_twice(tmp_path: Path) -> None:
    async def scene(rig: Rig) -> None:
        await rig.apply(NEVER_TWICE)
        await rig.until("one", lambda: len(rig.running()) == 1 and ready(rig))
        for _ in range(4):
            away = next(iter(rig.running()))
            rig.cut(away)
            await rig.until("another holder", lambda away=away: rig.running() and away not in rig.running(), 90)
            rig.heal(away)
            await rig.settle(20)
        crashed = next(iter(rig.running()))
        await rig.crash(crashed)
        await rig.until("another holder", rig.running, 90)
        rig.start_agent(crashed)
        await rig.settle(60)
        assert len(rig.running()) == 1

    assert max(alive_at_once(play(tmp_path, scene))) == 1


def alive_at_once(rig: Rig) -> list[int]:
    """How many instances ran after each thing that happened."""
    counts = [0]
    for _, _, what, _ in rig.stories():
        counts.append(counts[-1] + {"started": 1, "stopped": -1, "killed": -1, "crashed": -1}[what])
    return counts


class Slow:
    """A table that keeps one row waiting, while all others are written at once."""

    def __init__(self, table: Table, key: str, seconds: float) -> None:
        self.table, self.key, self.seconds = table, key, seconds
        self.waited = 0

    def __getattr__(self, name: str) -> Any:
        return getattr(self.table, name)

    async def put(self, key: str, value: bytes, revision: int | None = None) -> int:
        if key == self.key:
            self.waited += 1
            await asyncio.sleep(self.seconds)
        return await self.table.put(key, value, revision)


def test_never_twice_holds_between_the_decision_and_its_last_row(tmp_path: Path) -> None:
    """The substitute's row is written, its predecessor's is not yet, and the predecessor comes back."""

    async def scene(rig: Rig) -> None:
        await rig.apply(NEVER_TWICE)
        await rig.until("one", lambda: len(rig.running()) == 1 and ready(rig))
        away = next(iter(rig.running()))
        tables = rig.hub.store._tables
        slow = Slow(tables["decided"], f"assignment.{away}", 3.0)
        tables["decided"] = slow  # type: ignore[assignment]
        rig.cut(away)
        await rig.until("another holder", lambda: rig.running() and away not in rig.running(), 90)
        assert slow.waited == 1
        written = rig.hub.loop.state.assignments[away].serial
        rig.heal(away)
        await rig.settle(20)
        assert rig.hub.loop.state.assignments[away].serial > written
        assert len(rig.running()) == 1

    assert max(alive_at_once(play(tmp_path, scene))) == 1


def test_a_hub_that_dies_is_missed_by_nobody(tmp_path: Path) -> None:
    async def scene(rig: Rig) -> None:
        await rig.apply(PER_SITE)
        await rig.until("one at each site", lambda: len(rig.running()) == 2 and ready(rig))
        await rig.settle(10)
        stories, rows = rig.stories(), dict(rig.broker.rows("decided").rows)
        await rig.kill_hub()
        await rig.settle(120)
        assert rig.stories() == stories
        await rig.start_hub()
        await rig.settle(120)
        assert rig.stories() == stories
        assert decided(rig) == 0
        assert {k: v for k, v in rig.broker.rows("decided").rows.items() if k != "hub.epoch"} == {
            k: v for k, v in rows.items() if k != "hub.epoch"
        }
        assert ready(rig)
        assert rig.hub.counters["incremental_differences"] == 0

    play(tmp_path, scene)


def test_a_node_that_dies_while_nobody_listens_is_replaced_after_all(tmp_path: Path) -> None:
    async def scene(rig: Rig) -> None:
        await rig.apply(PER_SITE)
        await rig.until("one at each site", lambda: len(rig.running()) == 2 and ready(rig))
        lost = rig.holders("berlin-0")[0]
        await rig.kill_hub()
        await rig.crash(lost)
        await rig.settle(60)
        assert not rig.holders("berlin-0")
        await rig.start_hub()
        await rig.until("a substitute", lambda: rig.holders("berlin-0") and ready(rig), 30)

    play(tmp_path, scene)


def test_an_agent_that_restarts_finds_what_it_runs(tmp_path: Path) -> None:
    async def scene(rig: Rig) -> None:
        await rig.apply(PER_SITE)
        await rig.until("one at each site", lambda: len(rig.running()) == 2 and ready(rig))
        await rig.settle(5)
        stories, before = rig.stories(), decided(rig)
        holder = rig.holders("berlin-0")[0]
        await rig.kill_agent(holder)
        await rig.settle(1)
        rig.start_agent(holder)
        await rig.settle(60)
        assert rig.stories() == stories
        assert decided(rig) == before

    play(tmp_path, scene)


def test_deleting_leaves_nothing(tmp_path: Path) -> None:
    async def scene(rig: Rig) -> None:
        from batuta.kinds.base import Ref

        await rig.apply(PER_SITE)
        await rig.until("one at each site", lambda: len(rig.running()) == 2)
        await rig.hub.declarations.delete(Ref("applications", "default", "one"))
        await rig.until("nothing", lambda: not rig.running(), 15)
        await rig.settle(30)
        state = rig.hub.loop.state
        assert not state.held
        assert not state.releases
        assert not state.fences

    play(tmp_path, scene)


def test_the_same_play_gives_the_same_story(tmp_path: Path) -> None:
    async def scene(rig: Rig) -> None:
        await rig.apply(PER_SITE)
        await rig.until("one at each site", lambda: len(rig.running()) == 2)
        await rig.crash(rig.holders("berlin-0")[0])
        await rig.settle(30)

    first, second = play(tmp_path / "a", scene), play(tmp_path / "b", scene)
    assert first.stories() == second.stories()
