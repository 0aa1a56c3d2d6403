"""The forwarder: carries answers from a node's store to the hub, in order, and keeps the books of it.

Runs inside the node agent. An answer is acknowledged in its store once the hub has it, so a cut, a crash of the
agent or of the broker loses none; its name keeps it from being at the hub twice. Of one source, one answer is on
its way at a time: that is what makes their order certain whatever the link does; many sources are on their way
together. While the hub is away nothing is tried but one answer, ever more slowly.

The books: produced = delivered + stored + shed. Produced is counted by the store; shed is what the store dropped
for want of room before it could be sent, seen as a gap in its numbers, and what the hub refused for ever.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections import deque
from typing import TYPE_CHECKING, NamedTuple

from nats.errors import Error as NatsError
from nats.js.errors import APIError

from batuta.core.observed import Flow
from batuta.core.reasons import Reason
from batuta.dataflow import answers
from batuta.dataflow.pull import Inbox as Source
from batuta.dataflow.pull import Pull
from batuta.dataflow.stores import FORWARD
from batuta.errors import FabricUnavailable
from batuta.fabric import subjects
from batuta.fabric.tasks import end

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Mapping

    from nats.aio.client import Client
    from nats.aio.msg import Msg
    from nats.js import JetStreamContext

    PublishUp = Callable[[str, bytes, Mapping[str, str], str], Awaitable[object]]
    """Subject, data, headers, name; returns once the hub has it, raises FabricUnavailable when it may not have it."""

IN_FLIGHT_MAX = 256
BATCH = 64
EXTEND_EVERY_S = 1.0
AGAIN_FIRST_S = 0.2
AGAIN_LONGEST_S = 5.0
LOOK_EVERY_S = 2.0


class Sending(NamedTuple):
    """An answer on its way."""

    message: Msg
    sequence: int
    at_ns: int
    source: str


class Forwarder:
    """Everything that one store of answers sends to the hub."""

    def __init__(self, client: Client, node: str, root: str, publish_up: PublishUp) -> None:
        self.root = root
        self.delivered = 0
        self.shed = 0
        self.skipped = 0
        """Answers that were not to be forwarded."""
        self.last_refusal = ""
        self.faults = 0
        """Times the hub or the broker could not be reached."""
        self._client = client
        self._js: JetStreamContext = client.jetstream(timeout=5)
        self._node = node
        self._stream = subjects.result_stream(node, root)
        self._publish_up = publish_up
        self._waiting: dict[str, deque[Sending]] = {}
        """By source, in order; the first of each is on its way."""
        self._held: dict[int, Sending] = {}
        self._last = 0
        """Sequence of the newest answer ever taken."""
        self._open = asyncio.Event()
        self._open.set()
        self._probing = asyncio.Lock()
        self._slots = asyncio.Semaphore(IN_FLIGHT_MAX)
        self._tasks: set[asyncio.Task[None]] = set()
        self._pull: Pull | None = None
        self._newest = self._newest_before = self._stored_before = 0

    async def run(self) -> None:
        """For ever. Cancelled, it leaves what is on its way to come again."""
        self._waiting.clear()
        self._held.clear()
        await self._begin()
        consumer = subjects.reader(FORWARD, self._node)
        source = Source(self._node, self._stream, consumer)
        pull = Pull(self._client, source, BATCH, take=self._take, may_take=lambda: len(self._held) < IN_FLIGHT_MAX)
        self._pull = pull
        pull.begin()
        try:
            extend_at = look_at = 0.0
            while True:
                now = asyncio.get_running_loop().time()
                if now >= extend_at:
                    extend_at = now + EXTEND_EVERY_S
                    await self._extend()
                if now >= look_at:
                    look_at = now + LOOK_EVERY_S
                    await self._look()
                await asyncio.sleep(max(0.0, min(extend_at, look_at) - now))
        finally:
            await pull.stop()
            await end(*self._tasks)

    async def _begin(self) -> None:
        """Finds out where it stands. What an earlier agent had in hand must come again first, for order's sake."""
        wait_s = AGAIN_FIRST_S
        while True:
            try:
                eldest = (await self._js.stream_info(self._stream)).state.first_seq
                info = await self._js.consumer_info(self._stream, subjects.reader(FORWARD, self._node))
                break
            except (NatsError, APIError, TimeoutError, OSError):
                self.faults += 1
                await asyncio.sleep(wait_s)
                wait_s = min(wait_s * 2, AGAIN_LONGEST_S)
        # What left the store before this consumer ever read was nobody's to forward.
        self._last = (info.delivered.stream_seq if info.delivered else 0) or max(0, eldest - 1)
        pending = int(info.num_pending or 0)
        self._stored_before = pending + int(info.num_ack_pending or 0)
        # From the same answer as what is stored: a number asked for separately would miss what came between the two.
        self._newest = self._newest_before = self._last + pending
        if info.num_ack_pending:
            await asyncio.sleep(float(info.config.ack_wait or 0) + 0.5)

    # --- One answer ---

    def _take(self, _: str, message: Msg) -> None:
        place = answers.place_of(message.reply)
        if place.sequence in self._held:
            return
        if place.sequence > self._last:
            # Nobody but the store itself removes what was not yet taken.
            self.shed += place.sequence - self._last - 1
            self._last = place.sequence
        headers = message.headers or {}
        sending = Sending(message, place.sequence, place.at_ns, headers.get(answers.HEADER_SOURCE, message.subject))
        self._held[place.sequence] = sending
        queue = self._waiting.setdefault(sending.source, deque())
        queue.append(sending)
        if len(queue) == 1:
            task = asyncio.create_task(self._send_source(sending.source))
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)

    async def _send_source(self, source: str) -> None:
        """Everything that waits of one source, one after the other."""
        queue = self._waiting[source]
        while queue:
            sending = queue[0]
            async with self._slots:
                if (sending.message.headers or {}).get(answers.HEADER_FORWARD) == "hub":
                    await self._send_or_shed(sending)
                else:
                    self.skipped += 1
            try:
                await sending.message.ack()
            except NatsError:
                # It comes again, and the hub knows its name.
                self.faults += 1
            queue.popleft()
            del self._held[sending.sequence]
            if self._pull is not None:
                self._pull.stir()
        del self._waiting[source]

    async def _send_or_shed(self, sending: Sending) -> None:
        try:
            await self._send(sending)
        except Exception as error:  # not a matter of the link, so it would be refused for ever and hold up its source
            self.shed += 1
            self.last_refusal = f"refused: {error or type(error).__name__}"
        else:
            self.delivered += 1

    async def _send(self, sending: Sending) -> None:
        """Returns once the hub has it. When it cannot be reached, one answer tries and all others wait for that one."""
        headers = {k: v for k, v in (sending.message.headers or {}).items() if k.startswith("Batuta-")}
        name = (sending.message.headers or {}).get(answers.HEADER_ID) or f"{self._stream}:{sending.sequence}"
        subject = subjects.up(self._node, headers.get(answers.HEADER_CLASS, "normal"))
        wait_s = AGAIN_FIRST_S
        await self._open.wait()
        while not await self._try(subject, sending.message.data, headers, name):
            self._open.clear()
            async with self._probing:
                while not self._open.is_set():
                    await asyncio.sleep(wait_s)
                    wait_s = min(wait_s * 2, AGAIN_LONGEST_S)
                    if await self._try(subject, sending.message.data, headers, name):
                        self._open.set()
                        return

    async def _try(self, subject: str, data: bytes, headers: Mapping[str, str], name: str) -> bool:
        try:
            await self._publish_up(subject, data, headers, name)
        except (FabricUnavailable, NatsError, TimeoutError, OSError):
            self.faults += 1
            return False
        return True

    async def _extend(self) -> None:
        """Tells the store that what is held is still being worked on."""
        for sending in list(self._held.values()):
            with contextlib.suppress(NatsError):
                await sending.message.in_progress()

    # --- The store ---

    async def _look(self) -> None:
        try:
            self._newest = (await self._js.stream_info(self._stream)).state.last_seq
        except (NatsError, APIError, TimeoutError, OSError):
            self.faults += 1

    def books(self) -> Flow:
        """Since this node agent began, what was stored then included; as of the last look."""
        produced = max(
            self._stored_before + self._newest - self._newest_before - self.skipped, self.delivered + self.shed
        )
        reason = None
        if self.shed:
            detail = f"{self.shed} answers could not be carried to the hub; {self.last_refusal or 'the store was full'}"
            reason = Reason(code="inbox_full", subject=f"node/{self._node}", detail=detail[:300])
        return Flow(
            consumer=f"{FORWARD}/{self.root}",
            produced=produced,
            delivered=self.delivered,
            stored=produced - self.delivered - self.shed,
            shed=self.shed,
            reason=reason,
        )
