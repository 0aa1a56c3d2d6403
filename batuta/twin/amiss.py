"""Amiss: what is not yet as it should be in a fleet that is to come to rest. The twin's own judgement, and no part of
what decides."""

from __future__ import annotations

from typing import TYPE_CHECKING

import msgspec

from batuta.core.rollout import may_have, order_of
from batuta.core.rules import ruling_of
from batuta.core.standing import Awaited, Scaled
from batuta.kinds.application import Application
from batuta.twin.laws import slot_of, wished_slots

if TYPE_CHECKING:
    from collections.abc import Sequence

    from batuta.core.decided import Instance, Release
    from batuta.core.rollout import Rollout
    from batuta.core.state import State
    from batuta.kinds.application import Component, ModelUse
    from batuta.kinds.rolling import Rollout as Rolling
    from batuta.twin.machine import Process
    from batuta.twin.play import Play

MEASURED_MS = 20_000
"""After so long everybody has reported what he measures."""


def processes(play: Play) -> list[Process]:
    return [p for node in play.nodes.values() for p in node.machine.processes.values()]


def amiss(play: Play) -> list[str]:
    """What is not yet as it should be, in words."""
    hub = play.broker.hub
    if hub is None:
        return ["there is no hub"]
    state = hub.state
    found: list[str] = []
    for name, node in sorted(play.nodes.items()):
        if not node.is_running:
            continue
        assignment = state.assignments.get(name)
        refused = {name for name, local in node.ledger.locals.items() if local.phase == "refused"}
        wanted = sorted({n for i in assignment.instances for n in _running(i, refused)}) if assignment else []
        ready = sorted(p.instance.name for p in node.machine.processes.values() if p.ready)
        if wanted != ready or len(ready) != len(node.machine.processes):
            found.append(f"{name} is assigned {wanted} and has ready {ready} of {len(node.machine.processes)}")
        found += [
            f"{name} has {local.instance.name} {local.phase}"
            for local in node.ledger.locals.values()
            if local.phase not in ("ready", "refused")
        ]
        if assignment is not None and node.serial != assignment.serial:
            found.append(f"{name} follows serial {node.serial}, not {assignment.serial}")
    ready_slots: dict[tuple[str, str, str], list[Process]] = {}
    for process in processes(play):
        if process.instance.beside is not None:
            continue  # it is on trial in another's slot
        ready_slots.setdefault(slot_of(process.instance), []).append(process)
    there = set(ready_slots)
    for resource in sorted((r for r in state.desired.values() if isinstance(r, Application)), key=lambda r: r.ref):
        app = f"{resource.ref.namespace}/{resource.ref.name}"
        for component in _followed(state, app, resource):
            for slot in wished_slots(state, app, component):
                copies = ready_slots.pop((app, component.name, slot), [])
                found += _amiss_at(play, state, component, (app, slot), copies)
    found += [
        f"the rollout of {app} is {rollout.phase}, wave {rollout.wave + 1}"
        for app, rollout in sorted(state.rollouts.items())
        if app in state.declared and not _may_rest(rollout, state.declared[app].spec.rollout, play.world.now)
    ]
    found += _left_fences(state)
    found += [
        f"{row.app} {row.component} is {row.count} since {row.since} and about to be {row.heading_to}"
        for rows in state.standing.values()
        for row in rows.values()
        if isinstance(row, Scaled) and (row.heading is not None or _is_unmeasured(play, row))
    ]
    found += [
        f"{row.app} {row.component} {row.slot} is there and still awaited"
        for rows in state.standing.values()
        for row in rows.values()
        if isinstance(row, Awaited) and (row.app, row.component, row.slot) in there
    ]
    found += [f"{p.instance.name} runs on {p.node} and nobody wishes it" for c in ready_slots.values() for p in c]
    return found


def _running(instance: Instance, refused: set[str]) -> list[str]:
    """What is to run for it: itself, or what stands by for it when its node refused it; and what is tried beside it.
    What stands by may have been refused too: for that its own order says what does."""
    found = [instance, instance.newcomer] if instance.name not in refused else [instance.fallback, instance.newcomer]
    return [each.name for each in found if each is not None and each.name not in refused]


def _may_rest(rollout: Rollout, spec: Rolling, now: int) -> bool:
    """Is there nothing more that it does by itself? It waits for people, for who may change, or for what nobody
    measures."""
    if rollout.phase not in ("rolling", "soaking", "undoing"):
        return True
    if spec.disruption.per_site == 0:
        return True  # Nothing may be missing, not even for as long as a change takes that cannot be made beside it.
    if rollout.reason is not None and rollout.reason.code == "rollout_unapproved":
        return True
    if rollout.reason is None or spec.deadline.wave_ms is not None:
        return False
    if rollout.reason.code == "gate_undecided":
        is_reported = now - rollout.since > spec.soak_ms + 2 * MEASURED_MS
        return is_reported and all(seen.verdict == "held" or seen.missing for seen in rollout.seen)
    return rollout.reason.code == "rollout_waits"


def _followed(state: State, app: str, resource: Application) -> Sequence[Component]:
    """What is to run: as people wrote it; as it was before, while nobody has signed that, or when it was undone."""
    trusted = _trusted(state, app)
    if trusted is not None and state.rollouts[app].phase == "undone":
        present = {c.name: c for c in resource.spec.components}
        before = [r.component for r in trusted.components if r.component.name in present]
        return [msgspec.structs.replace(c, replicas=present[c.name].replicas) for c in before]
    unsigned = any(
        component.model is not None
        and ruling_of(state.policies, component, resource, app).signers
        and not _is_signed(state, app, component.model)
        for component in resource.spec.components
    )
    if not unsigned:
        return resource.spec.components
    return [r.component for release in state.releases.get(app, ())[-1:] for r in release.components]


def _trusted(state: State, app: str) -> Release | None:
    """The release that its rollout goes back to."""
    rollout = state.rollouts.get(app)
    releases = state.releases.get(app, ()) if rollout is not None else ()
    return next((r for r in releases if rollout is not None and r.revision == rollout.previous), None)


def _is_signed(state: State, app: str, use: ModelUse) -> bool:
    model = state.model(app.partition("/")[0], use.name)
    version = model.spec.version(use.version) if model is not None else None
    return version is not None and any(variant.signatures for variant in version.variants)


def _is_unmeasured(play: Play, row: Scaled) -> bool:
    """Was it scaled so lately that not everybody has measured what came of it?"""
    is_asked = f"{row.app}/{row.component}" in play.scenario.demands
    return is_asked and play.world.now - row.since < MEASURED_MS


def _left_fences(state: State) -> list[str]:
    """Fences of slots that nobody wishes for: they go when nothing of the slot is left."""
    left: list[str] = []
    for app, fences in sorted(state.fences.items()):
        resource = state.application(app)
        components = {c.name: c for c in _followed(state, app, resource)} if resource is not None else {}
        for key in sorted(fences):
            name, _, slot = key.partition("/")
            if name not in components or slot not in wished_slots(state, app, components[name]):
                left.append(f"{app} {key} is still fenced")
    return left


def _amiss_at(
    play: Play, state: State, component: Component, place: tuple[str, str], copies: list[Process]
) -> list[str]:
    """One wished slot: exactly one copy, of the content wished for; or else no node could take that."""
    app, slot = place
    if len(copies) > 1:
        return [f"{app} {component.name} {slot} runs {len(copies)} times"]
    if copies and (_is_as_wished(state, component, copies[0]) or _stays_as_it_is(state, app)):
        return []
    if copies and _is_left_behind(play, state, copies[0]):
        return []
    room = [name for name in sorted(play.nodes) if _could_take(play, state, component, (app, slot), name)]
    what = f"of another release ({copies[0].instance.name})" if copies else "missing"
    return [f"{app} {component.name} {slot} is {what}, and {', '.join(room)} could take it"] if room else []


def _stays_as_it_is(state: State, app: str) -> bool:
    """Its budget lets nothing be missing, not even for as long as a change takes that cannot be made beside it."""
    application = state.application(app)
    return application is not None and application.spec.rollout.disruption.per_site == 0


def _is_left_behind(play: Play, state: State, copy: Process) -> bool:
    """Does it rightly run an older release: the one that its node goes back to, or one that nobody takes from it?"""
    instance, rollout = copy.instance, state.rollouts.get(copy.instance.app)
    if rollout is None:
        return False
    here = play.nodes[copy.node].ledger.locals.values()
    orders = (x.instance for x in here if x.phase == "refused")
    if any(order.fallback is not None and order.fallback.name == instance.name for order in orders):
        return True
    application = state.application(instance.app)
    if rollout.phase in ("paused", "aborted") or (application is not None and application.spec.rollout.windows):
        return True  # Windows are shut by the end of a run, and nothing changes outside of them.
    trusted = _trusted(state, instance.app)
    before = {c.component.name: c.revision for c in trusted.components} if trusted is not None else {}
    if rollout.phase != "undone":
        order = order_of(instance.app, rollout.revision, copy.node)
        has_turn = may_have(rollout, order, play.nodes[copy.node].plan.hardware)
        if has_turn and copy.node not in rollout.turned_down:
            return False
        if instance.revision in rollout.tolerated:
            return True
    return before.get(instance.component) == instance.revision


def _is_as_wished(state: State, component: Component, copy: Process) -> bool:
    """Of the newest release, and of the content that people wish for, whatever the release says."""
    instance, order = copy.instance, copy.instance.model
    rollout, release = state.rollouts.get(instance.app), state.releases[instance.app][-1]
    if rollout is not None and rollout.phase == "undone":
        release = _trusted(state, instance.app) or release
    newest = {c.component.name: c.revision for c in release.components}
    if instance.revision != newest.get(component.name):
        return False
    needs = order.variant.needs.memory_bytes if order is not None else None
    version = component.model.version if component.model is not None else None
    return (
        instance.cpu_millis == component.resources.cpu_millis
        and instance.memory_bytes == max(component.resources.memory_bytes, needs or 0)
        and instance.program == component.program
        and (order.version if order is not None else None) == version
    )


def _could_take(play: Play, state: State, component: Component, place: tuple[str, str], name: str) -> bool:
    """The twin's own judgement, simpler than the core's filters: is there room, and is nothing in the way?"""
    app, slot = place
    node, resource = play.nodes[name], state.nodes[name]
    replicas = component.replicas
    if not node.is_running or resource.spec.unschedulable or component.type not in ("process", "container", "model"):
        return False
    if node.truths.of_component(component, node.plan.hardware).refused:
        return False
    if replicas.every_node and slot != name:
        return False
    if replicas.per_site is not None and not slot.startswith(f"{resource.spec.site}-"):
        return False
    if ("onnx" if component.program is None else component.type) not in node.plan.runtimes:
        return False
    assignment = state.assignments.get(name)
    held = (
        ()
        if assignment is None
        else tuple(i for i in assignment.instances if (i.app, i.component, i.slot) != (app, component.name, slot))
    )
    if replicas.per_site is not None and any(i.app == app and i.component == component.name for i in held):
        return False
    cpu = sum(i.cpu_millis for i in held) + component.resources.cpu_millis
    memory = sum(i.memory_bytes for i in held) + max(
        component.resources.memory_bytes, _least_need(state, app, component)
    )
    return cpu <= node.plan.cpu_millis and memory <= node.plan.memory_bytes


def _least_need(state: State, app: str, component: Component) -> int:
    """The memory of the smallest variant."""
    use = component.model
    model = state.model(app.partition("/")[0], use.name) if use is not None else None
    versions = [v for v in model.spec.versions if use is not None and v.version == use.version] if model else []
    return min((variant.needs.memory_bytes or 0 for version in versions for variant in version.variants), default=0)
