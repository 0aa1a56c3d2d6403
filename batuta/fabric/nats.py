"""The contract over NATS.

A hub's fabric speaks to the hub's broker and sees its tables and logs as they are. A node's speaks to the broker
beside it, which is there even when the hub is not; what it calls `decided`, `observed` and `up-*` are the hub's,
reached through the link, by the few subjects that a node has rights to. `NodeTable` and `UpLog` are all the places
that know this.
"""

from __future__ import annotations

import asyncio
import json
import logging
import secrets
from contextlib import suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

from nats.aio.client import Client
from nats.errors import Error as NatsError

from batuta.errors import FabricUnavailable, Stale
from batuta.fabric import subjects
from batuta.fabric.base import REQUEST_TIMEOUT_S, Handler, Message
from batuta.fabric.nats_logs import NatsLog, UpLog
from batuta.fabric.nats_reading import SECOND_NS, Arrivals, translated
from batuta.fabric.nats_tables import NatsTable, NodeTable
from batuta.fabric.tasks import end, hang_up

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from nats.aio.msg import Msg
    from nats.aio.subscription import Subscription as NatsSubscription

    from batuta.fabric.clock import Clock

log = logging.getLogger(__name__)

CONNECT_TIMEOUT_S: Final = 5.0
PULSE_EVERY_S: Final = 1.0
SILENT_AFTER_S: Final = 3.0
PROBE_EVERY_S: Final = 0.5
DEDUPLICATION_S: Final = 120

MIB: Final = 1 << 20
DAY_S: Final = 86_400

# Two of the broker's error codes.
WRONG_REVISION: Final = 10071
STREAM_EXISTS: Final = 10058


@dataclass(frozen=True, slots=True)
class Limits:
    """How much a table or log may hold. A full table refuses; a full log drops its oldest."""

    bytes_max: int
    age_max_s: int = 0


TABLE_LIMITS: Final[dict[str, Limits]] = {
    "desired": Limits(256 * MIB),
    "decided": Limits(512 * MIB),
    "observed": Limits(512 * MIB),
}
LOG_LIMITS: Final[dict[str, Limits]] = {
    "audit": Limits(512 * MIB, 365 * DAY_S),
    "up-critical": Limits(512 * MIB, 30 * DAY_S),
    "up-normal": Limits(1024 * MIB, 7 * DAY_S),
    "up-bulk": Limits(2048 * MIB, 2 * DAY_S),
}
# Any other name: what a node keeps until the hub has it, tests, extensions.
OTHER_TABLE: Final = Limits(64 * MIB)
OTHER_LOG: Final = Limits(64 * MIB, 7 * DAY_S)


async def connect_hub(url: str, user: str, password: str, clock: Clock | None = None) -> NatsFabric:
    """The hub's fabric. Makes the tables and logs that nodes rely on, and gives the hub a pulse.

    With a `clock` the pulse says what time it is here, in milliseconds, so that a node can tell how wrong its own is.
    """
    fabric = await NatsFabric.open(subjects.HUB_DOMAIN, url, user, password, is_node=False)
    for name in TABLE_LIMITS:
        await fabric.ensure_table(name)
    for name in LOG_LIMITS:
        await fabric.ensure_log(name)
    fabric.begin(fabric.pulse(clock))
    return fabric


async def connect_node(node: str, url: str, user: str, password: str) -> NatsFabric:
    """A node's fabric, over the broker beside it. It is up at once; `is_connected` says whether the hub is heard."""
    fabric = await NatsFabric.open(node, url, user, password, is_node=True)
    await fabric.subscribe(subjects.HUB_ALIVE, fabric.heard_pulse)
    await fabric.subscribe(subjects.LINK_UP, fabric.link_made)
    await fabric.subscribe(subjects.LINK_DOWN, fabric.link_lost)
    fabric.begin(fabric.listen_for_hub())
    return fabric


class NatsFabric:
    """One process's connection. Made by `connect_hub` and `connect_node`."""

    def __init__(self, name: str, *, is_node: bool) -> None:
        self._name = name
        self._is_node = is_node
        self._nc = Client()
        self._callbacks: list[Callable[[], None]] = []
        self._tasks: set[asyncio.Task[None]] = set()
        self._questions: dict[str, asyncio.Future[Msg]] = {}
        self._connected = asyncio.Event()
        self._heard_at_s = float("-inf")
        self._made: set[str] = set()
        self._arrivals: set[Arrivals] = set()
        self._last_error = ""

    @classmethod
    async def open(cls, name: str, url: str, user: str, password: str, *, is_node: bool) -> NatsFabric:
        fabric = cls(name, is_node=is_node)
        try:
            # The library tries for ever, also when it is refused; once it is connected, for ever is right.
            async with asyncio.timeout(CONNECT_TIMEOUT_S):
                await fabric._nc.connect(
                    url,
                    user=user,
                    password=password,
                    name=f"batuta {name}",
                    inbox_prefix=subjects.inbox(name).encode(),
                    connect_timeout=2,
                    max_reconnect_attempts=-1,
                    reconnect_time_wait=0.2,  # type: ignore[arg-type]  # it is only slept
                    ping_interval=5,
                    max_outstanding_pings=2,
                    error_cb=fabric._note_error,
                    disconnected_cb=fabric._lost,
                    reconnected_cb=fabric._found,
                )
                if not is_node:
                    fabric._connected.set()
                    await fabric._nc.subscribe(subjects.ALL_TOLD, cb=fabric._told)
        except (NatsError, OSError, TimeoutError) as error:
            await fabric.close()
            why = fabric._last_error or str(error) or "no answer"
            raise FabricUnavailable(f"cannot connect to the broker at {url}: {why}") from error
        return fabric

    # --- Being connected

    @property
    def name(self) -> str:
        return self._name

    @property
    def is_connected(self) -> bool:
        return self._connected.is_set()

    async def wait_connected(self, timeout_s: float | None = None) -> None:
        try:
            async with asyncio.timeout(timeout_s):
                await self._connected.wait()
        except TimeoutError:
            raise FabricUnavailable(f"not connected after {timeout_s} s") from None

    def on_reconnect(self, callback: Callable[[], None]) -> None:
        self._callbacks.append(callback)

    def off_reconnect(self, callback: Callable[[], None]) -> None:
        self._callbacks.remove(callback)

    def begin(self, work: Any) -> None:
        """Runs `work` beside everything else, until the fabric is closed."""
        task = asyncio.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def pulse(self, clock: Clock | None) -> None:
        """The hub's: says that it is there, again and again."""
        while True:
            if self._nc.is_connected:
                with suppress(FabricUnavailable):
                    await self.publish(subjects.HUB_ALIVE, str(clock.now()).encode() if clock else b"")
            await asyncio.sleep(PULSE_EVERY_S)

    async def heard_pulse(self, _pulse: Message) -> None:
        self._heard()

    async def link_made(self, event: Message) -> None:
        """Also after a gap too short to be noticed otherwise: what was said meanwhile is lost, and has to be read."""
        if b'"Leafnode"' in event.data:
            self._heard_at_s = asyncio.get_running_loop().time()
            self._connect()

    async def link_lost(self, event: Message) -> None:
        if b'"Leafnode"' in event.data:
            self._connected.clear()
            self._heard_at_s = float("-inf")

    async def listen_for_hub(self) -> None:
        """A node's: notices that the hub fell silent behind a link that looks well, and asks until it is back.

        The hub's broker is enough: it answers for the tables while the hub process restarts.
        """
        loop = asyncio.get_running_loop()
        question = subjects.direct_get(subjects.HUB_DOMAIN, "decided", subjects.assignment_key(self._name))
        while True:
            silent_s = loop.time() - self._heard_at_s
            if silent_s > SILENT_AFTER_S and self._connected.is_set():
                self._connected.clear()
            if silent_s > PULSE_EVERY_S * 1.5:
                with suppress(FabricUnavailable):
                    await self.ask(question, b"", timeout_s=PROBE_EVERY_S)
                    self._heard()
            await asyncio.sleep(PROBE_EVERY_S)

    def _heard(self) -> None:
        """Something came from the hub: it is there."""
        self._heard_at_s = asyncio.get_running_loop().time()
        if not self._connected.is_set():
            self._connect()

    def _connect(self) -> None:
        self._connected.set()
        for callback in self._callbacks:
            callback()

    async def _lost(self) -> None:
        self._connected.clear()
        self._heard_at_s = float("-inf")

    async def _found(self) -> None:
        # A broker that came back may have come back empty, and has forgotten who was reading.
        self._made.clear()
        for arrivals in self._arrivals:
            arrivals.end()
        if not self._is_node:
            self._connect()

    async def _note_error(self, error: Exception) -> None:
        self._last_error = str(error) or type(error).__name__
        log.debug("%s: %s", self._name, error or type(error).__name__)

    async def close(self) -> None:
        await end(*self._tasks)
        await hang_up(self._nc)
        self._connected.clear()

    # --- Messages

    async def publish(self, subject: str, data: bytes, headers: Mapping[str, str] | None = None) -> None:
        with translated(subject):
            self._check_open()
            await self._nc.publish(subject, data, headers=dict(headers) if headers else None)
            # Sent means on its way now, not in a buffer that a dying process takes along.
            await self._nc._flush_pending()

    async def request(self, subject: str, data: bytes, timeout_s: float = REQUEST_TIMEOUT_S) -> bytes:
        if subject.startswith("batuta.tell."):
            return bytes((await self._tell(subject, data, timeout_s)).data)
        answer = await self.ask(subject, data, timeout_s=timeout_s)
        if subject.startswith("batuta."):
            self._heard()
        return bytes(answer.data)

    async def ask(
        self, subject: str, data: bytes, *, timeout_s: float = REQUEST_TIMEOUT_S, headers: dict[str, str] | None = None
    ) -> Msg:
        """Request and reply, headers and all."""
        with translated(subject):
            self._check_open()
            return await self._nc.request(subject, data, timeout=timeout_s, headers=headers)

    async def subscribe(self, subject: str, handler: Handler) -> _Subscription:
        async def heard(message: Msg) -> None:
            try:
                await handler(self._message(message))
            except Exception:
                # One message that nobody understands must not end the hearing of all others.
                log.exception("what was said on %s could not be dealt with", message.subject)

        with translated(subject):
            self._check_open()
            subscription = await self._nc.subscribe(subject, cb=heard)
            # Once the broker has answered this, it knows of the subscription.
            await self._nc.flush(timeout=REQUEST_TIMEOUT_S)  # type: ignore[arg-type]
        return _Subscription(subscription)

    async def send(self, subject: str, data: bytes, reply: str) -> None:
        """Says something whose answers, maybe many, come to `reply`."""
        with translated(subject):
            self._check_open()
            await self._nc.publish(subject, data, reply=reply)

    async def consume(self) -> Arrivals:
        """An inbox of our own, for many answers; `release` it."""
        arrivals = Arrivals(self._nc.new_inbox())
        with translated(arrivals.inbox):
            self._check_open()
            await arrivals.open(self._nc)
        self._arrivals.add(arrivals)
        return arrivals

    async def release(self, arrivals: Arrivals) -> None:
        self._arrivals.discard(arrivals)
        await arrivals.close()

    def _message(self, message: Msg) -> Message:
        if not message.reply:
            return Message(message.subject, bytes(message.data), dict(message.headers or {}))

        async def respond(data: bytes) -> None:
            await self.publish(message.reply, data)

        return Message(message.subject, bytes(message.data), dict(message.headers or {}), message.reply, respond)

    async def _tell(self, subject: str, data: bytes, timeout_s: float) -> Msg:
        """A question to a node. It has no right to the hub's inboxes, so it answers under a subject of its own."""
        question = secrets.token_hex(8)
        answered: asyncio.Future[Msg] = asyncio.get_running_loop().create_future()
        self._questions[question] = answered
        try:
            with translated(subject):
                self._check_open()
                await self._nc.publish(subject, data, reply=subjects.told(subjects.node_of(subject), question))
                async with asyncio.timeout(timeout_s):
                    answer = await answered
        finally:
            del self._questions[question]
        if (answer.headers or {}).get("Status") == "503":
            raise FabricUnavailable(f"nobody answers {subject}")
        return answer

    async def _told(self, message: Msg) -> None:
        answered = self._questions.get(message.subject.rpartition(".")[2])
        if answered is not None and not answered.done():
            answered.set_result(message)

    def _check_open(self) -> None:
        if not self._nc.is_connected:
            raise FabricUnavailable(f"{self._name} has no connection to its broker")

    # --- Tables and logs

    def table(self, name: str) -> NatsTable | NodeTable:
        return NodeTable(self, name) if self._is_node else NatsTable(self, name)

    def log(self, name: str) -> NatsLog | UpLog:
        return UpLog(self, name) if self._is_node and name.startswith("up-") else NatsLog(self, name)

    async def ensure_table(self, name: str) -> None:
        """The stream behind a table, made when it is not there yet."""
        limits = TABLE_LIMITS.get(name, OTHER_TABLE)
        config: dict[str, Any] = {
            "subjects": [subjects.table_key(name, ">")],
            "max_msgs_per_subject": 1,
            "max_bytes": limits.bytes_max,
            "discard": "new",
            "deny_delete": True,
            "allow_rollup_hdrs": True,
        }
        if name == "decided":
            # A key of this table is also an order: it goes out to the one node that may hear it.
            every = subjects.table_key(name, subjects.ASSIGNMENT_KEYS)
            config["republish"] = {"src": every, "dest": subjects.REPUBLISHED_ASSIGNMENT}
        if name == "observed":
            # A node may not write a hub's key, only say its report; here the one becomes the other.
            config["subjects"].append(subjects.ALL_REPORTS)
            config["subject_transform"] = {
                "src": subjects.ALL_REPORTS,
                "dest": subjects.table_key(name, subjects.TRANSFORMED_REPORT),
            }
        await self._ensure_stream(subjects.table_stream(name), config)

    async def ensure_log(self, name: str) -> None:
        """The stream behind a log, made when it is not there yet."""
        limits = LOG_LIMITS.get(name, OTHER_LOG)
        await self._ensure_stream(
            name,
            {
                "subjects": [subjects.log_filter(name)],
                "max_bytes": limits.bytes_max,
                "max_age": limits.age_max_s * SECOND_NS,
                "discard": "old",
                "duplicate_window": DEDUPLICATION_S * SECOND_NS,
            },
        )

    async def _ensure_stream(self, stream: str, config: dict[str, Any]) -> None:
        if stream in self._made:
            return
        whole = {"name": stream, "storage": "file", "retention": "limits", "allow_direct": True, "num_replicas": 1}
        answer = await self.api(f"STREAM.CREATE.{stream}", whole | config)
        if error := answer.get("error"):
            # It is there with other limits, from an earlier version or a person: theirs hold until they are changed.
            if error.get("err_code") != STREAM_EXISTS:
                raise FabricUnavailable(f"the broker refuses stream {stream}: {error.get('description')}")
            log.info("stream %s is there already, with other settings", stream)
        self._made.add(stream)

    async def api(self, verb: str, body: dict[str, Any], timeout_s: float = REQUEST_TIMEOUT_S) -> dict[str, Any]:
        """A request to JetStream at the broker we are connected to."""
        answer = await self.ask(f"$JS.API.{verb}", json.dumps(body).encode(), timeout_s=timeout_s)
        decoded: dict[str, Any] = json.loads(answer.data)
        return decoded

    async def store(self, subject: str, data: bytes, headers: dict[str, str]) -> dict[str, Any]:
        """Publishes to a stream and returns its acknowledgement."""
        answer = json.loads((await self.ask(subject, data, headers=headers or None)).data)
        if error := answer.get("error"):
            if error.get("err_code") == WRONG_REVISION:
                raise Stale(f"{subject}: {error.get('description')}")
            raise FabricUnavailable(f"{subject}: {error.get('description')}")
        return dict(answer)


class _Subscription:
    def __init__(self, inner: NatsSubscription) -> None:
        self._inner = inner

    async def close(self) -> None:
        with suppress(NatsError):
            await self._inner.unsubscribe()
