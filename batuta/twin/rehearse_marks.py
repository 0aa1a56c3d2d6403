"""Marks that a rehearsal is held against: disruption budgets, and what people ask of a model's speed."""

from __future__ import annotations

from typing import TYPE_CHECKING

from batuta.kinds.base import Record
from batuta.twin.rehearse_pace import hardware_of

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from batuta.core.decided import Instance
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
    """An instance that came to a place where its like has proved to be slower than asked."""

    app: str
    component: str
    node: str
    instance: str
    asked_p99_ms: int
    measured_p99_ms: float
    how: str


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


def slow_places(before: State, after: State) -> Iterator[SlowPlace]:
    """Model instances that are somewhere new, where what was measured is above what is asked."""
    measured = _measured(before)
    was = {(h.node, h.instance.name) for held in before.held.values() for h in held}
    for app, held in sorted(after.held.items()):
        asked = _asked(after, app)
        for h in held:
            limit = asked.get(h.instance.component)
            if limit is None or (h.node, h.instance.name) in was:
                continue
            found = _likely(h.instance, hardware_of(after, h.node), measured)
            if found is not None and found[0] > limit:
                yield SlowPlace(
                    app=app, component=h.instance.component, node=h.node,
                    instance=h.instance.name.rpartition("/")[2],
                    asked_p99_ms=limit, measured_p99_ms=found[0], how=found[1],
                )  # fmt: skip


def _asked(state: State, app: str) -> dict[str, int]:
    application = state.application(app)
    components = application.spec.components if application is not None else ()
    return {c.name: int(c.slo.p99_ms) for c in components if c.slo is not None}


def _measured(state: State) -> dict[tuple[str, str], float]:
    """By digest of the variant and class of hardware: the slowest p99 that was reported."""
    found: dict[tuple[str, str], float] = {}
    for node, assignment in state.assignments.items():
        report = state.observed.get(node)
        said = {i.name: i.measures for i in report.instances} if report is not None else {}
        for instance in assignment.instances:
            measures = said.get(instance.name)
            if instance.model is not None and measures is not None and measures.latency_p99_ms is not None:
                key = (instance.model.variant.digest, hardware_of(state, node))
                found[key] = max(found.get(key, 0.0), measures.latency_p99_ms)
    return found


def _likely(instance: Instance, hardware: str, measured: dict[tuple[str, str], float]) -> tuple[float, str] | None:
    """What it will probably take there, and how that is known; None when nobody knows."""
    if instance.model is None:
        return None
    variant = instance.model.variant
    if (known := measured.get((variant.digest, hardware))) is not None:
        return known, f"measured on {hardware}"
    profile = next((float(p.p99_ms) for p in variant.profiles if p.hardware == hardware), None)
    return (profile, f"its profile on {hardware}") if profile is not None else None
