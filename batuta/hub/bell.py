"""A bell that any number of tasks wait for: one ring wakes all, and is remembered for those who come back."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from batuta.fabric.clock import Clock


class Bell:
    """Counts its rings, so that whoever was busy meanwhile does not miss one."""

    def __init__(self) -> None:
        self.rings = 0
        self._event = asyncio.Event()

    def ring(self) -> None:
        self.rings += 1
        self._event.set()
        self._event = asyncio.Event()

    async def wait(self, heard: int, clock: Clock, until: int | None = None) -> None:
        """Returns once it rang more than `heard` times, or at the instant `until`."""
        if self.rings > heard:
            return
        waits: list[asyncio.Task[Any]] = [asyncio.create_task(self._event.wait())]
        if until is not None:
            waits.append(asyncio.create_task(clock.sleep_until(until)))
        try:
            await asyncio.wait(waits, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for each in waits:
                each.cancel()
