"""World: a heap of events in virtual time, and what all actors share: the broker's tables, the links, the trace."""

from __future__ import annotations

import hashlib
import heapq
from collections import deque
from typing import TYPE_CHECKING, Any, Final, NamedTuple

from batuta.twin.chance import Chance

if TYPE_CHECKING:
    from collections.abc import Callable

    from batuta.twin.physics import Physics, Range

EPOCH_MS: Final = 1_700_000_000_000
"""Virtual time begins here, so that no instant of a run is small enough to be mistaken for a duration."""
STORY_LINES: Final = 400
_AHEAD: Final = 1 << 62

# The lanes of a wire: what is in one of them never overtakes its like.
BEAT, ANSWER, REPORT, RECEIPT, LOOK, FOUND, ASK, PUSH = range(8)
LANES: Final = 8
UP_LANES: Final = frozenset({BEAT, REPORT, LOOK, ASK})


class World:
    """Virtual time. Events of one instant happen in the order in which they were planned, but for what goes on by
    itself (heartbeats and their answers), which comes first: so it is known without playing it (`twin.rest`)."""

    def __init__(self, seed: int, physics: Physics) -> None:
        self.seed = seed
        self.physics = physics
        self.now = EPOCH_MS
        self.events = 0
        self.every_ms = physics.heartbeat_ms
        """How often each node of this fleet beats."""
        self.counts: dict[str, int] = {}
        self.story: deque[str] = deque(maxlen=STORY_LINES)
        self._heap: list[tuple[int, int, Callable[..., None], tuple[Any, ...]]] = []
        self._planned = 0
        self._trace = hashlib.blake2b(digest_size=16)

    def after(self, delay_ms: int, do: Callable[..., None], *args: Any) -> None:
        self._planned += 1
        heapq.heappush(self._heap, (self.now + max(0, delay_ms), self._planned, do, args))

    def first(self, delay_ms: int, do: Callable[..., None], *args: Any) -> None:
        """As `after`, ahead of everything else of that instant."""
        self._planned += 1
        heapq.heappush(self._heap, (self.now + max(0, delay_ms), self._planned - _AHEAD, do, args))

    def in_turn(self, delay_ms: int, place: int, do: Callable[..., None], *args: Any) -> None:
        """As `after`; of one instant, those of a lower place come first, whenever they were planned."""
        self._planned += 1
        order = (place << 24) + (self._planned & 0xFFFFFF) - (_AHEAD >> 1)
        heapq.heappush(self._heap, (self.now + max(0, delay_ms), order, do, args))

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
    """One node's link to the broker, both ways. Whole and quick unless a fault says otherwise.

    What is said by itself and in turn (a heartbeat, its answer, a report, its receipt, a look at the assignment)
    travels in a lane of its own, and how long it takes follows from its number; everything else draws as it goes.
    """

    def __init__(self, world: World, name: str, latency_ms: Range | None = None) -> None:
        self.world = world
        self.name = name
        self.latency_ms = latency_ms or world.physics.latency_ms
        self.cuts = 0
        """How many faults cut it at present."""
        self.cuts_at_hub = 0
        """How many of them are at the hub's end."""
        self.loss = self.duplication = self.reordering = 0
        """Permille of messages."""
        self.delay_ms = 0
        self.messages = self.bytes_up = self.bytes_down = self.lost = 0
        """What was sent so far, lost or not."""
        self._chance = Chance(world.seed, "wire", name)
        self._numbered = Chance(world.seed, "lanes", name)
        self._last_arrival: dict[int, int] = {}

    @property
    def is_whole(self) -> bool:
        return self.cuts == 0

    @property
    def is_clean(self) -> bool:
        """Whole, quick and orderly: what is sent arrives once, and its latency says when."""
        return not (self.cuts or self.loss or self.duplication or self.reordering or self.delay_ms)

    def mend(self) -> None:
        self.cuts = self.cuts_at_hub = self.loss = self.duplication = self.reordering = self.delay_ms = 0

    def took_ms(self, lane: int, number: int) -> int:
        """How long the message of this number in this lane is under way."""
        least, most = self.latency_ms
        return least + self._numbered.at(number * LANES + lane) % (most - least + 1)

    def send(self, lane: int, size: int, do: Callable[..., None], *args: Any, number: int = 0) -> None:
        """A message: it may be lost, doubled, delayed and overtaken, but never altered."""
        copies = 2 if self._chance.happens(self.duplication) else 1
        world = self.world
        for _ in range(copies):
            self.messages += 1
            if lane in UP_LANES:
                self.bytes_up += size
            else:
                self.bytes_down += size
            if self.cuts or self._chance.happens(self.loss):
                self.lost += 1
                continue
            took_ms = self.took_ms(lane, number) if number else world.physics.draw(self.latency_ms, self._chance)
            arrival = world.now + took_ms
            if self.delay_ms:
                arrival += self._chance.between(0, self.delay_ms)
            if self._chance.happens(self.reordering):
                arrival += self._chance.between(0, 3_000)
            else:
                arrival = self._last_arrival[lane] = max(arrival, self._last_arrival.get(lane, 0))
            (world.first if number else world.after)(arrival - world.now, self.arrive, do, args)

    def arrive(self, do: Callable[..., None], args: tuple[Any, ...]) -> None:
        if self.cuts:
            self.lost += 1
        else:
            do(*args)
