"""The law of disruption budgets: what is stopped on purpose leaves no more missing, at a site or in a failure domain,
than its application allows.

Worked out from two states, the one that was decided on and the one that came of it, and by nothing that decides.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

from batuta.core.liveness import Ears, heard_at, missed_ms
from batuta.core.standing import Awaited, Displaced, Scaled

if TYPE_CHECKING:
    from collections.abc import Iterator

    from batuta.core.state import Held, State
    from batuta.kinds.application import Component

Place = tuple[str, str]
"""A label and its value; the label of a site is empty."""


class Exceeded(NamedTuple):
    """So many are missing in one place after something that worked was stopped, and fewer may be."""

    app: str
    component: str
    place: Place
    stopped: tuple[str, ...]
    missing: tuple[str, ...]
    limit: int

    def __str__(self) -> str:
        where = " ".join(filter(None, self.place))
        return (
            f"{self.app} {self.component}: {', '.join(self.stopped)} stopped at {where}, where {self.limit} may be "
            f"missing and {', '.join(self.missing)} are"
        )


def exceeded(before: State, after: State, now: int) -> list[Exceeded]:
    """Every budget that one decision broke: it was made on `before` at `now`, and led to `after`."""
    found: list[Exceeded] = []
    changed = [app for app in before.held if before.held[app] is not after.held.get(app)]
    for app in sorted(changed):
        application = after.application(app)
        if application is None:
            continue
        disruption = application.spec.rollout.disruption
        limits = dict(disruption.per_domain) | ({} if disruption.per_site is None else {"": disruption.per_site})
        for component in application.spec.components if limits else ():
            found += _of(_View(before, now, app, component, limits), _View(after, now, app, component, limits))
    return found


def _of(was: _View, now: _View) -> Iterator[Exceeded]:
    """Of one component, as it was and as it is."""
    stopped: dict[str, set[Place]] = {}
    for slot, held in was.slots.items():
        well = [h for h in held if was.is_ready(h)]
        still = any(was.is_ready(h) for h in now.slots.get(slot, ()))
        if well and not still and slot in now.slots and all(h.node in now.state.nodes for h in held):
            stopped[slot] = {place for h in well for place in was.places(h.node)}
    for place in sorted({place for places in stopped.values() for place in places}):
        mine = {slot for slot, places in stopped.items() if place in places}
        others = {
            slot for slot in now.slots if slot not in mine and now.misses(slot, place) and was.misses(slot, place)
        }
        limit = now.limits[place[0]]
        if len(mine | others) > limit:
            missing = tuple(sorted(mine | others))
            yield Exceeded(now.app, now.component.name, place, tuple(sorted(mine)), missing, limit)


class _View:
    """One component in one state."""

    def __init__(self, state: State, now: int, app: str, component: Component, limits: dict[str, int]) -> None:
        self.state, self.app, self.component, self.limits = state, app, component, limits
        self.ears = Ears(state, now)
        self.rows = [r for r in state.standing.get(app, {}).values() if r.component == component.name]
        self.slots = self._slots()
        """By slot that is wanted: who holds it. One that nobody holds is known by what is remembered of it."""

    def _slots(self) -> dict[str, list[Held]]:
        found: dict[str, list[Held]] = {}
        for held in self.state.held.get(self.app, ()):
            if held.instance.component == self.component.name:
                found.setdefault(held.instance.slot, []).append(held)
        for row in self.rows:
            if isinstance(row, (Awaited, Displaced)):
                found.setdefault(row.slot, [])
        count = self.component.replicas.count
        if self.component.replicas.autoscale is not None:
            count = next((row.count for row in self.rows if isinstance(row, Scaled)), 0)
        if count is None:
            return found
        return {slot: held for slot, held in found.items() if slot.isdigit() and int(slot) < count}

    def misses(self, slot: str, place: Place) -> bool:
        """Is it ready nowhere, and is it, or was it last, in this place?"""
        held = self.slots.get(slot, [])
        if any(self.is_ready(h) for h in held):
            return False
        if self.component.replicas.every_node and held and not any(self._is_heard(h.node) for h in held):
            return False  # Nobody misses on a machine what is away with the machine.
        nodes = [h.node for h in held]
        for row in self.rows:
            if row.slot == slot and isinstance(row, Awaited):
                nodes.append(row.left)
            if row.slot == slot and isinstance(row, Displaced) and not held:
                nodes.append(row.node)
        return any(place in self.places(node) for node in nodes)

    def places(self, node: str) -> list[Place]:
        resource = self.state.nodes.get(node)
        if resource is None:
            return []
        labels = resource.metadata.labels | {"": resource.spec.site}
        return [(label, labels[label]) for label in self.limits if label in labels]

    def is_ready(self, held: Held) -> bool:
        """Its node said so, and is heard: by the hub, or by its neighbours so lately that nobody gives it up."""
        if held.node not in self.state.nodes:
            return False
        silent_ms, missed = self.ears.now - self.ears.silent_since(held.node), missed_ms(self.state)
        if silent_ms >= max(missed, int(self.component.failover.after_ms)):
            return False
        if silent_ms >= missed and self.ears.cut_off(held.node) is None:
            return False
        report, i = self.state.observed.get(held.node), held.instance
        said = report.instances if report is not None else ()
        return any((r.name, r.epoch, r.phase) == (i.name, i.epoch, "ready") for r in said)

    def _is_heard(self, node: str) -> bool:
        sighting = self.state.sightings.get(node)
        if node not in self.state.nodes or sighting is None or sighting.disconnected_at is not None:
            return False
        return self.ears.now - heard_at(self.state, node) < missed_ms(self.state)
