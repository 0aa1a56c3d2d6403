"""Laws: what must hold at every instant of a run (safety), whoever fails. `core` promises it; the world keeps watch.

A broken law is a value with its instant; a run goes on, so that one run shows all it breaks.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final, NamedTuple

from batuta.core.decided import Assignment
from batuta.core.liveness import MISSED_MS
from batuta.core.load import load_of
from batuta.core.rollout import Rollout
from batuta.core.standing import Displaced, Looked, Scaled
from batuta.kinds.application import Application
from batuta.kinds.base import Ref
from batuta.twin.budget_law import exceeded
from batuta.twin.turn_law import beyond_wave, out_of_turn
from batuta.twin.world import EPOCH_MS

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from batuta.core.decided import Instance
    from batuta.core.local import Action
    from batuta.core.observed import Sighting
    from batuta.core.state import Change, State
    from batuta.kinds.application import Component
    from batuta.twin import scenario
    from batuta.twin.machine import Process
    from batuta.twin.world import World

LAWS: Final = {
    "capacity": "what is assigned to a node fits its hardware",
    "never_twice": "no two copies of a never-twice slot run at one instant",
    "never_unassigned": "a node runs only what it was once assigned",
    "serials": "the serial of an assignment only rises, at the hub and on the node",
    "idle_when_done": "deciding again after a decision changes nothing",
    "touched_is_enough": "deciding all finds nothing that deciding the touched left over",
    "no_move_without_cause": "an at-least-once instance that is well on a node that is there stays",
    "gives_way_upwards": "nothing gives way to what has no higher priority",
    "turns": "nobody is given a release before its turn, nor once it turned it down, nor when it was undone",
    "waves": "no more nodes have their turn than the wave lets them",
    "budgets": "what is done on purpose leaves no more missing than its application allows",
    "converges": "once healed, every wish that fits is ready exactly once, and nothing else runs",
    "stays_converged": "a converged fleet does nothing more",
    "expectation": "what the scenario expects is so in time",
}


class Broken(NamedTuple):
    """A law that did not hold, when, and how."""

    law: str
    at_ms: int
    detail: str


class Laws:
    """The watch over one run."""

    def __init__(self, world: World, machines: Sequence[scenario.Machine]) -> None:
        self.world = world
        self.machines = {m.name: m for m in machines}
        self.broken: list[Broken] = []
        self.acts = 0
        """Actions of nodes and rows of commits so far: a fleet at rest adds none."""
        self._running: dict[tuple[str, str, str], list[Process]] = {}
        self._ever_assigned: dict[str, set[str]] = {m.name: set() for m in machines}
        self._serials: dict[str, int] = {}
        self._commits = 0
        self.moves = self.dead = self.falsely_dead = 0
        """Instances that left a node though they were wished for; nodes given up for silent; of those, the ones that
        had been there all the time."""
        self.is_there: Callable[[str, int], bool] = lambda _, __: False
        """Has this node been running, and its own link been whole, for so long?"""
        self._given_up: set[tuple[str, int]] = set()
        self._decided: State | None = None
        """What the decision that is being written comes to."""

    def breaks(self, law: str, detail: str) -> None:
        self.broken.append(Broken(law, self.world.now - EPOCH_MS, detail))
        self.world.tell(f"BROKEN {law}: {detail}")

    # --- On the nodes ---

    def process_began(self, process: Process) -> None:
        instance = process.instance
        self.world.tell(f"{process.node} runs {instance.name} epoch {instance.epoch}")
        if instance.name not in self._ever_assigned[process.node]:
            self.breaks("never_unassigned", f"{instance.name} on {process.node}")
        if instance.lease_ms is None:
            return
        running = self._running.setdefault(slot_of(instance), [])
        running.append(process)
        if len(running) > 1:
            places = ", ".join(f"{p.instance.name} epoch {p.instance.epoch} on {p.node}" for p in running)
            self.breaks("never_twice", places)

    def process_ended(self, process: Process) -> None:
        self.world.tell(f"{process.node} ended {process.instance.name}")
        if process.instance.lease_ms is not None:
            self._running[slot_of(process.instance)].remove(process)

    def acted(self, node: str, action: Action) -> None:
        del node, action
        self.acts += 1

    def adopted(self, node: str, assignment: Assignment) -> None:
        self._raises(f"{node} itself", assignment.serial)

    def _raises(self, who: str, serial: int) -> None:
        if serial <= self._serials.get(who, 0):
            self.breaks("serials", f"{who} went from {self._serials[who]} to {serial}")
        self._serials[who] = serial

    # --- At the hub ---

    def decided(self, before: State, changes: Sequence[Change]) -> None:
        """A decision that is about to be written; `before` is what the hub decided upon."""
        self._decided = after = before.with_changes(changes)
        for change in changes:
            row = change.value
            if isinstance(row, Displaced) and row.by_priority <= row.priority:
                self.breaks("gives_way_upwards", row.said)
        for broken in exceeded(before, after, self.world.now) if _has_budgets(before) else ():
            self.breaks("budgets", str(broken))
        for said in out_of_turn(before, after):
            self.breaks("turns", said)
        for said in beyond_wave(before, after, self.world.now):
            self.breaks("waves", said)

    def wrote(self, before: State, change: Change) -> None:
        """One row of a commit."""
        self.acts += is_act(change)
        if isinstance(change.value, Assignment):
            assignment = change.value
            self._raises(f"assignment of {assignment.node}", assignment.serial)
            more = (each for i in assignment.instances for each in (i.fallback, i.newcomer))
            standing_by = (each.name for each in more if each is not None)
            self._ever_assigned[assignment.node].update(standing_by, (i.name for i in assignment.instances))
            self._fits(assignment)
            self._moves(before, assignment)

    def _fits(self, assignment: Assignment) -> None:
        machine = self.machines[assignment.node]
        loads = [load_of(i) for i in assignment.instances]
        cpu, memory = sum(load.cpu_millis for load in loads), sum(load.memory_bytes for load in loads)
        if cpu > machine.cpu_millis or memory > machine.memory_bytes:
            self.breaks("capacity", f"{assignment.node}: {cpu}m of {machine.cpu_millis}m, {memory} bytes")

    def _moves(self, before: State, assignment: Assignment) -> None:
        """An instance that left a node without a successor there must have had a cause to leave."""
        old = before.assignments.get(assignment.node)
        here = {slot_of(i) for i in assignment.instances}
        for instance in old.instances if old is not None else ():
            if slot_of(instance) in here or instance.lease_ms is not None:
                continue
            self.moves += 1
            self._dies(before, instance, assignment.node)
            if not self._may_leave(before, instance, assignment.node):
                self.breaks("no_move_without_cause", f"{instance.name} left {assignment.node}")

    def _dies(self, before: State, instance: Instance, node: str) -> None:
        """Was its node given up for silent, and was that so?"""
        component, sighting = component_of(before, instance), before.sightings.get(node)
        if component is None or sighting is None or not is_wished(before, instance.app, component, instance.slot):
            return
        heard_at = _heard_at(before, sighting)
        after_ms = max(MISSED_MS, int(component.failover.after_ms))
        if self.world.now - heard_at < after_ms or (node, heard_at) in self._given_up:
            return
        self._given_up.add((node, heard_at))
        self.dead += 1
        if self.is_there(node, after_ms):
            self.falsely_dead += 1

    def _may_leave(self, before: State, instance: Instance, node: str) -> bool:
        component, after = component_of(before, instance), self._decided or before
        if component is None or not is_wished(after, instance.app, component, instance.slot):
            return True
        if _gives_way(before, after, instance, node):
            return True
        rivals = [
            held
            for held in before.held.get(instance.app, ())
            if slot_of(held.instance) == slot_of(instance) and held.node != node
        ]
        if rivals or node not in before.nodes:
            return True
        report = before.observed.get(node)
        said = next((i for i in report.instances if i.name == instance.name), None) if report is not None else None
        if said is not None and said.phase in ("backoff", "refused", "unready"):
            return True
        sighting = before.sightings.get(node)
        if sighting is None:
            return self.world.now - before.hub_since >= component.failover.after_ms
        silent_ms = self.world.now - _heard_at(before, sighting)
        return sighting.disconnected_at is not None or silent_ms >= max(MISSED_MS, component.failover.after_ms)

    def samples_idleness(self) -> bool:
        """Deciding twice doubles the cost of a run: every third commit is asked, of a large fleet fewer."""
        self._commits += 1
        return self._commits % max(3, len(self.machines) // 50) == 0

    def decided_twice(self, changes: Sequence[Change]) -> None:
        if changes:
            self.breaks("idle_when_done", ", ".join(c.key for c in changes))

    def full_pass_found(self, changes: Sequence[Change]) -> None:
        self.breaks("touched_is_enough", ", ".join(c.key for c in changes))


def _heard_at(state: State, sighting: Sighting) -> int:
    """From when its silence counts: time in which the hub could not listen is no part of it."""
    return max(sighting.last_seen, state.hub_since) + max(0, state.deaf_ms - sighting.deaf_ms)


def slot_of(instance: Instance) -> tuple[str, str, str]:
    return (instance.app, instance.component, instance.slot)


def component_of(state: State, instance: Instance) -> Component | None:
    """The component as wished for now."""
    resource = state.get(Ref("applications", instance.namespace, instance.application))
    if not isinstance(resource, Application):
        return None
    return next((c for c in resource.spec.components if c.name == instance.component), None)


def wished_count(state: State, app: str, component: Component) -> int | None:
    """How many replicas it wants, for one that counts them: as declared, or as it was scaled last."""
    if component.replicas.autoscale is None:
        return component.replicas.count
    rows = state.standing.get(app, {}).values()
    return next((r.count for r in rows if isinstance(r, Scaled) and r.component == component.name), 0)


def wished_slots(state: State, app: str, component: Component) -> list[str]:
    """The slots that a component of an application asks for, in this fleet."""
    replicas, count = component.replicas, wished_count(state, app, component)
    if count is not None:
        return [str(k) for k in range(count)]
    if replicas.per_site is not None:
        return [f"{site}-{k}" for site in sorted(state.nodes_of_site) for k in range(replicas.per_site)]
    return sorted(state.nodes)


def is_wished(state: State, app: str, component: Component, slot: str) -> bool:
    return slot in wished_slots(state, app, component)


def is_act(change: Change) -> bool:
    """Does it make any difference? That somebody looked, where a load is heading, or what gates say, does not yet."""
    return not isinstance(change.value, (Looked, Scaled, Rollout))


def _gives_way(before: State, after: State, instance: Instance, node: str) -> bool:
    """Does something of a higher priority come to its node in the same decision?"""
    old, new = before.assignments.get(node), after.assignments.get(node)
    here = {slot_of(i) for i in old.instances} if old is not None else set()
    come = [i for i in new.instances if slot_of(i) not in here] if new is not None else []
    return any(_priority(after, i.app) > _priority(after, instance.app) for i in come)


def _priority(state: State, app: str) -> int:
    application = state.application(app)
    return application.spec.priority if application is not None else 0


def _has_budgets(state: State) -> bool:
    spoken = (a.spec.rollout.disruption for a in state.declared.values())
    return any(d.per_site is not None or d.per_domain for d in spoken)
