"""The status of an application: how many are wanted and ready, where each is, and the first reason why not.

| state | when | exit |
|---|---|---|
| ok | all that is wanted is ready, of the newest release | |
| updating | all is ready or was, and a change is under way | the new instances get ready |
| waiting | something is not ready and comes by itself | a start, a lease, a first node |
| degraded | some is ready; the rest does not come by itself | what its reason says |
| failing | nothing is ready, nor comes by itself | what its reason says |
| unknown | nothing is heard of any of it: its nodes are silent | a node comes back |
| unassigned | nothing is wanted | ask for more than none |
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

import msgspec

from batuta.core.autoscale import as_scaled, autoscale_status
from batuta.core.channels import followed_by
from batuta.core.draft import Draft
from batuta.core.fleet import fleet_of
from batuta.core.reasons import Reason
from batuta.core.sides import sides_of
from batuta.core.tend import judge_slot, tend
from batuta.core.trusted import followed
from batuta.core.turns import turns_of
from batuta.core.wish import slots_of
from batuta.core.words import WORDS
from batuta.kinds.base import encode_hook

if TYPE_CHECKING:
    from batuta.core.care import Holder
    from batuta.core.decided import Beside, Instance, ModelOrder, Released
    from batuta.core.fleet import Fleet
    from batuta.core.observed import Measures
    from batuta.core.state import Held, State
    from batuta.core.wish import Slot
    from batuta.kinds.application import Application

_STARTING = {
    "waiting": "starting", "starting": "starting", "fetching": "fetching", "proving": "proving",
    "backoff": "backing_off",
}  # fmt: skip


class Filled(NamedTuple):
    """One slot, who holds it, and whether it works."""

    slot: Slot
    holders: list[Holder]

    @property
    def is_ready(self) -> bool:
        return any(h.ready for h in self.holders)

    def is_at_rest(self, revision: int) -> bool:
        if len(self.holders) != 1:
            return False
        only = self.holders[0]
        return only.ready and only.verdict == "keep" and only.instance.revision == revision


def application_status(state: State, application: Application, now: int, fleet: Fleet | None = None) -> dict[str, Any]:
    app = f"{application.ref.namespace}/{application.ref.name}"
    fleet = fleet_of(state, now) if fleet is None else fleet.refresh(state, now)
    draft = Draft(state, fleet, now)
    releases = state.releases.get(app, ())
    newest = releases[-1] if releases else None
    rollout, to_run = state.rollouts.get(app), followed(draft, app)
    released = {r.component.name: r for r in to_run.components} if to_run is not None else {}
    filled = {name: fill(draft, app, r) for name, r in released.items()}
    at_rest = (
        newest is not None
        and tuple(r.component for r in newest.components) == application.spec.components
        and all(f.is_at_rest(released[name].revision) for name, slots in filled.items() for f in slots)
        and sum(len(slots) for slots in filled.values()) == len(state.held.get(app, ())) > 0
        and not any(f.released_at is not None for f in state.fences.get(app, {}).values())
        and (rollout is None or rollout.phase in ("done", "undone"))
    )
    # Deciding it once more, on a draft that nobody keeps, says in the core's own words what is missing.
    reasons = [] if at_rest else list(tend(draft, app).reasons)
    if rollout is not None and rollout.phase == "undone" and rollout.reason is not None:
        reasons.append(rollout.reason)
    if rollout is not None and rollout.phase == "done" and rollout.turned_down:
        count = len(rollout.turned_down)
        detail = f"{count} node{'s' if count != 1 else ''} of those that have had their turn"
        subject = f"application/{rollout.application}"
        reasons.append(Reason(code="release_turned_down", subject=subject, detail=detail))
    components = [_component(draft, app, released[name], slots) for name, slots in filled.items()]
    reasons += [r for slots in filled.values() for f in slots for h in f.holders if (r := ails(draft, h)) is not None]
    reasons.sort(key=lambda r: r.is_waiting)
    wanted = sum(c["wanted"] for c in components)
    ready = sum(c["ready"] for c in components)
    word = _word(filled, released, reasons, wanted, ready) if newest is not None or reasons else "updating"
    return {
        "state": word,
        "ready": f"{ready}/{wanted}",
        "release": newest.revision if newest is not None else 0,
        "reason": str(reasons[0]) if reasons else "",
        "next": reasons[0].next_step if reasons else WORDS[word].next_step,
        "conditions": _conditions(word, reasons, ready, wanted),
        "reasons": [plain_reason(r) for r in reasons],
        "components": components,
    } | ({"rollout": rollout.phase} if rollout is not None else {})


def fill(draft: Draft, app: str, released: Released) -> list[Filled]:
    """Every wanted slot of a component with its holders, judged."""
    released = as_scaled(draft, app, released)
    held = [h for h in draft.held(app) if h.instance.component == released.component.name]
    rows = [row for h in held if (row := draft.fleet.row_of.get(h.node)) is not None]
    sides = sides_of(draft, released, app, turns_of(draft, app))
    by_slot: dict[str, list[Held]] = {}
    for h in held:
        by_slot.setdefault(h.instance.slot, []).append(h)
    found = []
    for slot in slots_of(sides.new, rows):
        mine = by_slot.get(slot.name, [])
        found.append(Filled(slot, judge_slot(draft, sides.of(draft, slot, mine), slot, mine)))
    return found


def plain_reason(reason: Reason) -> dict[str, Any]:
    found: dict[str, Any] = msgspec.to_builtins(reason, enc_hook=encode_hook)
    return found | {"sentence": str(reason), "next": reason.next_step, "waits": reason.is_waiting}


def _word(
    filled: dict[str, list[Filled]], released: dict[str, Released], reasons: list[Reason], wanted: int, ready: int
) -> str:
    """The first row of the table above that holds."""
    real = any(not r.is_waiting for r in reasons)
    holders = [h for slots in filled.values() for f in slots for h in f.holders]
    silent = [h for h in holders if h.verdict in ("lost", "wait")]
    if not wanted:
        return "failing" if real and not holders else "waiting" if reasons else "unassigned"
    if ready == wanted:
        if real:
            return "degraded"
        return "updating" if reasons and any(h.verdict != "keep" for h in holders) else "ok"
    if holders and len(silent) == len(holders):
        return "unknown" if not any(h.verdict == "wait" for h in silent) else "waiting"
    if real or any(h.verdict == "lost" for h in silent):
        return "degraded" if ready else "failing"
    changed = any(
        h.instance.revision != released[name].revision for name, s in filled.items() for f in s for h in f.holders
    )
    return "updating" if changed else "waiting"


def ails(draft: Draft, holder: Holder) -> Reason | None:
    """Why a holder is not ready, in its node's own words; nothing for one whose node cannot say."""
    if holder.ready or holder.verdict in ("lost", "wait", "stop"):
        return None
    report = draft.reported(holder.node, holder.instance)
    subject = f"instance/{holder.instance.name.split('/')[2]}"
    if report is None:
        return Reason(code="starting", subject=subject, detail=holder.node)
    if report.reason is not None:
        return report.reason
    return Reason(code=_STARTING.get(report.phase, "not_ready"), subject=subject, detail=holder.node)


def _component(draft: Draft, app: str, released: Released, slots: list[Filled]) -> dict[str, Any]:
    name = released.component.name
    instances = [_instance(draft, h) for f in slots for h in f.holders]
    found: dict[str, Any] = {"name": name, "ready": sum(f.is_ready for f in slots), "wanted": len(slots)}
    if (follows := followed_by(released)) is not None:
        found["follows"] = follows
    if released.component.replicas.autoscale is not None:
        found["autoscale"] = autoscale_status(draft, app, released)
    return found | {"instances": instances}


def _instance(draft: Draft, holder: Holder) -> dict[str, Any]:
    report = draft.reported(holder.node, holder.instance)
    reason = ails(draft, holder)
    found: dict[str, Any] = {
        "name": holder.instance.name,
        "slot": holder.instance.slot,
        "revision": holder.instance.revision,
        "node": holder.node,
        "epoch": holder.instance.epoch,
        "phase": report.phase if report is not None else "waiting",
        "ready": holder.ready,
        "verdict": holder.verdict,
        "since": report.since if report is not None else None,
        "starts": report.starts if report is not None else 0,
        "reason": plain_reason(reason) if reason is not None else None,
        "measures": _measured(report.measures) if report and report.measures else None,
    }
    if report is not None and report.locked:
        found["locked"] = True
    model, newcomer = holder.instance.model, holder.instance.newcomer
    if model is not None:
        found["model"] = _named(model)
    if newcomer is not None and newcomer.beside is not None and newcomer.model is not None:
        found["beside"] = _tried(draft, holder.node, newcomer, newcomer.beside) | {"model": _named(newcomer.model)}
    return found


def _tried(draft: Draft, node: str, newcomer: Instance, beside: Beside) -> dict[str, Any]:
    """The new release on trial beside an instance: it is in its slot, and is not counted."""
    report = draft.reported(node, newcomer)
    measures = report.measures if report is not None else None
    return {
        "name": newcomer.name,
        "revision": newcomer.revision,
        "mode": beside.mode,
        "share": beside.share,
        "phase": report.phase if report is not None else "waiting",
        "since": report.since if report is not None else None,
        "starts": report.starts if report is not None else 0,
        "reason": plain_reason(report.reason) if report is not None and report.reason is not None else None,
        "measures": msgspec.to_builtins(measures, enc_hook=encode_hook) if measures is not None else None,
    }


def _measured(measures: Measures) -> dict[str, Any]:
    """Without what gates are asked on: hundreds of numbers, which say nothing to people."""
    told: dict[str, Any] = msgspec.to_builtins(msgspec.structs.replace(measures, sample=None), enc_hook=encode_hook)
    return told


def _named(model: ModelOrder) -> dict[str, str]:
    return {"name": model.name, "version": model.version, "variant": model.variant.name}


def _conditions(word: str, reasons: list[Reason], ready: int, wanted: int) -> list[dict[str, str]]:
    """The two conditions that `kubectl wait` asks for."""
    first = reasons[0] if reasons else None
    code = "".join(part.title() for part in first.code.split("_")) if first is not None else "AsWished"
    message = str(first) if first is not None else WORDS[word].meaning
    progressing = word in ("updating", "waiting")
    is_ready = ready == wanted > 0 or word == "unassigned"
    return [
        {
            "type": "Ready",
            "status": str(is_ready),
            "reason": code,
            "message": message,
        },
        {"type": "Progressing", "status": str(progressing), "reason": code, "message": message},
    ]
