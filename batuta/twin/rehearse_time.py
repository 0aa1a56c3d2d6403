"""Time of a rehearsal: a heap of what is planned. Nothing happens between two plans, so hours of rest cost nothing."""

from __future__ import annotations

import heapq
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable


class Timeline:
    """Instants are milliseconds of the hub's clock. Plans for one instant are carried out in the order of planning."""

    def __init__(self, now: int) -> None:
        self.began_at = self.now = now
        self.events = 0
        self._heap: list[tuple[int, int, Callable[..., None], tuple[Any, ...]]] = []
        self._planned = 0

    @property
    def passed_ms(self) -> int:
        return self.now - self.began_at

    def after(self, delay_ms: int, do: Callable[..., None], *args: Any) -> None:
        self._planned += 1
        heapq.heappush(self._heap, (self.now + max(0, delay_ms), self._planned, do, args))

    def at(self, instant: int, do: Callable[..., None], *args: Any) -> None:
        self.after(instant - self.now, do, *args)

    def run_until(self, end: int) -> None:
        heap = self._heap
        while heap and heap[0][0] <= end:
            self.now, _, do, args = heapq.heappop(heap)
            self.events += 1
            do(*args)
        self.now = max(self.now, end)
