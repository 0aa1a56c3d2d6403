"""Gate: which requests go on when there are too many. Pure.

So many are under way at once. Further ones wait, the most urgent first and among equals the first come; whoever finds
the room full takes the place of the least urgent that waits, and of the newest among those, or is refused if there is
none. Bulk and normal never fill the room wholly, so urgent requests need not push anybody out at first. A request whose
deadline passes while it waits is refused then.
"""

from __future__ import annotations

from collections import deque
from typing import TYPE_CHECKING, Generic, Literal, NamedTuple, TypeVar

from batuta.core.serving import CLASSES

if TYPE_CHECKING:
    from batuta.core.serving import Class

T = TypeVar("T")

SHARES: dict[Class, float] = {"critical": 1.0, "normal": 0.8, "bulk": 0.4}
"""How full the waiting room may be for one more of a class to enter an empty place."""


class Offered(NamedTuple, Generic[T]):
    """What became of a request at the gate, and who had to leave for it."""

    fate: Literal["goes", "waits", "shed"]
    left: T | None = None


class Waiting(NamedTuple, Generic[T]):
    item: T
    deadline: int


class Gate(Generic[T]):
    """At most `at_once` under way, at most `room` waiting."""

    def __init__(self, at_once: int, room: int) -> None:
        self.at_once = at_once
        self.room = room
        self.under_way = 0
        self.waiting: dict[Class, deque[Waiting[T]]] = {each: deque() for each in CLASSES}

    @property
    def length(self) -> int:
        return sum(len(line) for line in self.waiting.values())

    def offer(self, item: T, urgency: Class, deadline: int) -> Offered[T]:
        """One more came."""
        if self.under_way < self.at_once and not self.length:
            self.under_way += 1
            return Offered("goes")
        line = self.waiting[urgency]
        if self.length < self.room * SHARES[urgency]:
            line.append(Waiting(item, deadline))
            return Offered("waits")
        # Somebody less urgent gives way, the least urgent and newest first; among equals first come is first served.
        for other in reversed(CLASSES[CLASSES.index(urgency) + 1 :]):
            if self.waiting[other]:
                left = self.waiting[other].pop()
                line.append(Waiting(item, deadline))
                return Offered("waits", left.item)
        return Offered("shed")

    def done(self) -> None:
        """One that was under way has ended; ask `next` for who goes on."""
        assert self.under_way > 0
        self.under_way -= 1

    def next(self, now: int) -> tuple[T | None, tuple[T, ...]]:
        """Who goes on now, and whose deadline has passed meanwhile."""
        late: list[T] = []
        if self.under_way < self.at_once:
            for urgency in CLASSES:
                line = self.waiting[urgency]
                while line:
                    waiting = line.popleft()
                    if waiting.deadline <= now:
                        late.append(waiting.item)
                        continue
                    self.under_way += 1
                    return waiting.item, tuple(late)
        return None, tuple(late)

    def leave(self, item: T, urgency: Class) -> None:
        """One that waits does not want to any more."""
        self.waiting[urgency] = deque(each for each in self.waiting[urgency] if each.item is not item)
