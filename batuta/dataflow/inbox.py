"""What a node's broker keeps for the flows of its site: frames until they are answered, answers until they are sent.

Frames are what devices publish with QoS 1 or 2: the broker keeps those it has a reader for, and tells the device
only then that it has them. For every Capture there is one reader, a durable consumer that all workers of the site
share. The store of frames refuses when it is full: a device is told nothing and sends again, and what it was told
is kept is never dropped. Answers are the other way round: what leaves the node must not stop what happens on it, so
their store drops its oldest, and the forwarder counts what it thereby missed.

Everything here can be done again at any time and changes nothing the second time.
"""

from __future__ import annotations

import asyncio
import contextlib
from typing import TYPE_CHECKING

from nats.errors import Error as NatsError
from nats.js.errors import APIError, NotFoundError

from batuta.core.observed import Flow
from batuta.core.reasons import Reason
from batuta.dataflow.stores import FORWARD, MARK, Room, answers_store, filters_of, forwarding, frames_store, reading
from batuta.fabric import subjects

if TYPE_CHECKING:
    from collections.abc import Iterable

    from nats.aio.client import Client
    from nats.aio.msg import Msg
    from nats.aio.subscription import Subscription
    from nats.js import JetStreamContext
    from nats.js.api import ConsumerInfo, StreamConfig

    from batuta.core.decided import Capture

GONE_AFTER_S = 300.0
"""Frames of a component that is no longer captured wait so long for a worker that still serves them."""
LOOK_EVERY_S = 2.0
FULL = 0.98


class Reader:
    """What is known of one consumer of frames."""

    def __init__(self, consumer: str) -> None:
        self.consumer = consumer
        self.acknowledged = 0
        self.refused = 0
        """Given up by a worker: no run could answer them."""
        self.produced = 0
        """As of the last look; what left and what was there then."""
        self.dropped = 0
        """Left behind when the capture went."""
        self.gone_since: float | None = None
        self.fault = ""
        self.ears: list[Subscription] = []


class Inbox:
    """The stores of one node, on its own broker."""

    def __init__(self, client: Client, node: str, room: Room | None = None) -> None:
        self.node = node
        self.room = room or Room()
        self.faults = 0
        """Times the broker could not be asked, or refused."""
        self._client = client
        self._js: JetStreamContext = client.jetstream(timeout=5)
        self._captures: tuple[Capture, ...] = ()
        self._readers: dict[str, Reader] = {}
        self._is_full = False
        self._changed = asyncio.Event()

    def follow(self, captures: Iterable[Capture]) -> None:
        """From now on these. What it takes is done by `run`, and again until it is done."""
        self._captures = tuple(captures)
        self._changed.set()

    @property
    def roots(self) -> dict[str, bool]:
        """First levels of the output topics, and whether anything below is forwarded."""
        found: dict[str, bool] = {}
        for capture in self._captures:
            forwards = any(o.forward == "hub" for o in capture.outputs)
            for output in capture.outputs:
                if output.topic is not None:
                    root = output.topic.split("/", 1)[0]
                    found[root] = found.get(root, False) or forwards
        return found

    async def run(self) -> None:
        """Keeps the stores as the captures want them, and the books up to date; for ever."""
        while True:
            self._changed.clear()
            try:
                await self.ensure()
                await self.look()
            except (NatsError, APIError, TimeoutError, OSError):
                self.faults += 1
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(LOOK_EVERY_S):
                    await self._changed.wait()

    # --- What is kept ---

    async def ensure(self) -> None:
        """Makes what is missing, changes what differs, removes what nobody needs."""
        await self._ensure_stream(frames_store(self.room))
        for root, forwards in sorted(self.roots.items()):
            await self._ensure_stream(answers_store(self.node, root, self.room, forwards=forwards))
            if forwards:
                await self._js.add_consumer(subjects.result_stream(self.node, root), forwarding(self.node))
        for capture in self._captures:
            await self._ensure_reader(capture)
        await self._remove_readers()
        await self._remove_answers()

    async def _ensure_stream(self, wanted: StreamConfig) -> None:
        try:
            present = (await self._js.stream_info(str(wanted.name))).config
        except NotFoundError:
            await self._js.add_stream(wanted)
            return
        if any(getattr(present, each) != getattr(wanted, each) for each in ("max_bytes", "discard", "max_age")):
            await self._js.update_stream(wanted)

    async def _ensure_reader(self, capture: Capture) -> None:
        name = subjects.reader(capture.consumer, self.node)
        reader = self._readers.get(capture.consumer)
        if reader is None:
            reader = self._readers[capture.consumer] = Reader(capture.consumer)
            await self._listen(reader, name)
        reader.gone_since = None
        try:
            wanted = reading(name, capture.topics)
            try:
                present = (await self._js.consumer_info(subjects.MQTT_KEPT_STREAM, name)).config
            except NotFoundError:
                present = None
            if present is None or filters_of(present) != filters_of(wanted):
                await self._js.add_consumer(subjects.MQTT_KEPT_STREAM, wanted)
            reader.fault = ""
        except (APIError, ValueError) as error:
            # One capture that cannot be must not keep the others from being made.
            self.faults += 1
            reader.fault = str(error)

    async def _listen(self, reader: Reader, name: str) -> None:
        """The broker says of every frame that it was acknowledged, or given up."""

        async def acknowledged(_: Msg) -> None:
            reader.acknowledged += 1

        async def refused(_: Msg) -> None:
            reader.refused += 1

        stream = subjects.MQTT_KEPT_STREAM
        metric, advisory = "$JS.EVENT.METRIC.CONSUMER.ACK", "$JS.EVENT.ADVISORY.CONSUMER.MSG_TERMINATED"
        reader.ears = [
            await self._client.subscribe(f"{metric}.{stream}.{name}", cb=acknowledged),
            await self._client.subscribe(f"{advisory}.{stream}.{name}", cb=refused),
        ]
        await self._client.flush()

    async def _remove_readers(self) -> None:
        """Readers whose capture is gone go once they are empty, or have waited long enough to be emptied."""
        wanted = {subjects.reader(capture.consumer, self.node) for capture in self._captures}
        loop = asyncio.get_running_loop()
        for info in await self._all_readers():
            if info.name in wanted:
                continue
            consumer = info.name.removesuffix(f"-at-{self.node}")
            reader = self._readers.setdefault(consumer, Reader(consumer))
            if reader.gone_since is None:
                reader.gone_since = loop.time()
            left = int(info.num_pending or 0) + int(info.num_ack_pending or 0)
            if left == 0 or loop.time() - reader.gone_since >= GONE_AFTER_S:
                await self._js.delete_consumer(subjects.MQTT_KEPT_STREAM, info.name)
                reader.dropped += left

    async def _all_readers(self) -> list[ConsumerInfo]:
        found: list[ConsumerInfo] = []
        while True:
            page = await self._js.consumers_info(subjects.MQTT_KEPT_STREAM, offset=len(found))
            found += page
            if len(page) < 256:
                return [info for info in found if info.config.description == MARK]

    async def _remove_answers(self) -> None:
        """Stores of answers that no capture gives any more go once everything in them was forwarded."""
        prefix = subjects.result_stream(self.node, "x")[:-1]
        names = [str(info.config.name) for info in await self._js.streams_info()]
        for name in names:
            if not name.startswith(prefix) or name.removeprefix(prefix) in self.roots:
                continue
            try:
                info = await self._js.consumer_info(name, subjects.reader(FORWARD, self.node))
                empty = not info.num_pending and not info.num_ack_pending
            except NotFoundError:
                empty = True
            if empty:
                await self._js.delete_stream(name)

    # --- The books ---

    async def look(self) -> None:
        """Asks the broker how much is stored."""
        frames = await self._js.stream_info(subjects.MQTT_KEPT_STREAM)
        self._is_full = frames.state.bytes >= self.room.frames_bytes * FULL
        for consumer, reader in self._readers.items():
            try:
                info = await self._js.consumer_info(subjects.MQTT_KEPT_STREAM, subjects.reader(consumer, self.node))
                stored = int(info.num_pending or 0) + int(info.num_ack_pending or 0)
            except NotFoundError:
                stored = 0
            reader.produced = reader.acknowledged + reader.refused + reader.dropped + stored

    def books(self) -> tuple[Flow, ...]:
        """Since this node agent began, what was stored then included; as of the last look.

        The broker drops nothing that it has accepted, so what was produced is what left in one way or the other and
        what is still there; devices that were refused for want of room send again and are not in the books.
        """
        return tuple(self._flow(reader) for _, reader in sorted(self._readers.items()))

    def _flow(self, reader: Reader) -> Flow:
        shed = reader.refused + reader.dropped
        produced = max(reader.produced, reader.acknowledged + shed)
        return Flow(
            consumer=reader.consumer,
            produced=produced,
            delivered=reader.acknowledged,
            stored=produced - reader.acknowledged - shed,
            shed=shed,
            reason=self._reason(reader),
        )

    def _reason(self, reader: Reader) -> Reason | None:
        subject = f"node/{self.node}"
        if reader.fault:
            return Reason(code="start_failed", subject=subject, detail=reader.fault[:300])
        if self._is_full:
            return Reason(code="inbox_full", subject=subject, detail="devices are refused until there is room again")
        return None
