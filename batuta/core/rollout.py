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
    through           next wave, or done

Failing means undoing, in the reverse order, or pausing: `onFailure` says which. A release that was undone is not tried
again until somebody asks. Pure: instants, what nodes said, and what the gates say are arguments.
"""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING, Final, Literal, NamedTuple

import msgspec

from batuta.core.gates import Judged, Verdict
from batuta.core.reasons import Reason
from batuta.core.sample import Sample
from batuta.kinds.base import Record
from batuta.kinds.waves import EVERYTHING, Wave

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence

Phase = Literal["rolling", "soaking", "paused", "undoing", "done", "undone", "aborted"]
Failing = Literal["undo", "pause"]

WHOLE: Final = 1 << 32
"""Orders are below this; a reach of it lets everybody have the release."""
REFUSALS: Final = 3
"""So many nodes of one class of hardware turn a release down before the class does."""
LOOK_MS: Final = 2_000
"""How often gates are asked while a wave soaks."""


class Plan(NamedTuple):
    """How a release arrives, as people wrote it."""

    waves: tuple[Wave, ...] = (EVERYTHING,)
    soak_ms: int = 0
    gates: tuple[str, ...] = ()
    on_failure: Failing = "undo"
    concurrency: int | None = None
    """So many nodes are in the middle of the change at one time; None for all of a wave."""
    wave_deadline_ms: int | None = None
    """A wave that is not through by then pauses the rollout."""
    approvals: bool = False
    """Somebody must agree before every wave but the first."""


class Seen(Record):
    """A gate as it was last asked, for people."""

    gate: str
    verdict: Verdict
    values: dict[str, tuple[float, float, float]] = {}
    """By measurement: the least it may be, what was seen, the most it may be."""
    missing: tuple[str, ...] = ()


class Rollout(Record):
    """Where the arrival of one release stands: kept with the decided, O(1) in the size of the fleet."""

    namespace: str
    application: str
    revision: int
    previous: int
    """The last release that is trusted: what is undone goes back to it."""
    phase: Phase
    began_at: int
    since: int
    """Instant at which this phase of this wave began."""
    wave: int = 0
    wave_since: int = 0
    reach: int = 0
    """Whose order is below has its turn."""
    tolerated: tuple[int, ...] = ()
    """Releases of rollouts that this one superseded: who has one keeps it until its turn comes."""
    approved: int = 0
    """Waves after the first that somebody agreed to."""
    turned_down: dict[str, str] = {}
    """Nodes that refused the release or failed with it: the class of their hardware."""
    stopped: tuple[str, ...] = ()
    """Classes of hardware that keep the old release."""
    before: Sample = Sample()
    """What the nodes that had their turn measured with the old release: a baseline."""
    seen: tuple[Seen, ...] = ()
    reason: Reason | None = None
    """Why it waits, is paused or was undone."""
    resumes: Phase = "rolling"
    """What a paused one goes on with."""


class Standing(NamedTuple):
    """One node that runs, or is to run, what changed."""

    node: str
    order: int
    hardware: str
    state: Literal["old", "updating", "new", "down"]
    """`down`: it refused the release, or fails with it."""
    reachable: bool = True
    may: bool = True
    """False while an update window, its owner, a lock or the kind of link keeps it from changing."""
    selected: int | None = None
    """The first wave that names it by its condition."""
    detail: str = ""
    """The first words of what is wrong with it."""


class Step(NamedTuple):
    rollout: Rollout
    look_at: int | None = None
    """When to look again if nothing happens."""


def order_of(app: str, revision: int, node: str) -> int:
    """A node's place among all for one release: other nodes are first each time."""
    return int.from_bytes(hashlib.blake2b(f"{app} {revision} {node}".encode(), digest_size=4).digest())


def may_have(rollout: Rollout, order: int, hardware: str, selected: int | None = None) -> bool:
    """Is the new release for this node, now?"""
    if hardware in rollout.stopped:
        return False
    if rollout.phase == "done":
        return True
    if rollout.phase == "undone" or (rollout.phase == "undoing" and rollout.reach == 0):
        return False
    return order < rollout.reach or (selected is not None and selected <= rollout.wave and rollout.reach > 0)


def begin(app: str, revision: int, previous: int, now: int, superseded: Rollout | None = None) -> Rollout:
    """The rollout of a new release. The one that it supersedes ends; its nodes keep what they have until their turn."""
    namespace, application = app.split("/")
    tolerated: tuple[int, ...] = ()
    if superseded is not None and superseded.phase not in ("done", "undone"):
        previous = superseded.previous
        tolerated = (*superseded.tolerated, superseded.revision)[-4:]
    return Rollout(
        namespace=namespace, application=application, revision=revision, previous=previous, phase="rolling",
        began_at=now, since=now, wave_since=now, tolerated=tolerated,
    )  # fmt: skip


def advance(
    rollout: Rollout, plan: Plan, nodes: Sequence[Standing], now: int, ask: Callable[[Rollout], Sequence[Judged]]
) -> Step:
    """The next state. `ask` judges the gates on what was measured so far; it is only asked where it matters."""
    if rollout.phase in ("done", "undone", "aborted", "paused"):
        return Step(rollout)
    if rollout.phase == "undoing":
        return _undo_further(rollout, plan, nodes, now)
    rollout = _note_turned_down(rollout, nodes)
    fit = [n for n in nodes if n.hardware not in rollout.stopped]
    if rollout.turned_down and all(n.state == "down" for n in fit if n.reachable):
        return Step(_fail(rollout, plan, now, _turned_down_everywhere(rollout, nodes)))
    if plan.gates and _done(rollout, fit):
        judged = ask(rollout)
        rollout = msgspec.structs.replace(rollout, seen=tuple(_seen(j) for j in judged))
        if broken := next((j for j in judged if j.verdict == "broken"), None):
            return Step(_fail(rollout, plan, now, _gate_broken(rollout, broken)))
    moved = _give_turns(rollout, plan, fit, now)
    if moved is not None:
        late = _late(moved, plan, now)
        looks = [at for at in (_deadline(moved, plan), now + LOOK_MS if plan.gates else None) if at is not None]
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
    wave = wave_of(rollout, plan)
    open_to = [n for n in fit if n.state in ("old", "updating") and n.reachable and n.may]
    busy = [n for n in open_to if _has_turn(rollout, n)]
    waiting = sorted((n for n in open_to if not _has_turn(rollout, n)), key=lambda n: n.order)
    reach = rollout.reach
    if wave.where is not None:
        # Whom the condition names has its turn by that alone; the reach only has to be open.
        reach = max(reach, 1)
    else:
        missing = wave.target(len(fit)) - len(_done(rollout, fit)) - len(busy)
        if plan.concurrency is not None:
            missing = min(missing, plan.concurrency - len(busy))
        if turns := waiting[: max(0, missing)]:
            reach = turns[-1].order + 1
        elif not waiting and not busy and wave == plan.waves[-1]:
            reach = WHOLE  # whoever is left is away or kept from it, and follows when it can
    if busy or reach != rollout.reach or not (_done(rollout, fit) or not fit):
        return _rolling(msgspec.structs.replace(rollout, reach=reach), busy, now)
    return None


def _rolling(rollout: Rollout, busy: Sequence[Standing], now: int) -> Rollout:
    """Still, or again, under way."""
    reason = None
    if not busy and rollout.reach == 0:
        subject = f"application/{rollout.application}"
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
    over = rollout.since + plan.soak_ms
    subject = f"application/{rollout.application}"
    is_last = rollout.wave >= len(plan.waves) - 1
    if now < over:
        return Step(rollout, min(over, now + LOOK_MS) if plan.gates else over)
    if undecided := [s for s in rollout.seen if s.verdict != "held"]:
        detail = "; ".join(
            f"{s.gate}" + (f" (not measured: {', '.join(s.missing)})" if s.missing else "") for s in undecided
        )
        waiting = msgspec.structs.replace(rollout, reason=Reason(code="gate_undecided", subject=subject, detail=detail))
        late = _late(waiting, plan, now)
        return Step(late or waiting, now + LOOK_MS)
    if not is_last and plan.approvals and rollout.approved <= rollout.wave:
        detail = f"wave {rollout.wave + 1} of {len(plan.waves)} is through"
        reason = Reason(code="rollout_unapproved", subject=subject, detail=detail)
        return Step(msgspec.structs.replace(rollout, reason=reason))
    if is_last:
        return Step(msgspec.structs.replace(rollout, phase="done", since=now, reach=WHOLE, reason=None))
    # With the next wave begins a new look: what its nodes measure counts from now on.
    following = msgspec.structs.replace(
        rollout, phase="rolling", wave=rollout.wave + 1, since=now, wave_since=now, reason=None, seen=()
    )
    return Step(following, now)


def _late(rollout: Rollout, plan: Plan, now: int) -> Rollout | None:
    at = _deadline(rollout, plan)
    if at is None or now < at:
        return None
    detail = rollout.reason.detail if rollout.reason is not None else f"wave {rollout.wave + 1}"
    reason = Reason(code="wave_late", subject=f"application/{rollout.application}", detail=detail)
    return paused(rollout, now, reason)


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
        return Step(msgspec.structs.replace(rollout, phase="undone", since=now, reach=0))
    back = within[-plan.concurrency :] if plan.concurrency is not None else within
    return Step(msgspec.structs.replace(rollout, reach=0 if len(back) == len(within) else back[0].order), now)


def paused(rollout: Rollout, now: int, reason: Reason) -> Rollout:
    """Nothing changes any more, in either direction, until somebody says so."""
    return msgspec.structs.replace(rollout, phase="paused", resumes=rollout.phase, since=now, reason=reason)


def resumed(rollout: Rollout, now: int) -> Rollout:
    """Goes on where it was paused; what was measured meanwhile counts, and a deadline begins anew."""
    if rollout.phase != "paused":
        return rollout
    return msgspec.structs.replace(rollout, phase=rollout.resumes, since=now, wave_since=now, reason=None)


def undoing(rollout: Rollout, now: int, reason: Reason) -> Rollout:
    return msgspec.structs.replace(rollout, phase="undoing", since=now, reason=reason)


def aborted(rollout: Rollout, now: int, reason: Reason) -> Rollout:
    """No further node gets it; those that have it keep it."""
    return msgspec.structs.replace(rollout, phase="aborted", since=now, reason=reason)


def retried(rollout: Rollout, now: int) -> Rollout:
    """From the beginning, and as if nobody had refused it."""
    return begin(f"{rollout.namespace}/{rollout.application}", rollout.revision, rollout.previous, now)


def approved(rollout: Rollout) -> Rollout:
    """The next wave may begin when this one is through."""
    return msgspec.structs.replace(rollout, approved=rollout.wave + 1)


def _turned_down_everywhere(rollout: Rollout, nodes: Sequence[Standing]) -> Reason:
    first = next((n for n in nodes if n.state == "down" and n.detail), None)
    detail = f"{len(rollout.turned_down)} nodes, and none that can be reached has taken it"
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
