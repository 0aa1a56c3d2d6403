"""What may look different: of which resources the status can have changed between two looks. A superset is fine, a
subset never: a law proves it.

Ten thousand statuses cost most of a second; that of one node a few ten microseconds. So whoever shows all of them
computes anew only what is named here, and the answer is the same. What is compared first is identity: rows of a
State that did not change are the same objects in the next.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from batuta.core.decide import APPLICATION
from batuta.core.liveness import (
    HEARTBEAT_MS,
    LATE_MS,
    OFFLINE_MS,
    every_ms,
    heard_at,
    link_rule,
    missed_ms,
)
from batuta.core.touched import touched
from batuta.kinds.base import Ref
from batuta.kinds.site import Site

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping
    from typing import TypeAlias

    from batuta.core.observed import Report
    from batuta.core.state import State

    Changed: TypeAlias = set[str] | None
    """Keys of the desired table; None: any of that kind."""


def changed(plural: str, before: State, after: State, was: int, now: int) -> Changed:
    """Of which resources of a kind the status at `now` may differ from the status at `was`.

    What is not at rest may change with anything: see `is_at_rest`.
    """
    if before.hub_since != after.hub_since or now < was or plural not in _RULES:
        return None
    return _RULES[plural](before, after, was, now)


def is_at_rest(plural: str, status: Mapping[str, Any]) -> bool:
    """Is this status one that only what it was made of can change? What is still to be placed hangs on every node, and
    so does a node that is being emptied."""
    if "drain" in status:
        return not status["drain"]["left"]
    return plural != "applications" or (not status["reasons"] and status["state"] == "ok")


def differing(before: Mapping[str, Any], after: Mapping[str, Any]) -> Iterator[str]:
    """Keys of rows that came, went, or are not the same object any more."""
    if before is after:
        return
    for key, row in after.items():
        if before.get(key) is not row:
            yield key
    if len(before) != len(after) or before.keys() != after.keys():
        yield from before.keys() - after.keys()


# --- Nodes ------------------------------------------------------------------------------------------------------------


def changed_nodes(before: State, after: State, was: int, now: int) -> set[str]:
    """Names of nodes."""
    found = {*differing(before.nodes, after.nodes), *differing(before.observed, after.observed)}
    found.update(differing(before.assignments, after.assignments))
    for name in differing(before.sightings, after.sightings):
        # Most heartbeats say nothing new.
        if name not in found and _link(before, name, was) != _link(after, name, now):
            found.add(name)
    found.update(_by_time(before, after, was, now))
    return found


def _link(state: State, name: str, now: int) -> tuple[Any, ...]:
    sighting, rule = state.sightings.get(name), link_rule(state, name, now)
    if sighting is None:
        return (rule,)
    return (rule, sighting.online_since if rule.word == "online" else (sighting.disconnected_at, sighting.last_seen))


def _by_time(before: State, after: State, was: int, now: int) -> Iterator[str]:
    """Nodes that passed a limit of silence while nothing was heard of them, or whose hold ended."""
    # What the hub could not hear in between is no silence: it is as if the earlier look had been so much later.
    deaf_ms = after.deaf_ms - before.deaf_ms
    limits = []
    for limit_ms in (LATE_MS, OFFLINE_MS):
        looks = ((before, was + deaf_ms), (after, now))
        passed = sorted(at - limit_ms * every_ms(state) // HEARTBEAT_MS for state, at in looks)
        # The limit is a whole number of beats, so dividing rounds nothing away; one millisecond more does no harm.
        limits.append((passed[0] - 1, passed[1] + 1))
    (late_from, late_to), (gone_from, gone_to) = limits
    for name, node in after.nodes.items():
        heard = heard_at(after, name)
        if late_from <= heard <= late_to or gone_from <= heard <= gone_to:
            yield name
        hold = node.spec.hold
        if hold is not None and hold.holds_at(was) != hold.holds_at(now):
            yield name


# --- What is made of nodes --------------------------------------------------------------------------------------------


def _nodes(before: State, after: State, was: int, now: int) -> Changed:
    return {Ref("nodes", "", name).key for name in changed_nodes(before, after, was, now)}


def _sites(before: State, after: State, was: int, now: int) -> Changed:
    """A site is as bad as the worst below it, so news of a node is news of all sites above it."""
    if before.nodes_of_site is not after.nodes_of_site:
        return None
    if before.desired is not after.desired and before.sites() != after.sites():
        return None
    parents = {site.metadata.name: site.spec.parent for site in after.sites()}
    found: set[str] = set()
    for name in changed_nodes(before, after, was, now):
        node = after.nodes.get(name)
        site: str | None = node.spec.site if node is not None else None
        while site is not None and site not in found:
            found.add(site)
            site = parents.get(site)
    return {Ref(Site.plural, "", name).key for name in found}


def _models(before: State, after: State, _was: int, _now: int) -> Changed:
    """A model shows who names it, how many of its instances are ready, and how fast its variants are."""
    if before.profiles is not after.profiles:
        return None
    apps = set(differing(before.held, after.held))
    for name in differing(before.observed, after.observed):
        if _ready(before.observed.get(name)) != _ready(after.observed.get(name)):
            assignment = after.assignments.get(name)
            apps.update(i.app for i in (assignment.instances if assignment is not None else ()))
    found = set(differing(before.users_of_model, after.users_of_model))
    found.update(model for model, users in after.users_of_model.items() if not apps.isdisjoint(users))
    return {Ref("models", *model.split("/")).key for model in found}


def _ready(report: Report | None) -> set[tuple[str, int]]:
    return {(i.name, i.epoch) for i in report.instances if i.phase == "ready"} if report is not None else set()


def _applications(before: State, after: State, was: int, now: int) -> Changed:
    """What could be decided otherwise, what was measured, and what is held by a node that is or was missed."""
    found = {subject for subject in touched(before, after, was, now) if subject.startswith(APPLICATION)}
    for name in differing(before.observed, after.observed):
        old, new, assignment = before.observed.get(name), after.observed.get(name), after.assignments.get(name)
        if old is not None and new is not None and assignment is not None and old.instances != new.instances:
            found.update(APPLICATION + i.app for i in assignment.instances)
    for state, at in ((before, was), (after, now)):
        patience_ms = missed_ms(state)
        for name, assignment in state.assignments.items():
            if assignment.instances and at - heard_at(state, name) >= patience_ms:
                found.update(APPLICATION + i.app for i in assignment.instances)
    return {Ref("applications", *subject.removeprefix(APPLICATION).split("/")).key for subject in found}


_RULES: dict[str, Callable[[State, State, int, int], Changed]] = {
    "nodes": _nodes,
    "sites": _sites,
    "models": _models,
    "applications": _applications,
}
"""Of other kinds nothing is computed from anything but what was declared; still, they are computed anew each time."""
