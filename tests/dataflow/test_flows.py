"""Stores on a real broker, and the way of answers to a hub whose link can be cut at any point."""

from __future__ import annotations

import asyncio
import contextlib
import importlib.util
import random
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from nats.js.errors import NotFoundError

from batuta.core.decided import Capture
from batuta.dataflow import forward
from batuta.dataflow.flows import Flows
from batuta.dataflow.inbox import Inbox
from batuta.dataflow.stores import Room
from batuta.errors import FabricUnavailable
from batuta.kinds.application import Output

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Mapping

spec = importlib.util.spec_from_file_location("site_for_tests", Path(__file__).with_name("site.py"))
assert spec is not None
assert spec.loader is not None
site = importlib.util.module_from_spec(spec)
spec.loader.exec_module(site)

pytestmark = pytest.mark.e2e
OUTPUTS = (Output(topic="meters/{1}/reading"), Output(forward="hub"))
CAPTURE = Capture(consumer="d_app_read", topics=("cameras/+/frame",), outputs=OUTPUTS)
OTHER = Capture(consumer="d_app_other", topics=("cameras/c1/#",), outputs=(Output(topic="alarms/{1}"),))


class Hub:
    """What the hub has, and a link to it that fails as links do: before the data, or after it."""

    def __init__(self, seed: int = 0) -> None:
        self.has: list[tuple[str, str, int]] = []
        """Subject, source, number."""
        self.names: set[str] = set()
        self.twice = 0
        self.attempts = 0
        self.away = False
        self.loses = 0.0
        """Share of the publications that fail; half of those were taken in all the same."""
        self.most_at_once = 0
        self._at_once = 0
        self._random = random.Random(seed)

    async def publish_up(self, subject: str, data: bytes, headers: Mapping[str, str], name: str) -> None:
        self.attempts += 1
        self._at_once += 1
        self.most_at_once = max(self.most_at_once, self._at_once)
        try:
            await asyncio.sleep(self._random.random() * 0.004)
            fails = self.away or self._random.random() < self.loses
            if not self.away and (not fails or self._random.random() < 0.5):
                if name in self.names:
                    self.twice += 1
                else:
                    self.names.add(name)
                    self.has.append((subject, headers["Batuta-Source-Topic"], int(data)))
            if fails:
                raise FabricUnavailable("the link was cut")
        finally:
            self._at_once -= 1


@contextlib.asynccontextmanager
async def node_of(directory: Path) -> AsyncIterator[Any]:
    async with site.site_of(directory, ["na"]) as (node,):
        yield node


@contextlib.asynccontextmanager
async def running(node: Any, hub: Hub, room: Room | None = None) -> AsyncIterator[Flows]:
    client = await node.connect()
    flows = Flows(client, "na", hub.publish_up, room)
    flows.follow([CAPTURE])
    await flows.inbox.ensure()
    task = asyncio.create_task(flows.run())
    try:
        yield flows
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
        await client.close()


async def answer(client: Any, source: int, number: int, *, forwarded: bool = True) -> bool:
    headers = {
        "Nats-Msg-Id": f"{source}:{number}:{forwarded}",
        "Batuta-Source-Topic": f"cameras/c{source}/frame",
        "Batuta-Class": "normal",
    }
    if forwarded:
        headers["Batuta-Forward"] = "hub"
    ack = await client.jetstream().publish(f"out.na.meters.c{source}.reading", b"%d" % number, headers=headers)
    return bool(ack.duplicate)


def in_order(hub: Hub) -> bool:
    by_source: dict[str, list[int]] = {}
    for _, source, number in hub.has:
        by_source.setdefault(source, []).append(number)
    return all(numbers == sorted(numbers) for numbers in by_source.values())


async def test_everything_arrives_once_and_in_order_over_a_link_that_loses_a_third(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(forward, "AGAIN_FIRST_S", 0.01)
    hub = Hub()
    hub.loses = 0.3
    async with node_of(tmp_path) as node, running(node, hub) as flows:
        client = await node.connect()
        for number in range(60):
            await asyncio.gather(*(answer(client, source, number) for source in range(5)))
        await site.until(lambda: len(hub.has) == 300, 60)
        await site.until(lambda: flows.books()[-1].delivered == 300)
        assert in_order(hub)
        assert {subject for subject, *_ in hub.has} == {"batuta.up.na.normal"}
        assert hub.twice > 0, "some were taken in although the answer was lost"
        (flow,) = (f for f in flows.books() if f.consumer == "forward/meters")
        assert (flow.produced, flow.delivered, flow.stored, flow.shed) == (300, 300, 0, 0)
        await client.close()


async def test_many_sources_go_together_and_only_what_is_to_be_forwarded(tmp_path: Path) -> None:
    hub = Hub()
    async with node_of(tmp_path) as node, running(node, hub) as flows:
        client = await node.connect()
        for source in range(200):
            await answer(client, source, 1)
            await answer(client, source, 2, forwarded=False)
        await site.until(lambda: len(hub.has) == 200)
        assert {number for *_, number in hub.has} == {1}
        await site.until(lambda: flows.books()[-1].produced == 200 and flows.books()[-1].stored == 0)
        await client.close()


async def test_while_the_hub_is_away_nothing_is_lost_and_hardly_anything_is_tried(tmp_path: Path) -> None:
    hub = Hub()
    hub.away = True
    async with node_of(tmp_path) as node:
        async with running(node, hub) as flows:
            client = await node.connect()
            for number in range(100):
                await asyncio.gather(*(answer(client, source, number) for source in range(5)))
            await site.until(lambda: hub.attempts >= 5)
            await asyncio.sleep(1.0)
            before = hub.attempts
            await asyncio.sleep(2.0)
            assert hub.attempts - before <= 4, "one tries, ever more slowly"
            await site.until(lambda: flows.books()[-1].produced == 500)
            assert flows.books()[-1].stored == 500
        # The node agent restarts meanwhile; what it had in hand comes again first.
        async with running(node, hub) as flows:
            hub.away = False
            await site.until(lambda: len(hub.has) == 500, 60)
            assert in_order(hub)
            await site.until(lambda: flows.books()[-1].delivered == 500)
            flow = flows.books()[-1]
            assert (flow.produced, flow.delivered, flow.shed) == (500, 500, 0)
        await client.close()


async def test_the_books_count_what_comes_in_while_the_forwarder_finds_out_where_it_stands(tmp_path: Path) -> None:
    hub = Hub()
    hub.away = True
    given = 0
    async with node_of(tmp_path) as node:
        client = await node.connect()
        await Flows(client, "na", hub.publish_up).inbox.ensure()
        async with running(node, hub):
            pass

        async def publish() -> None:
            nonlocal given
            while True:
                await asyncio.gather(*(answer(client, source, given) for source in range(20)))
                given += 20
                await asyncio.sleep(0.001)

        for _ in range(3):
            async with running(node, hub) as flows:
                publishing = asyncio.create_task(publish())
                await site.until(lambda: flows.forwarders and hub.attempts > 0)
                publishing.cancel()
                await asyncio.gather(publishing, return_exceptions=True)
                stream = await client.jetstream().stream_info("out-na-meters")
                await site.until(lambda flows=flows, last=stream.state.last_seq: flows.books()[-1].produced == last)
                hub.attempts = 0
        await client.close()


async def test_the_agent_restarts_again_and_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Order and number hold when it is cut off in the middle of sending."""
    monkeypatch.setattr(forward, "AGAIN_FIRST_S", 0.01)
    hub = Hub()
    hub.loses = 0.1
    async with node_of(tmp_path) as node:
        client = await node.connect()
        async with running(node, hub):
            pass
        for number in range(100):
            await asyncio.gather(*(answer(client, source, number) for source in range(3)))
        for goal in (50, 150):
            async with running(node, hub):
                await site.until(lambda goal=goal: len(hub.has) >= goal)
        async with running(node, hub):
            await site.until(lambda: len(hub.has) == 300, 60)
        assert in_order(hub)
        await client.close()


async def test_what_the_store_drops_is_counted(tmp_path: Path) -> None:
    hub = Hub()
    hub.away = True
    room = Room(frames_bytes=1 << 20, answers_bytes=200_000)
    async with node_of(tmp_path) as node, running(node, hub, room) as flows:
        client = await node.connect()
        for number in range(2_000):
            await answer(client, 1, number)
        left = (await client.jetstream().stream_info("out-na-meters")).state
        assert left.messages < 2_000
        hub.away = False
        await site.until(lambda: hub.has and hub.has[-1][2] == 1_999, 60)
        await site.until(lambda: flows.books()[-1].produced == 2_000 and flows.books()[-1].stored == 0)
        flow = flows.books()[-1]
        assert flow.shed > 0
        assert flow.shed + len(hub.has) == 2_000
        assert flow.reason is not None
        assert flow.reason.code == "inbox_full"
        assert in_order(hub)
        await client.close()


async def test_an_answer_that_the_hub_will_never_take_does_not_hold_up_its_source(tmp_path: Path) -> None:
    hub = Hub()
    plain = hub.publish_up

    async def picky(subject: str, data: bytes, headers: Mapping[str, str], name: str) -> None:
        if data == b"3":
            raise ValueError("not this one")
        await plain(subject, data, headers, name)

    hub.publish_up = picky  # type: ignore[method-assign]
    async with node_of(tmp_path) as node, running(node, hub) as flows:
        client = await node.connect()
        for number in range(6):
            await answer(client, 1, number)
        await site.until(lambda: len(hub.has) == 5)
        await site.until(lambda: flows.books()[-1].shed == 1 and flows.books()[-1].delivered == 5)
        assert "not this one" in str(flows.books()[-1].reason)
        await client.close()


async def test_an_answer_twice_is_kept_once_and_heard_once(tmp_path: Path) -> None:
    async with node_of(tmp_path) as node, running(node, Hub()):
        client = await node.connect()
        heard = await client.subscribe("meters.>")
        assert not await answer(client, 1, 1)
        assert await answer(client, 1, 1)
        assert (await heard.next_msg(timeout=5)).subject == "meters.c1.reading"
        with pytest.raises(TimeoutError):
            await heard.next_msg(timeout=0.3)
        await client.close()


async def test_stores_follow_the_captures_and_doing_it_again_changes_nothing(tmp_path: Path) -> None:
    async with node_of(tmp_path) as node:
        client = await node.connect()
        stream = client.jetstream()
        inbox = Inbox(client, "na")
        inbox.follow([CAPTURE, OTHER])
        await inbox.ensure()

        async def present() -> list[Any]:
            infos = [await stream.stream_info(n) for n in ("$MQTT_msgs", "out-na-meters", "out-na-alarms")]
            readers = await stream.consumers_info("$MQTT_msgs")
            return [i.config for i in infos] + sorted((r.config for r in readers), key=lambda c: str(c.durable_name))

        first = await present()
        device = site.Device(node)  # the broker's own MQTT set-up accepts the stream as it is
        await inbox.ensure()
        assert await present() == first

        # A topic more, and one covered by it: the reader is changed, not made anew.
        created = (await stream.consumer_info("$MQTT_msgs", "d_app_read-at-na")).created
        inbox.follow([Capture(consumer="d_app_read", topics=("cameras/+/frame", "cameras/#"), outputs=OUTPUTS), OTHER])
        await inbox.ensure()
        reader = await stream.consumer_info("$MQTT_msgs", "d_app_read-at-na")
        assert reader.created == created
        assert sorted(reader.config.filter_subjects or []) == ["$MQTT.msgs.cameras", "$MQTT.msgs.cameras.>"]

        # A capture that is gone: its reader stays until it is empty.
        device.publish("cameras/c1/frame", b"1")
        await device.all_kept(1)
        inbox.follow([CAPTURE])
        await inbox.ensure()
        assert (await stream.consumer_info("$MQTT_msgs", "d_app_other-at-na")).num_pending == 1
        await stream.stream_info("out-na-meters")
        with pytest.raises(NotFoundError):
            await stream.stream_info("out-na-alarms")
        (message,) = await (await stream.pull_subscribe_bind("d_app_other-at-na", stream="$MQTT_msgs")).fetch(1)
        await message.ack_sync()
        await inbox.ensure()
        with pytest.raises(NotFoundError):
            await stream.consumer_info("$MQTT_msgs", "d_app_other-at-na")
        device.close()
        await client.close()


async def test_a_full_store_refuses_devices_and_drops_nothing(tmp_path: Path) -> None:
    async with node_of(tmp_path) as node:
        client = await node.connect()
        inbox = Inbox(client, "na", Room(frames_bytes=100_000))
        inbox.follow([CAPTURE])
        await inbox.ensure()
        device = site.Device(node)
        for _ in range(200):
            device.publish("cameras/c1/frame", b"x" * 1_000)

        async def is_full() -> bool:
            await inbox.look()
            return inbox.books()[0].reason is not None

        await site.until(is_full)
        kept = inbox.books()[0].stored
        assert 80 <= kept < 200
        consumer = await client.jetstream().pull_subscribe_bind("d_app_read-at-na", stream="$MQTT_msgs")
        async with asyncio.timeout(120):
            # A device that was not told of a frame sends it again, so that more than 200 may have to be taken.
            while device.kept < 200 or not await _looked(inbox):
                with contextlib.suppress(TimeoutError):
                    for message in await consumer.fetch(50, timeout=1):
                        await message.ack()
        await device.all_kept(200)
        device.close()
        await client.close()


async def _looked(inbox: Inbox) -> bool:
    await inbox.look()
    flow = inbox.books()[0]
    return flow.stored == 0 and flow.reason is None and flow.delivered >= 200


async def test_topics_that_overlap_give_each_frame_once_and_a_bad_one_is_said(tmp_path: Path) -> None:
    async with node_of(tmp_path) as node:
        client = await node.connect()
        inbox = Inbox(client, "na")
        both = Capture(consumer="d_app_both", topics=("a/+/x", "a/b/+"))
        inbox.follow([Capture(consumer="d_app_bad", topics=("a b/+",)), both])
        await inbox.ensure()
        flows = {flow.consumer: flow for flow in inbox.books()}
        assert flows["d_app_bad"].reason is not None
        assert "white space" in flows["d_app_bad"].reason.detail
        assert flows["d_app_both"].reason is None
        device = site.Device(node)
        for topic in ("a/b/x", "a/c/x", "a/b/y", "a/c/y"):
            device.publish(topic, b"1")
        await device.all_kept(4)
        await inbox.look()
        assert {flow.consumer: flow.stored for flow in inbox.books()}["d_app_both"] == 3
        device.close()
        await client.close()
