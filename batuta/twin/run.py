"""run(scenario, seed): the whole twin as one pure function. First all that can fail fails, then all heals.

The first phase proves safety at every instant; the second proves that the fleet finds back: every wish that fits is
ready exactly once, assignments and reality agree, and then nothing moves any more.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

from batuta.kinds.application import Application
from batuta.twin.laws import Broken, slot_of, wished_slots
from batuta.twin.play import Play
from batuta.twin.rules import RULES, Rules

if TYPE_CHECKING:
    from batuta.core.state import State
    from batuta.kinds.application import Component
    from batuta.twin.machine import Process
    from batuta.twin.scenario import Scenario

POLL_MS = 2_000
QUIET_MS = 10_000
"""A converged fleet is watched for so long."""


class Verdict(NamedTuple):
    """What a run has shown."""

    ok: bool
    broken: tuple[Broken, ...]
    story: tuple[str, ...]
    """The last lines of what happened."""
    trace: str
    """Digest of all that happened: equal for equal runs."""
    healed_ms: int | None
    """How long the healed fleet took to converge."""
    counts: dict[str, int]


def run(scenario: Scenario, seed: int, rules: Rules = RULES) -> Verdict:
    """Plays the scenario once. Equal arguments give equal verdicts, on any machine."""
    play = Play(scenario, seed, rules)
    for expectation in sorted(scenario.expectations, key=lambda e: e.at_ms):
        play.run_to(expectation.at_ms)
        ready = sum(p.ready for p in _processes(play) if p.instance.app == expectation.application)
        if ready < expectation.ready:
            play.laws.breaks("expectation", f"{ready} of {expectation.ready} ready of {expectation.application}")
    play.run_to(max(play.at_ms, scenario.duration_ms))
    play.heal()
    healed_ms = _settle(play)
    world = play.world
    world.counts |= {"events": world.events, "acts": play.laws.acts}
    broken = tuple(play.laws.broken)
    return Verdict(not broken, broken, tuple(world.story), world.digest, healed_ms, dict(sorted(world.counts.items())))


def _settle(play: Play) -> int | None:
    """Waits until nothing is amiss, then watches that nothing moves; says how long it took."""
    begun = play.at_ms
    amiss = ["not yet looked at"]
    while amiss and play.at_ms - begun < play.scenario.settle_ms:
        play.run_to(play.at_ms + POLL_MS)
        amiss = _amiss(play)
    if amiss:
        play.laws.breaks("converges", "; ".join(amiss[:5]))
        return None
    took_ms = play.at_ms - begun
    acts = play.laws.acts
    play.run_to(play.at_ms + QUIET_MS)
    if play.laws.acts != acts:
        play.laws.breaks("stays_converged", f"{play.laws.acts - acts} acts in {QUIET_MS} ms of rest")
    hub = play.broker.hub
    if hub is not None:
        found = play.rules.decide(hub.state, play.world.now).changes
        if found:
            play.laws.breaks("stays_converged", "a second pass writes " + ", ".join(c.key for c in found))
    return took_ms


def _processes(play: Play) -> list[Process]:
    return [p for node in play.nodes.values() for p in node.machine.processes.values()]


def _amiss(play: Play) -> list[str]:
    """What is not yet as it should be, in words."""
    hub = play.broker.hub
    if hub is None:
        return ["there is no hub"]
    state = hub.state
    amiss: list[str] = []
    for name, node in sorted(play.nodes.items()):
        if not node.is_running:
            continue
        assignment = state.assignments.get(name)
        wanted = [] if assignment is None else sorted(i.name for i in assignment.instances)
        ready = sorted(p.instance.name for p in node.machine.processes.values() if p.ready)
        if wanted != ready or len(ready) != len(node.machine.processes):
            amiss.append(f"{name} is assigned {wanted} and has ready {ready} of {len(node.machine.processes)}")
        if assignment is not None and node.serial != assignment.serial:
            amiss.append(f"{name} follows serial {node.serial}, not {assignment.serial}")
    ready_slots: dict[tuple[str, str, str], list[Process]] = {}
    for process in _processes(play):
        ready_slots.setdefault(slot_of(process.instance), []).append(process)
    for resource in sorted((r for r in state.desired.values() if isinstance(r, Application)), key=lambda r: r.ref):
        for component in resource.spec.components:
            for slot in wished_slots(state, component):
                app = f"{resource.ref.namespace}/{resource.ref.name}"
                copies = ready_slots.pop((app, component.name, slot), [])
                amiss += _amiss_at(play, state, component, (app, slot), copies)
    amiss += [f"{p.instance.name} runs on {p.node} and nobody wishes it" for c in ready_slots.values() for p in c]
    return amiss


def _amiss_at(
    play: Play, state: State, component: Component, place: tuple[str, str], copies: list[Process]
) -> list[str]:
    """One wished slot: exactly one copy, of the content wished for; or none, when no node could take it."""
    app, slot = place
    if len(copies) > 1:
        return [f"{app} {component.name} {slot} runs {len(copies)} times"]
    if copies:
        return [] if _is_as_wished(component, copies[0]) else [f"{copies[0].instance.name} is of another release"]
    room = [name for name in sorted(play.nodes) if _could_take(play, state, component, (app, slot), name)]
    return [f"{app} {component.name} {slot} is missing, and {', '.join(room)} could take it"] if room else []


def _is_as_wished(component: Component, copy: Process) -> bool:
    if component.process is not None:
        return copy.instance.process == component.process
    order = copy.instance.model
    return order is not None and component.model is not None and order.version == component.model.version


def _could_take(play: Play, state: State, component: Component, place: tuple[str, str], name: str) -> bool:
    """The twin's own judgement, simpler than the core's filters: is there room, and is nothing in the way?"""
    app, slot = place
    node, resource = play.nodes[name], state.nodes[name]
    replicas = component.replicas
    if not node.is_running or resource.spec.unschedulable or component.type not in ("process", "model"):
        return False
    if replicas.every_node and slot != name:
        return False
    if replicas.per_site is not None and not slot.startswith(f"{resource.spec.site}-"):
        return False
    if ("process" if component.process is not None else "onnx") not in node.plan.runtimes:
        return False
    assignment = state.assignments.get(name)
    held = () if assignment is None else assignment.instances
    if replicas.per_site is not None and any(i.app == app and i.component == component.name for i in held):
        return False
    cpu = sum(i.cpu_millis for i in held) + component.resources.cpu_millis
    memory = sum(i.memory_bytes for i in held) + component.resources.memory_bytes
    return cpu <= node.plan.cpu_millis and memory <= node.plan.memory_bytes
