"""The hub over the memory fabric: what it decides, what it hears, what it survives."""

from __future__ import annotations

import asyncio
import contextlib
from typing import TYPE_CHECKING, Any

import msgspec
import pytest

from batuta.config import HubConfig
from batuta.core.decided import Commons, Release
from batuta.core.liveness import every_ms
from batuta.core.observed import InstanceReport
from batuta.core.state import Change, State
from batuta.errors import FabricUnavailable
from batuta.fabric import identity, subjects
from batuta.fabric.clock import SystemClock, VirtualClock, VirtualTimeLoop, run_virtually
from batuta.fabric.memory import MemoryBroker
from batuta.hub.counters import Counters
from batuta.hub.hub import Hub
from batuta.hub.sightings import Sightings
from batuta.kinds import manifest
from batuta.kinds.base import Metadata, Ref, encode_hook
from batuta.kinds.node import Node, NodeSpec
from tests.hub.hubs import PROCESS_APP, Voice, join, running

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from batuta.fabric.base import Message, Table


async def until(hub: Hub, holds: Callable[[], Any]) -> Any:
    """What `holds` returns as soon as it is true; looked at after every turn of the loop."""
    async with asyncio.timeout(60):
        while True:
            rings = hub.loop.turned.rings
            if found := holds():
                return found
            await hub.loop.turned.wait(rings, hub.clock, hub.clock.now() + 50)


async def declare(hub: Hub, name: str) -> None:
    await hub.declarations.apply(manifest.parse(PROCESS_APP.replace("NAME", name)))


async def test_an_application_becomes_an_assignment(tmp_path: Path) -> None:
    broker = MemoryBroker()
    async with running(tmp_path, broker) as hub:
        await join(hub, "pi-1")
        voice = Voice(broker, "pi-1")
        await voice.beat()
        await voice.report()
        await declare(hub, "one")
        assignment = await until(hub, lambda: (a := hub.loop.state.assignments.get("pi-1")) and a.instances and a)
        assert [i.name for i in assignment.instances] == ["default/one/run-1-0"]
        answer = await voice.beat()
        assert answer == {"serial": assignment.serial, "everyMs": 1000, "hubEpoch": 1}
        row = await broker.connect_node("pi-1").table("decided").get(subjects.assignment_key("pi-1"))
        assert row is not None
        assert b'"default/' not in (row.value or b"")
        assert hub.counters["incremental_differences"] == 0


async def test_a_restarted_hub_decides_nothing_anew(tmp_path: Path) -> None:
    broker = MemoryBroker()
    async with running(tmp_path, broker) as hub:
        await join(hub, "pi-1")
        voice = Voice(broker, "pi-1")
        await voice.beat()
        await voice.report()
        await declare(hub, "one")
        assignment = await until(hub, lambda: (a := hub.loop.state.assignments.get("pi-1")) and a.instances and a)
        name = assignment.instances[0].name
        await voice.report(
            serial=assignment.serial, instances=(InstanceReport(name=name, epoch=1, phase="ready", since=0),)
        )
        before = {k: r for k, r in broker.rows("decided").rows.items() if k != "hub.epoch"}
    async with running(tmp_path, broker) as hub:
        await until(hub, lambda: hub.counters["passes_full"])
        await voice.beat()
        await voice.report(
            serial=assignment.serial, instances=(InstanceReport(name=name, epoch=1, phase="ready", since=0),)
        )
        turns = hub.loop.turned.rings
        await until(hub, lambda: hub.loop.turned.rings > turns + 1)
        assert {k: r for k, r in broker.rows("decided").rows.items() if k != "hub.epoch"} == before
        assert hub.counters["decisions"] == 0
        assert hub.store.epoch == 2


async def test_an_idle_hub_sleeps(tmp_path: Path) -> None:
    async with running(tmp_path) as hub:
        await until(hub, lambda: hub.counters["passes_full"])
        turns = hub.loop.turned.rings
        await asyncio.sleep(0.5)
        assert hub.loop.turned.rings - turns <= 1


async def test_a_report_that_cannot_be_read_is_counted_and_said(tmp_path: Path) -> None:
    broker = MemoryBroker()
    async with running(tmp_path, broker) as hub:
        await join(hub, "pi-1")
        await broker.connect_node("pi-1").table("observed").put(subjects.report_key("pi-1"), b'{"node": 7}')
        await until(hub, lambda: "pi-1" in hub.store.garbled)
        assert hub.store.garbled["pi-1"].code == "report_garbled"
        assert hub.counters["rows_garbled"] == 1
        await Voice(broker, "pi-1").report()
        await until(hub, lambda: not hub.store.garbled)
        await broker.connect_node("pi-1").table("observed").put(subjects.report_key("pi-1"), b" " * (2 << 20))
        await until(hub, lambda: "pi-1" in hub.store.garbled)


async def test_a_node_cannot_report_for_another(tmp_path: Path) -> None:
    broker = MemoryBroker()
    async with running(tmp_path, broker) as hub:
        await join(hub, "pi-1")
        await join(hub, "pi-2")
        voice = Voice(broker, "pi-1")
        body = msgspec.json.encode({"node": "pi-2", "boot": "b", "sequence": 1, "at": 0})
        await voice.fabric.table("observed").put(subjects.report_key("pi-1"), body)
        await until(hub, lambda: "pi-1" in hub.store.garbled)
        assert "pi-2" not in hub.loop.state.observed


async def answered(voice: Voice) -> dict[str, Any]:
    """The first answer that it gets."""
    async with asyncio.timeout(5):
        while True:
            with contextlib.suppress(FabricUnavailable):
                return await voice.beat(0.2)


class Held:
    """A table in which a row waits to be written until it is let go."""

    def __init__(self, table: Table, key: str) -> None:
        self.table, self.key = table, key
        self.come, self.go = asyncio.Event(), asyncio.Event()

    def __getattr__(self, name: str) -> Any:
        return getattr(self.table, name)

    async def put(self, key: str, value: bytes, revision: int | None = None) -> int:
        if key == self.key:
            self.come.set()
            await self.go.wait()
        return await self.table.put(key, value, revision)


async def test_a_heartbeat_is_answered_by_what_is_decided_not_by_what_is_written(tmp_path: Path) -> None:
    broker = MemoryBroker()
    async with running(tmp_path, broker) as hub:
        await join(hub, "pi-1")
        voice = Voice(broker, "pi-1")
        await voice.beat()
        await voice.report()
        await declare(hub, "one")
        before = await until(hub, lambda: (a := hub.loop.state.assignments.get("pi-1")) and a.instances and a)
        hub.store._tables["decided"] = held = Held(hub.store._tables["decided"], "assignment.pi-1")  # type: ignore[assignment]
        await hub.declarations.delete(Ref("applications", "default", "one"))
        async with asyncio.timeout(5):
            await held.come.wait()
        assert hub.loop.state.assignments["pi-1"] == before
        promised = (await voice.beat())["serial"]
        assert promised > before.serial
        held.go.set()
        after = await until(hub, lambda: (a := hub.loop.state.assignments["pi-1"]) != before and a)
        assert (after.serial, after.instances) == (promised, ())
        assert (await voice.beat())["serial"] == promised


async def test_nobody_is_answered_before_the_first_decision(tmp_path: Path) -> None:
    """Another hub's commit was cut short: what it gave away twice must be decided before anybody renews a lease."""
    broker = MemoryBroker()
    async with running(tmp_path, broker) as hub:
        for node in ("pi-1", "pi-2"):
            await join(hub, node)
            voice = Voice(broker, node)
            await voice.beat()
            await voice.report()
        await hub.declarations.apply(manifest.parse(PROCESS_APP.replace("NAME", "one") + "    runs: never-twice\n"))
        state = await until(hub, lambda: (s := hub.loop.state).held and s)
        (mine,) = state.held["default/one"]
    other = "pi-2" if mine.node == "pi-1" else "pi-1"
    twice = msgspec.structs.replace(mine.instance, epoch=mine.instance.epoch + 1)
    given = state.assignments[other]
    given = msgspec.structs.replace(given, serial=given.serial + 1, instances=(twice,))
    fence = msgspec.structs.replace(
        state.fences["default/one"]["run/0"], epoch=twice.epoch, node=other, serial=given.serial
    )
    for key, row in (("fence.default.one.run.0", fence), (f"assignment.{other}", given)):
        broker.rows("decided").write(key, msgspec.json.encode(row, enc_hook=encode_hook), None)

    fabric = broker.connect("hub")
    hub = Hub(HubConfig(state=str(tmp_path)), fabric, SystemClock())
    opened, listening = hub.asks.open, asyncio.Event()
    begin = asyncio.Event()

    async def open_late(fabric: Any) -> None:
        listening.set()
        await begin.wait()
        await opened(fabric)

    hub.asks.open = open_late  # type: ignore[method-assign]
    starting = asyncio.create_task(hub.start())
    try:
        await listening.wait()
        voice = Voice(broker, mine.node)
        with pytest.raises(FabricUnavailable):
            await voice.beat(0.2)
        assert hub.counters["heartbeats_unanswered"] == 1
        begin.set()
        await starting
        assert (await answered(voice))["serial"] > state.assignments[mine.node].serial
    finally:
        begin.set()
        await starting
        await hub.stop()
        await fabric.close()


class Deaf:
    """A table whose next write happens, and is not answered."""

    def __init__(self, table: Table) -> None:
        self.table = table
        self.asked: list[str] = []
        self.is_deaf = True

    def __getattr__(self, name: str) -> Any:
        return getattr(self.table, name)

    async def get(self, key: str) -> Any:
        self.asked.append(f"get {key}")
        return await self.table.get(key)

    async def put(self, key: str, value: bytes, revision: int | None = None) -> int:
        self.asked.append(f"put {key}")
        written = await self.table.put(key, value, revision)
        if self.is_deaf:
            self.is_deaf = False
            raise FabricUnavailable("no answer")
        return written


async def test_a_row_whose_write_got_no_answer_is_read_again_before_anything_is_decided(tmp_path: Path) -> None:
    broker = MemoryBroker()
    async with running(tmp_path, broker) as hub:
        await join(hub, "pi-1")
        voice = Voice(broker, "pi-1")
        await voice.beat()
        await voice.report()
        await until(hub, lambda: "pi-1" in hub.loop.state.assignments)
        hub.store._tables["decided"] = deaf = Deaf(hub.store._tables["decided"])  # type: ignore[assignment]
        await declare(hub, "one")
        await until(hub, lambda: hub.loop.state.held)
        release = "release.default.one.1"
        assert deaf.asked == [f"put {release}", f"get {release}", "put assignment.pi-1"]
        assert list(hub.counters.items()).count(("commits_failed", "fabric_unavailable", 1)) == 1


async def test_what_somebody_wrote_since_the_deciding_is_not_written_over(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with running(tmp_path, MemoryBroker()) as hub:
        commit = hub.store.commit
        theirs: list[Change] = []

        async def late(change: Change, decided_on: int | None = None) -> None:
            if not theirs and isinstance(change.value, Release):
                theirs.append(Change("decided", change.key, msgspec.structs.replace(change.value, at=4711)))
                await commit(theirs[0])
            await commit(change, decided_on)

        monkeypatch.setattr(hub.store, "commit", late)
        await declare(hub, "one")
        await until(hub, lambda: theirs and hub.counters["commits_failed"])
        await hub.loop.turn()
        assert [release.at for release in hub.loop.state.releases["default/one"]] == [4711]


async def test_heartbeats_of_strangers_and_nonsense_are_counted(tmp_path: Path) -> None:
    broker = MemoryBroker()
    async with running(tmp_path, broker) as hub:
        stranger = broker.connect_node("stranger")
        await stranger.publish(subjects.alive("stranger"), b"{}")
        await join(hub, "pi-1")
        node = broker.connect_node("pi-1")
        await node.publish(subjects.alive("pi-1"), b"[" * 10)
        await until(hub, lambda: hub.counters["heartbeats_refused"] == 2)
        assert not hub.loop.state.sightings


@pytest.mark.parametrize("dies", [False, True])
def test_a_hub_that_stalls_moves_nothing_and_still_finds_who_died_meanwhile(tmp_path: Path, *, dies: bool) -> None:
    async def play() -> tuple[list[str], int | None]:
        broker, clock = MemoryBroker(), VirtualClock(1_000_000)
        voices = {name: Voice(broker, name) for name in ("pi-1", "pi-2")}
        async with running(tmp_path, broker, clock, recording_bytes_max=0) as hub:
            for name, voice in voices.items():
                await join(hub, name)
                await voice.beat()
                await voice.report()
            beating = {name: asyncio.create_task(beat_on(voice)) for name, voice in voices.items()}
            await declare(hub, "one")
            held = await until(hub, lambda: hub.loop.state.held.get("default/one"))
            holders, loop = [held[0].node], asyncio.get_running_loop()
            assert isinstance(loop, VirtualTimeLoop)
            if dies:
                beating[holders[0]].cancel()
            for _ in range(3):
                loop.jump(10)  # all stands still, and timers run late
                await asyncio.sleep(0)
                await hub.loop.turn()
                holders.append(hub.loop.state.held["default/one"][0].node)
                await asyncio.sleep(0.3)
            assert hub.loop.state.deaf_ms >= 29_000
            began, moved_ms = clock.now(), None
            while clock.now() < began + 15_000 and moved_ms is None:
                await asyncio.sleep(0.1)
                if hub.loop.state.held["default/one"][0].node != holders[0]:
                    moved_ms = clock.now() - began
            for task in beating.values():
                task.cancel()
            await asyncio.gather(*beating.values(), return_exceptions=True)
            return holders, moved_ms

    holders, moved_ms = run_virtually(play())
    assert len(set(holders)) == 1
    assert (moved_ms is not None and moved_ms < 10_500) if dies else moved_ms is None


async def beat_on(voice: Voice) -> None:
    while True:
        await voice.beat()
        await asyncio.sleep(1)


def test_large_fleets_beat_more_slowly_and_are_missed_later() -> None:
    """As the core counts on: else every node of a large fleet would be missed between two of its beats."""
    nodes = [Node(metadata=Metadata(name=f"pi-{k}"), spec=NodeSpec(site="berlin")) for k in range(5_000)]
    state = State().with_changes(Change("desired", node.ref.key, node) for node in nodes)

    async def play() -> list[bool]:
        broker = MemoryBroker()
        sightings = Sightings(
            VirtualClock(), Counters(), lambda: state, lambda: None, newest_serial=lambda _: 1, epoch=lambda: 1
        )
        await sightings.open(broker.connect("hub"))
        voice = Voice(broker, "pi-1")
        unbroken = []
        since = None
        for after_s in (0, 5, 9.9, 10.1):
            await asyncio.sleep(after_s)
            assert await voice.beat() == {"serial": 1, "everyMs": every_ms(state), "hubEpoch": 1}
            (change,) = sightings.take()
            unbroken.append(change.value.online_since == since)
            since = change.value.online_since
        await sightings.close()
        return unbroken

    assert every_ms(state) == 5_000
    assert run_virtually(play()) == [False, True, True, False]


async def test_a_node_renews_with_the_key_it_joined_with(tmp_path: Path) -> None:
    broker = MemoryBroker()
    async with running(tmp_path, broker) as hub:
        key = identity.make_key()
        first = await join(hub, "pi-1", key=key)
        voice = Voice(broker, "pi-1")
        again = msgspec.json.decode(await voice.ask("renew", {"request": identity.make_request(key, "pi-1")}))
        identity.check_chain(again["chain"], first.root, hub.clock.now())
        other = identity.make_request(identity.make_key(), "pi-1")
        assert msgspec.json.decode(await voice.ask("renew", {"request": other}))["error"] == "name_taken"
        stranger = Voice(broker, "pi-2")
        assert msgspec.json.decode(await stranger.ask("renew", {"request": other}))["error"] == "node_removed"
        assert msgspec.json.decode(await voice.ask("nonsense", {}))["error"] == "verb_unknown"
        assert hub.counters["asks_refused"] == 3


async def test_what_a_site_shares_is_told_to_its_nodes_when_they_ask(tmp_path: Path) -> None:
    broker = MemoryBroker()
    async with running(tmp_path, broker) as hub:
        await join(hub, "pi-1")
        voice = Voice(broker, "pi-1")
        await voice.report()
        told: list[Message] = []

        async def hear(message: Message) -> None:
            told.append(message)

        site = hub.loop.state.nodes["pi-1"].spec.site
        await voice.fabric.subscribe(subjects.site_changed(site), hear)
        assert "commons" not in await voice.beat()
        answer = await voice.fabric.request(subjects.ask("pi-1", "commons"), b"")
        assert msgspec.json.decode(answer, type=Commons) == Commons(site=site, serial=0)
        near = PROCESS_APP.replace("NAME", "one").replace("replicas:", "placement: {near: [a/+]}\n    replicas:")
        await hub.declarations.apply(manifest.parse(near))
        commons = await until(hub, lambda: hub.loop.state.commons.get(site))
        assert commons.watched == ("a/+",)
        await until(hub, lambda: told)
        assert (await voice.beat())["commons"] == commons.serial
        answer = await voice.fabric.request(subjects.ask("pi-1", "commons"), b"")
        assert msgspec.json.decode(answer, type=Commons) == commons
        stranger = broker.connect_node("pi-9")
        answer = await stranger.request(subjects.ask("pi-9", "commons"), b"")
        assert msgspec.json.decode(answer)["error"] == "node_unknown"
