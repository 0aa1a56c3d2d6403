"""The contract inside one process: for tests and the rig, in real or in virtual time.

A `MemoryBroker` stands for the hub's broker with all links to it. Each process gets a `MemoryFabric`: the hub's sees
everything, a node's sees what `rights_of_node` allows, as over the wire. Links can be cut, healed and slowed by name.
There are no threads, no clock but the running loop's, and no chance: the same run gives the same order twice.
"""

from __future__ import annotations

import asyncio
import logging
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final

from batuta.errors import FabricUnavailable
from batuta.fabric import subjects
from batuta.fabric.base import (
    REQUEST_TIMEOUT_S,
    SNAPSHOT_DONE,
    Appended,
    Change,
    Delivery,
    Entry,
    Handler,
    LogEntry,
    Message,
)
from batuta.fabric.memory_store import Bell, Follower, Pages, Rows, is_under, matches, now_s
from batuta.fabric.tasks import end

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable, Mapping

log = logging.getLogger(__name__)

ACK_WAIT_S: Final = 30.0


class MemoryBroker:
    """What the fabrics of one test share."""

    def __init__(self, *, sleep: Callable[[float], Awaitable[None]] = asyncio.sleep) -> None:
        self.sleep = sleep
        self.tables: dict[str, Rows] = {}
        self.logs: dict[str, Pages] = {}
        self.fabrics: list[MemoryFabric] = []
        self.denied: list[tuple[str, str, str]] = []
        """(who, "publish" or "subscribe", subject) of everything that rights refused."""
        self._cut: set[str] = set()
        self._delay_s: dict[str, float] = {}
        self.healed = Bell()

    def connect(self, name: str, rights: subjects.Rights | None = None) -> MemoryFabric:
        """A connection without rights to check is the hub's; `connect_node` makes a node's."""
        fabric = MemoryFabric(self, name, rights)
        self.fabrics.append(fabric)
        return fabric

    def connect_node(self, node: str) -> MemoryFabric:
        return self.connect(node, subjects.rights_of_node(node))

    def cut(self, name: str) -> None:
        """The link of `name` carries nothing from now on, and nobody is told."""
        self._cut.add(name)

    def heal(self, name: str) -> None:
        self._cut.discard(name)
        self.healed.ring()
        for fabric in self.fabrics:
            if fabric.name == name:
                fabric.reconnected()

    def slow(self, name: str, delay_s: float) -> None:
        """Everything over the link of `name` takes this long, each way."""
        self._delay_s[name] = delay_s

    def is_cut(self, name: str) -> bool:
        return name in self._cut

    def delay_s(self, *names: str) -> float:
        return sum(self._delay_s.get(name, 0.0) for name in names)

    def rows(self, name: str) -> Rows:
        return self.tables.setdefault(name, Rows())

    def pages(self, name: str) -> Pages:
        return self.logs.setdefault(name, Pages())

    def deliver(self, sender: MemoryFabric, message: Message) -> int:
        """Hands a message to everyone who wants and may hear it; returns to how many."""
        heard = 0
        for fabric in self.fabrics:
            # A message never leaves its own side of a cut; what one connection says, it may also hear itself.
            if fabric is not sender and (self.is_cut(sender.name) or self.is_cut(fabric.name)):
                continue
            heard += fabric.take(message, 0.0 if fabric is sender else self.delay_s(sender.name, fabric.name))
        return heard


# --- One connection -------------------------------------------------------------------------------------------------


@dataclass(slots=True, eq=False)
class _Subscription:
    fabric: MemoryFabric
    pattern: str
    handler: Handler
    queue: asyncio.Queue[tuple[float, Message]] = field(default_factory=asyncio.Queue)
    pump: asyncio.Task[None] | None = None

    async def run(self) -> None:
        while True:
            due_s, message = await self.queue.get()
            if (left_s := due_s - now_s()) > 0:
                await self.fabric.broker.sleep(left_s)
            try:
                await self.handler(message)
            except Exception:
                # One message that nobody understands must not end the hearing of all others.
                log.exception("what was said on %s could not be dealt with", message.subject)

    async def close(self) -> None:
        self.fabric.forget(self)
        if self.pump is not None:
            # A handler may close its own subscription; it must not wait for itself.
            self.pump.cancel()
            await end(self.pump)


class MemoryFabric:
    """One process's connection to a `MemoryBroker`."""

    def __init__(self, broker: MemoryBroker, name: str, rights: subjects.Rights | None) -> None:
        self.broker = broker
        self._name = name
        self._rights = rights
        self._subscriptions: list[_Subscription] = []
        self._callbacks: list[Callable[[], None]] = []
        self._local: dict[str, Pages] = {}
        self._closed = False

    @property
    def name(self) -> str:
        return self._name

    @property
    def is_connected(self) -> bool:
        return not self._closed and not self.broker.is_cut(self._name)

    async def wait_connected(self, timeout_s: float | None = None) -> None:
        deadline_s = None if timeout_s is None else now_s() + timeout_s
        while not self.is_connected:
            left_s = None if deadline_s is None else deadline_s - now_s()
            if left_s is not None and left_s <= 0:
                raise FabricUnavailable(f"{self._name} is still cut off after {timeout_s} s")
            await self.broker.healed.wait(left_s)

    def on_reconnect(self, callback: Callable[[], None]) -> None:
        self._callbacks.append(callback)

    def reconnected(self) -> None:
        for callback in self._callbacks:
            callback()

    async def publish(self, subject: str, data: bytes, headers: Mapping[str, str] | None = None) -> None:
        self._check_open()
        if self._may("publish", subject):
            self._say(Message(subject, data, dict(headers or {})))

    async def request(self, subject: str, data: bytes, timeout_s: float = REQUEST_TIMEOUT_S) -> bytes:
        self._check_open()
        answered: asyncio.Future[bytes] = asyncio.get_running_loop().create_future()

        async def respond(answer: bytes) -> None:
            if not self.broker.is_cut(self._name) and not answered.done():
                answered.set_result(answer)

        if self.broker.is_cut(self._name):
            await self.broker.sleep(timeout_s)
            raise FabricUnavailable(f"no answer to {subject} in {timeout_s} s")
        if not self._may("publish", subject) or not self._say(Message(subject, data, {}, "_INBOX", respond)):
            raise FabricUnavailable(f"nobody answers {subject}")
        try:
            async with asyncio.timeout(timeout_s):
                answer = await answered
        except TimeoutError:
            raise FabricUnavailable(f"no answer to {subject} in {timeout_s} s") from None
        await self._travel()
        return answer

    async def subscribe(self, subject: str, handler: Handler) -> _Subscription:
        self._check_open()
        subscription = _Subscription(self, subject, handler)
        subscription.pump = asyncio.create_task(subscription.run())
        if self._may("subscribe", subject):
            self._subscriptions.append(subscription)
        return subscription

    def table(self, name: str) -> MemoryTable:
        if self._rights is None:
            return MemoryTable(self, name, None, None)
        readable = subjects.assignment_key(self._name) if name == "decided" else None
        writable = subjects.report_key(self._name) if name == "observed" else None
        if readable is None and writable is None:
            raise PermissionError(f"a node has no view of table {name}")
        return MemoryTable(self, name, readable or "", writable or "")

    def log(self, name: str) -> MemoryLog:
        if self._rights is None:
            return MemoryLog(self, self.broker.pages(name))
        if name.startswith("up-"):
            return MemoryLog(self, self.broker.pages(name), only_key=self._name)
        return MemoryLog(self, self._local.setdefault(name, Pages()), is_local=True)

    async def close(self) -> None:
        self._closed = True
        if self in self.broker.fabrics:
            self.broker.fabrics.remove(self)
        for subscription in tuple(self._subscriptions):
            await subscription.close()

    # What the broker and the tables call.

    def take(self, message: Message, delay_s: float) -> int:
        wanted = [s for s in self._subscriptions if matches(s.pattern, message.subject)]
        for subscription in wanted:
            subscription.queue.put_nowait((now_s() + delay_s, message))
        return len(wanted)

    def forget(self, subscription: _Subscription) -> None:
        if subscription in self._subscriptions:
            self._subscriptions.remove(subscription)

    async def reach(self, what: str) -> None:
        """Crosses the link to the broker, or raises because it is cut."""
        self._check_open()
        if self.broker.is_cut(self._name):
            await self.broker.sleep(REQUEST_TIMEOUT_S)
        if self.broker.is_cut(self._name):
            raise FabricUnavailable(f"{what}: no answer in {REQUEST_TIMEOUT_S} s")
        await self._travel()

    async def _travel(self) -> None:
        if (delay_s := self.broker.delay_s(self._name)) > 0:
            await self.broker.sleep(delay_s)

    def _say(self, message: Message) -> int:
        return self.broker.deliver(self, message)

    def _may(self, what: str, subject: str) -> bool:
        if self._rights is None:
            return True
        allowed = self._rights.publish if what == "publish" else self._rights.subscribe
        if any(matches(pattern, subject) for pattern in allowed):
            return True
        self.broker.denied.append((self._name, what, subject))
        return False

    def _check_open(self) -> None:
        if self._closed:
            raise FabricUnavailable(f"the connection of {self._name} is closed")


# --- Tables and logs, as one connection sees them -------------------------------------------------------------------


class MemoryTable:
    """A table. `readable` and `writable` name the one key that a node may read or write; None is no limit."""

    def __init__(self, fabric: MemoryFabric, name: str, readable: str | None, writable: str | None) -> None:
        self._fabric = fabric
        self._name = name
        self._readable = readable
        self._writable = writable

    @property
    def _rows(self) -> Rows:
        return self._fabric.broker.rows(self._name)

    async def get(self, key: str) -> Entry | None:
        self._check("read", self._readable, key)
        await self._fabric.reach(f"get {self._name}/{key}")
        row = self._rows.rows.get(key)
        return row if row and row.value is not None else None

    async def put(self, key: str, value: bytes, revision: int | None = None) -> int:
        self._check("write", self._writable, key)
        await self._fabric.reach(f"put {self._name}/{key}")
        written = self._rows.write(key, value, revision)
        # Over the wire the same bytes pass under a subject of their own; whoever listens there hears them here too.
        node = key.partition(".")[2]
        if self._name == "decided" and key.startswith("assignment."):
            await self._fabric.publish(subjects.assignment(node), value)
        elif self._name == "observed" and self._writable is not None:
            await self._fabric.publish(subjects.report(node), value)
        return written

    async def delete(self, key: str, revision: int | None = None) -> None:
        self._check("write", None if self._writable is None else "", key)
        await self._fabric.reach(f"delete {self._name}/{key}")
        row = self._rows.rows.get(key)
        if row and row.value is not None:
            self._rows.write(key, None, revision)

    async def watch(self, prefix: str = "") -> AsyncIterator[Change]:
        self._check("read", self._readable, prefix)
        seen = 0
        is_snapshot = True
        while True:
            if self._fabric.is_connected:
                news = [row for row in self._rows.rows.values() if row.revision > seen and is_under(prefix, row.key)]
                seen = max(seen, self._rows.revision)
                for row in sorted(news, key=lambda row: row.revision):
                    if not is_snapshot or row.value is not None:
                        yield row
                if is_snapshot:
                    is_snapshot = False
                    yield SNAPSHOT_DONE
                if self._rows.revision > seen:
                    continue
                await self._rows.changed.wait()
                await self._fabric._travel()
            else:
                await self._fabric.broker.healed.wait()

    async def keys(self, prefix: str = "") -> list[str]:
        self._check("read", self._readable, prefix)
        await self._fabric.reach(f"keys of {self._name}")
        return sorted(
            row.key for row in self._rows.rows.values() if row.value is not None and is_under(prefix, row.key)
        )

    def _check(self, what: str, only: str | None, key: str) -> None:
        if only is not None and (key != only or not only):
            raise PermissionError(f"a node may not {what} {key or 'all'} in table {self._name}")


class MemoryLog:
    """A log: the broker's, or one that a node keeps for itself and that no cut can touch."""

    def __init__(
        self, fabric: MemoryFabric, pages: Pages, *, only_key: str | None = None, is_local: bool = False
    ) -> None:
        self._fabric = fabric
        self._pages = pages
        self._only_key = only_key
        self._is_local = is_local

    async def append(self, key: str, data: bytes, msg_id: str | None = None) -> Appended:
        if self._only_key is not None and key != self._only_key:
            raise PermissionError(f"{self._only_key} may not append as {key}")
        await self._reach()
        return self._pages.append(key, data, msg_id)

    async def read(self, after: int = 0, limit: int = 100) -> list[LogEntry]:
        self._check_readable()
        await self._reach()
        return self._pages.after(after, limit)

    async def follow(self, consumer: str) -> AsyncIterator[Delivery]:
        self._check_readable()
        await self._reach()
        state = self._pages.followers.setdefault(consumer, Follower())
        while True:
            delivery, wait_s = self._next(state)
            if delivery is not None:
                yield delivery
            else:
                await self._pages.changed.wait(wait_s)

    def _next(self, state: Follower) -> tuple[Delivery | None, float | None]:
        """What to hand out now; or how long there is nothing, unless something is appended."""
        at_s = now_s()
        for sequence, (due_s, attempt) in sorted(state.lent.items()):
            if due_s <= at_s and (entry := self._pages.at(sequence)) is not None and entry.sequence == sequence:
                return self._lend(state, entry, attempt + 1), None
        entry = self._pages.at(state.next_sequence)
        if entry is not None:
            state.next_sequence = entry.sequence + 1
            return self._lend(state, entry, 1), None
        due = [due_s - at_s for due_s, _ in state.lent.values()]
        return None, max(min(due), 0.0) if due else None

    def _lend(self, state: Follower, entry: LogEntry, attempt: int) -> Delivery:
        state.lent[entry.sequence] = (now_s() + ACK_WAIT_S, attempt)

        async def ack() -> None:
            await self._reach()
            state.lent.pop(entry.sequence, None)

        async def retry() -> None:
            state.lent[entry.sequence] = (now_s(), attempt)
            self._pages.changed.ring()

        return Delivery(entry, attempt, ack, retry)

    async def _reach(self) -> None:
        if not self._is_local:
            await self._fabric.reach("log")

    def _check_readable(self) -> None:
        if self._only_key is not None:
            raise PermissionError("a node only appends to what the hub keeps")
