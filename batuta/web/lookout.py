"""Lookouts: one for each list that somebody watches, however many do. It looks, and tells all of them at once.

What has happened is written once: watchers who choose and look alike share the very bytes. A lookout takes a tenth of
the hub's time at most; while much happens, it tells it in fewer and larger pieces.
"""

from __future__ import annotations

import asyncio
import time
from functools import partial
from typing import TYPE_CHECKING, Final, Protocol

if TYPE_CHECKING:
    from collections.abc import Mapping

    from batuta.hub.history import FeedEvent
    from batuta.hub.hub import Hub
    from batuta.kinds.base import Ref
    from batuta.web.selectors import Selector
    from batuta.web.sources import Source

    class Write(Protocol):
        """An object as a Table of one row, with its head or without."""

        def __call__(self, body: bytes, headed: bool) -> bytes: ...


LOOK_EVERY_MS: Final = 1_000
"""Status also changes by the mere passing of time: a node that falls silent sends nothing."""
PACE_MS: Final = 50
"""Between two looks, at least."""
SHARE: Final = 9
"""Between two looks, also so many times as long as a look takes."""
ROWS_AT_ONCE: Final = 500
PIECE_BYTES: Final = 256 * 1024
"""A piece of what is sent ends with the event that makes it so long: a watcher who does not read keeps no more."""
EVENTS_AT_ONCE: Final = 1024
PIECES_KEPT: Final = 4


class Lookout:
    """Looks at one list while anybody watches it."""

    def __init__(self, hub: Hub, source: Source) -> None:
        self.hub = hub
        self.source = source
        self._watchers = 0
        self._looking: asyncio.Task[None] | None = None
        self._waiting: asyncio.Future[None] | None = None
        self._told = 0
        """The version up to which everybody was told."""
        self._groups: dict[tuple[str, Selector, object], Group] = {}

    def group(self, namespace: str, chosen: Selector, look: object, write: Write | None) -> Group:
        """Watchers that are alike in all of these are one group; `look` names how `write` writes."""
        key = (namespace, chosen, look)
        return self._groups.get(key) or Group(self.source, key, write)

    def enter(self, group: Group) -> None:
        self._watchers += 1
        self._groups.setdefault(group.key, group)
        group.watchers += 1
        if self._looking is None:
            self._looking = asyncio.create_task(self._look(), name=f"look at {self.source.plural}")
            self._looking.add_done_callback(self._ended)

    def leave(self, group: Group) -> None:
        group.watchers -= 1
        if not group.watchers and self._groups.get(group.key) is group:
            del self._groups[group.key]
        self._watchers -= 1
        if not self._watchers and self._looking is not None:
            self._looking.cancel()
            self._looking = None

    async def news(self) -> None:
        """Returns once it has looked again and found something, or after LOOK_EVERY_MS."""
        if self._waiting is None:
            self._waiting = asyncio.get_running_loop().create_future()
        # Whoever hangs up is cancelled while he waits; the others wait on.
        await asyncio.shield(self._waiting)

    async def _look(self) -> None:
        clock, turned = self.hub.clock, self.hub.loop.turned
        told_at = clock.now()
        while True:
            heard, began = turned.rings, time.perf_counter()
            await refresh(self.source)
            now = clock.now()
            if self.source.version != self._told or now - told_at >= LOOK_EVERY_MS:
                told_at = now
                self._tell()
            took_ms = int((time.perf_counter() - began) * 1000)
            await clock.sleep_until(now + max(PACE_MS, took_ms * SHARE))
            await turned.wait(heard, clock, now + LOOK_EVERY_MS)

    def _tell(self, error: BaseException | None = None) -> None:
        self._told = self.source.version
        waiting, self._waiting = self._waiting, None
        if waiting is None or waiting.done():
            return
        if error is None:
            waiting.set_result(None)
        else:
            waiting.set_exception(error)

    def _ended(self, looking: asyncio.Task[None]) -> None:
        """A lookout ends when nobody watches any more. If it fails, whoever watches must not wait for it for ever."""
        if not looking.cancelled() and (error := looking.exception()) is not None:
            self._looking = None
            self._tell(error)


async def refresh(source: Source) -> None:
    """Brings a list up to date, a few rows at a time: nobody else has to wait for it."""
    while not source.refresh(ROWS_AT_ONCE):  # noqa: ASYNC110  it waits for nothing, it lets others go on
        await asyncio.sleep(0)


class Group:
    """Watchers who see the same: what is written for one serves all."""

    def __init__(self, source: Source, key: tuple[str, Selector, object], write: Write | None) -> None:
        self.key = key
        self.watchers = 0
        self._source = source
        self._namespace, self._chosen, self._look = key
        self._write = write
        self._pieces: dict[int, tuple[bytes, int]] = {}
        """By the version they begin after: the bytes, and the version they end with."""

    def piece(self, after: int, *, is_first: bool = False) -> tuple[bytes, int]:
        """The next events after a version, as lines, and the version they reach; raises TooOld.

        The first row of a Table says what its columns are, so it comes alone.
        """
        is_first = is_first and self._write is not None
        known = None if is_first else self._pieces.get(after)
        if known is not None:
            return known
        parts: list[bytes] = []
        size, reached = 0, after
        events = self._source.since(after, EVENTS_AT_ONCE)
        for event in events:
            reached = event.version
            if (word := self._word(event)) is None:
                continue
            body = self._body(event, is_first)
            parts += (b'{"type":"', word, b'","object":', body, b"}\n")
            size += len(body)
            if size >= PIECE_BYTES or is_first:
                break
        found = (b"".join(parts), reached)
        if events and self.watchers > 1 and not is_first:
            while len(self._pieces) >= PIECES_KEPT:
                del self._pieces[next(iter(self._pieces))]
            self._pieces[after] = found
        return found

    def means(self, ref: Ref, labels: Mapping[str, str] | None, body: bytes) -> bool:
        """Is it one of those that this group watches? Labels of None: it is not there."""
        return (not self._namespace or ref.namespace == self._namespace) and self._chosen.selects(ref, labels, body)

    def line(self, word: bytes, body: bytes, *, is_first: bool) -> bytes:
        """One object that is there already, as a line."""
        shown = body if self._write is None else self._write(body, is_first)
        return b'{"type":"' + word + b'","object":' + shown + b"}\n"

    def _body(self, event: FeedEvent, is_first: bool) -> bytes:
        if self._write is None:
            return event.body
        return self._write(event.body, True) if is_first else event.row(self._look, partial(self._write, headed=False))

    def _word(self, event: FeedEvent) -> bytes | None:
        """What this event is to one who sees only what is chosen; None when it is nothing."""
        before = self.means(event.ref, event.before, event.body)
        after = self.means(event.ref, event.after, event.body)
        if before and after:
            return b"MODIFIED"
        if after:
            return b"ADDED"
        return b"DELETED" if before else None
