"""What a worker has in hand: frames taken and not yet acknowledged, in the order in which they came."""

from __future__ import annotations

import asyncio
import contextlib
from collections import deque
from dataclasses import dataclass
from typing import TYPE_CHECKING

from batuta.fabric import subjects

if TYPE_CHECKING:
    from collections.abc import Callable

    from nats.aio.msg import Msg

    from batuta.dataflow.answers import Place, Route
    from batuta.dataflow.beside.wire import Hello


@dataclass(slots=True, eq=False)
class Frame:
    """One message of an inbox, on its way to an answer."""

    ingest: str
    """The node that took it."""
    message: Msg
    place: Place
    taken_at: float
    """Seconds of the worker's monotonic clock."""
    route: Route | None = None
    output_topic: str | None = None
    topic: str = ""
    id: str | None = None
    """The name that its publisher gave it."""
    by: Hello | None = None
    """Who answered it, when that is the release on trial beside this one."""

    def __post_init__(self) -> None:
        self.topic = subjects.topic_of_subject(subjects.topic_subject(self.message.subject))


class Hand:
    """A queue that remembers what was taken from it until it is dropped. Bounded by asking for no more than fits."""

    def __init__(self, room: int, stir: Callable[[], None]) -> None:
        self._room = room
        self._stir = stir
        self._waiting: deque[Frame] = deque()
        self._held: set[Frame] = set()
        self._come = asyncio.Event()
        self._closed = False

    def has_room(self) -> bool:
        return len(self._held) < self._room and not self._closed

    def held(self) -> list[Frame]:
        """Everything not yet dropped, oldest first."""
        return sorted(self._held, key=lambda frame: frame.taken_at)

    def put(self, frame: Frame) -> None:
        self._waiting.append(frame)
        self._held.add(frame)
        self._come.set()

    def drop(self, frame: Frame) -> None:
        """Done with it, one way or the other."""
        had_room = self.has_room()
        self._held.discard(frame)
        if not had_room and self.has_room():
            self._stir()

    def close(self) -> None:
        """Nothing more comes."""
        self._closed = True
        self._come.set()

    async def take(self, most: int, linger_ms: int) -> list[Frame]:
        """At least one, as soon as there is one; waits `linger_ms` for more. Empty only when closed and empty."""
        while not self._waiting:
            if self._closed:
                return []
            self._come.clear()
            await self._come.wait()
        if linger_ms:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(linger_ms / 1000):
                    while len(self._waiting) < most and not self._closed:
                        self._come.clear()
                        await self._come.wait()
        return [self._waiting.popleft() for _ in range(min(most, len(self._waiting)))]
