"""The node's half: an assignment and what is there become actions. It needs no hub, only the ledger.

`step` looks at state, never at messages: what should run (the Assignment), what the runtimes say is there (one Local
per instance), which artifacts are held, and when the hub last answered. It returns Actions, values that the actuator
performs; what comes of them is folded in by `heard` as an Event. Which of a new instance and its fallback runs is
`core.probation`'s to say. Running `step` again before anything happened plans nothing new.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

import msgspec

from batuta.core import probation
from batuta.core.deeds import (
    ALIVE,
    Action,
    Event,
    Failed,
    Fetch,
    Fetched,
    Gone,
    Local,
    Prove,
    Proved,
    Ready,
    Start,
    Started,
    Stop,
    StopCause,
    Unready,
    because,
    into,
    shifted,
)
from batuta.core.hearing import BACKOFF_FIRST_MS, BACKOFF_LONGEST_MS, backoff_ms, heard
from batuta.core.lease import holds_lease
from batuta.core.observed import InstanceReport
from batuta.core.probation import Fallen, is_watched, remembered, same_content
from batuta.core.proving import Bench, Proven, proof_key

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from batuta.core.decided import Assignment, Instance
    from batuta.core.observed import Measures
    from batuta.core.reasons import Reason

__all__ = [
    "BACKOFF_FIRST_MS", "BACKOFF_LONGEST_MS", "FORGIVEN_AFTER_MS", "NO_BENCH", "STOP_AGAIN_AFTER_MS", "Action", "Event",
    "Failed", "Fallen", "Fetch", "Fetched", "Gone", "Local", "Plan", "Prove", "Proved", "Ready", "Start", "Started",
    "Stop", "StopCause", "Unready", "backoff_ms", "heard", "is_watched", "locals_for_report", "remembered", "shifted",
    "step",
]  # fmt: skip

NO_BENCH = Bench()
FORGIVEN_AFTER_MS = 60_000
"""So long ready, and earlier failures in a row are forgotten."""
STOP_AGAIN_AFTER_MS = 60_000
"""A Stop unanswered for so long is asked again: the runtime's stop is idempotent, and nothing may hang for ever."""


class Plan(NamedTuple):
    """What to do now, what is then known, and when to look again if nothing happens."""

    actions: tuple[Action, ...]
    locals: Mapping[str, Local]
    """By instance name; those whose Stop was answered and that nobody wants any more are dropped."""
    wake_at: int | None


def step(
    assignment: Assignment | None,
    locals: Mapping[str, Local],  # noqa: A002  the word of the glossary
    held: frozenset[str],
    now: int,
    contact_at: int | None,
    *,
    proven: Mapping[str, Proven] | None = None,
    bench: Bench = NO_BENCH,
    fallen: Mapping[str, Fallen] | None = None,
) -> Plan:
    """What this node does next. `held`: digests of verified artifacts. `contact_at`: when the last heartbeat that the
    hub answered was sent. `proven`: what was proved on this `bench`, by key; where there is none, nothing is proved.
    `fallen`: what was turned down in favour of a fallback, by key.

    `now` and `contact_at` must come from one clock that does not step while the node agent runs: leases subtract them.
    Without an assignment nothing is known to be wrong, so nothing is touched.
    """
    if assignment is None:
        return Plan((), locals, None)
    known = _Known(held, proven or {}, bench, fallen or {})
    orders = _wanted(assignment)
    here = {name: _reconciled(locals.get(name), order, now, known) for name, order in orders.items()}
    wanted = {**_fallbacks(here, known), **orders}
    after: dict[str, Local] = {}
    stops: list[Action] = []
    for name in sorted(locals.keys() | wanted.keys()):
        kept = here[name] if name in here else _reconciled(locals.get(name), wanted.get(name), now, known)
        if kept is None:
            continue
        why = _why_stop(kept, wanted, now, contact_at)
        if why is not None:
            stops.append(Stop(name, why))
            kept = _stopping(kept, why, now)
        after[name] = kept

    fetches: list[Action] = []
    proofs: list[Action] = []
    starts: list[Action] = []
    is_proving = any(local.phase == "proving" for local in after.values())
    for name, local in after.items():
        if local.phase not in ("waiting", "backoff") or name not in wanted:
            continue
        occupied = any(_is_in_the_way(other, local, wanted) for other in after.values())
        moved = _onwards(local, occupied, is_proving, now, contact_at, known)
        after[name] = moved
        if moved.phase == "fetching":
            fetches.append(Fetch(name, tuple(d for d in moved.instance.artifacts if d not in held)))
        elif moved.phase == "proving":
            is_proving = True
            proofs.append(Prove(name, moved.instance, proof_key(moved.instance, bench)))
        elif moved.phase == "starting":
            starts.append(Start(name, moved.instance))
    after = {name: probation.marked(local, bench) for name, local in after.items()}
    instants = [at for local in after.values() for at in _instants(local, now, contact_at)]
    return Plan((*stops, *fetches, *proofs, *starts), after, min(instants, default=None))


class _Known(NamedTuple):
    """What this node knows of what it may run."""

    held: frozenset[str]
    proven: Mapping[str, Proven]
    bench: Bench
    fallen: Mapping[str, Fallen]


def _wanted(assignment: Assignment) -> dict[str, Instance]:
    """By name: what should run here. Of a never-twice slot only the newest placement, whatever else is assigned."""
    newest: dict[tuple[str, str, str], Instance] = {}
    wanted: dict[str, Instance] = {}
    for instance in sorted(assignment.instances, key=lambda i: (i.epoch, i.revision)):
        wanted[instance.name] = instance
        if instance.lease_ms is not None:
            older = newest.get(_slot(instance))
            if older is not None and older.name != instance.name:
                wanted.pop(older.name, None)
            newest[_slot(instance)] = instance
    for instance in tuple(wanted.values()):
        if instance.newcomer is not None:
            wanted.setdefault(instance.newcomer.name, instance.newcomer)
    return wanted


def _fallbacks(here: Mapping[str, Local | None], known: _Known) -> dict[str, Instance]:
    """By name: what runs, or goes on running, in the place of something that is ordered."""
    found = (probation.standing_in(local, *known) for local in here.values() if local is not None)
    return {fallback.name: fallback for fallback in found if fallback is not None}


def _reconciled(local: Local | None, wanted: Instance | None, now: int, known: _Known) -> Local | None:
    """The Local under its present order, before any action: new, relabelled, begun afresh, or None when forgotten."""
    if local is None:
        return None if wanted is None else Local(instance=wanted, since=now)
    if local.since > now or (local.first_ready_at or 0) > now:
        # The clock was set back between two runs of the node agent: what began in the future began now.
        first_ready_at = min(local.first_ready_at, now) if local.first_ready_at is not None else None
        local = msgspec.structs.replace(local, since=min(local.since, now), first_ready_at=first_ready_at)
    at_rest = local.phase not in ALIVE and local.phase != "stopping"
    if wanted is None:
        return None if at_rest else local
    is_same = same_content(local.instance, wanted)
    is_placed_anew = local.phase == "refused" and local.instance.epoch != wanted.epoch
    if at_rest and (not is_same or is_placed_anew):
        return Local(instance=wanted, since=now)
    if is_same and local.instance != wanted:
        # Another epoch of what runs here already: one copy is one copy, so it keeps running under the new number.
        local = msgspec.structs.replace(local, instance=wanted)
    if is_same and probation.is_tried_anew(local, known.proven, known.bench):
        return Local(instance=wanted, since=now)
    return _forgiven(local, now) if is_same else local


def _forgiven(local: Local, now: int) -> Local:
    if local.phase == "ready" and local.failures and now - local.since >= FORGIVEN_AFTER_MS:
        return msgspec.structs.replace(local, failures=0)
    return local


def _why_stop(local: Local, wanted: Mapping[str, Instance], now: int, contact_at: int | None) -> StopCause | None:
    """Rows in order: the first that holds is the cause."""
    order = wanted.get(local.instance.name)
    if local.phase == "stopping":
        if now - local.since < STOP_AGAIN_AFTER_MS:
            return None
        match local.reason and local.reason.code:
            case None:
                return "unassigned" if order is None else "changed"
            case "lease_lapsed" | "probation_failed" as why:
                return why
            case _:
                return "not_live"
    if local.phase not in ALIVE:
        return None
    if order is None:
        return "replaced" if any(_slot(i) == _slot(local.instance) for i in wanted.values()) else "unassigned"
    if not same_content(local.instance, order):
        return "changed"
    if not holds_lease(local.instance, now, contact_at):
        return "lease_lapsed"
    if local.phase == "unready" and local.reason is not None and local.reason.code == "not_live":
        return "not_live"
    overdue_at = probation.overdue_at(local)
    return "probation_failed" if overdue_at is not None and now >= overdue_at else None


def _stopping(local: Local, why: StopCause, now: int) -> Local:
    """What is stopped remembers why, when its end is to leave a record behind (see `heard`)."""
    if local.phase == "stopping" or why == "not_live":
        reason = local.reason
    elif why == "probation_failed":
        local = probation.overdue(local, now)
        reason = local.reason
    else:
        reason = because(local, "lease_lapsed") if why == "lease_lapsed" else None
    return msgspec.structs.replace(local, phase="stopping", since=now, reason=reason)


def _onwards(  # noqa: PLR0917
    local: Local, occupied: bool, is_proving: bool, now: int, contact_at: int | None, known: _Known
) -> Local:
    """One that is wanted and at rest. Rows in order: never again, back off, fetch, prove, make room, hold a lease,
    start."""
    instance = local.instance
    if (fell := probation.fell_before(instance, known.bench, known.fallen)) is not None:
        return _refused(local, now, probation.again(fell), fell.key)
    if local.phase == "backoff" and local.retry_at is not None and now < local.retry_at <= now + BACKOFF_LONGEST_MS:
        return local
    if any(digest not in known.held for digest in instance.artifacts):
        return into(local, "fetching", now, because(local, "fetching"))
    key = proof_key(instance, known.bench)
    proof = known.proven.get(key)
    if key and proof is None:
        return into(local, "waiting" if is_proving else "proving", now, because(local, "proving"))
    if proof is not None and proof.reason is not None:
        return _refused(local, now, proof.reason, key)
    if occupied:
        return into(local, "waiting", now, because(local, "making_room"))
    if not holds_lease(instance, now, contact_at):
        return into(local, "waiting", now, because(local, "lease_lapsed"))
    return into(local, "starting", now, because(local, "starting"))


def _refused(local: Local, now: int, reason: Reason, key: str) -> Local:
    """For what is remembered under `key`."""
    reason = msgspec.structs.replace(reason, subject=f"instance/{local.instance.name}")
    return msgspec.structs.replace(into(local, "refused", now, reason), proof_key=key)


def _is_in_the_way(other: Local, local: Local, wanted: Mapping[str, Instance]) -> bool:
    """Another revision of the same slot is on its way out: the hub said both do not fit, so it ends first."""
    if _slot(other.instance) != _slot(local.instance) or other.instance.name == local.instance.name:
        return False
    if other.instance.beside is not None or local.instance.beside is not None:
        return False  # for those there is room beside each other
    return other.phase == "stopping" or (other.phase in ALIVE and other.instance.name not in wanted)


def _instants(local: Local, now: int, contact_at: int | None) -> Iterator[int]:
    """When this Local changes by the mere passing of time; all of them lie ahead."""
    if local.phase == "backoff" and local.retry_at is not None:
        yield local.retry_at
    if local.phase == "stopping":
        yield local.since + STOP_AGAIN_AFTER_MS
    if local.phase == "ready" and local.failures:
        yield local.since + FORGIVEN_AFTER_MS
    if (overdue_at := probation.overdue_at(local)) is not None:
        yield overdue_at
    lease_ms = local.instance.lease_ms
    if lease_ms is not None and contact_at is not None and local.phase in ALIVE and contact_at <= now:
        yield contact_at + lease_ms + 1


def locals_for_report(
    locals: Mapping[str, Local],  # noqa: A002
    measures: Mapping[str, Measures],
    locked: frozenset[str] = frozenset(),
) -> tuple[InstanceReport, ...]:
    """What the hub is told of every instance, sorted by name."""
    return tuple(
        InstanceReport(
            name=name,
            epoch=local.instance.epoch,
            phase=local.phase,
            since=local.since,
            starts=local.starts,
            ready_after_ms=local.ready_after_ms,
            reason=local.reason,
            measures=_measured(local, measures.get(name)),
            locked=name in locked and local.phase in ALIVE,
        )
        for name, local in sorted(locals.items())
    )


def _measured(local: Local, measures: Measures | None) -> Measures | None:
    """With how often it was started again, which its runtime does not know."""
    if measures is None or measures.sample is None:
        return measures
    sample = msgspec.structs.replace(measures.sample, restarts=max(0, local.starts - 1))
    return msgspec.structs.replace(measures, sample=sample)


def _slot(instance: Instance) -> tuple[str, str, str]:
    return (instance.app, instance.component, instance.slot)
