"""The contract over NATS.

A hub's fabric speaks to the hub's broker and sees its tables and logs as they are. A node's speaks to the broker
beside it, which is there even when the hub is not; what it calls `decided`, `observed` and `up-*` are the hub's,
reached through the link, by the few subjects that a node has rights to. `_NodeTable` and `_UpLog` are all the places
that know this.

Reading follows one rule, everywhere: ask again from where you were. A consumer that the broker forgot, a connection
that broke, a message that fell out: the reader notices by a number that does not follow or a pulse that does not come,
and makes a new consumer after the last thing it saw.
"""

from __future__ import annotations

import asyncio
import json
import logging
import secrets
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from datetime import datetime
from typing import TYPE_CHECKING, Any, Final

from nats.aio.client import Client
from nats.errors import Error as NatsError
from nats.errors import NoRespondersError

from batuta.errors import FabricUnavailable, Stale
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

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Mapping

    from nats.aio.msg import Msg
    from nats.aio.subscription import Subscription as NatsSubscription

    from batuta.fabric.clock import Clock

log = logging.getLogger(__name__)

CONNECT_TIMEOUT_S: Final = 5.0
PULSE_EVERY_S: Final = 1.0
SILENT_AFTER_S: Final = 3.0
PROBE_EVERY_S: Final = 0.5
CONSUMER_PULSE_S: Final = 2.0
DEDUPLICATION_S: Final = 120
ACK_WAIT_S: Final = 30.0
LENT_MAX: Final = 64

MIB: Final = 1 << 20
DAY_S: Final = 86_400
SECOND_NS: Final = 1_000_000_000

WRONG_REVISION: Final = 10071
NO_STREAM: Final = 10059


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
            await asyncio.wait_for(self._connected.wait(), timeout_s)
        except TimeoutError:
            raise FabricUnavailable(f"not connected after {timeout_s} s") from None

    def on_reconnect(self, callback: Callable[[], None]) -> None:
        self._callbacks.append(callback)

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

    async def listen_for_hub(self) -> None:
        """A node's: notices that the hub fell silent, and asks until it is back. The link itself does not tell.

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
        # A broker that came back may have come back empty.
        self._made.clear()
        if not self._is_node:
            self._connect()

    async def _note_error(self, error: Exception) -> None:
        self._last_error = str(error) or type(error).__name__
        log.debug("%s: %s", self._name, error or type(error).__name__)

    async def close(self) -> None:
        for task in tuple(self._tasks):
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        with suppress(NatsError, OSError, TimeoutError):
            await self._nc.close()
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

    async def consume(self, inbox: str) -> NatsSubscription:
        with translated(inbox):
            return await self._nc.subscribe(inbox)

    def new_inbox(self) -> str:
        return self._nc.new_inbox()

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
                answer = await asyncio.wait_for(answered, timeout_s)
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

    def table(self, name: str) -> NatsTable | _NodeTable:
        return _NodeTable(self, name) if self._is_node else NatsTable(self, name)

    def log(self, name: str) -> NatsLog | _UpLog:
        return _UpLog(self, name) if self._is_node and name.startswith("up-") else NatsLog(self, name)

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
            if error.get("err_code") != 10058:
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


class translated:  # noqa: N801  reads as a clause: with translated(subject)
    """Turns what the library raises into what the contract promises."""

    def __init__(self, what: str) -> None:
        self._what = what

    def __enter__(self) -> None:
        return None

    def __exit__(self, kind: object, error: BaseException | None, _trace: object) -> None:
        if isinstance(error, NoRespondersError):
            raise FabricUnavailable(f"nobody answers {self._what}") from None
        if isinstance(error, TimeoutError):
            raise FabricUnavailable(f"no answer to {self._what} in time") from None
        if isinstance(error, (NatsError, OSError)):
            raise FabricUnavailable(f"{self._what}: {error or type(error).__name__}") from error


# --- Reading a stream -----------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class _Seen:
    """A message of a stream and how many of those asked for are still to come."""

    message: Msg
    sequence: int
    pending: int


async def _in_order(fabric: NatsFabric, stream: str, subject: str, *, newest_only: bool) -> AsyncIterator[_Seen | None]:
    """Messages of `stream` under `subject`, for ever; None once, when all that were there at the start have come.

    `newest_only` starts with the newest of every subject, else with the first of all.
    """
    last, is_first, said_done = 0, True, False
    while True:
        inbox = fabric.new_inbox()
        try:
            arrivals = await fabric.consume(inbox)
        except FabricUnavailable:
            await _until_worth_trying(fabric)
            continue
        name = f"w-{secrets.token_hex(6)}"
        try:
            start: dict[str, Any] = {"deliver_policy": "last_per_subject" if newest_only else "all"}
            if not is_first:
                start = {"deliver_policy": "by_start_sequence", "opt_start_seq": last + 1}
            answer = await fabric.api(
                f"CONSUMER.CREATE.{stream}.{name}",
                {
                    "stream_name": stream,
                    "config": start
                    | {
                        "name": name,
                        "deliver_subject": inbox,
                        "filter_subject": subject,
                        "ack_policy": "none",
                        "replay_policy": "instant",
                        "flow_control": True,
                        "idle_heartbeat": int(CONSUMER_PULSE_S * SECOND_NS),
                        "inactive_threshold": 30 * SECOND_NS,
                        "max_deliver": 1,
                        "mem_storage": True,
                        "num_replicas": 1,
                    },
                },
            )
            if "error" in answer:
                raise FabricUnavailable(f"{stream}: {answer['error'].get('description')}")
            if answer["num_pending"] == 0 and not said_done and not answer["delivered"]["consumer_seq"]:
                said_done = True
                yield None
            expected = 1
            while (message := await _next(arrivals, CONSUMER_PULSE_S * 2.5)) is not None:
                headers = message.headers or {}
                if headers.get("Status") == "100":
                    if message.reply:
                        await fabric.publish(message.reply, b"")
                    elif int(headers.get("Nats-Last-Consumer", expected - 1)) != expected - 1:
                        break
                    continue
                at = message.metadata
                if at.sequence.consumer != expected:
                    break
                expected += 1
                last, is_first = at.sequence.stream, False
                yield _Seen(message, at.sequence.stream, at.num_pending or 0)
                if not said_done and not at.num_pending:
                    said_done = True
                    yield None
        except FabricUnavailable:
            await _until_worth_trying(fabric)
        finally:
            with suppress(NatsError):
                await arrivals.unsubscribe()
            with suppress(NatsError, FabricUnavailable):
                await fabric.publish(f"$JS.API.CONSUMER.DELETE.{stream}.{name}", b"")


async def _next(arrivals: NatsSubscription, timeout_s: float) -> Msg | None:
    try:
        return await arrivals.next_msg(timeout=timeout_s)
    except (NatsError, TimeoutError):
        return None


async def _until_worth_trying(_fabric: NatsFabric) -> None:
    # There is nothing to await: a broker that is up may still be opening its store.
    await asyncio.sleep(PROBE_EVERY_S)


# --- Tables ---------------------------------------------------------------------------------------------------------


def _entry(key: str, message: Msg) -> Entry | None:
    """The row in the answer to a direct get; None when there is no such key."""
    headers = message.headers or {}
    if "Nats-Sequence" not in headers:
        return None
    value = None if "KV-Operation" in headers else bytes(message.data)
    return Entry(key, value, int(headers["Nats-Sequence"]))


class NatsTable:
    """A table of the hub, as the hub sees it."""

    def __init__(self, fabric: NatsFabric, name: str) -> None:
        self._fabric = fabric
        self._name = name
        self._stream = subjects.table_stream(name)

    async def get(self, key: str) -> Entry | None:
        row = await self._newest(key)
        return row if row and row.value is not None else None

    async def put(self, key: str, value: bytes, revision: int | None = None) -> int:
        return await self._write(key, value, revision, {})

    async def delete(self, key: str, revision: int | None = None) -> None:
        if await self.get(key) is not None:
            await self._write(key, b"", revision, {"KV-Operation": "DEL"})

    async def watch(self, prefix: str = "") -> AsyncIterator[Change]:
        await self._fabric.ensure_table(self._name)
        start = subjects.table_key(self._name, "")
        wanted = subjects.table_key(self._name, f"{prefix}>" if not prefix or prefix.endswith(".") else prefix)
        is_snapshot = True
        async for seen in _in_order(self._fabric, self._stream, wanted, newest_only=True):
            if seen is None:
                is_snapshot = False
                yield SNAPSHOT_DONE
                continue
            deleted = "KV-Operation" in (seen.message.headers or {})
            if not (is_snapshot and deleted):
                value = None if deleted else bytes(seen.message.data)
                yield Entry(seen.message.subject.removeprefix(start), value, seen.sequence)

    async def keys(self, prefix: str = "") -> list[str]:
        found: list[str] = []
        changes = self.watch(prefix)
        async for change in changes:
            if not isinstance(change, Entry):
                break
            found.append(change.key)
        await changes.aclose()  # type: ignore[attr-defined]
        return sorted(found)

    async def _newest(self, key: str) -> Entry | None:
        await self._fabric.ensure_table(self._name)
        subject = f"$JS.API.DIRECT.GET.{self._stream}.{subjects.table_key(self._name, key)}"
        return _entry(key, await self._fabric.ask(subject, b""))

    async def _write(self, key: str, value: bytes, revision: int | None, headers: dict[str, str]) -> int:
        await self._fabric.ensure_table(self._name)
        subject = subjects.table_key(self._name, key)
        if revision is None:
            return int((await self._fabric.store(subject, value, headers))["seq"])
        expected = {"Nats-Expected-Last-Subject-Sequence": str(revision)}
        try:
            return int((await self._fabric.store(subject, value, headers | expected))["seq"])
        except Stale:
            row = await self._newest(key)
            if revision != 0 or row is None or row.value is not None:
                raise
            # A deleted row still has a revision; creating means writing after that.
            return await self._write(key, value, row.revision, headers)


class _NodeTable:
    """What a node sees of the hub's tables: its own assignment to read, its own report to write."""

    def __init__(self, fabric: NatsFabric, name: str) -> None:
        if name not in ("decided", "observed"):
            raise PermissionError(f"a node has no view of table {name}")
        self._fabric = fabric
        self._name = name

    async def get(self, key: str) -> Entry | None:
        self._check_readable(key)
        subject = subjects.direct_get(subjects.HUB_DOMAIN, self._name, key)
        row = _entry(key, await self._fabric.ask(subject, b""))
        return row if row and row.value is not None else None

    async def put(self, key: str, value: bytes, revision: int | None = None) -> int:
        if self._name != "observed" or key != subjects.report_key(self._fabric.name):
            raise PermissionError(f"a node may not write {key} in table {self._name}")
        expected = {} if revision is None else {"Nats-Expected-Last-Subject-Sequence": str(revision)}
        return int((await self._fabric.store(subjects.report(self._fabric.name), value, expected))["seq"])

    async def delete(self, key: str, revision: int | None = None) -> None:
        raise PermissionError(f"a node may not delete {key} in table {self._name}, at revision {revision} or any")

    async def watch(self, prefix: str = "") -> AsyncIterator[Change]:
        """The assignment, and again whenever it changes. Read anew after each silence of the hub, so none is missed."""
        self._check_readable(prefix)
        woken = asyncio.Event()
        self._fabric.on_reconnect(woken.set)

        async def changed(_message: Message) -> None:
            woken.set()

        subscription = await self._fabric.subscribe(subjects.assignment(self._fabric.name), changed)
        revision, is_snapshot = 0, True
        try:
            while True:
                woken.clear()
                try:
                    row = await self.get(prefix)
                except FabricUnavailable:
                    await self._pause(woken)
                    continue
                if row is not None and row.revision > revision:
                    revision = row.revision
                    yield row
                elif row is None and revision and not is_snapshot:
                    yield Entry(prefix, None, revision)
                    revision = 0
                if is_snapshot:
                    is_snapshot = False
                    yield SNAPSHOT_DONE
                await woken.wait()
        finally:
            await subscription.close()

    async def keys(self, prefix: str = "") -> list[str]:
        return [prefix] if await self.get(prefix) is not None else []

    async def _pause(self, woken: asyncio.Event) -> None:
        with suppress(TimeoutError):
            await asyncio.wait_for(woken.wait(), PROBE_EVERY_S)

    def _check_readable(self, key: str) -> None:
        if self._name != "decided" or key != subjects.assignment_key(self._fabric.name):
            raise PermissionError(f"a node may not read {key or 'all'} in table {self._name}")


# --- Logs -----------------------------------------------------------------------------------------------------------


class NatsLog:
    """A log at the broker we are connected to: the hub's, or what a node keeps for itself."""

    def __init__(self, fabric: NatsFabric, name: str) -> None:
        self._fabric = fabric
        self._name = name

    async def append(self, key: str, data: bytes, msg_id: str | None = None) -> Appended:
        await self._fabric.ensure_log(self._name)
        headers = {} if msg_id is None else {"Nats-Msg-Id": msg_id}
        answer = await self._fabric.store(subjects.log_subject(self._name, key), data, headers)
        return Appended(int(answer["seq"]), bool(answer.get("duplicate")))

    async def read(self, after: int = 0, limit: int = 100) -> list[LogEntry]:
        await self._fabric.ensure_log(self._name)
        inbox = self._fabric.new_inbox()
        arrivals = await self._fabric.consume(inbox)
        out: list[LogEntry] = []
        try:
            body = json.dumps({"seq": after + 1, "batch": limit, "next_by_subj": ">"}).encode()
            await self._fabric.send(f"$JS.API.DIRECT.GET.{self._name}", body, inbox)
            while (message := await _next(arrivals, REQUEST_TIMEOUT_S)) is not None:
                headers = message.headers or {}
                if "Status" in headers:
                    # 204 is the end of the batch, 404 an empty one.
                    return out
                out.append(self._entry_of_direct(message))
        finally:
            with suppress(NatsError):
                await arrivals.unsubscribe()
        raise FabricUnavailable(f"log {self._name} was not answered to its end")

    async def follow(self, consumer: str) -> AsyncIterator[Delivery]:
        while True:
            try:
                await self._fabric.ensure_log(self._name)
                await self._ensure_follower(consumer)
                async with self._pulling(consumer) as arrivals:
                    wanted = 0
                    while True:
                        if wanted < LENT_MAX // 2:
                            wanted = LENT_MAX
                            await self._pull(consumer, arrivals.subject, LENT_MAX)
                        message = await _next(arrivals, CONSUMER_PULSE_S * 2.5)
                        if message is None:
                            break
                        status = (message.headers or {}).get("Status")
                        if status == "100":
                            continue
                        if status is not None:
                            # The pull ran out (408), or the consumer or its broker went (404, 409, 503): pull anew.
                            wanted = 0
                            if status in ("409", "503", "404"):
                                break
                            continue
                        wanted -= 1
                        yield self._delivery(message)
            except FabricUnavailable:
                pass
            await _until_worth_trying(self._fabric)

    @asynccontextmanager
    async def _pulling(self, consumer: str) -> AsyncIterator[NatsSubscription]:
        arrivals = await self._fabric.consume(f"{self._fabric.new_inbox()}.{consumer}")
        try:
            yield arrivals
        finally:
            with suppress(NatsError):
                await arrivals.unsubscribe()

    async def _pull(self, consumer: str, inbox: str, batch: int) -> None:
        body = {"batch": batch, "expires": 30 * SECOND_NS, "idle_heartbeat": int(CONSUMER_PULSE_S * SECOND_NS)}
        await self._fabric.send(f"$JS.API.CONSUMER.MSG.NEXT.{self._name}.{consumer}", json.dumps(body).encode(), inbox)

    async def _ensure_follower(self, consumer: str) -> None:
        config = {
            "durable_name": consumer,
            "ack_policy": "explicit",
            "ack_wait": int(ACK_WAIT_S * SECOND_NS),
            "deliver_policy": "all",
            "max_ack_pending": LENT_MAX,
        }
        answer = await self._fabric.api(
            f"CONSUMER.DURABLE.CREATE.{self._name}.{consumer}", {"stream_name": self._name, "config": config}
        )
        if error := answer.get("error"):
            raise FabricUnavailable(f"{self._name}: {error.get('description')}")

    def _delivery(self, message: Msg) -> Delivery:
        at = message.metadata
        key = subjects.log_key(self._name, message.subject)
        when_ms = int(at.timestamp.timestamp() * 1000)
        headers = dict(message.headers or {})
        entry = LogEntry(at.sequence.stream, key, bytes(message.data), when_ms, headers)

        async def ack() -> None:
            await self._fabric.ask(message.reply, b"+ACK")

        async def retry() -> None:
            await self._fabric.publish(message.reply, b"-NAK")

        return Delivery(entry, at.num_delivered, ack, retry)

    def _entry_of_direct(self, message: Msg) -> LogEntry:
        headers = dict(message.headers or {})
        key = subjects.log_key(self._name, headers["Nats-Subject"])
        at_ms = _milliseconds(headers["Nats-Time-Stamp"])
        kept = {name: value for name, value in headers.items() if name not in _DIRECT_HEADERS}
        return LogEntry(int(headers["Nats-Sequence"]), key, bytes(message.data), at_ms, kept)


class _UpLog:
    """A log of the hub that a node may append to. It returns when the hub has it, however far away that is."""

    def __init__(self, fabric: NatsFabric, name: str) -> None:
        self._fabric = fabric
        self._name = name

    async def append(self, key: str, data: bytes, msg_id: str | None = None) -> Appended:
        if key != self._fabric.name:
            raise PermissionError(f"{self._fabric.name} may not append as {key}")
        headers = {} if msg_id is None else {"Nats-Msg-Id": msg_id}
        answer = await self._fabric.store(subjects.log_subject(self._name, key), data, headers)
        return Appended(int(answer["seq"]), bool(answer.get("duplicate")))

    async def read(self, after: int = 0, limit: int = 100) -> list[LogEntry]:
        raise PermissionError(f"a node only appends to what the hub keeps; it cannot read {limit} after {after}")

    async def follow(self, consumer: str) -> AsyncIterator[Delivery]:
        raise PermissionError(f"a node only appends to what the hub keeps; it cannot follow as {consumer}")
        yield  # type: ignore[unreachable]  # makes this an iterator, as the contract has it


_DIRECT_HEADERS: Final = frozenset(
    {"Nats-Stream", "Nats-Subject", "Nats-Sequence", "Nats-Time-Stamp", "Nats-Num-Pending", "Nats-Last-Sequence"}
)


def _milliseconds(stamp: str) -> int:
    """Milliseconds since 1970 of `2026-11-21T02:03:56.707216041Z`; nanoseconds are more than datetime reads."""
    whole, _, rest = stamp.rstrip("Z").partition(".")
    return int(datetime.fromisoformat(f"{whole}+00:00").timestamp()) * 1000 + int((rest + "000")[:3])
