"""Touched: which subjects a change can matter to. A superset is fine, a subset never: a law proves it.

What only makes a wish possible (room, a node that came back) needs nothing here: whoever wishes for more is `pending`
and is decided anyway. What remains is what can disturb something at rest.
"""

from __future__ import annotations

from types import MappingProxyType
from typing import TYPE_CHECKING

from batuta.core.decide import APPLICATION, SITE
from batuta.core.decided import Assignment, Commons, Fence, Release
from batuta.core.known import KnownProfile
from batuta.core.liveness import heard_at, missed_ms
from batuta.core.rollout import Rollout
from batuta.core.rules import asks_the_hour, next_hour, zones_of
from batuta.core.standing import Scaled, Standing
from batuta.kinds.application import Application
from batuta.kinds.base import DEFAULT_NAMESPACE
from batuta.kinds.model import Model
from batuta.kinds.node import Node
from batuta.kinds.policy import Policy
from batuta.kinds.site import Site

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping
    from typing import Any

    from batuta.core.fleet import Fleet
    from batuta.core.observed import Report
    from batuta.core.state import State


_SETTLED = (Assignment, Commons, Release)
_NOTHING: Mapping[str, Any] = MappingProxyType({})


def touched(  # noqa: PLR0917
    before: State, after: State, was: int, now: int, fleet: Fleet | None = None, own: Mapping[str, Any] = _NOTHING
) -> frozenset[str]:
    """The subjects whose decision can differ between `before` at `was` and `after` at `now`. A `fleet` kept from
    decision to decision saves looking at every node. `own`: the rows, by key, that a decision on `before` itself asked
    for: when all of them came just so they need no second look, because deciding is idle when done. When some did not,
    all that they are about is looked at again, whether or not anything else has changed."""
    if before.hub_since != after.hub_since or now < was:
        return everything(before) | everything(after)
    return frozenset((*_touched(before, after, now, fleet, own), *_by_hour(after, was, now, fleet)))


def everything(state: State) -> frozenset[str]:
    sites = state.nodes_of_site.keys() | state.commons.keys() | {a.site for a in state.assignments.values()}
    return frozenset({APPLICATION + app for app in state.applications()} | {SITE + site for site in sites})


def _touched(before: State, after: State, now: int, fleet: Fleet | None, own: Mapping[str, Any]) -> Iterator[str]:
    keys = after.trail.between(before.step, after.step) if before.trail is after.trail else None

    def differences(table: str) -> Iterator[tuple[Any, Any]]:
        known = None if keys is None else keys.get(table, ())
        return ((old, new) for _, old, new in _differences(getattr(before, table), getattr(after, table), known))

    for old, new in differences("desired"):
        yield from _by_resource(before, after, old, new)
    if before.watched != after.watched:
        yield from (SITE + site for site in after.nodes_of_site)
    came = all(after.decided.get(key) is row for key, row in own.items())
    for key, row in own.items() if not came else ():
        yield from _by_decided(before.decided.get(key), row)
    known = None if keys is None else keys.get("decided", set())
    if came and known is not None:
        known = known - {key for key, row in own.items() if isinstance(row, _SETTLED)}
    for key, old, new in _differences(before.decided, after.decided, known):
        # What stands beside who holds what may ask for another look as soon as it is there.
        if not came or key not in own or not isinstance(new if new is not None else old, _SETTLED):
            yield from _by_decided(old, new)
        if isinstance(old, KnownProfile) or isinstance(new, KnownProfile):
            yield from (APPLICATION + app for apps in after.users_of_model.values() for app in apps)
    for old, new in differences("observed"):
        yield from _by_report(after, old, new)
    yield from _by_silence(after, now, fleet)
    autoscaled = {app for app, rows in after.standing.items() if any(isinstance(r, Scaled) for r in rows.values())}
    if autoscaled:
        yield from _by_load(after, autoscaled, now)
        for old, new in differences("observed"):
            yield from (APPLICATION + app for app in _measured(old, new) & autoscaled)
        if before.nodes is not after.nodes:
            yield from (APPLICATION + app for app in autoscaled)


def _by_load(after: State, autoscaled: set[str], now: int) -> Iterator[str]:
    """An autoscaled component says when time alone may change how many of it there are."""
    for app in autoscaled:
        looks = (r.look_at for r in after.standing[app].values() if isinstance(r, Scaled))
        if any(at is not None and at <= now for at in looks):
            yield APPLICATION + app


def _measured(old: Report | None, new: Report | None) -> set[str]:
    """Whose measures a report can have changed."""
    reports = [report for report in (old, new) if report is not None]
    # Names of namespaces, applications and components hold no underscore, names of instances no further slash.
    consumers = {"/".join(flow.consumer.split("_")[:2]) for report in reports for flow in report.flows}
    return consumers | {instance.name.rpartition("/")[0] for report in reports for instance in report.instances}


def _by_resource(before: State, after: State, old: Any, new: Any) -> Iterator[str]:
    for resource, state in ((old, before), (new, after)):
        if isinstance(resource, Application):
            yield f"{APPLICATION}{resource.ref.namespace}/{resource.ref.name}"
        elif isinstance(resource, Model):
            key = f"{resource.metadata.namespace or DEFAULT_NAMESPACE}/{resource.metadata.name}"
            yield from (APPLICATION + app for app in state.users_of_model.get(key, ()))
        elif isinstance(resource, Node):
            yield SITE + resource.spec.site
            yield from _on(after, resource.metadata.name)
            yield from _wide(after)
        elif isinstance(resource, Site):
            # Conditions may ask of a node's site, and of those above it; and where data may live, a site says for those
            # below it. What its nodes share may be another.
            yield SITE + resource.metadata.name
            for site in below(state, resource.metadata.name):
                for node in state.nodes_of_site.get(site, ()):
                    yield from _on(after, node)
            yield from _wide(after)
        elif isinstance(resource, Policy):
            yield from (APPLICATION + app for app in after.applications())


def below(state: State, site: str) -> set[str]:
    """A site and all sites under it; a cycle, which admission refuses, ends the walk."""
    children: dict[str, list[str]] = {}
    for other in state.sites():
        if other.spec.parent is not None:
            children.setdefault(other.spec.parent, []).append(other.metadata.name)
    found, todo = {site}, [site]
    while todo:
        for child in children.get(todo.pop(), []):
            if child not in found:
                found.add(child)
                todo.append(child)
    return found


def _by_hour(after: State, was: int, now: int, fleet: Fleet | None) -> Iterator[str]:
    """Policies may hold at certain hours only: then all that runs is looked at when they begin and end."""
    if any(asks_the_hour(policy) for policy in after.policies):
        kept = fleet.refresh(after, now).zones if fleet is not None else zones_of(after.sites())
        at = next_hour(after.policies, kept, was)
        if at is not None and at <= now:
            yield from (APPLICATION + app for app in after.applications())


def _by_report(after: State, old: Report | None, new: Report | None) -> Iterator[str]:
    some = new if new is not None else old
    node = some.node if some is not None else ""
    resource = after.nodes.get(node)
    if resource is None:
        return
    assignment = after.assignments.get(node)
    is_ahead = new is not None and assignment is not None and new.serial > assignment.serial
    if old is None or new is None or old.address != new.address or is_ahead:
        yield SITE + resource.spec.site
    if old is None or new is None or old.inventory != new.inventory or _vitals(old) != _vitals(new):
        yield from _on(after, node)
        yield from _wide(after)
    elif old.serial != new.serial or _doings(old) != _doings(new):
        yield from _on(after, node)


def _doings(report: Report) -> list[tuple[object, ...]]:
    """What instances do. How much they did is measured with every report, and nothing is decided by it."""
    return [(i.name, i.epoch, i.phase, i.since, i.starts, i.reason) for i in report.instances]


def _vitals(report: Report) -> tuple[float | None, float | None]:
    """What conditions may ask."""
    return report.vitals.temperature_c, report.vitals.battery_percent


def _by_decided(old: Any, new: Any) -> Iterator[str]:
    """What a row of the decided table is about."""
    if isinstance(old, (Assignment, Commons)) or isinstance(new, (Assignment, Commons)):
        yield from (SITE + row.site for row in (old, new) if row is not None)
    if isinstance(old, Assignment) or isinstance(new, Assignment):
        if old is None or new is None or old.instances is not new.instances:
            yield from _by_assignment(old, new)
        return
    for row in (old, new):
        if isinstance(row, (Release, Rollout, Fence, Standing)):
            yield f"{APPLICATION}{row.namespace}/{row.application}"


def _by_assignment(old: Assignment | None, new: Assignment | None) -> Iterator[str]:
    """Whose instances came or went. Those that stay are none the worse for it: room is no matter to them."""
    was, now = (row.instances if row is not None else () for row in (old, new))
    same = {id(i) for i in was} & {id(i) for i in now}
    left, come = ({i.name: i for i in those if id(i) not in same} for those in (was, now))
    for name in left.keys() | come.keys():
        one, other = left.get(name), come.get(name)
        if one != other:
            yield from (APPLICATION + i.app for i in (one, other) if i is not None)


def _by_silence(after: State, now: int, fleet: Fleet | None) -> Iterator[str]:
    """Whatever is held by a node that misses heartbeats: time alone can change its verdict."""
    if fleet is not None:
        for node in fleet.refresh(after, now).silent():
            yield from _on(after, node)
        return
    patience_ms = missed_ms(after)
    for node, assignment in after.assignments.items():
        if assignment.instances and now - heard_at(after, node) >= patience_ms:
            yield from (APPLICATION + i.app for i in assignment.instances)


def _on(state: State, node: str) -> Iterator[str]:
    assignment = state.assignments.get(node)
    if assignment is not None:
        yield from (APPLICATION + instance.app for instance in assignment.instances)


def _wide(state: State) -> Iterator[str]:
    yield from (APPLICATION + app for app in state.wide)


def _differences(
    before: Mapping[str, Any], after: Mapping[str, Any], keys: Iterable[str] | None
) -> Iterator[tuple[str, Any, Any]]:
    """The rows that are not the same: key, before and after. `keys`: the only ones that can differ."""
    if before is after:
        return
    for key in before.keys() | after.keys() if keys is None else keys:
        old, new = before.get(key), after.get(key)
        if old is not new and old != new:
            yield key, old, new
