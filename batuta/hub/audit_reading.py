"""Reading the audit: the newest first to be found, in the order in which they happened when shown."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final, NamedTuple

import msgspec

from batuta.hub.audit import AuditEntry

if TYPE_CHECKING:
    from batuta.fabric.base import LogEntry
    from batuta.hub.audit import Audit

LIMIT_MAX: Final = 5_000
PAGE: Final = 128
SCAN_MAX: Final = 100_000
"""Entries looked at for one question; the answer says when it stopped there."""
ANSWER_BYTES_MAX: Final = 32 * 2**20


class Wanted(NamedTuple):
    """Which entries. Empty means any."""

    since: int = 0
    who: str = ""
    """A token's id or name, with or without `token/`."""
    what: str = ""
    """`applications`, `applications/default` or `applications/default/reader`."""
    name: str = ""
    verb: str = ""
    limit: int = 100
    after: int = 0
    """Only entries with a higher sequence, the oldest of them first: for following."""

    def fits(self, entry: AuditEntry) -> bool:
        return (
            entry.at >= self.since
            and (not self.who or self.who.removeprefix("token/") in (entry.who.removeprefix("token/"), entry.name))
            and (not self.what or f"{entry.what}/".startswith(f"{self.what.rstrip('/')}/"))
            and (not self.name or entry.what.rpartition("/")[2] == self.name)
            and (not self.verb or entry.verb == self.verb)
        )


class Found(NamedTuple):
    """Entries with their sequences, oldest first."""

    items: list[tuple[int, AuditEntry]]
    last: int
    """Follow from here."""
    is_whole: bool
    """False: there is more than was looked at or asked for."""


async def find(audit: Audit, wanted: Wanted) -> Found:
    """The newest entries that fit, or with `after` the first ones behind it."""
    if wanted.after:
        return await _forward(audit, wanted)
    newest = await newest_sequence(audit)
    items: list[tuple[int, AuditEntry]] = []
    below, looked_at, size = newest, 0, 0
    while below > 0 and looked_at < SCAN_MAX:
        floor = max(0, below - PAGE)
        page = await _between(audit, floor, below)
        looked_at += len(page)
        for row in reversed(page):
            entry = _read(row)
            if entry.at < wanted.since:
                return Found(items[::-1], newest, is_whole=True)
            if wanted.fits(entry):
                items.append((row.sequence, entry))
                size += len(row.data)
                if len(items) >= wanted.limit or size > ANSWER_BYTES_MAX:
                    return Found(items[::-1], newest, is_whole=False)
        # The oldest entries are gone by age or size: nothing is below the first that is left.
        below = floor if page else 0
    return Found(items[::-1], newest, is_whole=below <= 0)


async def newest_sequence(audit: Audit) -> int:
    """The sequence of the last entry. Asked of the log only until this process has written one itself."""
    if not audit.newest:
        high = 1
        while await audit.log.read(high - 1, 1):
            high *= 2
        low = high // 2
        while high - low > 1:
            middle = (low + high) // 2
            low, high = (middle, high) if await audit.log.read(middle - 1, 1) else (low, middle)
        audit.newest = max(audit.newest, low)
    return audit.newest


async def _forward(audit: Audit, wanted: Wanted) -> Found:
    items: list[tuple[int, AuditEntry]] = []
    last, size = wanted.after, 0
    for _ in range(SCAN_MAX // PAGE):
        page = await audit.log.read(last, PAGE)
        for row in page:
            last, entry = row.sequence, _read(row)
            if wanted.fits(entry):
                items.append((row.sequence, entry))
                size += len(row.data)
                if len(items) >= wanted.limit or size > ANSWER_BYTES_MAX:
                    return Found(items, last, is_whole=False)
        if not page:
            return Found(items, last, is_whole=True)
    return Found(items, last, is_whole=False)


async def _between(audit: Audit, after: int, upto: int) -> list[LogEntry]:
    """All entries in (after, upto]; the log may hand them out in smaller pieces."""
    rows: list[LogEntry] = []
    while after < upto:
        page = await audit.log.read(after, upto - after)
        rows += [row for row in page if row.sequence <= upto]
        if not page:
            break
        after = page[-1].sequence
    return rows


def _read(row: LogEntry) -> AuditEntry:
    return msgspec.json.decode(row.data, type=AuditEntry)
