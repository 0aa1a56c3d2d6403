"""Decide: the hub's half, folded over one State. Passes in order: moves that policies ask for, releases, instances,
assignments.

Deciding is idle when done, and deciding what a change touched (`core.touched`) together with what the last decision
left `pending` gives the same as deciding everything.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

from batuta.core.assemble import assemble
from batuta.core.draft import Draft
from batuta.core.fleet import fleet_of
from batuta.core.looking import look
from batuta.core.preempt import above_others, priority_of
from batuta.core.tend import tend
from batuta.core.traits import wakes_at

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from batuta.core.fleet import Fleet
    from batuta.core.reasons import Reason
    from batuta.core.state import Change, State

APPLICATION, SITE = "application/", "site/"


class Decision(NamedTuple):
    """What to write, what is not as wished and why, and when to look again if nothing happens."""

    changes: tuple[Change, ...]
    reasons: Mapping[str, tuple[Reason, ...]]
    """By `namespace/application`, for the applications that were asked about and are not at rest."""
    pending: frozenset[str]
    """Of those, by `namespace/application`: the ones not at rest, to be decided again with whatever changes."""
    wake_at: int | None


def decide(state: State, now: int, subjects: Iterable[str] | None = None, fleet: Fleet | None = None) -> Decision:
    """What follows from the three tables at this instant. `subjects` are `application/<namespace>/<name>` and
    `site/<name>`; None means everything. A `fleet` kept from decision to decision saves reading the tables again; left
    out, the state's own is used."""
    fleet = fleet_of(state, now) if fleet is None else fleet.refresh(state, now)
    draft = Draft(state, fleet, now)
    apps, sites = _scope(state, subjects)
    apps |= look(draft)
    reasons: dict[str, tuple[Reason, ...]] = {}
    pending: set[str] = set()
    turn, unmet = apps, dict[str, int]()
    while turn:
        draft.displaced.clear()
        draft.rolled.clear()
        draft.rooms.doubted.clear()
        for app in _in_order(state, turn):
            tended = tend(draft, app)
            made_room = (r for r in reasons.get(app, ()) if r.code == "making_room" and r not in tended.reasons)
            reasons[app] = (*made_room, *tended.reasons)
            (pending.add if tended.pending else pending.discard)(app)
            unmet.pop(app, None)
            if tended.unmet is not None:
                unmet[app] = tended.unmet
        # Room that came free after somebody had been turned away is offered once more, so that deciding ends at rest.
        # Only when there is none left may those that fit nowhere displace others; who was displaced is tended at once.
        # So do those look again on whose room somebody else was placed.
        again = {app for app, freed in unmet.items() if draft.freed > freed} | draft.displaced | draft.rooms.doubted
        again |= draft.rolled
        if again:
            draft.may_preempt, turn = False, again
        elif not draft.may_preempt:
            draft.may_preempt, turn = True, above_others(draft, unmet)
        else:
            turn = set()
    draft.rooms.clear()
    if (at := draft.next_look()) is not None:
        draft.wake(at)
    changes = sorted(draft.decided() + assemble(draft, sites), key=lambda c: (c.table, c.key))
    wakes = draft.wakes | {at for at in (fleet.next_silence(now), wakes_at(fleet)) if at is not None}
    return Decision(
        changes=tuple(changes),
        reasons={app: said for app, said in sorted(reasons.items()) if said},
        pending=frozenset(pending),
        wake_at=min(wakes, default=None),
    )


def _in_order(state: State, apps: Iterable[str]) -> list[str]:
    """What is no more gives its room first; then the highest priority, then names."""
    return sorted(apps, key=lambda app: (state.application(app) is not None, -priority_of(state, app), app))


def _scope(state: State, subjects: Iterable[str] | None) -> tuple[set[str], set[str]]:
    """The applications and the sites to decide."""
    if subjects is None:
        everywhere = state.nodes_of_site.keys() | state.commons.keys() | {a.site for a in state.assignments.values()}
        return set(state.applications()), set(everywhere)
    named = list(subjects)
    apps = {s.removeprefix(APPLICATION) for s in named if s.startswith(APPLICATION)}
    sites = {s.removeprefix(SITE) for s in named if s.startswith(SITE)}
    # Whatever was on a removed node goes with its assignment, so its applications are always part of this.
    for node in state.strays:
        apps |= {instance.app for instance in state.assignments[node].instances}
    return apps, sites
