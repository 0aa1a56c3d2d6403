"""What every fabric promises, asked of both tenants: the one in memory and the one over real brokers."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

import pytest

from batuta.errors import FabricUnavailable, Stale
from batuta.fabric import subjects
from batuta.fabric.base import SNAPSHOT_DONE, Entry, Message
from batuta.fabric.memory import MemoryBroker, matches
from batuta.fabric.nats import NatsFabric

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable

    from batuta.fabric.base import Change, Delivery, Fabric


class InMemory:
    """Two nodes and a hub around one broker object."""

    def __init__(self) -> None:
        self.broker = MemoryBroker()
        self.hub: Fabric = self.broker.connect("hub")
        self.n1: Fabric = self.broker.connect_node("n1")
        self.n2: Fabric = self.broker.connect_node("n2")

    async def cut(self, node: str) -> None:
        self.broker.cut(node)

    async def heal(self, node: str) -> None:
        self.broker.heal(node)

    async def close(self) -> None:
        for fabric in (self.n1, self.n2, self.hub):
            await fabric.close()


class OverBrokers:
    """The same, with a broker for each and mutual TLS between them."""

    def __init__(self, town: Any, hub: Fabric, n1: Fabric, n2: Fabric) -> None:
        self.town, self.hub, self.n1, self.n2 = town, hub, n1, n2

    async def cut(self, node: str) -> None:
        await self.town.deny(node)

    async def heal(self, node: str) -> None:
        self.town.allow(node)

    async def close(self) -> None:
        for fabric in (self.n1, self.n2, self.hub):
            await fabric.close()


@pytest.fixture(params=["memory", "nats"])
async def world(request: pytest.FixtureRequest, new_town: Any) -> AsyncIterator[InMemory | OverBrokers]:
    if request.param == "memory":
        made: InMemory | OverBrokers = InMemory()
        yield made
        await made.close()
        return
    town = await new_town()
    hub = await town.hub_fabric()
    n1, n2 = [await town.node_fabric(await town.node(name)) for name in ("n1", "n2")]
    made = OverBrokers(town, hub, n1, n2)
    for fabric in (n1, n2):
        await fabric.wait_connected(10)
    yield made
    await made.close()


async def take(changes: AsyncIterator[Change], count: int) -> list[Change]:
    async with asyncio.timeout(60):
        return [await anext(changes) for _ in range(count)]


async def until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(60):
        while not condition():  # noqa: ASYNC110  any condition, of any tenant
            await asyncio.sleep(0.01)


# --- Messages -------------------------------------------------------------------------------------------------------


async def test_what_is_published_is_heard_once_and_in_order(world: InMemory) -> None:
    heard: list[Message] = []

    async def hear(message: Message) -> None:
        heard.append(message)

    await world.hub.subscribe(subjects.ALL_ALIVE, hear)
    await until_heard(world.n1, subjects.alive("n1"), heard)
    heard.clear()
    for i in range(50):
        await world.n1.publish(subjects.alive("n1"), str(i).encode(), {"X-Number": str(i)})
    await until(lambda: len(heard) == 50)
    assert [m.data for m in heard] == [str(i).encode() for i in range(50)]
    assert heard[7].headers["X-Number"] == "7"
    assert subjects.node_of(heard[0].subject) == "n1"


async def test_an_answer_that_meets_a_cancellation_does_not_undo_it() -> None:
    """Whoever is told to end at the very moment at which an answer arrives, ends."""
    broker = MemoryBroker()
    hub, node = broker.connect("hub"), broker.connect_node("n1")
    asking: list[asyncio.Task[bytes]] = []

    async def answer_and_end(message: Message) -> None:
        await message.respond(b"")
        asking[0].cancel()

    await hub.subscribe(subjects.ALL_ALIVE, answer_and_end)
    asking.append(asyncio.create_task(node.request(subjects.alive("n1"), b"", 5)))
    with pytest.raises(asyncio.CancelledError):
        await asking[0]
    await node.close()
    await hub.close()


async def test_a_fabric_closes_though_what_it_runs_loses_a_cancellation(world: InMemory) -> None:
    lost = asyncio.Event()

    async def loses_one(_message: Message | None = None) -> None:
        while True:
            try:
                await asyncio.sleep(60)
            except asyncio.CancelledError:
                if lost.is_set():
                    raise
                lost.set()

    if isinstance(world.hub, NatsFabric):
        world.hub.begin(loses_one())
        await asyncio.sleep(0)
        closing = world.hub.close()
    else:
        heard: list[Message] = []

        async def hear(message: Message) -> None:
            heard.append(message)
            await loses_one()

        subscription = await world.hub.subscribe(subjects.ALL_ALIVE, hear)
        await until_heard(world.n1, subjects.alive("n1"), heard)
        closing = subscription.close()
    _, late = await asyncio.wait([asyncio.create_task(closing)], timeout=5)
    assert not late
    assert lost.is_set()


async def until_heard(fabric: Fabric, subject: str, heard: list[Message]) -> None:
    """A wish to hear crosses a link on its own time; after the first word has come through, none is lost."""
    async with asyncio.timeout(60):
        while not heard:
            await fabric.publish(subject, b"")
            await asyncio.sleep(0.02)


async def test_a_handler_that_fails_hears_the_next_message(world: InMemory) -> None:
    heard: list[bytes] = []

    async def hear(message: Message) -> None:
        heard.append(message.data)
        if message.data == b"1":
            raise RuntimeError("on purpose")

    subscription = await world.hub.subscribe("batuta.alive.hub", hear)
    for i in range(3):
        await world.hub.publish("batuta.alive.hub", str(i).encode())
    await until(lambda: len(heard) == 3)
    await subscription.close()
    await world.hub.publish("batuta.alive.hub", b"9")
    await asyncio.sleep(0.05)
    assert heard == [b"0", b"1", b"2"]


async def ask_until_answered(fabric: Fabric, subject: str, data: bytes) -> bytes:
    async with asyncio.timeout(60):
        while True:
            try:
                return await fabric.request(subject, data, 1)
            except FabricUnavailable:
                await asyncio.sleep(0.02)


async def test_both_sides_can_ask(world: InMemory) -> None:
    async def answer(message: Message) -> None:
        await message.respond(subjects.verb_of(message.subject).encode() + b" " + message.data)

    await world.hub.subscribe(subjects.ALL_ASKS, answer)
    await world.n1.subscribe(subjects.all_tells("n1"), answer)
    assert await ask_until_answered(world.n1, subjects.ask("n1", "renew"), b"me") == b"renew me"
    assert await ask_until_answered(world.hub, subjects.tell("n1", "logs"), b"10") == b"logs 10"
    several = await asyncio.gather(*(world.hub.request(subjects.tell("n1", "logs"), b"%d" % i) for i in range(20)))
    assert several == [b"logs %d" % i for i in range(20)]


async def test_a_question_without_anyone_to_answer_fails(world: InMemory) -> None:
    with pytest.raises(FabricUnavailable):
        await world.n1.request(subjects.ask("n1", "nothing"), b"", 0.5)
    with pytest.raises(FabricUnavailable):
        await world.hub.request(subjects.tell("n1", "nothing"), b"", 0.5)


async def test_an_answer_that_is_late_fails(world: InMemory) -> None:
    async def ponder(_message: Message) -> None:
        await asyncio.sleep(30)

    await world.hub.subscribe("batuta.ask.hub.ponder", ponder)
    with pytest.raises(FabricUnavailable):
        await world.hub.request("batuta.ask.hub.ponder", b"", 0.2)


# --- Tables ---------------------------------------------------------------------------------------------------------


async def test_a_row_is_guarded_by_its_revision(world: InMemory) -> None:
    table = world.hub.table("desired")
    assert await table.get("sites.berlin") is None
    first = await table.put("sites.berlin", b"1", 0)
    with pytest.raises(Stale):
        await table.put("sites.berlin", b"again", 0)
    second = await table.put("sites.berlin", b"2", first)
    assert second > first
    with pytest.raises(Stale):
        await table.put("sites.berlin", b"old", first)
    assert await table.get("sites.berlin") == Entry("sites.berlin", b"2", second)
    third = await table.put("sites.berlin", b"3")
    with pytest.raises(Stale):
        await table.delete("sites.berlin", second)
    await table.delete("sites.berlin", third)
    assert await table.get("sites.berlin") is None
    await table.delete("sites.berlin")
    assert await table.put("sites.berlin", b"anew", 0) > third


async def test_a_watch_gives_what_is_there_and_then_what_changes(world: InMemory) -> None:
    table = world.hub.table("desired")
    for key in ("sites.a", "sites.b", "models.default.m", "sites.gone"):
        await table.put(key, key.encode())
    await table.delete("sites.gone")
    assert await table.keys() == ["models.default.m", "sites.a", "sites.b"]
    assert await table.keys("sites.") == ["sites.a", "sites.b"]
    assert await table.keys("sites.a") == ["sites.a"]
    assert await table.keys("nodes.") == []

    changes = table.watch("sites.")
    start = await take(changes, 3)
    assert [c.key if isinstance(c, Entry) else c for c in start] == ["sites.a", "sites.b", SNAPSHOT_DONE]
    written = await table.put("sites.c", b"new")
    await table.put("models.default.other", b"elsewhere")
    assert await take(changes, 1) == [Entry("sites.c", b"new", written)]
    await table.delete("sites.a")
    gone = (await take(changes, 1))[0]
    assert isinstance(gone, Entry)
    assert (gone.key, gone.value) == ("sites.a", None)
    await changes.aclose()  # type: ignore[attr-defined]


async def test_a_watch_of_nothing_says_so_and_goes_on(world: InMemory) -> None:
    table = world.hub.table("desired")
    changes = table.watch("scenarios.")
    assert await take(changes, 1) == [SNAPSHOT_DONE]
    written = await table.put("scenarios.x", b"1")
    assert await take(changes, 1) == [Entry("scenarios.x", b"1", written)]
    await changes.aclose()  # type: ignore[attr-defined]


async def test_a_watch_of_many_misses_none(world: InMemory) -> None:
    table = world.hub.table("desired")
    await asyncio.gather(*(table.put(f"nodes.n{i}", b"x" * 500) for i in range(300)))
    changes = table.watch("nodes.")
    start = await take(changes, 301)
    assert {c.key for c in start if isinstance(c, Entry)} == {f"nodes.n{i}" for i in range(300)}
    assert start[-1] is SNAPSHOT_DONE
    await asyncio.gather(*(table.put(f"nodes.n{i}", b"y") for i in range(300)))
    assert {c.key for c in await take(changes, 300) if isinstance(c, Entry)} == {f"nodes.n{i}" for i in range(300)}
    await changes.aclose()  # type: ignore[attr-defined]


# --- What a node sees -----------------------------------------------------------------------------------------------


async def test_a_node_reads_and_follows_its_own_assignment(world: InMemory) -> None:
    decided, mine = world.hub.table("decided"), world.n1.table("decided")
    key = subjects.assignment_key("n1")
    assert await mine.get(key) is None
    changes = mine.watch(key)
    assert await take(changes, 1) == [SNAPSHOT_DONE]
    first = await decided.put(key, b"one")
    await decided.put(subjects.assignment_key("n2"), b"not yours")
    assert await take(changes, 1) == [Entry(key, b"one", first)]
    assert await mine.get(key) == Entry(key, b"one", first)
    second = await decided.put(key, b"two", first)
    assert await take(changes, 1) == [Entry(key, b"two", second)]
    await changes.aclose()  # type: ignore[attr-defined]


async def test_a_node_writes_its_own_report(world: InMemory) -> None:
    key = subjects.report_key("n1")
    written = await world.n1.table("observed").put(key, b"well")
    assert await world.hub.table("observed").get(key) == Entry(key, b"well", written)
    changes = world.hub.table("observed").watch("report.")
    assert await take(changes, 2) == [Entry(key, b"well", written), SNAPSHOT_DONE]
    again = await world.n1.table("observed").put(key, b"still well")
    assert await take(changes, 1) == [Entry(key, b"still well", again)]
    await changes.aclose()  # type: ignore[attr-defined]


async def test_a_node_is_refused_what_is_not_its_own(world: InMemory) -> None:
    with pytest.raises(PermissionError):
        await world.n1.table("observed").put(subjects.report_key("n2"), b"lie")
    with pytest.raises(PermissionError):
        await world.n1.table("decided").get(subjects.assignment_key("n2"))
    with pytest.raises(PermissionError):
        await world.n1.table("decided").put(subjects.assignment_key("n1"), b"promoted")
    with pytest.raises(PermissionError):
        world.n1.table("desired")
    with pytest.raises(PermissionError):
        await world.n1.log("up-normal").read()
    with pytest.raises(PermissionError):
        await world.n1.log("up-normal").append("n2", b"")


async def test_a_cut_is_noticed_and_so_is_its_end(world: InMemory) -> None:
    key = subjects.assignment_key("n1")
    first = await world.hub.table("decided").put(key, b"before")
    changes = world.n1.table("decided").watch(key)
    assert await take(changes, 2) == [Entry(key, b"before", first), SNAPSHOT_DONE]
    back: list[bool] = []
    world.n1.on_reconnect(lambda: back.append(True))
    await world.cut("n1")
    await until(lambda: not world.n1.is_connected)
    assert world.n2.is_connected
    with pytest.raises(FabricUnavailable):
        await world.n1.wait_connected(0.1)
    second = await world.hub.table("decided").put(key, b"meanwhile")
    await world.heal("n1")
    await world.n1.wait_connected(10)
    assert await take(changes, 1) == [Entry(key, b"meanwhile", second)]
    assert back
    await changes.aclose()  # type: ignore[attr-defined]


# --- Logs -----------------------------------------------------------------------------------------------------------


async def test_a_log_keeps_everything_once_and_in_order(world: InMemory) -> None:
    audit = world.hub.log("audit")
    assert await audit.read() == []
    first = await audit.append("people.ada", b"a", "id-1")
    assert not first.duplicate
    again = await audit.append("people.ada", b"a", "id-1")
    assert again.duplicate
    assert again.sequence == first.sequence
    for i in range(5):
        await audit.append("people.bob", str(i).encode())
    entries = await audit.read()
    assert [(e.key, e.data) for e in entries] == [("people.ada", b"a")] + [
        ("people.bob", str(i).encode()) for i in range(5)
    ]
    assert [e.data for e in await audit.read(entries[2].sequence, 2)] == [b"2", b"3"]
    assert entries[0].at_ms <= entries[-1].at_ms


async def test_a_node_sends_up_and_the_hub_has_it_once(world: InMemory) -> None:
    up = world.n1.log("up-critical")
    assert not (await up.append("n1", b"stop", "n1:1")).duplicate
    assert (await up.append("n1", b"stop", "n1:1")).duplicate
    assert [(e.key, e.data) for e in await world.hub.log("up-critical").read()] == [("n1", b"stop")]


async def next_delivery(deliveries: AsyncIterator[Delivery]) -> Delivery:
    async with asyncio.timeout(60):
        return await anext(deliveries)


async def test_a_follower_goes_on_where_it_acknowledged(world: InMemory) -> None:
    kept = world.n1.log("outgoing-normal")
    for i in range(4):
        await kept.append("meters", str(i).encode())
    deliveries = kept.follow("forwarder")
    for i in range(2):
        delivery = await next_delivery(deliveries)
        assert (delivery.entry.key, delivery.entry.data, delivery.attempt) == ("meters", str(i).encode(), 1)
        await delivery.ack()
    lost = await next_delivery(deliveries)
    await lost.retry()
    seen = {lost.entry.sequence: 0}
    while seen != {3: 2, 4: 1}:
        delivery = await next_delivery(deliveries)
        seen[delivery.entry.sequence] = delivery.attempt
        await delivery.ack()
    await deliveries.aclose()  # type: ignore[attr-defined]
    await kept.append("meters", b"late")
    later = kept.follow("forwarder")
    assert (await next_delivery(later)).entry.data == b"late"
    await later.aclose()  # type: ignore[attr-defined]


# --- Names ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("pattern", "subject", "fits"),
    [("a.b", "a.b", True), ("a.*", "a.b", True), ("a.*", "a.b.c", False), ("a.>", "a.b.c", True), ("a.>", "a", False)],
)
def test_patterns(pattern: str, subject: str, fits: bool) -> None:
    assert matches(pattern, subject) is fits


def test_the_rewritings_agree_with_the_functions() -> None:
    assert subjects.REPUBLISHED_ASSIGNMENT.replace("{{wildcard(1)}}", "n1") == subjects.assignment("n1")
    assert subjects.TRANSFORMED_REPORT.replace("{{wildcard(1)}}", "n1") == subjects.report_key("n1")
    assert matches(subjects.ASSIGNMENT_KEYS, subjects.assignment_key("n1"))


@pytest.mark.parametrize(
    ("topic", "subject"),
    [
        ("a/b", "a.b"),
        ("a.b/c", "a//b.c"),
        ("/x", "/.x"),
        ("x/", "x./"),
        ("a//b", "a./.b"),
        ("cameras/+/frame", "cameras.*.frame"),
        ("plant/#", "plant.>"),
    ],
)
def test_topics_are_subjects_and_back(topic: str, subject: str) -> None:
    assert subjects.subject_of_topic(topic) == subject
    assert subjects.topic_of_subject(subject) == topic


@pytest.mark.parametrize("topic", ["", "a b", "a/*", "a/>", "a/b+", "a/#/b", "a/b#", "a\x00"])
def test_topics_that_no_broker_takes_are_refused(topic: str) -> None:
    with pytest.raises(ValueError, match=r"topic|white|wildcard|stands"):
        subjects.subject_of_topic(topic)


def test_a_filter_of_all_below_means_itself_too() -> None:
    assert subjects.subjects_of_topic_filter("x/#") == ("x", "x.>")
    with pytest.raises(ValueError, match="one level"):
        subjects.report("a.b")
