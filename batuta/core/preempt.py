"""Preempt: what fits nowhere may take the place of what has a strictly lower priority, at the least harm.

Never within one priority, and never in cascades: a slot that gave way (`core.standing.Displaced`) displaces nobody
until it has been filled again, so that one wish moves at most one layer of others. Only what is free or strictly lower
is counted, so every preemption makes the fleet's sum of priorities greater and there is an end to it.

Harm, in this order: the highest priority among those that would go, how many components would have no ready replica
left, how many would go, the sum of their priorities; then names. Budgets
(`rollout.disruption`) are not part of the harm: what they forbid is not done at all. A `never-twice` instance leaves
its fence behind, as ever, and is nowhere until it is surely gone.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from batuta.core.budget import spare
from batuta.core.care import fence_of
from batuta.core.constraints import FILTERS, fitting
from batuta.core.load import Load, load_of
from batuta.core.rank import Choice
from batuta.core.reasons import Reason
from batuta.core.standing import Displaced
from batuta.core.state import Held

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from batuta.core.care import Care
    from batuta.core.decided import Instance
    from batuta.core.draft import Draft
    from batuta.core.fleet import Fleet, Ints
    from batuta.core.state import State
    from batuta.core.wish import Wish

LOWEST = -1000
HIGHEST = 2**31
"""Above all priorities: of what nobody wants any more, whose room is given up anyway."""
NODES_WEIGHED_MAX = 32
"""Of the nodes on which room could be made, so many are weighed: those that lack least."""


class Harm(NamedTuple):
    """What it would do to displace some instances; the least of these is chosen."""

    highest: int
    left_without: int
    many: int
    together: int
    rank: int


def priority_of(state: State, app: str) -> int:
    application = state.application(app)
    return application.spec.priority if application is not None else 0


def above_others(draft: Draft, apps: Iterable[str]) -> set[str]:
    """Those whose priority is above that of somebody who holds something."""
    state = draft.state
    highest = max((priority_of(state, app) for app in apps), default=LOWEST)
    if highest == LOWEST:
        return set()
    holding = (app for app in draft.holding_apps() if state.application(app) is not None)
    lowest = min((priority_of(state, app) for app in holding), default=highest)
    return {app for app in apps if priority_of(state, app) > lowest}


def is_barred(draft: Draft, app: str, component: str, slot: str) -> bool:
    """It gave way itself and is not filled again; raised since, it may ask anew."""
    found = draft.displacement(app, component, slot)
    return found is not None and priority_of(draft.state, app) <= found.priority


def gave_way_to(state: State, instance: str) -> list[Reason]:
    """Who gave way to an instance and has no place yet."""
    rows = [row for app in sorted(state.standing) for row in state.standing[app].values()]
    return [
        Reason(
            code="others_gave_way",
            subject=f"instance/{instance.rpartition('/')[2]}",
            detail=f"{row.app} {row.component}/{row.slot} (priority {row.priority}) on {row.node}",
        )
        for row in rows
        if isinstance(row, Displaced) and row.by == instance
    ]


# --- Making way -------------------------------------------------------------------------------------------------------


def make_way(care: Care, wish: Wish) -> Choice | None:
    """Displace what has to go for this wish to fit somewhere; None when nobody may be displaced, or it would not do."""
    draft, ask = care.draft, care.ask
    if not draft.may_preempt or is_barred(draft, ask.app, ask.component.name, wish.slot.name):
        return None
    priority = priority_of(draft.state, ask.app)
    below = _below(draft, priority)
    if not below.held:
        return None
    best: tuple[Harm, int, list[Held]] | None = None
    weighed = 0
    for row in _rows(care, wish, below):
        if weighed == NODES_WEIGHED_MAX:
            break
        rank, there = int(draft.fleet.rank[row]), below.held[row]
        least = min(priority_of(draft.state, held.instance.app) for held in there)
        if best is not None and Harm(least, 0, 1, least, rank) > best[0]:
            weighed += 1  # At its best it would do more harm.
            continue
        may_go = [held for held in there if spare(draft, held) != 0]
        if not may_go or (len(may_go) < len(there) and not _fits_without(wish, draft.fleet, row, may_go)):
            continue
        weighed += 1
        if victims := _fewest(draft, wish, row, may_go):
            harm = _harm(draft, victims, rank)
            best = min(best, (harm, row, victims)) if best is not None else (harm, row, victims)
    if best is None:
        return None
    _, row, victims = best
    by = f"{ask.app}/{ask.component.name}-{ask.revision}-{wish.slot.name}"
    for held in victims:
        _displace(draft, held, by, priority)
    found = Choice(row, int(fitting(wish, draft.fleet, np.array([row], np.int64))[0]))
    assert found.variant >= 0, f"{by} does not fit on {draft.fleet.names[row]} after all"
    who = ", ".join(f"{h.instance.name} (priority {priority_of(draft.state, h.instance.app)})" for h in victims)
    care.say("others_gave_way", wish.slot, f"{who} on {draft.fleet.names[row]}")
    return found


def _displace(draft: Draft, held: Held, by: str, priority: int) -> None:
    instance = held.instance
    if not any(h is held or h == held for h in draft.state.held.get(instance.app, ())):
        # Given in this very decision: it never was there, and gives way without a trace.
        draft.take_back(held)
        return
    if instance.lease_ms is not None:
        draft.write_fence(fence_of(draft, held.node, instance, released_at=draft.now))
    row = Displaced(
        namespace=instance.namespace, application=instance.application, component=instance.component,
        slot=instance.slot, node=held.node, priority=priority_of(draft.state, instance.app),
        by=by, by_priority=priority, at=draft.now,
    )  # fmt: skip
    draft.write_standing(row)
    draft.take(held)
    draft.displaced.add(instance.app)


# --- Whom, and where --------------------------------------------------------------------------------------------------


class _Below:
    """What has a lower priority, by row, budgets aside; and what all of it on a row takes together."""

    def __init__(self, draft: Draft, priority: int) -> None:
        self.draft, self.priority = draft, priority
        self.held: dict[int, list[Held]] = {}
        capacity = draft.fleet.capacity
        self.cpu_millis, self.memory_bytes = np.zeros(capacity, np.int64), np.zeros(capacity, np.int64)
        self.disk_bytes, self.instances = np.zeros(capacity, np.int64), np.zeros(capacity, np.int64)
        self.claims: dict[int, list[Load]] = {}
        self._priorities: dict[tuple[str, str], int] = {}
        self._moves, self._seen = draft.fleet.moves, len(draft.fleet.moves)
        fleet = draft.fleet
        for row in np.flatnonzero(fleet.present & (fleet.instances > 0)).tolist():
            self._read(row)

    def follow(self) -> None:
        """Look again where something came or went."""
        assert self._moves is self.draft.fleet.moves, "what another decision counted"
        for row in {row for row, _, _ in self._moves[self._seen :]}:
            self._read(row)
        self._seen = len(self._moves)

    def lay(self, count: int) -> None:
        """Think all of it away (-1), or put it back (1)."""
        fleet = self.draft.fleet
        fleet.lays += 1
        fleet.cpu_free -= self.cpu_millis * count
        fleet.memory_free -= self.memory_bytes * count
        fleet.disk_free -= self.disk_bytes * count
        fleet.instances += self.instances * count
        for row, loads in self.claims.items():
            for load in loads:
                fleet.lay(row, load, count)

    def _read(self, row: int) -> None:
        node = self.draft.fleet.names[row]
        there = [Held(node, i) for i in self.draft.instances(node) if self._is_lower(i)]
        self.claims.pop(row, None)
        if there:
            self.held[row] = there
        else:
            self.held.pop(row, None)
        cpu = memory = disk = 0
        for held in there:
            load = load_of(held.instance)
            cpu, memory, disk = cpu + load.cpu_millis, memory + load.memory_bytes, disk + load.disk_bytes
            if load.claims:
                self.claims.setdefault(row, []).append(Load(0, 0, 0, load.claims))
        self.cpu_millis[row], self.memory_bytes[row], self.disk_bytes[row] = cpu, memory, disk
        self.instances[row] = len(there) - len(self.claims.get(row, ()))

    def _is_lower(self, instance: Instance) -> bool:
        app = (instance.namespace, instance.application)
        found = self._priorities.get(app)
        if found is None:
            state = self.draft.state
            is_wanted = state.application(instance.app) is not None
            found = self._priorities[app] = priority_of(state, instance.app) if is_wanted else HIGHEST
        return found < self.priority


def _below(draft: Draft, priority: int) -> _Below:
    """Read once for a decision, and followed."""
    found = draft.below.get(priority)
    if found is None:
        found = draft.below[priority] = _Below(draft, priority)
    else:
        found.follow()
    return found


def _rows(care: Care, wish: Wish, below: _Below) -> list[int]:
    """Where it would fit if all those were gone, budgets aside; those that lack least first."""
    fleet = care.fleet
    rows = wish.rows()
    rows = rows[below.cpu_millis[rows] + below.memory_bytes[rows] + below.instances[rows] > 0]
    below.lay(-1)
    try:
        fits = _passing(wish, fleet, rows)
    finally:
        below.lay(1)
    lack = np.maximum(0, care.ask.memory_bytes - fleet.memory_free[fits]) * 1000 // max(1, care.ask.memory_bytes)
    lack += np.maximum(0, care.ask.cpu_millis - fleet.cpu_free[fits]) * 1000 // max(1, care.ask.cpu_millis)
    ordered: list[int] = fits[np.lexsort((fleet.rank[fits], lack))].tolist()
    return ordered


def _fits_without(wish: Wish, fleet: Fleet, row: int, gone: list[Held]) -> bool:
    _lay(fleet, row, gone, -1)
    try:
        return bool(_passing(wish, fleet, np.array([row], np.int64)).size)
    finally:
        _lay(fleet, row, gone, 1)


def _lay(fleet: Fleet, row: int, those: Iterable[Held], count: int) -> None:
    for held in those:
        fleet.lay(row, load_of(held.instance), count)


def _passing(wish: Wish, fleet: Fleet, rows: Ints, *, fixed: bool = True) -> Ints:
    for each in FILTERS:
        if fixed or each.reach != "fixed":
            rows = rows[each.mask(wish, fleet, rows)]
    return rows


def _fewest(draft: Draft, wish: Wish, row: int, there: Sequence[Held]) -> list[Held]:
    """Who has to go from a row: all are thought away, and as many as fit are put back, the dearest first."""
    fleet, only = draft.fleet, np.array([row], np.int64)
    gone: list[Held] = []
    dearest = sorted(there, key=lambda h: (-priority_of(draft.state, h.instance.app), *_worth(draft, h)))
    _lay(fleet, row, there, -1)
    try:
        for held in dearest:
            fleet.lay(row, load_of(held.instance), 1)
            if not _passing(wish, fleet, only, fixed=False).size:
                fleet.lay(row, load_of(held.instance), -1)
                gone.append(held)
    finally:
        _lay(fleet, row, gone, 1)
    return gone if _within_budgets(draft, gone) else []


def _worth(draft: Draft, held: Held) -> tuple[int, int, str, int]:
    """Those without another ready replica are worth most, then those that are ready; names break ties."""
    ready = _is_ready(draft, held)
    return (-(ready and _ready_beside(draft, held) == 0), -ready, held.instance.name, held.instance.epoch)


def _within_budgets(draft: Draft, gone: Sequence[Held]) -> bool:
    """Each alone was within its budget; together they may be too many."""
    counts: dict[tuple[str, str], int] = {}
    for held in gone:
        if _is_ready(draft, held):
            key = (held.instance.app, held.instance.component)
            counts[key] = counts.get(key, 0) + 1
            left = spare(draft, held)
            if left is not None and counts[key] > left:
                return False
    return True


def _harm(draft: Draft, gone: Sequence[Held], rank: int) -> Harm:
    priorities = [priority_of(draft.state, h.instance.app) for h in gone]
    ready: dict[tuple[str, str], int] = {}
    for held in gone:
        if _is_ready(draft, held):
            key = (held.instance.app, held.instance.component)
            ready[key] = ready.get(key, 0) + 1
    without = {
        (h.instance.app, h.instance.component)
        for h in gone
        if _is_ready(draft, h) and _ready_beside(draft, h) + 1 <= ready[h.instance.app, h.instance.component]
    }
    return Harm(max(priorities), len(without), len(gone), sum(priorities), rank)


def _ready_beside(draft: Draft, held: Held) -> int:
    """Other slots of its component that are ready."""
    i = held.instance
    key, stirred = (i.app, i.component), draft.stirred.get(i.app, 0)
    known = draft.ready_slots.get(key)
    if known is None or known[0] != stirred:
        mine = (h for h in draft.held(i.app) if h.instance.component == i.component)
        known = draft.ready_slots[key] = (stirred, frozenset(h.instance.slot for h in mine if _is_ready(draft, h)))
    return len(known[1]) - (i.slot in known[1])


def _is_ready(draft: Draft, held: Held) -> bool:
    report = draft.reported(held.node, held.instance)
    return report is not None and report.phase == "ready"


def settle_displaced(draft: Draft, app: str, wanted: set[str]) -> None:
    """A slot that is filled again, or wanted no more, has nothing to remember."""
    rows = draft.standing(app, Displaced)
    if not rows:
        return
    held = {f"{h.instance.component}/{h.instance.slot}" for h in draft.held(app)}
    for row in rows:
        slot = f"{row.component}/{row.slot}"
        if slot in held or slot not in wanted:
            draft.drop_standing(row)
