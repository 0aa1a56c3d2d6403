"""Pace: how much a node asks of the hub at a time. As much as does not make the answers slow.

When answers take longer than they could, somebody else needs the link: the neighbours, who bring in their own shares,
and everybody's orders and heartbeats, which matter more than any file.
"""

from __future__ import annotations

from typing import Final

from batuta.core.delivery import CHUNKS_PER_ASK

HUB_ASKS_MOST: Final = 4
TOGETHER_ASKS_MOST: Final = 8
"""Of all nodes of a site that bring in the same file; but one of each."""
MANY: Final = 8
SLOWER_BY_MS: Final = 150
"""An answer that takes so much longer than the quickest: then this node asks less."""
TWO_AT_ONCE_BELOW_MS: Final = 500
"""An answer that takes longer brings one chunk."""
ANSWER_MS: Final = 700
"""No answer shall take longer: what must go over a slow link waits behind it."""
WHOLE_FROM_BYTES: Final = 64 * 1024
PART_LEAST_BYTES: Final = 8 * 1024
GAP_MOST_MS: Final = 10_000
PAUSE_FIRST_MS: Final = 200
PAUSE_MOST_MS: Final = 5_000


class Pace:
    """How much to ask of the hub: as much as does not make its answers slow."""

    def __init__(self) -> None:
        self._chunks = 1
        self._part_bytes = 0
        self.last_ms = 0
        self._most = 1
        self._quickest_ms: int | None = None
        self._gap_ms = 0
        self._next_at = 0
        self._pause_ms = PAUSE_FIRST_MS

    def asks(self, now: int, together: int) -> int:
        """So many questions may be under way now, while so many nodes of the site bring in the same file."""
        return min(self._most, max(1, TOGETHER_ASKS_MOST // together)) if now >= self._next_at else 0

    @property
    def part_bytes(self) -> int:
        """So much of a chunk is asked for at a time; 0 for whole chunks."""
        return self._part_bytes

    def chunks(self, together: int) -> int:
        """So many chunks are asked for at once. Many nodes ask for less each: what is on its way is lost in a cut."""
        return self._chunks if together < MANY and not self._part_bytes else 1

    def wait_s(self, now: int, most_s: float) -> float:
        return min(most_s, max(0.01, (self._next_at - now) / 1000)) if now < self._next_at else most_s

    def asked(self, now: int) -> None:
        self._next_at = max(self._next_at, now + self._gap_ms)

    def answered(self, took_ms: int, size_bytes: int) -> None:
        """A question was answered, after so long and with so many bytes."""
        self.last_ms = took_ms
        fits_bytes = size_bytes * ANSWER_MS // max(1, took_ms)
        self._part_bytes = 0 if fits_bytes >= WHOLE_FROM_BYTES else max(PART_LEAST_BYTES, fits_bytes)
        self._pause_ms = PAUSE_FIRST_MS
        quickest = self._quickest_ms = took_ms if self._quickest_ms is None else min(self._quickest_ms, took_ms)
        slower_ms = took_ms - quickest
        if slower_ms <= SLOWER_BY_MS:
            self._chunks = CHUNKS_PER_ASK if took_ms < TWO_AT_ONCE_BELOW_MS else self._chunks
            self._gap_ms //= 2
            if not self._gap_ms:
                self._most = min(HUB_ASKS_MOST, self._most + 1)
        elif self._most > 1:
            self._most -= 1
        elif self._chunks > 1:
            self._chunks = 1
        else:
            self._gap_ms = min(GAP_MOST_MS, self._gap_ms + min(slower_ms - SLOWER_BY_MS, 2_000))

    def failed(self, now: int) -> None:
        """Nobody answered: ask again after a while that grows."""
        self._next_at = now + self._pause_ms
        self._pause_ms = min(PAUSE_MOST_MS, self._pause_ms * 2)

    def closed(self, until: int) -> None:
        self._next_at = max(self._next_at, until)

    def open(self) -> None:
        self._next_at, self._pause_ms = 0, PAUSE_FIRST_MS
