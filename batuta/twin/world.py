"""World: a heap of events in virtual time, and what all actors share: the broker's tables, the links, the trace."""

from __future__ import annotations

import hashlib
import heapq
from collections import deque
from typing import TYPE_CHECKING, Any, Final, NamedTuple

from batuta.twin.chance import Chance

if TYPE_CHECKING:
    from collections.abc import Callable

    from batuta.twin.physics import Physics

EPOCH_MS: Final = 1_700_000_000_000
"""Virtual time begins here, so that no instant of a run is small enough to be mistaken for a duration."""
STORY_LINES: Final = 400


class World:
    """Virtual time. Events of one instant happen in the order in which they were planned."""

    def __init__(self, seed: int, physics: Physics) -> None:
        self.seed = seed
        self.physics = physics
        self.now = EPOCH_MS
        self.events = 0
        self.counts: dict[str, int] = {}
        self.story: deque[str] = deque(maxlen=STORY_LINES)
        self._heap: list[tuple[int, int, Callable[..., None], tuple[Any, ...]]] = []
        self._planned = 0
        self._trace = hashlib.blake2b(digest_size=16)

    def after(self, delay_ms: int, do: Callable[..., None], *args: Any) -> None:
        self._planned += 1
        heapq.heappush(self._heap, (self.now + max(0, delay_ms), self._planned, do, args))

    def run_until(self, end: int) -> None:
        heap = self._heap
        while heap and heap[0][0] <= end:
            self.now, _, do, args = heapq.heappop(heap)
            self.events += 1
            do(*args)
        self.now = end

    def tell(self, line: str) -> None:
        """One line of the story; the digest of all lines is the identity of the run."""
        line = f"{(self.now - EPOCH_MS) / 1000:9.3f} {line}"
        self.story.append(line)
        self._trace.update(line.encode() + b"\n")

    def count(self, what: str) -> None:
        self.counts[what] = self.counts.get(what, 0) + 1

    @property
    def digest(self) -> str:
        return self._trace.hexdigest()


class Row(NamedTuple):
    value: Any
    revision: int


class Store:
    """The broker's tables: they survive the hub process, and a revision guards every write."""

    def __init__(self) -> None:
        self.tables: dict[str, dict[str, Row]] = {"desired": {}, "decided": {}, "observed": {}}
        self.revision = 0

    def get(self, table: str, key: str) -> Any:
        row = self.tables[table].get(key)
        return None if row is None else row.value

    def put(self, table: str, key: str, value: Any) -> None:
        """None deletes."""
        self.revision += 1
        if value is None:
            self.tables[table].pop(key, None)
        else:
            self.tables[table][key] = Row(value, self.revision)


class Wire:
    """One node's link to the broker, both ways. Whole and quick unless a fault says otherwise."""

    def __init__(self, world: World, name: str) -> None:
        self.world = world
        self.name = name
        self.cuts = 0
        """How many faults cut it at present."""
        self.loss = self.duplication = self.reordering = 0
        """Permille of messages."""
        self.delay_ms = 0
        self._chance = Chance(world.seed, "wire", name)
        self._last_arrival = {"up": 0, "down": 0}

    @property
    def is_whole(self) -> bool:
        return self.cuts == 0

    def mend(self) -> None:
        self.cuts = self.loss = self.duplication = self.reordering = self.delay_ms = 0

    def send(self, way: str, do: Callable[..., None], *args: Any) -> None:
        """A message: it may be lost, doubled, delayed and overtaken, but never altered."""
        copies = 2 if self._chance.happens(self.duplication) else 1
        for _ in range(copies):
            if self.cuts or self._chance.happens(self.loss):
                self.world.count("messages lost")
                continue
            arrival = self.world.now + self.world.physics.draw(self.world.physics.latency_ms, self._chance)
            if self.delay_ms:
                arrival += self._chance.between(0, self.delay_ms)
            if self._chance.happens(self.reordering):
                arrival += self._chance.between(0, 3_000)
            else:
                arrival = self._last_arrival[way] = max(arrival, self._last_arrival[way])
            self.world.after(arrival - self.world.now, self._arrive, do, args)

    def _arrive(self, do: Callable[..., None], args: tuple[Any, ...]) -> None:
        if self.cuts:
            self.world.count("messages lost")
        else:
            do(*args)
