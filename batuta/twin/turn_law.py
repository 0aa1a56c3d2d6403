"""The laws of turns: nobody gets a release before its turn, and no more have their turn than the wave lets them.

Worked out from two states, the one that was decided on and the one that came of it, and by nothing that decides.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from batuta.core.liveness import missed_ms
from batuta.core.rollout import may_have, order_of
from batuta.kinds.waves import EVERYTHING, waves_of

if TYPE_CHECKING:
    from collections.abc import Iterator

    from batuta.core.rollout import Rollout
    from batuta.core.state import Held, State
    from batuta.kinds.waves import Wave


def out_of_turn(before: State, after: State) -> Iterator[str]:
    """Whoever was given the newest release in this decision and was not to have it."""
    for app, rollout in sorted(after.rollouts.items()):
        if before.held.get(app) is after.held.get(app) or _names_nodes(after, app):
            continue
        changed = _changed(after, app, rollout)
        had = {(h.node, h.instance.name) for h in before.held.get(app, ())}
        for held in after.held.get(app, ()):
            instance = held.instance
            if changed.get(instance.component) != instance.revision or (held.node, instance.name) in had:
                continue
            if why := _why_not(after, rollout, held.node):
                yield f"{instance.name} was given to {held.node}, {why}"


def beyond_wave(before: State, after: State, now: int) -> Iterator[str]:
    """Rollouts that gave turns to more nodes than their wave asks for."""
    for app, rollout in sorted(after.rollouts.items()):
        was = before.rollouts.get(app)
        if was is None or was.revision != rollout.revision or rollout.phase != "rolling" or rollout.reach <= was.reach:
            continue
        if _names_nodes(after, app) or not (waves := _waves(after, app)) or rollout.wave >= len(waves) - 1:
            continue
        changed = _changed(after, app, rollout)
        mine = [h for h in before.held.get(app, ()) if h.instance.component in changed]
        stays = {h.node for h in after.held.get(app, ()) if h.instance.component in changed}
        nodes = {h.node for h in mine} & stays
        fit = [n for n in nodes if n in after.nodes and _hardware(after, n) not in rollout.stopped]
        new = {h.node for h in mine} - {h.node for h in mine if not _is_done(before, h, changed)}
        # Who had it before its turn, of a rollout that this one superseded, takes nobody's turn.
        early = {n for n in new if not _has_turn(after, was, n)}
        has = [n for n in fit if n not in early and _has_turn(after, rollout, n)]
        has = [n for n in has if n in new or not _is_silent(before, n, now)]
        # Those that fences remember count as nodes, too; they are not seen here, and so one more may be.
        target = waves[rollout.wave].target(len(fit) + len(after.fences.get(app, ())))
        if len(has) > max(target, sum(_has_turn(after, was, n) for n in has)):
            yield f"{app}: {len(has)} of {len(fit)} have their turn, and wave {rollout.wave + 1} is for {target}"


def _changed(state: State, app: str, rollout: Rollout) -> dict[str, int]:
    """Components that the newest release runs otherwise than the trusted one: their newest revision."""
    releases = state.releases.get(app, ())
    trusted = next((r for r in releases if r.revision == rollout.previous), None)
    if trusted is None or releases[-1].revision != rollout.revision:
        return {}
    old = {r.component.name: r.revision for r in trusted.components}
    new = {r.component.name: r.revision for r in releases[-1].components}
    return {name: revision for name, revision in new.items() if name in old and old[name] != revision}


def _why_not(state: State, rollout: Rollout, node: str) -> str:
    if rollout.phase == "undone":
        return "and it was undone"
    if node in rollout.turned_down:
        return "which turned it down"
    if _hardware(state, node) in rollout.stopped:
        return f"whose class of hardware, {_hardware(state, node)}, turned it down"
    return "" if _has_turn(state, rollout, node) else "whose turn has not come"


def _has_turn(state: State, rollout: Rollout, node: str) -> bool:
    order = order_of(rollout.app, rollout.revision, node)
    return node not in rollout.turned_down and may_have(rollout, order, _hardware(state, node))


def _hardware(state: State, node: str) -> str:
    report, resource = state.observed.get(node), state.nodes.get(node)
    if resource is not None and resource.spec.hardware:
        return resource.spec.hardware
    return report.inventory.hardware if report is not None else ""


def _is_done(state: State, held: Held, changed: dict[str, int]) -> bool:
    """Was it ready with the newest, when its node was last heard?"""
    instance, report = held.instance, state.observed.get(held.node)
    if changed.get(instance.component) != instance.revision or report is None:
        return False
    return any((r.name, r.epoch, r.phase) == (instance.name, instance.epoch, "ready") for r in report.instances)


def _is_silent(state: State, node: str, now: int) -> bool:
    sighting = state.sightings.get(node)
    if sighting is None or sighting.disconnected_at is not None:
        return True
    return now - sighting.last_seen >= missed_ms(state)


def _waves(state: State, app: str) -> tuple[Wave, ...]:
    application = state.application(app)
    said = application.spec.rollout.waves if application is not None else None
    return waves_of(said) if said is not None else (EVERYTHING,)


def _names_nodes(state: State, app: str) -> bool:
    """Do its waves name nodes by conditions? Whose turn that makes it is not worked out here."""
    return any(wave.where is not None for wave in _waves(state, app))
