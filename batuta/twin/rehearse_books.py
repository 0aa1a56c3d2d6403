"""Books of a rehearsal: who held what and when it was ready, what was missing meanwhile, and what it all drew."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final, NamedTuple

from batuta.core.decided import Assignment
from batuta.kinds.base import Record

if TYPE_CHECKING:
    from collections.abc import Sequence

    from batuta.core.decided import Instance
    from batuta.core.state import Change, State
    from batuta.twin.rehearse_node import NodeCopy
    from batuta.twin.rehearse_stage import Stage

ASSUMED_IDLE_W: Final = 4.0
ASSUMED_FULL_W: Final = 8.0
"""Of a node whose `spec.power` is left out: a small board."""
Slot = tuple[str, str, str]


class Outage(Record):
    """A slot that worked and then did not for a while."""

    app: str
    component: str
    slot: str
    site: str
    from_ms: int
    """Since the begin of the rehearsal."""
    to_ms: int | None = None
    """None: until the end."""


class Deed(NamedTuple):
    """What became of one placement, in milliseconds since the begin."""

    ordered_ms: int | None = None
    begun_ms: int | None = None
    ready_ms: int | None = None
    ended_ms: int | None = None


class Point(NamedTuple):
    """A value from an instant on."""

    at_ms: int
    value: float


class Books:
    """What is written down while a run goes on."""

    def __init__(self, stage: Stage, state: State) -> None:
        self._stage = stage
        self._time = stage.time
        self._power = {name: _watts(state, name) for name in state.nodes}
        self.assumed_power = sum(node.spec.power is None for node in state.nodes.values())
        self._working: dict[str, dict[str, int]] = {}
        """By node: the processor time promised to what runs there."""
        self._drawn = 0.0
        self._drawn_at = self._time.now
        self.joules = 0.0
        self.deeds: dict[tuple[str, str], Deed] = {}
        """By node and instance name."""
        self._ready: dict[Slot, set[tuple[str, str]]] = {}
        """By slot: node and name of every instance that is ready."""
        self._ready_slots = 0
        self._running_well: set[tuple[str, str]] = set()
        """Node and name of every instance that is ready."""
        self._open: dict[Slot, Outage] = {}
        self.outages: list[Outage] = []
        self.settled_ms: dict[str, int] = {}
        """By application: since when nothing of it is left to decide."""
        self.pending: frozenset[str] = frozenset()
        self.last_ms = 0
        """When anything was last begun, ended or got ready."""
        self.ready_points: list[Point] = [Point(0, 0)]
        self.watt_points: list[Point] = [Point(0, 0)]
        self.link_points: list[Point] = [Point(0, 0)]

    # --- On the nodes ---

    def began(self, node: NodeCopy, instance: Instance, *, ready: bool = False) -> None:
        """A process begins, or is there when the rehearsal begins."""
        share = self._share(node.name)
        self._working.setdefault(node.name, {})[instance.name] = int(instance.cpu_millis)
        self._draw(self._share(node.name) - share)
        if ready:
            self._is_ready(_slot(instance), node.name, instance.name)
        else:
            self._did(node.name, instance.name, begun_ms=self._time.passed_ms)

    def ready(self, node: NodeCopy, instance: Instance) -> None:
        slot = _slot(instance)
        self._is_ready(slot, node.name, instance.name)
        self._did(node.name, instance.name, ready_ms=self._time.passed_ms)
        if (outage := self._open.pop(slot, None)) is not None and outage.from_ms < self._time.passed_ms:
            self.outages.append(
                Outage(
                    app=outage.app, component=outage.component, slot=outage.slot, site=outage.site,
                    from_ms=outage.from_ms, to_ms=self._time.passed_ms,
                )
            )  # fmt: skip

    def ended(self, node: NodeCopy, instance: Instance) -> None:
        share = self._share(node.name)
        self._working.get(node.name, {}).pop(instance.name, None)
        self._draw(self._share(node.name) - share)
        self._did(node.name, instance.name, ended_ms=self._time.passed_ms)
        slot = _slot(instance)
        there = self._ready.get(slot, set())
        if (node.name, instance.name) in there:
            there.discard((node.name, instance.name))
            self._running_well.discard((node.name, instance.name))
            if not there:
                self._ready_slots -= 1
                _note(self.ready_points, self._time.passed_ms, self._ready_slots)
                self._open[slot] = Outage(
                    app=slot[0], component=slot[1], slot=slot[2], site=node.site, from_ms=self._time.passed_ms
                )

    def powered(self, node: NodeCopy) -> None:
        """It came on, or went off."""
        idle = self._power[node.name].idle
        self._draw(idle if node.powered else -idle)

    # --- At the hub ---

    def wrote(self, before: State, changes: Sequence[Change]) -> None:
        """Who is given what by these rows."""
        for change in changes:
            if isinstance(change.value, Assignment):
                old = before.assignments.get(change.value.node)
                had = {i.name for i in old.instances} if old is not None else set()
                for instance in change.value.instances:
                    if instance.name not in had:
                        self._did(change.value.node, instance.name, ordered_ms=self._time.passed_ms)

    def decided(self, pending: frozenset[str]) -> None:
        """These applications are not at rest."""
        for app in pending:
            self.settled_ms.pop(app, None)
        for app in self.pending - pending:
            self.settled_ms[app] = self._time.passed_ms
        self.pending = pending

    # --- On the way ---

    def moved(self, bits_a_second: float) -> None:
        _note(self.link_points, self._time.passed_ms, bits_a_second)

    # --- The end ---

    def works(self, node: str, instance: str) -> bool:
        """Is it ready now?"""
        return (node, instance) in self._running_well

    def close(self) -> None:
        """Nothing comes any more: what is open stays open."""
        self._draw(0.0)
        self.outages += sorted(self._open.values(), key=lambda o: (o.from_ms, o.app, o.component, o.slot))
        self._open = {}

    def _did(self, node: str, name: str, **what: int) -> None:
        self.last_ms = self._time.passed_ms
        self.deeds[node, name] = self.deeds.get((node, name), Deed())._replace(**what)

    def _is_ready(self, slot: Slot, node: str, name: str) -> None:
        there = self._ready.setdefault(slot, set())
        self._ready_slots += not there
        there.add((node, name))
        self._running_well.add((node, name))
        _note(self.ready_points, self._time.passed_ms, self._ready_slots)

    def _share(self, node: str) -> float:
        """Watts above rest that the work on a node takes."""
        power = self._power[node]
        busy = sum(self._working.get(node, {}).values())
        return (power.full - power.idle) * min(1.0, busy / power.cpu_millis) if power.cpu_millis else 0.0

    def _draw(self, more_watts: float) -> None:
        now = self._time.now
        self.joules += self._drawn * (now - self._drawn_at) / 1000
        self._drawn_at = now
        self._drawn += more_watts
        _note(self.watt_points, self._time.passed_ms, round(self._drawn, 3))


class _Watts(NamedTuple):
    idle: float
    full: float
    cpu_millis: int


def _watts(state: State, node: str) -> _Watts:
    power, report = state.nodes[node].spec.power, state.observed.get(node)
    cpu = int(report.inventory.cpu_millis) if report is not None else 0
    if power is None:
        return _Watts(ASSUMED_IDLE_W, ASSUMED_FULL_W, cpu)
    return _Watts(power.idle_watts, max(power.idle_watts, power.full_watts), cpu)


def _slot(instance: Instance) -> Slot:
    return (instance.app, instance.component, instance.slot)


def _note(points: list[Point], at_ms: int, value: float) -> None:
    """Several changes of one instant are one."""
    if points[-1].at_ms == at_ms:
        points[-1] = Point(at_ms, value)
    elif points[-1].value != value:
        points.append(Point(at_ms, value))
