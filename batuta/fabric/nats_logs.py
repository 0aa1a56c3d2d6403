"""Logs over NATS: those of the broker we are connected to, and what a node sees of the hub's."""

from __future__ import annotations

import json
from contextlib import asynccontextmanager
from datetime import datetime
from typing import TYPE_CHECKING, Final

from batuta.errors import FabricUnavailable
from batuta.fabric import subjects
from batuta.fabric.base import REQUEST_TIMEOUT_S, Appended, Delivery, LogEntry
from batuta.fabric.nats_reading import CONSUMER_PULSE_S, SECOND_NS, until_worth_trying

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from nats.aio.msg import Msg

    from batuta.fabric.nats import NatsFabric
    from batuta.fabric.nats_reading import Arrivals

ACK_WAIT_S: Final = 30.0
LENT_MAX: Final = 64


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
        arrivals = await self._fabric.consume()
        out: list[LogEntry] = []
        try:
            body = json.dumps({"seq": after + 1, "batch": limit, "next_by_subj": ">"}).encode()
            await self._fabric.send(f"$JS.API.DIRECT.GET.{self._name}", body, arrivals.inbox)
            while (message := await arrivals.next(REQUEST_TIMEOUT_S)) is not None:
                headers = message.headers or {}
                if "Status" in headers:
                    # 204 is the end of the batch, 404 an empty one.
                    return out
                out.append(self._entry_of_direct(message))
        finally:
            await self._fabric.release(arrivals)
        raise FabricUnavailable(f"log {self._name} was not answered to its end")

    async def follow(self, consumer: str) -> AsyncIterator[Delivery]:
        while True:
            try:
                await self._fabric.ensure_log(self._name)
                await self._ensure_follower(consumer)
                async with self._pulling() as arrivals:
                    wanted = 0
                    while True:
                        if wanted < LENT_MAX // 2:
                            wanted = LENT_MAX
                            await self._pull(consumer, arrivals.inbox, LENT_MAX)
                        message = await arrivals.next(CONSUMER_PULSE_S * 2.5)
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
            await until_worth_trying()

    @asynccontextmanager
    async def _pulling(self) -> AsyncIterator[Arrivals]:
        arrivals = await self._fabric.consume()
        try:
            yield arrivals
        finally:
            await self._fabric.release(arrivals)

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


class UpLog:
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
