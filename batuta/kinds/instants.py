"""Instants in manifests: RFC 3339 on the wire, milliseconds since 1970 in code. By arithmetic: no clock is asked."""

from __future__ import annotations

import re
from typing import ClassVar

from batuta.kinds.base import Quantity

_FORM = re.compile(
    r"(\d{4})-(\d\d)-(\d\d)[Tt ](\d\d):(\d\d):(\d\d)(?:\.(\d{1,9}))?(?:([Zz])|([+-])(\d\d):(\d\d))\Z"
)  # fmt: skip
_DAYS = (31, 28, 31, 30, 31, 30, 31, 31, 30, 31, 30, 31)
DAY_MS = 86_400_000


class Instant(Quantity):
    """A point in time."""

    pattern: ClassVar[str] = r"^\d{4}-\d\d-\d\d[Tt ]\d\d:\d\d:\d\d(\.\d{1,9})?([Zz]|[+-]\d\d:\d\d)$"
    example: ClassVar[str] = "2026-12-24T18:00:00Z"

    @classmethod
    def parse(cls, text: object) -> Instant:
        found = _FORM.match(text) if isinstance(text, str) else None
        if found is None:
            raise ValueError(f"{str(text)[:40]!r} is not an instant; write it like {cls.example}")
        year, month, day, hour, minute, second = (int(found[i]) for i in range(1, 7))
        longest = 29 if month == 2 and _is_leap(year) else _DAYS[month - 1] if 1 <= month <= 12 else 0
        if not (year >= 1970 and 1 <= day <= longest and hour < 24 and minute < 60 and second < 60):
            raise ValueError(f"{found[0]!r} is no instant of the calendar since 1970")
        ms = int((found[7] or "0").ljust(3, "0")[:3])
        at = days_of(year, month, day) * DAY_MS + ((hour * 60 + minute) * 60 + second) * 1000 + ms
        if found[9]:
            if int(found[10]) > 23 or int(found[11]) > 59:
                raise ValueError(f"{found[0]!r} is at no time zone")
            at -= (1 if found[9] == "+" else -1) * (int(found[10]) * 60 + int(found[11])) * 60_000
        if at < 0:
            raise ValueError(f"{found[0]!r} is before 1970")
        return cls(at)

    def text(self) -> str:
        days, ms = divmod(int(self), DAY_MS)
        year, month, day = date_of(days)
        seconds, ms = divmod(ms, 1000)
        part = f".{ms:03d}" if ms else ""
        return (
            f"{year:04d}-{month:02d}-{day:02d}T{seconds // 3600:02d}:{seconds // 60 % 60:02d}:{seconds % 60:02d}{part}Z"
        )


def _is_leap(year: int) -> bool:
    return year % 4 == 0 and (year % 100 != 0 or year % 400 == 0)


def days_of(year: int, month: int, day: int) -> int:
    """Days since 1970-01-01; years are counted from March, so that the leap day is the last."""
    year -= month <= 2
    century, of_century = divmod(year, 400)
    of_year = (153 * ((month + 9) % 12) + 2) // 5 + day - 1
    return century * 146_097 + of_century * 365 + of_century // 4 - of_century // 100 + of_year - 719_468


def date_of(days: int) -> tuple[int, int, int]:
    """The inverse of `days_of`."""
    era, of_era = divmod(days + 719_468, 146_097)
    years = (of_era - of_era // 1460 + of_era // 36_524 - of_era // 146_096) // 365
    of_year = of_era - (365 * years + years // 4 - years // 100)
    shifted = (5 * of_year + 2) // 153
    month = (shifted + 2) % 12 + 1
    return era * 400 + years + (month <= 2), month, of_year - (153 * shifted + 2) // 5 + 1
