"""Pulling the frames of one node's inbox, for as long as the worker runs.

One standing request, topped up before it runs dry, instead of one request after another: the next frame is then never a
round trip away. The broker says every second that it still remembers the request; when it falls silent, or nobody
answers at all (a neighbour that is away, or has not yet made the consumer), the request is made anew, ever more slowly.
"""

from __future__ import annotations

import asyncio
import contextlib
from typing import TYPE_CHECKING, NamedTuple

import msgspec

from batuta.fabric import subjects
from batuta.fabric.tasks import end

if TYPE_CHECKING:
    from collections.abc import Callable

    from nats.aio.client import Client
    from nats.aio.msg import Msg
    from nats.aio.subscription import Subscription

EXPIRES_S = 4.0
HEARTBEAT_S = 1.0
SILENCE_S = 2.5
BACKOFF_FIRST_S = 0.1
BACKOFF_LONGEST_S = 2.0
MESSAGES_WAITING_MAX = 4096


class Inbox(NamedTuple):
    """Where frames wait."""

    ingest: str
    """The node that took them."""
    stream: str
    consumer: str


class Pull:
    """One node's inbox, as this worker hears it."""

    def __init__(
        self,
        client: Client,
        inbox: Inbox,
        batch: int,
        *,
        take: Callable[[str, Msg], None],
        may_take: Callable[[], bool],
    ) -> None:
        self.ingest = inbox.ingest
        self.reached = False
        """It answers at present."""
        self.faults: dict[str, int] = {}
        """How often each kind of refusal was heard."""
        self._client = client
        domain = subjects.node_domain(inbox.ingest)
        self._next = f"$JS.{domain}.API.CONSUMER.MSG.NEXT.{inbox.stream}.{inbox.consumer}"
        self._batch = batch
        self._take = take
        self._may_take = may_take
        self._asked_for = 0
        """Frames requested and not yet delivered."""
        self._stir = asyncio.Event()
        self._heard_at = 0.0
        self._refused = False
        self._sub: Subscription | None = None
        self._inbox = ""
        self._task: asyncio.Task[None] | None = None

    def begin(self) -> None:
        self._task = asyncio.create_task(self._keep_going(), name=f"pull {self.ingest}")

    def stir(self) -> None:
        """There is room again."""
        self._stir.set()

    async def stop(self) -> None:
        """Asks for no more; returns when everything that was on its way here has been taken."""
        if self._task is not None:
            await end(self._task)
        if self._sub is not None and self._client.is_connected:
            # The broker forgets a request whose inbox nobody reads; what it sent before that arrives first.
            with contextlib.suppress(Exception):
                async with asyncio.timeout(2.0):
                    await self._sub.drain()  # type: ignore[no-untyped-call]

    async def _keep_going(self) -> None:
        while True:
            try:
                await self._run()
            except Exception as error:  # the client raises its own kinds; whichever it is, the frames are still there
                self._count(type(error).__name__)
                self._sub, self._asked_for, self.reached, self._refused = None, 0, False, False
                await asyncio.sleep(BACKOFF_LONGEST_S)

    async def _run(self) -> None:
        loop = asyncio.get_running_loop()
        backoff_s = BACKOFF_FIRST_S
        while True:
            if self._sub is None:
                self._inbox = self._client.new_inbox()
                self._sub = await self._client.subscribe(
                    self._inbox, cb=self._hear, pending_msgs_limit=MESSAGES_WAITING_MAX
                )
            self._stir.clear()
            if self._refused:
                self._refused, self._asked_for, self.reached = False, 0, False
                await asyncio.sleep(backoff_s)
                backoff_s = min(backoff_s * 2, BACKOFF_LONGEST_S)
            elif self.reached:
                backoff_s = BACKOFF_FIRST_S
            if self._asked_for and loop.time() - self._heard_at > SILENCE_S:
                # Forgotten, or lost with a link. A new inbox keeps a late answer from being counted against this
                # request.
                self._count("silent")
                await self._sub.unsubscribe()
                self._sub, self._asked_for, self.reached, self._refused = None, 0, False, False
                continue
            if self._asked_for <= self._batch // 2 and self._may_take() and self._client.is_connected:
                await self._ask(self._batch - self._asked_for)
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(SILENCE_S / 2):
                    await self._stir.wait()

    async def _ask(self, count: int) -> None:
        self._asked_for += count
        self._heard_at = asyncio.get_running_loop().time()
        request = {"batch": count, "expires": int(EXPIRES_S * 1e9), "idle_heartbeat": int(HEARTBEAT_S * 1e9)}
        try:
            await self._client.publish(self._next, msgspec.json.encode(request), reply=self._inbox)
        except Exception as error:  # the client raises its own kinds, all of which mean: not now
            self._count(type(error).__name__)
            self._refused = True

    async def _hear(self, message: Msg) -> None:
        self._heard_at = asyncio.get_running_loop().time()
        headers = message.headers or {}
        status = headers.get("Status", "")
        if message.reply.startswith("$JS.ACK."):
            self.reached = True
            self._asked_for = max(0, self._asked_for - 1)
            self._take(self.ingest, message)
        elif status == "100":
            self.reached = True
            return
        elif status in ("404", "408") or headers.get("Description") == "Batch Completed":
            self.reached = True
            left = headers.get("Nats-Pending-Messages", "")
            self._asked_for = max(0, self._asked_for - int(left)) if left.isdigit() else 0
        else:
            # 503: nobody is there, or has that consumer. 409: it was deleted, or the broker is going down.
            self._count(status)
            self._refused = True
        self._stir.set()

    def _count(self, what: str) -> None:
        self.faults[what] = self.faults.get(what, 0) + 1
