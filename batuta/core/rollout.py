"""Rollout: which nodes may have the new release now. Waves, soak, gates; what stops it and what undoes it.

The nodes of an application stand in an order that is drawn anew for each release by a hash. A wave moves the `reach`
along that order until enough reachable nodes are done; so a node's turn is a comparison of two numbers, whatever the
size of the fleet, and nobody is asked again after a restart. Who cannot be reached is passed by and is *deferred*: it
holds nothing up, and follows the verdict when it is back. Rules in order; the first that applies decides:

    class stopped     three nodes of one class of hardware turned the release down: that class keeps the old one
    turned down       no class is left that could take it: fails
    gate broken       what the updated nodes measured is beyond a limit: fails
    wave unfinished   more nodes get their turn, as many at a time as `concurrency` says
    soaking           the wave is through: wait, at least for `soak`, until every gate is held and approval is there
    on trial          what was beside the old release is tried in the next way, or switched in, node by node
    through           next wave, or done

Failing means undoing, in the reverse order, or pausing: `onFailure` says which. A release that was undone is not tried
again until somebody asks. Pure: instants, what nodes said, and what the gates say are arguments.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

import msgspec

from batuta.core.reasons import Reason
from batuta.core.rollout_row import (
    WHOLE,
    Phase,
    Plan,
    Rollout,
    Seen,
    Standing,
    Step,
    Trial,
    begin,
    begun_at,
    gates_of,
    has_whole,
    may_have,
    order_of,
    trial_of,
)
from batuta.kinds.gate import asks_agreement

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence

    from batuta.core.gates import Judged
    from batuta.kinds.waves import Wave

__all__ = [
    "LOOK_MS", "PASSED_MAX", "REFUSALS", "TURNS_KEPT", "WHOLE", "Phase", "Plan", "Rollout", "Seen", "Standing", "Step",
    "Trial", "aborted", "advance", "approved", "begin", "begun_at", "gates_of", "has_whole", "may_have", "order_of",
    "paused", "resumed", "retried", "trial_of", "undoing", "wave_of",
]  # fmt: skip

REFUSALS: Final = 3
"""So many nodes of one class of hardware turn a release down before the class does."""
LOOK_MS: Final = 2_000
"""How often gates are asked."""
TURNS_KEPT: Final = 64
PASSED_MAX: Final = 1024
"""So many nodes are remembered that were passed by; if there are more, those may come while a wave is not theirs."""


def advance(
    rollout: Rollout, plan: Plan, nodes: Sequence[Standing], now: int, ask: Callable[[Rollout], Sequence[Judged]]
) -> Step:
    """The next state. `ask` judges the gates on what was measured so far; it is only asked where it matters."""
    if rollout.phase == "done":
        # Whoever comes back later may still refuse it, and keeps what it had. A short soak may have been over before
        # the nodes found out that it does not work: one that nobody runs is not done.
        rollout = _note_turned_down(rollout, nodes)
        if rollout.turned_down and not any(n.state in ("new", "updating") for n in nodes):
            return Step(undoing(rollout, now, _turned_down_everywhere(rollout, nodes)), now)
        return Step(rollout)
    if rollout.phase in ("undone", "aborted", "paused"):
        return Step(rollout)
    if rollout.phase == "undoing":
        return _undo_further(rollout, plan, nodes, now)
    rollout = _note_turned_down(rollout, nodes)
    fit = [n for n in nodes if n.hardware not in rollout.stopped]
    # Who cannot be reached now may have it, or take it yet: after a restart of the hub that is everybody.
    if rollout.turned_down and all(n.state == "down" for n in fit):
        return Step(_fail(rollout, plan, now, _turned_down_everywhere(rollout, nodes)))
    gates = gates_of(rollout, plan)
    is_due = now >= rollout.asked_at + LOOK_MS or tuple(s.gate for s in rollout.seen if s.gate in gates) != gates
    if gates and is_due and _done(rollout, fit):
        judged = ask(rollout)
        # What was seen in shadow, and cannot be seen any more, is told still.
        kept = (seen for seen in rollout.seen if seen.gate not in gates)
        rollout = msgspec.structs.replace(rollout, seen=(*(_seen(j) for j in judged), *kept), asked_at=now)
        if broken := next((j for j in judged if j.verdict == "broken"), None):
            return Step(_fail(rollout, plan, now, _gate_broken(rollout, broken)))
    moved = _give_turns(rollout, plan, fit, now)
    if moved is not None:
        late = _late(moved, plan, now)
        looks = [at for at in (_deadline(moved, plan), _next_look(moved, plan, now)) if at is not None]
        return Step(late or moved, None if late else min(looks, default=None))
    if rollout.phase == "rolling":
        rollout = msgspec.structs.replace(rollout, phase="soaking", since=now, reason=None)
    return _soak(rollout, plan, now)


# --- Giving turns -----------------------------------------------------------------------------------------------------


def wave_of(rollout: Rollout, plan: Plan) -> Wave:
    """The wave that is under way; a plan that was shortened meanwhile ends with its last."""
    return plan.waves[min(rollout.wave, len(plan.waves) - 1)]


def _done(rollout: Rollout, fit: Sequence[Standing]) -> list[Standing]:
    return [n for n in fit if n.state == "new" and _has_turn(rollout, n)]


def _has_turn(rollout: Rollout, node: Standing) -> bool:
    return may_have(rollout, node.order, node.hardware, node.selected)


def _give_turns(rollout: Rollout, plan: Plan, fit: Sequence[Standing], now: int) -> Rollout | None:
    """The wave while it is under way, with as many turns given as may be; None when it is through."""
    wave, is_last = wave_of(rollout, plan), rollout.wave >= len(plan.waves) - 1
    open_to = [n for n in fit if n.state in ("old", "updating") and n.reachable and n.may]
    shut = [n for n in open_to if n.shut and n.state == "old"]
    busy = [n for n in open_to if _has_turn(rollout, n) and not (n.shut and n.state == "old")]
    waiting = sorted((n for n in open_to if not _has_turn(rollout, n) and not n.shut), key=lambda n: n.order)
    reach, done = rollout.reach, _done(rollout, fit)
    before = reach, rollout.passed
    if rollout.stage and not (busy or done):
        # Whoever was tried is gone: others are, from the beginning.
        rollout = msgspec.structs.replace(rollout, stage=0, stage_since=now)
    if wave.where is not None:
        # Whom the condition names has its turn by that alone; the reach only has to be open.
        reach = max(reach, 1)
        shut = [n for n in shut if n.selected is not None and n.selected <= rollout.wave]
    else:
        missing = wave.target(len(fit)) - len(done) - len(busy) if not rollout.stage else 0
        turns = missing if plan.concurrency is None else min(missing, plan.concurrency - len(busy))
        if is_last and plan.concurrency is None:
            reach = WHOLE  # also for those that hold nothing of it: they may be where there is room for it
        elif given := waiting[: max(0, turns)]:
            reach = max(reach, given[-1].order + 1)
            rollout = _passing(rollout, reach, fit, {n.order for n in given}, now)
        elif not waiting and not busy and is_last:
            reach = WHOLE  # whoever is left is away or kept from it, and follows when it can
        if reach == WHOLE:
            rollout = msgspec.structs.replace(rollout, passed=())
        shut = shut if missing > len(waiting) else []
    if plan.trials and rollout.stage >= len(plan.trials):
        rollout = _switched(rollout, plan, busy)
    if busy or shut or (reach, rollout.passed) != before or not (done or not fit):
        if reach != rollout.reach:
            turned = (*rollout.turns, (reach, now))[-TURNS_KEPT:]
            rollout = msgspec.structs.replace(rollout, reach=reach, turns=turned)
        return _rolling(rollout, busy, shut, now, is_idle=not done)
    return None


def _passing(rollout: Rollout, reach: int, fit: Sequence[Standing], given: set[int], now: int) -> Rollout:
    """Who is passed by as the reach moves on has its turn later; so had some of those that have it now."""
    late = [order for order in rollout.passed if order not in given]
    left = sorted(
        n.order for n in fit if rollout.reach <= n.order < reach and n.order not in given and n.state == "old"
    )
    if len(late) < len(rollout.passed):
        # Theirs came just now, whenever it came for others around them.
        rollout = msgspec.structs.replace(rollout, turns=((WHOLE, now),))
    return msgspec.structs.replace(rollout, passed=tuple(late + left)[:PASSED_MAX])


def _switched(rollout: Rollout, plan: Plan, busy: Sequence[Standing]) -> Rollout:
    """Those that are through with their trials have it whole, as many at a time as may change at once."""
    still = sorted((n for n in busy if not has_whole(rollout, plan, n.order, n.selected)), key=lambda n: n.order)
    if not still:
        return rollout
    room = len(still) if plan.concurrency is None else plan.concurrency - (len(busy) - len(still))
    if room <= 0:
        return rollout
    reach = rollout.reach if room >= len(still) else still[room - 1].order + 1
    return msgspec.structs.replace(rollout, switched=max(rollout.switched, reach))


def _rolling(
    rollout: Rollout, busy: Sequence[Standing], shut: Sequence[Standing], now: int, *, is_idle: bool
) -> Rollout:
    """Still, or again, under way."""
    reason, subject = None, f"application/{rollout.application}"
    if shut and not busy:
        detail = f"the update window of {shut[0].node}" + (f" and {len(shut) - 1} more" if len(shut) > 1 else "")
        reason = Reason(code="rollout_waits", subject=subject, detail=f"{detail} is shut")
    elif not busy and is_idle:
        reason = Reason(code="rollout_waits", subject=subject, detail="no node that may take it can be reached")
    if rollout.phase == "rolling":
        return msgspec.structs.replace(rollout, reason=reason)
    return msgspec.structs.replace(rollout, phase="rolling", since=now, reason=reason)


def _note_turned_down(rollout: Rollout, nodes: Iterable[Standing]) -> Rollout:
    new = {n.node: n.hardware for n in nodes if n.state == "down" and n.node not in rollout.turned_down}
    if not new:
        return rollout
    turned_down = {**rollout.turned_down, **new}
    counts: dict[str, int] = {}
    for hardware in turned_down.values():
        counts[hardware] = counts.get(hardware, 0) + 1
    stopped = tuple(sorted(h for h, count in counts.items() if count >= REFUSALS))
    return msgspec.structs.replace(rollout, turned_down=turned_down, stopped=stopped)


# --- Soaking ----------------------------------------------------------------------------------------------------------


def _soak(rollout: Rollout, plan: Plan, now: int) -> Step:
    trial = trial_of(rollout, plan)
    over = rollout.since + (plan.soak_ms if trial is None else trial.for_ms)
    subject = f"application/{rollout.application}"
    is_last = rollout.wave >= len(plan.waves) - 1
    if now < over:
        return Step(rollout, min(over, _next_look(rollout, plan, now) or over))
    if undecided := [s for s in rollout.seen if s.verdict != "held"]:
        detail = "; ".join(
            f"{s.gate}" + (f" (not measured: {', '.join(s.missing)})" if s.missing else "") for s in undecided
        )
        waiting = msgspec.structs.replace(rollout, reason=Reason(code="gate_undecided", subject=subject, detail=detail))
        late = _late(waiting, plan, now)
        return Step(late or waiting, None if late else _next_look(waiting, plan, now))
    if trial is not None:
        # In another way, by other instances: what they measure counts from now on.
        following = msgspec.structs.replace(
            rollout, phase="rolling", stage=rollout.stage + 1, stage_since=now, since=now, reason=None,
            seen=tuple(seen for seen in rollout.seen if asks_agreement(seen.gate)),
        )  # fmt: skip
        return Step(following, now)
    if not is_last and plan.approvals and rollout.approved <= rollout.wave:
        detail = f"wave {rollout.wave + 1} of {len(plan.waves)} is through"
        reason = Reason(code="rollout_unapproved", subject=subject, detail=detail)
        return Step(msgspec.structs.replace(rollout, reason=reason))
    if is_last:
        return Step(msgspec.structs.replace(rollout, phase="done", since=now, reach=WHOLE, passed=(), reason=None))
    # With the next wave begins a new look: what its nodes measure counts from now on.
    following = msgspec.structs.replace(
        rollout, phase="rolling", wave=rollout.wave + 1, since=now, wave_since=now, reason=None, seen=(), stage=0,
        stage_since=now, switched=rollout.reach if plan.trials else rollout.switched,
    )  # fmt: skip
    return Step(following, now)


def _late(rollout: Rollout, plan: Plan, now: int) -> Rollout | None:
    at = _deadline(rollout, plan)
    if at is None or now < at:
        return None
    detail = rollout.reason.detail if rollout.reason is not None else f"wave {rollout.wave + 1}"
    reason = Reason(code="wave_late", subject=f"application/{rollout.application}", detail=detail)
    return paused(rollout, now, reason)


def _next_look(rollout: Rollout, plan: Plan, now: int) -> int | None:
    # One that is overdue could not be asked, for nobody is done: a report will tell when somebody is.
    at = rollout.asked_at + LOOK_MS
    return at if plan.gates and at > now else None


def _deadline(rollout: Rollout, plan: Plan) -> int | None:
    return None if plan.wave_deadline_ms is None else rollout.wave_since + plan.wave_deadline_ms


# --- Failing, undoing -------------------------------------------------------------------------------------------------


def _fail(rollout: Rollout, plan: Plan, now: int, reason: Reason) -> Rollout:
    if plan.on_failure == "pause":
        return paused(rollout, now, reason)
    return undoing(rollout, now, reason)


def _undo_further(rollout: Rollout, plan: Plan, nodes: Sequence[Standing], now: int) -> Step:
    """The last to have had their turn go back first, as many at a time as may change at once."""
    out = [n for n in nodes if not _has_turn(rollout, n)]
    if any(n.reachable and n.may and n.state in ("new", "updating") for n in out):
        return Step(rollout)
    within = sorted((n for n in nodes if _has_turn(rollout, n)), key=lambda n: n.order)
    if not within:
        return Step(msgspec.structs.replace(rollout, phase="undone", since=now, reach=0, back=WHOLE))
    last = within[-plan.concurrency :] if plan.concurrency is not None else within
    return Step(msgspec.structs.replace(rollout, back=0 if len(last) == len(within) else last[0].order), now)


def paused(rollout: Rollout, now: int, reason: Reason) -> Rollout:
    """Nothing changes any more, in either direction, until somebody says so."""
    if rollout.is_over or rollout.phase == "paused":
        return rollout
    return msgspec.structs.replace(rollout, phase="paused", resumes=rollout.phase, since=now, reason=reason)


def resumed(rollout: Rollout, now: int) -> Rollout:
    """Goes on where it was paused; what was measured meanwhile counts, and a deadline begins anew."""
    if rollout.phase != "paused":
        return rollout
    return msgspec.structs.replace(rollout, phase=rollout.resumes, since=now, wave_since=now, reason=None)


def undoing(rollout: Rollout, now: int, reason: Reason) -> Rollout:
    """Every node gets back what it had, the last to have changed first."""
    if rollout.phase in ("undoing", "undone"):
        return rollout
    return msgspec.structs.replace(rollout, phase="undoing", since=now, reason=reason)


def aborted(rollout: Rollout, now: int, reason: Reason) -> Rollout:
    """No further node gets it; those that have it keep it."""
    if rollout.is_over:
        return rollout
    return msgspec.structs.replace(rollout, phase="aborted", since=now, reason=reason)


def retried(rollout: Rollout, now: int) -> Rollout:
    """As if nobody had refused it: from the beginning when it was undone, from where it stands when it was not."""
    tries = rollout.tries + 1
    if rollout.phase in ("undoing", "undone"):
        return msgspec.structs.replace(begin(rollout.app, rollout.revision, rollout.previous, now), tries=tries)
    return msgspec.structs.replace(
        rollout, phase="done" if rollout.phase == "done" else "rolling", since=now, wave_since=now, turned_down={},
        stopped=(), reason=None, seen=(), turns=((rollout.reach, now),), tries=tries,
    )  # fmt: skip


def approved(rollout: Rollout) -> Rollout:
    """The next wave may begin when this one is through."""
    return msgspec.structs.replace(rollout, approved=rollout.wave + 1)


def _turned_down_everywhere(rollout: Rollout, nodes: Sequence[Standing]) -> Reason:
    first = next((n for n in nodes if n.state == "down" and n.detail), None)
    count = len(rollout.turned_down)
    detail = f"{count} node{'s' if count != 1 else ''}, and none that can be reached has taken it"
    if first is not None:
        detail = f"{first.node}: {first.detail}; {detail}"
    return Reason(code="release_turned_down", subject=f"application/{rollout.application}", detail=detail)


def _gate_broken(rollout: Rollout, judged: Judged) -> Reason:
    figures = ", ".join(f"{name} is {v.seen:.4g} ({v.low:.4g} to {v.high:.4g})" for name, v in judged.values.items())
    subject = f"application/{rollout.application}"
    return Reason(code="gate_broken", subject=subject, detail=f"{judged.gate}: {figures}")


def _seen(judged: Judged) -> Seen:
    values = {name: (v.low, v.seen, v.high) for name, v in judged.values.items()}
    return Seen(gate=judged.gate, verdict=judged.verdict, values=values, missing=judged.missing)
