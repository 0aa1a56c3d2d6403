"""The inference gateway: a process on a node through which its programs ask models, wherever those run.

It hears the cards of its site, takes calls at loopback, and brings each to the nearest instance that is well. It keeps
nothing but its books: killed at any time, it is started again with the same listening socket, so callers that were
about to connect notice nothing. Started by the node agent (`agent.gateway`), when somebody knocks for the first time.
"""

from __future__ import annotations

import asyncio
import gc
import logging
import resource
import signal
import socket
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Final

# nats-py imports this optional transport when it is installed for somebody else; it costs ten megabytes, and links here
# are plain TCP on loopback.
sys.modules.setdefault("aiohttp", None)  # type: ignore[arg-type]

import msgspec  # noqa: E402

from batuta.core.flags import FLAGS_FILE  # noqa: E402
from batuta.core.gateway import MEASURES_FILE, GatewayOrder  # noqa: E402
from batuta.dataflow.connect import connect  # noqa: E402
from batuta.dataflow.mesh.call import Calls, clock_ms  # noqa: E402
from batuta.dataflow.mesh.cards import Cards  # noqa: E402
from batuta.dataflow.mesh.fabric import FabricPath  # noqa: E402
from batuta.dataflow.mesh.far import Far  # noqa: E402
from batuta.dataflow.mesh.flags import FlagDoor  # noqa: E402
from batuta.dataflow.mesh.http import Door  # noqa: E402
from batuta.dataflow.mesh.routes import Routes  # noqa: E402
from batuta.dataflow.mesh.tally import Tally  # noqa: E402
from batuta.dataflow.mesh.unix import UnixPath  # noqa: E402
from batuta.fabric import subjects  # noqa: E402
from batuta.fabric.tasks import end, hang_up  # noqa: E402
from batuta.kinds.base import encode_hook  # noqa: E402

if TYPE_CHECKING:
    from nats.aio.client import Client
    from nats.aio.msg import Msg

    from batuta.dataflow.mesh.cards import Known
    from batuta.dataflow.mesh.http import Request, Response
    from batuta.dataflow.mesh.talk import Ask, Reply

ORDER_BYTES_MAX: Final = 1 << 20
TELL_EVERY_S: Final = 1.0
IDLE_END_S: Final = 600.0
"""Unused for so long, it gives its memory back; the next call starts it again."""

log = logging.getLogger("gateway")


class Entrance:
    """Where callers come in. Flags need nothing but their file and are answered from the first moment; whoever asks a
    model waits until the node's broker is reached."""

    def __init__(self, order: GatewayOrder) -> None:
        self.flags = FlagDoor(Path(order.directory) / FLAGS_FILE, lambda: int(time.time() * 1000))
        self.flags.remember(Path(order.directory) / MEASURES_FILE)
        self.door = Door(self._serve)
        self._listener = order.listener
        self._routes: Routes | None = None
        self._reached = asyncio.Event()

    async def open(self) -> None:
        listener = socket.socket(fileno=self._listener)
        await self.door.open(listener)
        log.info("models and flags are asked at %s:%d", *listener.getsockname())

    def lead_to(self, routes: Routes) -> None:
        self._routes = routes
        self._reached.set()

    async def _serve(self, request: Request) -> Response:
        if self._routes is None:
            if (answer := self.flags.answer(request)) is not None:
                return answer
            await self._reached.wait()
        assert self._routes is not None
        return await self._routes(request)


class Gateway:
    """The parts of one gateway, put together."""

    def __init__(
        self, order: GatewayOrder, site: Client, control: Client | None = None, entrance: Entrance | None = None
    ) -> None:
        """`control` leads to the hub, and through it to other sites; None where only the site is called. An `entrance`
        that is given is open already."""
        self.order = order
        self.site = site
        self.tally = Tally()
        self.cards = Cards(order.node, order.instances)
        self.far = Far(control, order.node, order.directory, self.cards) if control is not None else None
        self.calls = Calls(self.cards, self._send, self.tally, self.far.look if self.far is not None else None)
        self._entrance, self._is_open = entrance or Entrance(order), entrance is not None
        self.door, self.flags = self._entrance.door, self._entrance.flags
        self._near = FabricPath(site, site.new_inbox())
        self._unix: dict[str, UnixPath] = {}

    async def run(self, stop: asyncio.Event) -> None:
        """Until told to stop; then those who are being answered get a while."""
        await self.site.subscribe(subjects.ALL_SERVING, cb=self._hear)
        await self._near.open()
        if self.far is not None:
            await self.far.open(self.calls)
        self._entrance.lead_to(Routes(self.calls, self.cards, lambda: self.site.is_connected, self.flags))
        if not self._is_open:
            await self._entrance.open()
        telling = asyncio.create_task(self._tell(stop))
        try:
            await stop.wait()
        finally:
            await self.door.close()
            if self.far is not None:
                await self.far.close()
            await end(telling)
            for path in self._unix.values():
                path.close()

    async def _hear(self, message: Msg) -> None:
        self.cards.hear(message.subject, message.data, clock_ms())

    async def _send(self, known: Known, ask: Ask, left_ms: int, traceparent: str) -> Reply:
        card = known.card
        if known.nearness == "local" and card.socket:
            path = self._unix.get(card.socket)
            if path is None:
                path = self._unix[card.socket] = UnixPath(card.socket)
            return await path.send(ask, card.version, left_ms, traceparent)
        if known.nearness in ("region", "hub") and self.far is not None:
            return await self.far.send(known, ask, left_ms, traceparent)
        return await self._near.send(subjects.infer(card.node, card.instance), ask, card.version, left_ms, traceparent)

    # --- Its books ---

    async def _tell(self, stop: asyncio.Event) -> None:
        path = Path(self.order.directory) / MEASURES_FILE
        new = path.with_name(f".{path.name}.new")
        answered = 0
        while True:
            await asyncio.sleep(TELL_EVERY_S)
            if self.far is not None and self.far.answered != answered:
                answered, self.door.last_at_s = self.far.answered, time.monotonic()
            if time.monotonic() - self.door.last_at_s > IDLE_END_S and not self.calls.gate.under_way:
                log.info("nobody has asked for %.0f s", IDLE_END_S)
                stop.set()
            now = clock_ms()
            for known in self.cards.sweep(now):
                if (gone := self._unix.pop(known.card.socket, None)) is not None:
                    gone.close()
            try:
                said = self.tally.told(self.cards.all(now), now, self.flags.asked_at)
                new.write_bytes(msgspec.json.encode(said, enc_hook=encode_hook))
                new.replace(path)
            except OSError as error:
                log.warning("the books could not be written: %s", error)


async def run(order: GatewayOrder) -> int:
    """One gateway's life; its exit status."""
    stop = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, stop.set)
    entrance = Entrance(order)
    await entrance.open()
    site = await connect(order.broker, f"gateway {order.node}", stop)
    if site is None:
        await entrance.door.close(grace_s=0)
        return 0
    control = await connect(order.far, f"gateway {order.node}", stop) if order.far else None
    gc.freeze()
    try:
        await Gateway(order, site, control, entrance).run(stop)
    finally:
        for client in (site, control):
            if client is not None:
                await hang_up(client)
    return 0


def main() -> None:
    logging.basicConfig(stream=sys.stderr, level=logging.INFO, format="%(asctime)s %(levelname)s %(message)s")
    logging.getLogger("nats").setLevel(logging.WARNING)
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))
    order = msgspec.json.decode(sys.stdin.buffer.read(ORDER_BYTES_MAX), type=GatewayOrder)
    sys.exit(asyncio.run(run(order)))


if __name__ == "__main__":
    main()
