"""Flags on their way to nodes: whoever's sheet is another than before is told at once; whoever missed that asks.

    batuta.tell.<node>.flags   hub -> node   the node's sheet; nothing when it is too large to be sent unasked, or empty
    batuta.ask.<node>.flags    node -> hub   nothing -> its sheet, as `core.flags` writes it

A heartbeat carries the digest of what its node has, and its answer says when that is not what it should have. So
nothing here is repeated or remembered: a message that is lost costs one beat.
"""

from __future__ import annotations

import asyncio
import logging
from typing import TYPE_CHECKING, Final

from batuta.core.flag_sheets import NOTHING, sheets_of
from batuta.core.flags import PUSHED_BYTES_MAX
from batuta.errors import FabricUnavailable
from batuta.fabric import subjects
from batuta.hub.shipping import error_line

if TYPE_CHECKING:
    from collections.abc import Callable

    from batuta.core.state import State
    from batuta.fabric.base import Fabric
    from batuta.fabric.clock import Clock
    from batuta.hub.bell import Bell
    from batuta.hub.counters import Counters

log = logging.getLogger(__name__)

PAUSE_MS: Final = 50
"""Changes that come together are told together."""
SENT_AT_ONCE: Final = 256
"""Then others get their turn: a large fleet is told in many small pieces of work."""


class Flags:
    """Tells nodes of their flags."""

    def __init__(
        self, fabric: Fabric, clock: Clock, counters: Counters, state: Callable[[], State], changed: Bell
    ) -> None:
        self._fabric = fabric
        self._clock = clock
        self._counters = counters
        self._state = state
        self._changed = changed
        self._digests: dict[str, str] = {}
        """By node: what was told last, or what it was when this hub began."""
        self._version = -1

    def open(self) -> None:
        """Nobody is told anything now: whoever has something else says so with the next heartbeat."""
        self._look()

    def digest(self, node: str) -> str:
        """What a node should have."""
        return self._digests.get(node, NOTHING.digest)

    async def run(self) -> None:
        while True:
            heard = self._changed.rings
            await self._tell(self._look())
            await self._clock.sleep_until(self._clock.now() + PAUSE_MS)
            await self._changed.wait(heard, self._clock)

    async def answer(self, node: str, _data: bytes) -> bytes:
        state = self._state()
        if node not in state.nodes:
            self._counters.add("asks_refused", "flags")
            return error_line("node_unknown", f"{node} is no node of this fleet")
        return sheets_of(state).told(node).body

    def _look(self) -> list[str]:
        try:
            return self._news()
        except Exception:  # flags are not worth a hub that does not decide; nodes keep those they have
            self._counters.add("flags_failed")
            log.exception("the flags could not be worked out")
            return []

    def _news(self) -> list[str]:
        """Nodes whose sheet is another than it was."""
        sheets = sheets_of(self._state())
        if sheets.version == self._version:
            return []
        self._version = sheets.version
        before, self._digests = self._digests, {node: sheets.told(node).digest for node in sheets.nodes()}
        return [node for node, digest in self._digests.items() if before.get(node, NOTHING.digest) != digest]

    async def _tell(self, nodes: list[str]) -> None:
        for start in range(0, len(nodes), SENT_AT_ONCE):
            sheets, some = sheets_of(self._state()), nodes[start : start + SENT_AT_ONCE]
            try:
                for node in some:
                    body = sheets.told(node).body
                    sent = body if len(body) <= PUSHED_BYTES_MAX else b""
                    await self._fabric.publish(subjects.tell(node, "flags"), sent)
            except FabricUnavailable:
                # Everybody asks when the broker is back: their heartbeats say that they should.
                self._counters.add("flags_untold", by=len(nodes) - start)
                return
            self._counters.add("flags_told", by=len(some))
            await asyncio.sleep(0)
