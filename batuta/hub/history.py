"""History: the newest changes of one list, in order and within bounds, so that a watch can go on where a list ended."""

from __future__ import annotations

from bisect import bisect_right
from operator import attrgetter
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from batuta.kinds.base import Ref

EVENTS_MAX: Final = 32_768
EVENT_BYTES_MAX: Final = 32 * 2**20
DROPPED_AT_ONCE: Final = 512
_version_of: Final = attrgetter("version")


class TooOld(Exception):
    """What happened since that version is no longer known: list again."""


class FeedEvent:
    """One difference. Labels are None where it was not there."""

    __slots__ = ("_rows", "after", "before", "body", "ref", "version")

    def __init__(
        self,
        version: int,
        ref: Ref,
        before: Mapping[str, str] | None,
        after: Mapping[str, str] | None,
        body: bytes,
    ) -> None:
        self.version, self.ref, self.before, self.after, self.body = version, ref, before, after, body
        self._rows: dict[object, bytes] = {}

    def row(self, look: object, write: Callable[[bytes], bytes]) -> bytes:
        """Its object as a row of a Table, written once for all who look at it in the same way."""
        found = self._rows.get(look)
        if found is None:
            found = self._rows[look] = write(self.body)
        return found


class History:
    """Events of one list. Versions rise; what is too old, or too much, is forgotten."""

    def __init__(self, begin: int) -> None:
        self.forgotten = begin
        """The newest version that nobody can go on from, exclusively."""
        self._events: list[FeedEvent] = []
        self._first = 0
        """Events before this one are forgotten; they are dropped from the list many at a time."""
        self._bytes = 0

    def note(self, event: FeedEvent) -> None:
        self._events.append(event)
        self._bytes += len(event.body)
        while self._bytes > EVENT_BYTES_MAX or len(self._events) - self._first > EVENTS_MAX:
            oldest = self._events[self._first]
            self._first += 1
            self._bytes -= len(oldest.body)
            self.forgotten = oldest.version
        if self._first >= DROPPED_AT_ONCE:
            del self._events[: self._first]
            self._first = 0

    def since(self, version: int, limit: int = EVENTS_MAX) -> Sequence[FeedEvent]:
        """What came after `version`, in order, and no more than `limit` of it; raises TooOld."""
        if version < self.forgotten:
            raise TooOld
        begin = bisect_right(self._events, version, lo=self._first, key=_version_of)
        return self._events[begin : begin + limit]
