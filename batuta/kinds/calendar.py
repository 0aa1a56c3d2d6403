"""Calendar: when the lines of a crontab come, by the clock of a place. By arithmetic: no clock and no file is asked.

What falls into the hour that spring skips happens at the instant it is skipped; what falls into the hour that autumn
repeats happens the first time. So every line of every day happens once, and in order.
"""

from __future__ import annotations

import re
from functools import lru_cache
from typing import TYPE_CHECKING, NamedTuple

from batuta.kinds.instants import DAY_MS, date_of, days_of
from batuta.kinds.nearest import did_you_mean

if TYPE_CHECKING:
    from collections.abc import Iterable

MINUTE_MS = 60_000
SEARCH_DAYS = 366 * 8 + 2
"""The rarest day, a leap day, comes again after eight years at the latest."""

_FIELDS = (
    ("minute", 0, 59, ()),
    ("hour", 0, 23, ()),
    ("day of month", 1, 31, ()),
    ("month", 1, 12, ("jan", "feb", "mar", "apr", "may", "jun", "jul", "aug", "sep", "oct", "nov", "dec")),
    ("day of week", 0, 7, ("sun", "mon", "tue", "wed", "thu", "fri", "sat")),
)


class Cron(NamedTuple):
    """When something happens, by a clock on the wall."""

    minutes_of_day: tuple[int, ...]
    days: frozenset[int]
    months: frozenset[int]
    weekdays: frozenset[int]
    """Sunday is 0."""
    either: bool
    """As in every crontab: with both days named, one of them is enough."""

    def falls_on(self, day: int) -> bool:
        """Does it come on this day, counted since 1970?"""
        _, month, of_month = date_of(day)
        if month not in self.months:
            return False
        by_month, by_week = of_month in self.days, (day + 4) % 7 in self.weekdays
        return (by_month or by_week) if self.either else (by_month and by_week)


# --- Asking -----------------------------------------------------------------------------------------------------------


def last(text: str, zone: str, now: int) -> int | None:
    """The last instant at which it came, `now` included."""
    cron, clock = _cron(text), _clock(zone)
    today = clock.wall(now) // DAY_MS
    for day in range(today, today - SEARCH_DAYS, -1):
        if cron.falls_on(day):
            for minute in reversed(cron.minutes_of_day):
                at = clock.instant(day * DAY_MS + minute * MINUTE_MS)
                if at <= now:
                    return at
    return None


def next_after(text: str, zone: str, now: int) -> int | None:
    """The next instant at which it comes, `now` not included."""
    cron, clock = _cron(text), _clock(zone)
    today = clock.wall(now) // DAY_MS
    for day in range(today, today + SEARCH_DAYS):
        if cron.falls_on(day):
            for minute in cron.minutes_of_day:
                at = clock.instant(day * DAY_MS + minute * MINUTE_MS)
                if at > now:
                    return at
    return None


class Opening(NamedTuple):
    """Is a window open, and when may that change?"""

    is_open: bool
    edge: int | None


@lru_cache(maxsize=4096)
def opening(opens: str, closes: str, zone: str, now: int) -> Opening:
    """A window is open when it opened after it last closed."""
    opened, closed = last(opens, zone, now), last(closes, zone, now)
    edges = [at for text in (opens, closes) if (at := next_after(text, zone, now)) is not None]
    return Opening(opened is not None and opened > (closed or 0), min(edges, default=None))


# --- Reading crontab lines --------------------------------------------------------------------------------------------


def why_no_cron(text: str) -> str:
    """What is wrong with a line; empty when nothing is."""
    try:
        cron = _cron(text)
    except ValueError as error:
        return str(error)
    if not any(cron.falls_on(day) for day in range(SEARCH_DAYS)):
        return f"{text!r} never comes: no month that it names has such a day"
    return ""


@lru_cache(maxsize=1024)
def _cron(text: str) -> Cron:
    parts = text.lower().split()
    if len(parts) != 5:
        raise ValueError(f"{text!r} has {len(parts)} parts; there are five: {', '.join(f[0] for f in _FIELDS)}")
    minutes, hours, days, months, weekdays = (_numbers(p, *f) for p, f in zip(parts, _FIELDS, strict=True))
    return Cron(
        minutes_of_day=tuple(sorted(h * 60 + m for h in hours for m in minutes)),
        days=days, months=months, weekdays=frozenset(d % 7 for d in weekdays),
        either=not parts[2].startswith("*") and not parts[4].startswith("*"),
    )  # fmt: skip


def _numbers(text: str, what: str, low: int, high: int, names: tuple[str, ...]) -> frozenset[int]:
    found: set[int] = set()
    for part in text.split(","):
        match = re.fullmatch(r"(\*|[a-z0-9]+)(?:-([a-z0-9]+))?(?:/(\d{1,4}))?", part)
        if match is None or (match[1] == "*" and match[2]):
            raise ValueError(f"{part!r} is no {what}: write 5, 1-5, 1,3,5 or */10")
        step = int(match[3] or 1)
        if match[1] == "*":
            first, end = low, high
        else:
            first = _number(match[1], what, low, high, names)
            # `9/15` goes on to the end, as crontabs have it.
            end = _number(match[2], what, low, high, names) if match[2] else high if match[3] else first
        if step < 1 or first > end:
            raise ValueError(f"{part!r} is no {what}: it goes from {first} to {end} by {step}")
        found.update(range(first, end + 1, step))
    return frozenset(found)


def _number(text: str, what: str, low: int, high: int, names: tuple[str, ...]) -> int:
    if text in names:
        return names.index(text) + low
    if not text.isdigit() or not low <= int(text) <= high:
        raise ValueError(f"{text!r} is no {what}: {low} to {high}" + (f", or {', '.join(names)}" if names else ""))
    return int(text)


# --- Clocks on walls --------------------------------------------------------------------------------------------------


class _Turn(NamedTuple):
    """When clocks are turned: the n-th weekday of a month (5: the last), so many milliseconds after midnight."""

    month: int
    nth: int
    weekday: int
    after_ms: int

    def wall(self, year: int) -> int:
        first = days_of(year, self.month, 1)
        day = first + (self.weekday - (first + 4)) % 7 + (self.nth - 1) * 7
        after = days_of(year + self.month // 12, self.month % 12 + 1, 1)
        while day >= after:
            day -= 7
        return day * DAY_MS + self.after_ms


class Clock(NamedTuple):
    """What the clocks of a place do."""

    winter_ms: int
    summer_ms: int
    begins: _Turn | None
    ends: _Turn | None

    def wall(self, now: int) -> int:
        """What they show, as if it were UTC."""
        return now + self._offset(now)

    def instant(self, wall: int) -> int:
        """When they show this: the first time if twice; if never, the instant at which it is skipped."""
        shown = [at for offset in (self.winter_ms, self.summer_ms) if self.wall(at := wall - offset) == wall]
        if shown:
            return min(shown)
        return next(at for at, before, after in self._turns(wall) if at + before <= wall < at + after)

    def turned(self, near: int) -> list[int]:
        """The instants at which they are put forward or back, in the years around one."""
        return [at for at, _, _ in self._turns(near)]

    def _offset(self, now: int) -> int:
        offset = self.winter_ms
        for at, before, after in self._turns(now):
            offset = after if at <= now else offset
            if at > now:
                return before
        return offset

    def _turns(self, near: int) -> list[tuple[int, int, int]]:
        """The turns of the years around an instant, in order: when, and the offset before and after."""
        if self.begins is None or self.ends is None:
            return []
        year = date_of(near // DAY_MS)[0]
        winter, summer = self.winter_ms, self.summer_ms
        found = []
        for y in (year - 1, year, year + 1):
            found.append((self.begins.wall(y) - winter, winter, summer))
            found.append((self.ends.wall(y) - summer, summer, winter))
        return sorted(found)


def clock_of(zone: str) -> Clock:
    """What the clocks of a zone do; those of an unknown one show UTC."""
    return _clock(zone if zone in _zones() else "UTC")


def why_no_zone(name: str) -> tuple[str, str] | None:
    """What is wrong with a zone's name, and a hint."""
    zones = _zones()
    if name in zones:
        return None
    return f"there is no time zone {name[:40]!r}", did_you_mean(name, sorted(zones)) or "for example Europe/Berlin"


@lru_cache(maxsize=1)
def _zones() -> dict[str, str]:
    from batuta.kinds.zones import RULES

    lines = RULES.strip().replace("\n ", " ").split("\n")
    return {name: rule for line in lines for rule, *names in [line.split()] for name in names}


_OFFSET = r"([+-]?)(\d{1,3})(?::(\d\d))?(?::(\d\d))?"
_POSIX = re.compile(
    rf"(?:<[^>]+>|[A-Za-z]+){_OFFSET}(?:(?:<[^>]+>|[A-Za-z]+)(?:{_OFFSET})?,M([^,]+),M([^,]+))?"
)  # fmt: skip


@lru_cache(maxsize=1024)
def _clock(zone: str) -> Clock:
    rule = _zones()[zone]
    found = _POSIX.fullmatch(rule)
    assert found is not None, f"a rule that cannot be read: {rule}"
    # POSIX counts what must be added to get UTC, so to the west is positive.
    winter = -_ms(found.groups()[:4])
    if found[9] is None:
        return Clock(winter, winter, None, None)
    summer = -_ms(found.groups()[4:8]) if found[6] else winter + 3_600_000
    return Clock(winter, summer, _turn(found[9]), _turn(found[10]))


def _turn(text: str) -> _Turn:
    days, _, time = text.partition("/")
    month, nth, weekday = (int(n) for n in days.split("."))
    match = re.fullmatch(_OFFSET, time or "2")
    assert match is not None, f"a time that cannot be read: {text}"
    return _Turn(month, nth, weekday, _ms(match.groups()))


def _ms(parts: Iterable[str | None]) -> int:
    sign, hours, minutes, seconds = parts
    amount = (int(hours or 0) * 3600 + int(minutes or 0) * 60 + int(seconds or 0)) * 1000
    return -amount if sign == "-" else amount
