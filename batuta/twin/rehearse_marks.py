"""Marks that a rehearsal is held against: disruption budgets, and what people ask of a model's speed."""

from __future__ import annotations

from typing import TYPE_CHECKING

from batuta.core.fleet import Fleet
from batuta.core.traits import UNKNOWN, p99_us
from batuta.kinds.base import Record
from batuta.twin.rehearse_pace import hardware_of

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from batuta.core.state import State
    from batuta.twin.rehearse_books import Outage


class Budget(Record):
    """How much of a component was missing at a site at one time, and how much may be."""

    app: str
    component: str
    site: str
    may_miss: int
    missed: int
    breached_ms: int
    """For so long there were more missing than may be."""


class SlowPlace(Record):
    """An instance at a place where its like is slower than asked."""

    app: str
    component: str
    node: str
    instance: str
    hardware: str
    asked_p99_ms: int
    known_p99_ms: float
    """As nodes with such hardware have measured it, else as the variant's profile says."""


def budgets(state: State, outages: Sequence[Outage]) -> Iterator[Budget]:
    """Every component and site with a budget of which something was missing."""
    places: dict[tuple[str, str, str], list[Outage]] = {}
    for outage in outages:
        places.setdefault((outage.app, outage.component, outage.site), []).append(outage)
    for (app, component, site), missing in sorted(places.items()):
        application = state.application(app)
        may_miss = application.spec.rollout.disruption.per_site if application is not None else None
        if may_miss is None:
            continue
        most, breached_ms = _overlap(missing, int(may_miss))
        yield Budget(
            app=app, component=component, site=site, may_miss=int(may_miss), missed=most, breached_ms=breached_ms
        )


def _overlap(outages: Sequence[Outage], may_miss: int) -> tuple[int, int]:
    """The most at one time, and for how long there were more than `may_miss`."""
    ends = max((o.to_ms for o in outages if o.to_ms is not None), default=0)
    begins = max(o.from_ms for o in outages)
    horizon = max(ends, begins) + 1
    edges = sorted([(o.from_ms, 1) for o in outages] + [(horizon if o.to_ms is None else o.to_ms, -1) for o in outages])
    now = most = breached_ms = since = 0
    for at, step in edges:
        if now > may_miss:
            breached_ms += at - since
        now, since = now + step, at
        most = max(most, now)
    return most, breached_ms


def slow_places(before: State, after: State, now: int) -> Iterator[SlowPlace]:
    """Model instances, of those that are there in the end, of which more is asked than is known of such a place."""
    fleet = Fleet().refresh(before, now)
    for app, held in sorted(after.held.items()):
        asked = _asked(after, app)
        for h in held:
            limit, order, row = asked.get(h.instance.component), h.instance.model, fleet.row_of.get(h.node)
            if limit is None or order is None or row is None:
                continue
            profiles = {p.hardware: int(p.p99_ms) * 1000 for p in order.variant.profiles}
            known_us = int(p99_us(fleet, order.variant.digest, profiles)[row])
            if known_us != UNKNOWN and known_us > limit * 1000:
                yield SlowPlace(
                    app=app, component=h.instance.component, node=h.node,
                    instance=h.instance.name.rpartition("/")[2], hardware=hardware_of(before, h.node),
                    asked_p99_ms=limit, known_p99_ms=known_us / 1000,
                )  # fmt: skip


def _asked(state: State, app: str) -> dict[str, int]:
    application = state.application(app)
    components = application.spec.components if application is not None else ()
    return {c.name: int(c.slo.p99_ms) for c in components if c.slo is not None}
