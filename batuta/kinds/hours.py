"""Hours: what time it is at a place, for rules that hold only then. By arithmetic from an instant that is given.

A rule that reads the time changes its mind only at certain minutes of the day, its marks: `around` says which of them
was last and which comes next, so that nobody has to look more often.
"""

from __future__ import annotations

import re
from bisect import bisect_right
from functools import lru_cache
from typing import Any, NamedTuple

from batuta.kinds.calendar import MINUTE_MS, clock_of
from batuta.kinds.instants import DAY_MS, date_of

UTC = "UTC"
DAY_MINUTES = 24 * 60
EVERY_MINUTE = tuple(range(DAY_MINUTES))
WEEKDAYS = ("sunday", "monday", "tuesday", "wednesday", "thursday", "friday", "saturday")
_TIME = re.compile(r"([01]\d|2[0-3]):([0-5]\d)\Z")


class Around(NamedTuple):
    """The stretch of time in which a rule keeps its mind: from the first instant to before the last."""

    since: int
    until: int


def face(now: int, zone: str) -> dict[str, Any]:
    """What a rule sees as `now` at a place."""
    wall = clock_of(zone).wall(now)
    day, minute = wall // DAY_MS, wall % DAY_MS // MINUTE_MS
    year, month, of_month = date_of(day)
    return {
        "time": f"{minute // 60:02}:{minute % 60:02}", "hour": minute // 60, "minute": minute % 60,
        "weekday": WEEKDAYS[(day + 4) % 7], "date": f"{year:04}-{month:02}-{of_month:02}",
    }  # fmt: skip


def minute_of_day(text: str) -> int | None:
    """`22:05` in minutes since midnight; None for what is no time of day."""
    found = _TIME.match(text)
    return int(found[1]) * 60 + int(found[2]) if found else None


@lru_cache(maxsize=4096)
def _marked(marks: tuple[int, ...], zone: str, day: int) -> tuple[int, ...]:
    """Every instant near a day at which the clocks there show one of the marks, or are turned."""
    place = clock_of(zone)
    walls = [(day + k) * DAY_MS + mark * MINUTE_MS for k in (-1, 0, 1) for mark in {0, *marks}]
    shown = ((wall, wall - offset) for wall in walls for offset in (place.winter_ms, place.summer_ms))
    instants = {at for wall, at in shown if place.wall(at) == wall}
    return tuple(sorted(instants | set(place.turned(day * DAY_MS))))


def around(marks: tuple[int, ...], zone: str, now: int) -> Around:
    """The last of these minutes of the day at or before `now` at a place, and the first after it. Midnight is always
    one of them, and so is the turning of its clocks: there the time of day jumps."""
    if not marks:
        return Around(0, 2**62)
    instants = _marked(marks, zone, clock_of(zone).wall(now) // DAY_MS)
    place = bisect_right(instants, now)
    return Around(instants[place - 1], instants[place])
