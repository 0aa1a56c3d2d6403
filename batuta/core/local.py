"""The node's half: an assignment and what is there become actions. It needs no hub, only the ledger.

`step` looks at state, never at messages: what should run (the Assignment), what the runtimes say is there (one Local
per instance), which artifacts are held, and when the hub last answered. It returns Actions, values that the actuator
performs; what comes of them is folded in by `heard` as an Event. Backoff is state, not a sleep. Running `step` again
before anything happened plans nothing new.
"""

from __future__ import annotations

import zlib
from typing import TYPE_CHECKING, Literal, NamedTuple

import msgspec

from batuta.core.decided import Assignment, Instance
from batuta.core.lease import holds_lease
from batuta.core.observed import InstanceReport, Phase
from batuta.core.proving import Bench, Proven, proof_key
from batuta.core.reasons import Reason
from batuta.kinds.base import Record

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from batuta.core.observed import Measures

NO_BENCH = Bench()


class Local(Record):
    """One instance on this node: the order it follows and how far it has come. The ledger keeps it."""

    instance: Instance
    phase: Phase = "waiting"
    since: int = 0
    """Instant at which the phase began."""
    starts: int = 0
    failures: int = 0
    """Failures in a row; a minute of readiness forgives them."""
    retry_at: int | None = None
    """In `backoff`: when to try again."""
    ready_after_ms: int | None = None
    """How long its last start took until it was ready."""
    reason: Reason | None = None
    proof_key: str = ""
    """In `refused`: what was proved of its model, when that is why."""
    handle: dict[str, int | str] = {}
    """What the runtime needs to find it again after the node agent restarted: process id, its start time, …"""


# --- What the node may do -------------------------------------------------------------------------------------------


class Fetch(NamedTuple):
    """Get these artifacts, verified, from wherever they are."""

    name: str
    digests: tuple[str, ...]


class Prove(NamedTuple):
    """Let this instance's model replay its golden inputs and be measured; answered by Proved or Failed. One at a time:
    two would measure each other."""

    name: str
    instance: Instance
    key: str


class Start(NamedTuple):
    """Start this instance; answered by Started or Failed, then by Ready."""

    name: str
    instance: Instance


StopCause = Literal["unassigned", "replaced", "lease_lapsed", "not_live", "changed"]


class Stop(NamedTuple):
    """Stop what is called so, politely for `core.lease.grace_ms` and then not; answered by Gone.

    A Stop while one is under way is the same Stop and gets one answer.
    """

    name: str
    why: StopCause


Action = Fetch | Prove | Start | Stop


# --- What may be heard ----------------------------------------------------------------------------------------------


class Fetched(NamedTuple):
    name: str


class Proved(NamedTuple):
    """Its model was tried; what came of it is remembered under its key."""

    name: str
    proven: Proven


class Started(NamedTuple):
    """It runs; not yet ready. `adopted` when it ran already and was found again."""

    name: str
    handle: Mapping[str, int | str]
    adopted: bool = False


class Ready(NamedTuple):
    name: str


class Unready(NamedTuple):
    name: str
    reason: Reason


class Failed(NamedTuple):
    """A fetch, a start or a run came to nothing. `final`: the same order would fail in the same way."""

    name: str
    reason: Reason
    final: bool = False


class Gone(NamedTuple):
    """It was stopped as asked, or was not there."""

    name: str


Event = Fetched | Proved | Started | Ready | Unready | Failed | Gone


class Plan(NamedTuple):
    """What to do now, what is then known, and when to look again if nothing happens."""

    actions: tuple[Action, ...]
    locals: Mapping[str, Local]
    """By instance name; those whose Stop was answered and that nobody wants any more are dropped."""
    wake_at: int | None


# --- Deciding --------------------------------------------------------------------------------------------------------

BACKOFF_FIRST_MS = 1_000
BACKOFF_LONGEST_MS = 300_000
FORGIVEN_AFTER_MS = 60_000
"""So long ready, and earlier failures in a row are forgotten."""
STOP_AGAIN_AFTER_MS = 60_000
"""A Stop unanswered for so long is asked again: the runtime's stop is idempotent, and nothing may hang for ever."""

_ALIVE = ("starting", "ready", "unready")
"""Phases in which something runs, or may at any moment."""


def step(
    assignment: Assignment | None,
    locals: Mapping[str, Local],  # noqa: A002  the word of the glossary
    held: frozenset[str],
    now: int,
    contact_at: int | None,
    *,
    proven: Mapping[str, Proven] | None = None,
    bench: Bench = NO_BENCH,
) -> Plan:
    """What this node does next. `held`: digests of verified artifacts. `contact_at`: when the last heartbeat that the
    hub answered was sent. `proven`: what was proved on this `bench`, by key; where there is none, nothing is proved.

    `now` and `contact_at` must come from one clock that does not step while the node agent runs: leases subtract them.
    Without an assignment nothing is known to be wrong, so nothing is touched.
    """
    if assignment is None:
        return Plan((), locals, None)
    wanted, proven = _wanted(assignment), proven or {}
    after: dict[str, Local] = {}
    stops: list[Action] = []
    for name in sorted(locals.keys() | wanted.keys()):
        kept = _reconciled(locals.get(name), wanted.get(name), now)
        if kept is None:
            continue
        if _may_be_tried_anew(kept, proven, bench):
            kept = Local(instance=kept.instance, since=now)
        why = _why_stop(kept, wanted, now, contact_at)
        if why is not None:
            stops.append(Stop(name, why))
            kept = msgspec.structs.replace(kept, phase="stopping", since=now, reason=_reason_of_stop(kept, why))
        after[name] = kept

    fetches: list[Action] = []
    proofs: list[Action] = []
    starts: list[Action] = []
    is_proving = any(local.phase == "proving" for local in after.values())
    for name, local in after.items():
        if local.phase not in ("waiting", "backoff") or name not in wanted:
            continue
        occupied = any(_is_in_the_way(other, local, wanted) for other in after.values())
        key = proof_key(local.instance, bench)
        verdict = _Verdict(key, proven.get(key), is_proving)
        after[name] = moved = _onwards(local, occupied, held, now, contact_at, verdict)
        if moved.phase == "fetching":
            fetches.append(Fetch(name, tuple(d for d in moved.instance.artifacts if d not in held)))
        elif moved.phase == "proving":
            is_proving = True
            proofs.append(Prove(name, moved.instance, key))
        elif moved.phase == "starting":
            starts.append(Start(name, moved.instance))
    instants = [at for local in after.values() for at in _instants(local, now, contact_at)]
    return Plan((*stops, *fetches, *proofs, *starts), after, min(instants, default=None))


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
    return wanted


def _reconciled(local: Local | None, wanted: Instance | None, now: int) -> Local | None:
    """The Local under its present order, before any action: new, relabelled, begun afresh, or None when forgotten."""
    if local is None:
        return None if wanted is None else Local(instance=wanted, since=now)
    if local.since > now:
        # The clock was set back between two runs of the node agent: what began in the future began now.
        local = msgspec.structs.replace(local, since=now)
    at_rest = local.phase not in _ALIVE and local.phase != "stopping"
    if wanted is None:
        return None if at_rest else local
    if local.instance == wanted:
        return _forgiven(local, now)
    if at_rest and (not _same_content(local.instance, wanted) or local.phase == "refused"):
        return Local(instance=wanted, since=now)
    if _same_content(local.instance, wanted):
        # Another epoch of what runs here already: one copy is one copy, so it keeps running under the new number.
        return _forgiven(msgspec.structs.replace(local, instance=wanted), now)
    return local


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
        if local.reason is not None:
            return "lease_lapsed" if local.reason.code == "lease_lapsed" else "not_live"
        return "unassigned" if order is None else "changed"
    if local.phase not in _ALIVE:
        return None
    if order is None:
        return "replaced" if any(_slot(i) == _slot(local.instance) for i in wanted.values()) else "unassigned"
    if not _same_content(local.instance, order):
        return "changed"
    if not holds_lease(local.instance, now, contact_at):
        return "lease_lapsed"
    if local.phase == "unready" and local.reason is not None and local.reason.code == "not_live":
        return "not_live"
    return None


def _reason_of_stop(local: Local, why: StopCause) -> Reason | None:
    """What a stopping Local remembers: whether Gone leaves a record behind (see `heard`)."""
    if local.phase == "stopping" or why == "not_live":
        return local.reason
    return _because(local, "lease_lapsed") if why == "lease_lapsed" else None


class _Verdict(NamedTuple):
    """What must be proved of an instance, what came of it if it was, and whether something else is being proved."""

    key: str
    proven: Proven | None
    is_busy: bool


def _may_be_tried_anew(local: Local, proven: Mapping[str, Proven], bench: Bench) -> bool:
    """It was refused for what it proved to be, and nobody knows what it is now: the runtime is another one."""
    if local.phase != "refused" or not local.proof_key:
        return False
    return proof_key(local.instance, bench) not in proven


def _onwards(  # noqa: PLR0917
    local: Local, occupied: bool, held: frozenset[str], now: int, contact_at: int | None, verdict: _Verdict
) -> Local:
    """One that is wanted and at rest. Rows in order: back off, fetch, prove, make room, hold a lease, start."""
    if local.phase == "backoff" and local.retry_at is not None and now < local.retry_at <= now + BACKOFF_LONGEST_MS:
        return local
    if any(digest not in held for digest in local.instance.artifacts):
        return _into(local, "fetching", now, _because(local, "fetching"))
    if verdict.key and verdict.proven is None:
        return _into(local, "waiting" if verdict.is_busy else "proving", now, _because(local, "proving"))
    if verdict.proven is not None and verdict.proven.reason is not None:
        reason = msgspec.structs.replace(verdict.proven.reason, subject=f"instance/{local.instance.name}")
        return msgspec.structs.replace(_into(local, "refused", now, reason), proof_key=verdict.key)
    if occupied:
        return _into(local, "waiting", now, _because(local, "making_room"))
    if not holds_lease(local.instance, now, contact_at):
        return _into(local, "waiting", now, _because(local, "lease_lapsed"))
    return _into(local, "starting", now, _because(local, "starting"))


def _is_in_the_way(other: Local, local: Local, wanted: Mapping[str, Instance]) -> bool:
    """Another revision of the same slot is on its way out: the hub said both do not fit, so it ends first."""
    if _slot(other.instance) != _slot(local.instance) or other.instance.name == local.instance.name:
        return False
    return other.phase == "stopping" or (other.phase in _ALIVE and other.instance.name not in wanted)


def _into(local: Local, phase: Phase, now: int, reason: Reason | None) -> Local:
    since = local.since if local.phase == phase else now
    return msgspec.structs.replace(local, phase=phase, since=since, reason=reason, retry_at=None)


def _instants(local: Local, now: int, contact_at: int | None) -> Iterator[int]:
    """When this Local changes by the mere passing of time; all of them lie ahead."""
    if local.phase == "backoff" and local.retry_at is not None:
        yield local.retry_at
    if local.phase == "stopping":
        yield local.since + STOP_AGAIN_AFTER_MS
    if local.phase == "ready" and local.failures:
        yield local.since + FORGIVEN_AFTER_MS
    lease_ms = local.instance.lease_ms
    if lease_ms is not None and contact_at is not None and local.phase in _ALIVE and contact_at <= now:
        yield contact_at + lease_ms + 1


# --- Hearing ---------------------------------------------------------------------------------------------------------


def heard(local: Local, event: Event, now: int) -> Local | None:
    """The Local after what the actuator or a runtime said; None when nothing of it is left to remember.

    When the node agent starts, it asks the runtimes about every Local of its ledger before the first `step`: found
    again is `Started(adopted=True)`; not there, or never certain to have begun (no handle), is `Gone` once it is sure.
    """
    match event:
        case Fetched():
            return _into(local, "waiting", now, None) if local.phase == "fetching" else local
        case Proved():
            return _into(local, "waiting", now, None) if local.phase == "proving" else local
        case Started(handle=handle, adopted=adopted):
            return _started(local, dict(handle), adopted, now)
        case Ready():
            return _ready(local, now)
        case Unready(reason=reason):
            if local.phase == "starting" and reason.code != "not_live":
                return msgspec.structs.replace(local, reason=reason)
            return _into(local, "unready", now, reason) if local.phase in _ALIVE else local
        case Failed(reason=reason, final=final):
            if local.phase == "stopping":
                # The Stop is still to be answered; until then the slot counts as occupied.
                return msgspec.structs.replace(local, handle={})
            return _failed(local, reason, final, now) if local.phase in (*_ALIVE, "fetching", "proving") else local
        case Gone():
            return _gone(local, now)


def _started(local: Local, handle: dict[str, int | str], adopted: bool, now: int) -> Local:
    found = msgspec.structs.replace(local, handle=handle, starts=local.starts + (not adopted))
    if local.phase == "stopping" and not adopted:
        return found  # Its Stop waits behind this start.
    if adopted and local.phase in ("ready", "unready"):
        return found  # The next inspection corrects it; until then a restarted node agent is no news.
    return _into(found, "starting", now, _because(local, "starting"))


def _ready(local: Local, now: int) -> Local:
    if local.phase not in ("starting", "unready"):
        return local
    took_ms = max(0, now - local.since) if local.phase == "starting" else local.ready_after_ms
    return msgspec.structs.replace(_into(local, "ready", now, None), ready_after_ms=took_ms)


def _gone(local: Local, now: int) -> Local | None:
    rest = msgspec.structs.replace(local, handle={})
    if local.phase == "stopping":
        if local.reason is None:
            return None  # Its order was withdrawn; if it is wanted again, it begins afresh.
        if local.reason.code != "lease_lapsed":
            return _failed(rest, local.reason, False, now)
        return _into(rest, "waiting", now, local.reason)
    return _into(rest, "waiting", now, None) if local.phase in (*_ALIVE, "fetching", "proving") else rest


def _failed(local: Local, reason: Reason, final: bool, now: int) -> Local:
    failures = local.failures + 1
    rest = msgspec.structs.replace(local, failures=failures, handle={}, retry_at=None, reason=reason, since=now)
    if final:
        return msgspec.structs.replace(rest, phase="refused")
    return msgspec.structs.replace(rest, phase="backoff", retry_at=now + backoff_ms(local.instance.name, failures))


def backoff_ms(name: str, failures: int) -> int:
    """One second doubled with every failure, five minutes at most, less up to a fifth so that a fleet does not retry
    as one."""
    full = min(BACKOFF_FIRST_MS << min(failures - 1, 20), BACKOFF_LONGEST_MS)
    return full - full * (zlib.crc32(f"{name}/{failures}".encode()) % 200) // 1000


# --- Reporting -------------------------------------------------------------------------------------------------------


def locals_for_report(
    locals: Mapping[str, Local],  # noqa: A002
    measures: Mapping[str, Measures],
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
            measures=measures.get(name),
        )
        for name, local in sorted(locals.items())
    )


def _same_content(one: Instance, other: Instance) -> bool:
    """Equal but for the epoch: then whatever runs for one serves the other."""
    return one == other or msgspec.structs.replace(one, epoch=other.epoch) == other


def _slot(instance: Instance) -> tuple[str, str, str]:
    return (instance.app, instance.component, instance.slot)


def _because(local: Local, code: str) -> Reason:
    return Reason(code=code, subject=f"instance/{local.instance.name}")
