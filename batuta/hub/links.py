"""The hub's ends at its broker that are not tables: who may connect, and which links closed.

Three users of the broker, three connections: `hub` for the fabric, `callout` in an account where links are judged
and no node can listen, `system` to end a link and to hear of ended ones.
"""

from __future__ import annotations

import asyncio
import logging
from typing import TYPE_CHECKING, Any, Final

import msgspec
import nats
from nats.errors import Error as NatsError

from batuta.errors import FabricUnavailable
from batuta.fabric.callout import Callout, Known, no_namespaces
from batuta.fabric.subjects import UP_CLASSES
from batuta.fabric.tasks import end, hang_up

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from nats.aio.client import Client
    from nats.aio.msg import Msg

    from batuta.fabric.clock import Clock
    from batuta.fabric.nats import NatsFabric
    from batuta.hub.enrol import Enrolment
    from batuta.hub.run import Secrets

log = logging.getLogger(__name__)

LINK_CLOSED: Final = "$SYS.ACCOUNT.CONTROL.DISCONNECT"
ANSWERED_S: Final = 0.2
UP_DUPLICATES_S: Final = 3_600
"""A node that was cut off right after it forwarded sends the same again; for so long that is recognised."""


class Links:
    """The broker's questions, answered from what enrolment knows."""

    def __init__(self, clock: Clock, link_closed: Callable[[str], None]) -> None:
        self._clock = clock
        self._link_closed = link_closed
        self.namespaces: Callable[[str], Sequence[str]] = no_namespaces
        """In which a node may call models at other sites."""
        self._clients: list[Client] = []
        self._relinking: dict[str, asyncio.Task[None]] = {}
        self._callout: Callout | None = None

    async def open(self, url: str, secrets: Secrets, enrolment: Enrolment) -> None:
        authority = await self._connect(url, "callout", secrets.callout_password)
        system = await self._connect(url, "system", secrets.system_password)

        def nodes() -> dict[str, Known]:
            return {node: Known(enrolled.key_id) for node, enrolled in enrolment.known.items()}

        self._callout = Callout(authority, system, secrets.callout_seed, nodes, self._clock, self.namespaces)
        await self._callout.start()
        await system.subscribe(LINK_CLOSED, cb=self._closed)

    async def close(self) -> None:
        await end(*self._relinking.values())
        for client in self._clients:
            await hang_up(client)

    async def kick(self, node: str) -> None:
        """Ends the link of a node that enrolment knows no more."""
        if self._callout is not None:
            await self._callout.kick(node)

    def widen(self, node: str, namespace: str) -> bool:
        """Makes a node's link anew if it may not call this namespace; says whether it does. Whoever asked is answered
        before its link goes."""
        if self._callout is None or self._callout.may_call(node, namespace):
            return False
        if node not in self._relinking:
            task = self._relinking[node] = asyncio.create_task(self._relink(self._callout, node))
            task.add_done_callback(lambda _: self._relinking.pop(node, None))
        return True

    async def _relink(self, callout: Callout, node: str) -> None:
        await asyncio.sleep(ANSWERED_S)
        try:
            await callout.relink(node)
        except (NatsError, OSError, TimeoutError) as error:
            log.warning("the link of %s could not be made anew: %s", node, error or type(error).__name__)

    @property
    def denied(self) -> dict[str, int]:
        """How often each reason was the answer, since this process began."""
        return dict(self._callout.denied) if self._callout is not None else {}

    async def _connect(self, url: str, user: str, password: str) -> Client:
        try:
            client = await nats.connect(
                url,
                user=user,
                password=password,
                name=f"batuta hub {user}",
                connect_timeout=2,
                max_reconnect_attempts=-1,
                reconnect_time_wait=0.2,
                error_cb=_note,
            )
        except (NatsError, OSError, TimeoutError) as error:
            raise FabricUnavailable(f"the broker does not let in {user}: {error or type(error).__name__}") from error
        self._clients.append(client)
        return client

    async def _closed(self, message: Msg) -> None:
        try:
            client: dict[str, Any] = msgspec.json.decode(message.data)["client"]
        except (msgspec.DecodeError, KeyError, TypeError):
            log.warning("the broker said something about a closed link that cannot be read")
            return
        if client.get("kind") == "Leafnode" and client.get("user"):
            self._link_closed(str(client["user"]))


async def widen_duplicates(fabric: NatsFabric) -> None:
    """Forwarded data is recognised when it comes twice, also after a long cut."""
    for each in UP_CLASSES:
        stream = f"up-{each}"
        config = (await fabric.api(f"STREAM.INFO.{stream}", {})).get("config", {})
        window_ns = UP_DUPLICATES_S * 1_000_000_000
        if config and config.get("duplicate_window") != window_ns:
            answer = await fabric.api(f"STREAM.UPDATE.{stream}", {**config, "duplicate_window": window_ns})
            if error := answer.get("error"):
                raise FabricUnavailable(f"the broker refuses stream {stream}: {error.get('description')}")


async def _note(error: Exception) -> None:
    log.debug("%s", error or type(error).__name__)
