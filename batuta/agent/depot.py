"""Depot: where this node gives files to the nodes of other sites of its region, when its site says that it does.

What it gives and how is the exchange's business: the questions are those of neighbours, and come over a tunnel, because
other sites share no broker with this one. Only who has a certificate of this hub gets through to ask.
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any, Final

from batuta.agent.news import Ailing, Looked
from batuta.agent.tunnelling import Tunnel
from batuta.core.reasons import Reason
from batuta.errors import FabricUnavailable
from batuta.fabric.tasks import end

if TYPE_CHECKING:
    from collections.abc import Callable

    from batuta.agent.exchange import Exchange
    from batuta.agent.tunnelling import Credentials, Event

LOOK_EVERY_S: Final = 10.0
AGAIN_AFTER_S: Final = 5.0
AT_ONCE: Final = 4
"""So many questions of other sites are answered at a time."""


class Depot:
    """One node's depot. `address` is where it is; empty while there is none."""

    def __init__(
        self, node: str, exchange: Exchange, credentials: Callable[[], Credentials], *, listen: str, advertise: str,
        tell: Callable[[Ailing | Looked], None],
    ) -> None:  # fmt: skip
        self.node = node
        self.exchange = exchange
        self.credentials = credentials
        self.tell = tell
        self.address = ""
        self.asked = 0
        """Questions of other sites."""
        self.unsent = 0
        self.starts = 0
        """How often a child was begun for it."""
        self.askers: dict[int, str] = {}
        """By connection: which nodes are there."""
        self._listen = listen
        self._advertise = advertise or listen
        self._wanted: int | None = None
        self._changed = asyncio.Event()
        self._tunnel = Tunnel(self._heard, self._told)
        self._answering: set[asyncio.Task[None]] = set()
        self._room = asyncio.Semaphore(AT_ONCE)

    def follow(self, port: int | None) -> None:
        """What the site says: a port, or no depot."""
        if port != self._wanted:
            self._wanted = port
            self._changed.set()

    async def run(self) -> None:
        """Keep it as the site wants it, for ever."""
        try:
            while True:
                self._changed.clear()
                if self._wanted is None:
                    await self._close()
                    await self._changed.wait()
                else:
                    await self._keep(self._wanted)
        finally:
            await self._close()
            await end(*self._answering)

    def doctor(self) -> dict[str, Any]:
        counts = {"asked": self.asked, "unsent": self.unsent, "starts": self.starts}
        return {"address": self.address, "pid": self._tunnel.pid, **counts}

    async def _keep(self, port: int) -> None:
        """One life of the child: until it ends, or the site wants something else."""
        self.starts += 1
        credentials = self.credentials()
        await self._tunnel.open()
        await self._tunnel.order("listen", credentials, host=self._listen, port=port)
        ended, changed = asyncio.create_task(self._tunnel.ended()), asyncio.create_task(self._changed.wait())
        try:
            while not ended.done() and not changed.done():
                await asyncio.wait({ended, changed}, timeout=LOOK_EVERY_S, return_when=asyncio.FIRST_COMPLETED)
                if not ended.done() and self.credentials() != credentials:
                    credentials = self.credentials()
                    await self._tunnel.order("renew", credentials)
        except FabricUnavailable:
            self.unsent += 1  # it died under our hands: the next one is begun soon
        finally:
            await end(ended, changed)
            await self._close()
        if not self._changed.is_set():
            await asyncio.sleep(AGAIN_AFTER_S)

    async def _close(self) -> None:
        await self._tunnel.close()
        self.askers.clear()
        self._place("")

    def _place(self, address: str) -> None:
        if address != self.address:
            self.address = address
            self.tell(Looked())

    def _told(self, event: Event) -> None:
        match event.type:
            case "listening":
                self._place(f"{self._advertise}:{event.port}")
                taken = event.port != self._wanted
                said = f"{self._wanted} is taken; the depot is at {self.address}"
                self.tell(Ailing("depot", self._reason(said) if taken else None))
            case "failed":
                self.tell(Ailing("depot", self._reason(f"no depot: {event.message[:200]}")))
            case "accepted":
                self.askers[event.conn] = event.node
            case "closed":
                self.askers.pop(event.conn, None)

    def _reason(self, detail: str) -> Reason:
        return Reason(code="port_taken", subject=f"node/{self.node}", detail=detail)

    def _heard(self, conn: int, data: bytes) -> None:
        self.asked += 1
        task = asyncio.create_task(self._answer(conn, data))
        self._answering.add(task)
        task.add_done_callback(self._answering.discard)

    async def _answer(self, conn: int, data: bytes) -> None:
        async with self._room:
            answer = await self.exchange.answer_to(data)
        try:
            await self._tunnel.send(conn, answer)
        except FabricUnavailable:
            self.unsent += 1  # whoever asked notices, and asks somebody else
