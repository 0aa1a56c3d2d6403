"""Reading a stream to its end and beyond: ask again from where you were.

A consumer that the broker forgot, a connection that broke, a message that fell out: the reader notices by a number that
does not follow or a pulse that does not come, and makes a new consumer after the last thing it saw.
"""

from __future__ import annotations

import asyncio
import secrets
from contextlib import suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

from nats.errors import Error as NatsError
from nats.errors import NoRespondersError

from batuta.errors import FabricUnavailable

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from nats.aio.client import Client
    from nats.aio.msg import Msg
    from nats.aio.subscription import Subscription as NatsSubscription

    from batuta.fabric.nats import NatsFabric

CONSUMER_PULSE_S: Final = 2.0
RETRY_EVERY_S: Final = 0.5
SECOND_NS: Final = 1_000_000_000


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


class Arrivals:
    """Messages under one inbox. A connection that was lost and found again ends them: ask anew."""

    def __init__(self, inbox: str) -> None:
        self.inbox = inbox
        self._queue: asyncio.Queue[Msg | None] = asyncio.Queue()
        self._subscription: NatsSubscription | None = None

    async def open(self, client: Client) -> None:
        self._subscription = await client.subscribe(self.inbox, cb=self._queue.put)

    def end(self) -> None:
        self._queue.put_nowait(None)

    async def next(self, timeout_s: float) -> Msg | None:
        """The next message; None when there came none in time, or none ever will."""
        if not self._queue.empty():
            return self._queue.get_nowait()
        try:
            async with asyncio.timeout(timeout_s):
                return await self._queue.get()
        except TimeoutError:
            return None

    async def close(self) -> None:
        if self._subscription is not None:
            with suppress(NatsError):
                await self._subscription.unsubscribe()


@dataclass(frozen=True, slots=True)
class Seen:
    """A message of a stream and how many of those asked for are still to come."""

    message: Msg
    sequence: int
    pending: int


async def in_order(fabric: NatsFabric, stream: str, subject: str, *, newest_only: bool) -> AsyncIterator[Seen | None]:
    """Messages of `stream` under `subject`, for ever; None once, when all that were there at the start have come.

    `newest_only` starts with the newest of every subject, else with the first of all.
    """
    last, is_first, said_done = 0, True, False
    while True:
        try:
            arrivals = await fabric.consume()
        except FabricUnavailable:
            await until_worth_trying()
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
                        "deliver_subject": arrivals.inbox,
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
            while (message := await arrivals.next(CONSUMER_PULSE_S * 2.5)) is not None:
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
                yield Seen(message, at.sequence.stream, at.num_pending or 0)
                if not said_done and not at.num_pending:
                    said_done = True
                    yield None
        except FabricUnavailable:
            await until_worth_trying()
        finally:
            await fabric.release(arrivals)
            with suppress(NatsError, FabricUnavailable):
                await fabric.publish(f"$JS.API.CONSUMER.DELETE.{stream}.{name}", b"")


async def until_worth_trying() -> None:
    # There is nothing to await: a broker that is up may still be opening its store.
    await asyncio.sleep(RETRY_EVERY_S)
