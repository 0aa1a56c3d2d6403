"""Rates from counters: two samples of what instances have counted, each with the instant of its node's report."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from batuta.client import Client, Found

COUNTERS = ("received", "answered", "errors")
ROUNDS_MAX = 5
"""How often a sample is taken again for nodes whose next report came in the middle of it."""


class Counted(NamedTuple):
    """What one instance had counted when its node reported."""

    at: int
    """On the node's clock, so that no delay on the way counts."""
    counters: Mapping[str, int]
    is_heard: bool


class Sample(NamedTuple):
    """One look at everything."""

    nodes: Mapping[str, Found[Any]]
    instances: tuple[Mapping[str, Any], ...]
    """As the status of their applications tells, with `application` and `component` added."""
    counted: Mapping[tuple[str, int, int], Counted]
    """By instance name, epoch and number of starts: a start begins to count anew."""


class Rates(NamedTuple):
    """A second's worth; None while it is not known."""

    received: float | None = None
    answered: float | None = None
    errors: float | None = None


def sample(hub: Client, namespace: str | None = None) -> Sample:
    """Nodes and instances that belong together: what a node counted, and when it said so."""
    from batuta.kinds import Application, Node

    before = {n.resource.metadata.name: n for n in hub.list(Node)}
    counted: dict[tuple[str, int, int], Counted] = {}
    instances: tuple[Mapping[str, Any], ...] = ()
    for _ in range(ROUNDS_MAX):
        instances = tuple(_instances(hub.list(Application, namespace=namespace)))
        after = {n.resource.metadata.name: n for n in hub.list(Node)}
        torn = False
        for each in instances:
            was, is_ = (nodes.get(each["node"]) for nodes in (before, after))
            at = is_.status.get("reportedAt") if is_ is not None else None
            if not each.get("measures") or is_ is None or at is None:
                continue
            if was is None or was.status.get("reportedAt") != at:
                torn = True
                continue
            numbers = {name: int(each["measures"].get(name, 0)) for name in COUNTERS}
            counted[_key(each)] = Counted(int(at), numbers, is_.status["link"]["word"] == "online")
        before = after
        if not torn:
            break
    return Sample(before, instances, counted)


def rates(before: Sample | None, after: Sample, instance: Mapping[str, Any]) -> Rates:
    """What one instance does a second, between two samples."""
    now = after.counted.get(_key(instance))
    was = before.counted.get(_key(instance)) if before is not None else None
    if was is None or now is None or not now.is_heard:
        return Rates()
    passed_ms = now.at - was.at
    if passed_ms < 0:
        return Rates()  # The node's clock was set back.
    if passed_ms == 0:
        return Rates(0.0, 0.0, 0.0)  # Nodes report what changes: no report, no count.
    grown = [now.counters[name] - was.counters[name] for name in COUNTERS]
    return Rates(*(by * 1000 / passed_ms if by >= 0 else None for by in grown))


def total(many: Iterable[Rates]) -> Rates:
    """All of them together; what nobody knows stays unknown."""
    known = list(many)
    columns = ([value for r in known if (value := r[i]) is not None] for i in range(len(COUNTERS)))
    return Rates(*(sum(column) if column else None for column in columns))


def _instances(applications: Iterable[Found[Any]]) -> Iterable[Mapping[str, Any]]:
    for found in applications:
        for component in found.status.get("components") or ():
            for instance in component.get("instances", ()):
                names = {"application": found.resource.metadata.name, "component": component["name"]}
                yield {**instance, **names, "namespace": found.resource.ref.namespace}


def _key(instance: Mapping[str, Any]) -> tuple[str, int, int]:
    return str(instance["name"]), int(instance.get("epoch", 0)), int(instance.get("starts", 0))
