"""Foresee: what a change would move, before anybody makes it. The same `decide`, on a copy of the state.

The copy is decided on until nothing is left to decide; meanwhile its nodes do as they are told: whoever can be heard
takes its newest assignment, and what is started there gets ready. Those that are silent say nothing, and what fails
today fails in the copy too. So an answer is what would come of a change if every start went well, and where it would
wait for somebody it says so. Time stands still; what would come in waves, judged by what is measured, comes at once.
"""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Literal

import msgspec

from batuta.core.decide import APPLICATION, decide
from batuta.core.draft import Draft
from batuta.core.fleet import Fleet
from batuta.core.observed import InstanceReport
from batuta.core.state import Change
from batuta.core.touched import everything, touched
from batuta.core.view_application import fill
from batuta.kinds.base import Record
from batuta.kinds.rolling import Rollout

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from batuta.core.decided import Instance
    from batuta.core.reasons import Reason
    from batuta.core.state import State

ROUNDS_MAX = 2_000
"""Replicas are replaced one by one, each in two rounds; who has more of them is told that the answer ends early."""

Action = Literal["start", "stop", "move", "replace"]
Slot = tuple[str, str, str]


class Step(Record):
    """What becomes of one slot: where it was and of which revision, where it would be, and by which rule."""

    app: str
    component: str
    slot: str
    action: Action
    node: str = ""
    """Where it would be; empty for a stop."""
    instance: str = ""
    """What would run there: `read-2-berlin-0`."""
    was_on: str = ""
    was: str = ""
    why: str = ""
    """The rule that applies, or what was asked for."""
    anyway: bool = False
    """It would come without the change: it is on its way already."""


class Foresight(Record):
    """What a change comes to."""

    steps: tuple[Step, ...]
    reasons: dict[str, tuple[Reason, ...]]
    """By application: what would still not be as wished, and why."""
    is_whole: bool = True
    """Nothing was left to decide in the end."""


def foresee(state: State, changes: Iterable[Change], now: int) -> Foresight:
    """Where every instance would be if these changes were made, compared with where each is."""
    changes = list(changes)
    without, today, _ = _settled(state, _at_once(state), now)
    known = {(s.app, s.component, s.slot): s for s in steps_between(state, without, {})}
    changed = state.with_changes(changes)
    after, reasons, is_whole = _settled(state, _at_once(changed), now)
    steps = steps_between(state, after, _rules(changed, after, now))
    marked = [
        msgspec.structs.replace(s, anyway=True) if _same(s, known.get((s.app, s.component, s.slot))) else s
        for s in steps
    ]
    apps = {s.app for s in marked if not s.anyway} | {app for app, said in reasons.items() if today.get(app) != said}
    apps |= {f"{c.value.ref.namespace}/{c.value.ref.name}" for c in changes if c.key.startswith("applications.")}
    return Foresight(
        steps=tuple(marked), reasons={a: said for a, said in reasons.items() if a in apps}, is_whole=is_whole
    )


def _at_once(state: State) -> State:
    """As if nothing had to be watched before more nodes are updated: what every rollout comes to in the end."""
    rows = []
    for application in state.declared.values():
        said = application.spec.rollout
        plain = Rollout(disruption=said.disruption, probation_ms=said.probation_ms)
        if said != plain:
            spec = msgspec.structs.replace(application.spec, rollout=plain)
            rows.append(Change("desired", application.ref.key, msgspec.structs.replace(application, spec=spec)))
    return state.with_changes(rows) if rows else state


def _settled(was: State, state: State, now: int) -> tuple[State, Mapping[str, tuple[Reason, ...]], bool]:
    """Decided on until there is nothing left to decide, by nodes that do as they are told."""
    fleet = Fleet()
    subjects = everything(was) | everything(state)
    reasons: dict[str, tuple[Reason, ...]] = {}
    for _ in range(ROUNDS_MAX):
        decision = decide(state, now, subjects, fleet)
        for subject in subjects:
            reasons.pop(subject.removeprefix(APPLICATION), None)
        reasons |= decision.reasons
        before, state = state, state.with_changes(decision.changes)
        state = _obeyed(state, fleet)
        if not decision.changes and before.observed == state.observed:
            return state, reasons, True
        subjects = touched(before, state, now, now) | {APPLICATION + app for app in decision.pending}
    return state, reasons, False


def _obeyed(state: State, fleet: Fleet) -> State:
    """Every node that can be heard has taken its newest assignment, and what is new there is ready."""
    rows = []
    for node, assignment in state.assignments.items():
        report, row = state.observed.get(node), fleet.row_of.get(node)
        if report is None or row is None or not fleet.fresh[row]:
            continue
        said = {(i.name, i.epoch): i for i in report.instances}
        instances = tuple(_as_told(i, said.get((i.name, i.epoch)), report.at) for i in assignment.instances)
        if instances != report.instances or report.serial != assignment.serial:
            after = msgspec.structs.replace(report, serial=assignment.serial, instances=instances)
            rows.append(Change("observed", node, after))
    return state.with_changes(rows) if rows else state


def _as_told(instance: Instance, said: InstanceReport | None, at: int) -> InstanceReport:
    if said is not None and said.phase in ("ready", "backoff", "refused"):
        return said
    return InstanceReport(name=instance.name, epoch=instance.epoch, phase="ready", since=at)


def steps_between(before: State, after: State, rules: Mapping[tuple[str, str], str]) -> list[Step]:
    """What became of every slot, from one state to another; `rules` say by which rule the old holders go."""
    was, now = _held(before), _held(after)
    steps = []
    for slot in sorted(was.keys() | now.keys()):
        old, new = was.get(slot, []), now.get(slot, [])
        # Two may hold a slot for a while: those that stay as they are need no word.
        left, come = [h for h in old if h not in new], [h for h in new if h not in old]
        for i in range(max(len(left), len(come))):
            from_ = left[i] if i < len(left) else None
            to = come[i] if i < len(come) else None
            steps.append(_step(slot, from_, to, rules))
    return steps


_Place = tuple[str, str, int]


def _held(state: State) -> dict[Slot, list[_Place]]:
    """By slot: node, instance name and epoch of whoever holds it, the newest placement first."""
    found: dict[Slot, list[_Place]] = {}
    for app, held in state.held.items():
        for h in held:
            i = h.instance
            found.setdefault((app, i.component, i.slot), []).append((h.node, i.name, i.epoch))
    return {slot: sorted(places, key=lambda p: (-p[2], p[0])) for slot, places in found.items()}


def _step(slot: Slot, left: _Place | None, come: _Place | None, rules: Mapping[tuple[str, str], str]) -> Step:
    app, component, name = slot
    step = partial(Step, app=app, component=component, slot=name)
    if left is None:
        assert come is not None
        return step(action="start", node=come[0], instance=_short(come), why="it is wanted and was nowhere")
    rule = rules.get((left[0], left[1]), "")
    step = partial(step, was_on=left[0], was=_short(left))
    if come is None:
        return step(action="stop", why=rule or "nobody wants it any more")
    step = partial(step, node=come[0], instance=_short(come))
    if come[0] != left[0] and come[1] == left[1]:
        return step(action="move", why=rule or "the scheduler places it there")
    return step(action="replace", why=rule or "it is of an older revision")


def _short(place: _Place) -> str:
    return place[1].rpartition("/")[2]


def _same(step: Step, other: Step | None) -> bool:
    return other is not None and (step.action, step.node, step.instance) == (other.action, other.node, other.instance)


def _rules(changed: State, after: State, now: int) -> dict[tuple[str, str], str]:
    """By node and instance name: the rule by which what is held now goes, under the releases that were to be."""
    releases = [Change("decided", k, v) for k, v in after.decided.items() if k.startswith("release.")]
    state = changed.with_changes(releases)
    fleet = Fleet().refresh(state, now)
    draft = Draft(state, fleet, now)
    found: dict[tuple[str, str], str] = {}
    for app in state.held:
        newest = state.releases.get(app, ())[-1:] if state.application(app) is not None else ()
        for released in (r for release in newest for r in release.components):
            for filled in fill(draft, app, released):
                for holder in filled.holders:
                    if holder.verdict not in ("keep", "wait"):
                        found[holder.node, holder.instance.name] = holder.rule.sentence
    return found
