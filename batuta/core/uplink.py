"""Uplink: may an artifact go over a site's link now, and if not, when again? The first rule that holds counts.

What matters most to people passes always: it is counted, and stopped by nothing. The rest waits for its hours, and for
tomorrow when today's bytes are spent. What can wait leaves a part of them to the others.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal, NamedTuple

from batuta.core.reasons import Reason
from batuta.kinds.calendar import clock_of, opening
from batuta.kinds.instants import DAY_MS

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from batuta.kinds.site import Site

Class = Literal["critical", "normal", "bulk"]
CRITICAL_FROM = 100
"""Applications of this priority and above: what the business needs, and what protects people."""
BULK_PART = 2
"""What can wait may use one part in so many of a day's bytes."""
LINKS_MOST = 32


class Held(NamedTuple):
    """Not now."""

    reason: Reason
    until: int | None
    """When to ask again; None when no instant is known."""


def class_of(priority: int) -> Class:
    """The class of an artifact that applications of this priority, the highest of them, wait for."""
    return "critical" if priority >= CRITICAL_FROM else "bulk" if priority < 0 else "normal"


def links(site: str, known: Callable[[str], Site | None]) -> tuple[Site, ...]:
    """The sites whose uplinks lie between this one and the hub, itself first."""
    way: list[Site] = []
    here = known(site)
    while here is not None and len(way) < LINKS_MOST:
        way.append(here)
        here = known(here.spec.parent) if here.spec.parent is not None else None
    return tuple(way)


def held(way: Sequence[Site], spent: Mapping[str, int], what: Class, now: int) -> Held | None:
    """Why an artifact of this class has to wait, on any link of the way; None when it may go.

    `spent`: by site, the bytes of artifacts that have gone over its uplink today, by its own clock.
    """
    if what == "critical":
        return None
    for site in way:
        if (found := _held_by(site, spent.get(site.metadata.name, 0), what, now)) is not None:
            return found
    return None


def day_of(site: Site, now: int) -> int:
    """Which day it is there, counted since 1970: budgets begin anew with each."""
    return clock_of(_zone(site)).wall(now) // DAY_MS


def _held_by(site: Site, spent_bytes: int, what: Class, now: int) -> Held | None:
    uplink, subject = site.spec.uplink, f"site/{site.metadata.name}"
    zone = _zone(site)
    if uplink.windows:
        found = [opening(window.opens, window.closes, zone, now) for window in uplink.windows]
        if not any(window.is_open for window in found):
            edge = min((window.edge for window in found if window.edge is not None), default=None)
            detail = " or ".join(f"{window.opens} to {window.closes}" for window in uplink.windows)
            return Held(Reason(code="window_closed", subject=subject, detail=f"{detail}, {zone}"), edge)
    elif uplink.metered and what == "bulk":
        return Held(Reason(code="uplink_metered", subject=subject), None)
    if uplink.budget is not None:
        most = int(uplink.budget.per_day) // (BULK_PART if what == "bulk" else 1)
        if spent_bytes >= most:
            detail = f"{spent_bytes} of {most} bytes today"
            clock = clock_of(zone)
            tomorrow = clock.instant((clock.wall(now) // DAY_MS + 1) * DAY_MS)
            return Held(Reason(code="budget_spent", subject=subject, detail=detail), tomorrow)
    return None


def _zone(site: Site) -> str:
    return site.spec.time_zone or "UTC"
