"""Attention: for how long this hub could not listen, so that nobody takes its own stall for a silence of the nodes.

A hub that decides for seconds, is stopped by its machine, or has lost its broker hears no heartbeat meanwhile. A tick
of the event loop that comes too late tells so, whatever the cause. What was said in a stall waits in sockets and is
heard right after it; so all of the delay but the tick itself is taken off.
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from batuta.fabric.base import Fabric
    from batuta.fabric.clock import Clock

TICK_S: Final = 0.25
LATE_S: Final = 0.25
"""A tick that is less late than this is the ordinary business of a process."""


class Attention:
    """One hub process's."""

    def __init__(self, clock: Clock, fabric: Fabric) -> None:
        self._clock = clock
        self._fabric = fabric
        self._looked_at = clock.monotonic()
        self.deaf_ms = 0
        """All in all, as of the last look."""

    def begin(self) -> None:
        """From now on it should listen."""
        self._looked_at, self.deaf_ms = self._clock.monotonic(), 0

    def look(self) -> int:
        """For how long it could not listen, up to now. Whoever concludes from silence, or notes that somebody was
        heard, looks first: a tick may be due and not yet have had its turn."""
        now = self._clock.monotonic()
        since_s = now - self._looked_at
        if since_s > TICK_S + LATE_S:
            self._add(since_s - TICK_S, now)
        return self.deaf_ms

    async def run(self) -> None:
        while True:
            await asyncio.sleep(TICK_S)
            self.look()
            now = self._clock.monotonic()
            if not self._fabric.is_connected:
                self._add(now - self._looked_at, now)
            self._looked_at = now

    def _add(self, deaf_s: float, now: float) -> None:
        self.deaf_ms += int(deaf_s * 1000)
        self._looked_at = now
