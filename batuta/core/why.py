"""Why: where each instance is and why there; why others are nowhere, what turned them away, and how near it was.

Plain data for `batuta why`, from the same filters, scorers and rules that decide. Nothing here is remembered: it is
asked anew, of the fleet as it is.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from batuta.core import traits
from batuta.core.autoscale import as_scaled, autoscale_status
from batuta.core.channels import followed_by
from batuta.core.constraints import FILTERS, MIB, disk_lacks
from batuta.core.draft import Draft
from batuta.core.fleet import fleet_of
from batuta.core.load import load_of
from batuta.core.place import Scored, explain, weigh
from batuta.core.preempt import gave_way_to
from batuta.core.reasons import Reason
from batuta.core.release import resolve
from batuta.core.standing import Moved
from batuta.core.talks import listen
from batuta.core.tend import tend
from batuta.core.trusted import followed
from batuta.core.view_application import Filled, ails, fill, plain_reason
from batuta.core.wish import Ask, Wish

if TYPE_CHECKING:
    from batuta.core.care import Holder
    from batuta.core.decided import Release
    from batuta.core.fleet import Fleet
    from batuta.core.state import State

COMPARED_MAX = 64
"""For so many slots the second-best node is looked for; with more of them, ask about one component."""
NOT_OF_SIZE = 2**62
"""What it lacks is nothing that could be counted."""
_SAYS_IT_ALL = frozenset(
    (
        "policy_forbids",
        "policy_fault",
        "too_slow",
        "accelerator_short",
        "variant_unfit",
        "residency_wrong",
        "architecture_wrong",
        "device_missing",
        "port_claimed",
        "device_claimed",
    )
)
_LAST_FIRST = {f.code: i for i, f in enumerate(FILTERS)}


def why(
    state: State, now: int, app: str, component: str | None = None, node: str | None = None
) -> list[dict[str, Any]]:
    """One entry a slot: where it is, the rule that keeps it there and the scores; or what turned it away. With `node`,
    each entry says why it is, or is not, on that node. Components that cannot be resolved come first."""
    fleet = fleet_of(state, now)
    draft = Draft(state, fleet, now)
    answers = _unresolved(state, app, component)
    to_run = followed(draft, app)
    answers += _taken_back(draft, app, to_run, component)
    filled = [(r, fill(draft, app, r)) for r in (to_run.components if to_run is not None else ())]
    # What deciding says of each slot, on a draft that nobody keeps; afterwards the fleet is read afresh.
    said: dict[str, list[Reason]] = {}
    for reason in tend(Draft(state, fleet, now), app).reasons:
        said.setdefault(reason.subject, []).append(reason)
    fleet.refresh(state, now)
    compared = 0
    for released, slots in filled:
        name = released.component.name
        if component not in (None, name):
            continue
        ask = listen(draft, Ask(app, as_scaled(draft, app, released), fleet))
        for f in slots:
            for holder in f.holders:
                row = fleet.row_of.get(holder.node)
                if row is not None:
                    ask.here[row] += 1
        if released.component.replicas.autoscale is not None:
            autoscaled = autoscale_status(draft, app, released)
            answers.append(_entry(name, "", []) | {"state": "autoscaled", "autoscale": autoscaled})
        if not slots:
            answers.append(_entry(name, "", said.get(f"component/{name}", [])) | {"state": "unwanted"})
        for f in slots:
            entry = _slot(draft, ask, f, said.get(f"component/{name}/{f.slot.name}", []), node)
            if node is None and entry["state"] == "placed" and compared < COMPARED_MAX:
                compared += 1
                entry |= _second(draft, ask, f)
            if (follows := followed_by(released)) is not None:
                entry["follows"] = follows
            answers.append(entry)
    return answers


def _second(draft: Draft, ask: Ask, f: Filled) -> dict[str, Any]:
    """The best of the other nodes, for a slot that has one holder at rest: what it would score."""
    fleet, holder = draft.fleet, f.holders[-1]
    row = fleet.row_of.get(holder.node)
    if row is None or holder.verdict != "keep" or len(f.holders) > 1:
        return {}
    rows, total, parts = weigh(Wish(ask, f.slot, own=(row,)), fleet)
    order = np.lexsort((fleet.rank[rows], -total))
    best = next((k for k in order.tolist() if rows[k] != row), None)
    if best is None:
        return {}
    scored = {name: int(part[best]) for name, part in parts.items() if part[best]}
    return {"second": {"node": fleet.names[int(rows[best])], "score": int(total[best]), "parts": scored}}


def _of_policies(fleet: Fleet, ask: Ask) -> dict[str, Any]:
    """How many nodes each policy turns away, whether several of them leave none between them, and which cannot be
    answered somewhere."""
    there = np.flatnonzero(fleet.present & fleet.reported)
    allowed: dict[str, Any] = {}
    for rule in ask.ruling.hard:
        passes = (ask.may(rule) & ~ask.is_puzzled(rule))[there]
        allowed[rule.policy] = passes & allowed[rule.policy] if rule.policy in allowed else passes
    found: dict[str, Any] = {}
    refused = {policy: int((~passes).sum()) for policy, passes in allowed.items() if not passes.all()}
    if refused:
        found["policies"] = refused
    each = [passes for passes in allowed.values() if not passes.all()]
    if len(each) > 1 and all(passes.any() for passes in each) and not np.logical_and.reduce(each).any():
        detail = f"{', '.join(refused)}: each leaves some of {len(there)} nodes, all of them together none"
        subject = f"component/{ask.component.name}"
        found["contradiction"] = plain_reason(Reason(code="policies_contradict", subject=subject, detail=detail))
    unanswered = []
    for rule in (*ask.ruling.hard, *ask.ruling.soft):
        rows = there[ask.is_puzzled(rule)[there]]
        if rows.size:
            said = rule.fault or traits.fault(fleet, rule, int(rows[0]))
            where = fleet.names[int(rows[0])] + (f" and {len(rows) - 1} more" if len(rows) > 1 else "")
            detail = f"{rule.kind} on {where}: {said}"
            unanswered.append(Reason(code="policy_fault", subject=f"policy/{rule.policy}", detail=detail))
    if unanswered:
        found["unanswered"] = [plain_reason(reason) for reason in unanswered]
    return found


def _unresolved(state: State, app: str, component: str | None) -> list[dict[str, Any]]:
    application = state.application(app)
    found = []
    for each in application.spec.components if application is not None else ():
        version = resolve(state, app.split("/", maxsplit=1)[0], each)
        if isinstance(version, Reason) and component in (None, each.name):
            found.append(_entry(each.name, "", [version]) | {"state": "unresolved"})
    return found


def _taken_back(draft: Draft, app: str, to_run: Release | None, component: str | None) -> list[dict[str, Any]]:
    """Components that are as they were before the newest release, and why."""
    rollout = draft.rollout(app)
    if rollout is None or rollout.phase != "undone" or rollout.reason is None or to_run is None:
        return []
    kept = {r.component.name: r.revision for r in to_run.components}
    changed = (r.component.name for r in draft.releases(app)[-1].components if kept.get(r.component.name) != r.revision)
    said = [rollout.reason]
    return [_entry(name, "", said) | {"state": "undone"} for name in changed if component in (None, name)]


def _entry(component: str, slot: str, reasons: list[Reason]) -> dict[str, Any]:
    return {"component": component, "slot": slot, "reasons": [plain_reason(r) for r in reasons]}


def _slot(draft: Draft, ask: Ask, f: Filled, said: list[Reason], node: str | None) -> dict[str, Any]:
    entry = _entry(ask.component.name, f.slot.name, said)
    entry["state"] = "placed" if f.holders else "unplaced"
    entry["holders"] = [_holder(draft, ask, f, h) for h in f.holders]
    gone = [r for h in f.holders for r in gave_way_to(draft.state, h.instance.name)]
    if gone:
        entry["displaced"] = [plain_reason(r) for r in gone]
    moved = next(
        (r for r in draft.standing(ask.app, Moved) if (r.component, r.slot) == (ask.component.name, f.slot.name)), None
    )
    if moved is not None and any(h.node == moved.to for h in f.holders):
        entry["moved"] = {
            "by": f"policy/{moved.policy}", "from": moved.node, "to": moved.to, "at": moved.at, "why": moved.why,
            "says": moved.said,
        }  # fmt: skip
    rows = tuple(row for h in f.holders if (row := draft.fleet.row_of.get(h.node)) is not None)
    wish = Wish(ask, f.slot, own=rows)
    if node is not None:
        entry["asked"] = _asked(draft.fleet, wish, node)
    elif not f.holders or said:
        entry |= _turned_away(draft.fleet, wish)
    return entry | _of_policies(draft.fleet, ask)


def _holder(draft: Draft, ask: Ask, f: Filled, holder: Holder) -> dict[str, Any]:
    """Where it is, the rule by which it stays or goes, why it is not ready in its node's own words, and what its node
    would score if it were placed now."""
    fleet, row = draft.fleet, draft.fleet.row_of.get(holder.node)
    found: dict[str, Any] = {
        "instance": holder.instance.name,
        "node": holder.node,
        "verdict": holder.verdict,
        "rule": holder.rule.sentence,
        "ready": holder.ready,
    }
    if (reason := ails(draft, holder)) is not None:
        found["reason"] = plain_reason(reason)
    if row is None:
        return found
    i = holder.instance
    fleet.shift(row, load_of(i), -1)
    wish = Wish(ask, f.slot, before=row, own=(row,))
    answer = explain(wish, fleet, np.array([row], np.int64))[0][1]
    fleet.shift(row, load_of(i), 1)
    return found | _answer(answer)


def _answer(answer: Reason | Scored) -> dict[str, Any]:
    if isinstance(answer, Scored):
        return {"score": answer.total, "parts": {k: v for k, v in answer.parts.items() if v}}
    return {"today": plain_reason(answer)}


def _asked(fleet: Fleet, wish: Wish, node: str) -> dict[str, Any]:
    row = fleet.row_of.get(node)
    if row is None:
        return {"node": node, "reason": plain_reason(Reason(code="no_node", subject=f"node/{node}"))}
    answer = explain(wish, fleet, np.array([row], np.int64))[0][1]
    if isinstance(answer, Reason):
        return {"node": node, "reason": plain_reason(answer)}
    return {"node": node, **_answer(answer)}


def _turned_away(fleet: Fleet, wish: Wish) -> dict[str, Any]:
    """Nodes by the Reason that turned them away, and the one that came nearest."""
    counts: dict[str, int] = {}
    nearest: tuple[tuple[int, int, str], Reason] | None = None
    fits = 0
    for node, answer in explain(wish, fleet):
        if isinstance(answer, Scored):
            fits += 1
            continue
        counts[answer.code] = counts.get(answer.code, 0) + 1
        rank = (-_LAST_FIRST[answer.code], _lacks(fleet, wish, answer.code, node), node)
        if nearest is None or rank < nearest[0]:
            nearest = (rank, answer)
    found: dict[str, Any] = {"refused": dict(sorted(counts.items(), key=lambda c: _LAST_FIRST[c[0]])), "fits": fits}
    if nearest is not None and not fits:
        (_, lacks, node), reason = nearest
        found["nearest"] = {
            "node": node,
            "reason": plain_reason(reason),
            "says": _miss(reason.code, lacks, node, reason),
        }
    return found


def _lacks(fleet: Fleet, wish: Wish, code: str, node: str) -> int:
    """How much more of what it is short of the node would need."""
    row = fleet.row_of[node]
    if code == "cpu_short":
        return wish.ask.cpu_millis - int(fleet.cpu_free[row])
    if code == "memory_short":
        return wish.ask.memory_bytes - int(fleet.memory_free[row])
    if code == "disk_short":
        free, needed = disk_lacks(wish, fleet, row)
        return needed - free
    if code == "variant_unfit":
        # Of those that could be loaded there: for others it is not the memory.
        requests = [wish.ask.requests[i] for i in wish.ask.order if wish.ask.suits(i)[row]]
        return min(requests) - int(fleet.memory_free[row]) if requests else NOT_OF_SIZE
    return 0


def _miss(code: str, lacks: int, node: str, reason: Reason) -> str:
    if code == "cpu_short":
        return f"needs {lacks}m more on {node}"
    if code in ("memory_short", "disk_short", "variant_unfit") and lacks != NOT_OF_SIZE:
        what = " of disk" if code == "disk_short" else ""
        return f"needs {-(-lacks // MIB)}Mi more{what} on {node}"
    if code in _SAYS_IT_ALL:
        return f"{node}: {reason.detail}"
    return f"{node}: {reason.next_step}"
