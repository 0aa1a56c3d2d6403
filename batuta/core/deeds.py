"""What a node keeps of an instance, what it may do about it, and what it may hear: values, and nothing else.

A Local is written into the ledger; an Action is performed by the actuator; an Event is what came of it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final, Literal, NamedTuple

import msgspec

from batuta.core.decided import Instance
from batuta.core.observed import Phase
from batuta.core.proving import Proven
from batuta.core.reasons import Reason
from batuta.kinds.base import Record

if TYPE_CHECKING:
    from collections.abc import Mapping


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
    """In `refused`: the key under which it is remembered why, of a proof or of a fall (`core.probation`)."""
    first_ready_at: int | None = None
    """When it was first ready under this order: its probation counts from there."""
    runs_failed: int = 0
    """Runs under this order that came to nothing; what could not be fetched is not its fault, and not counted."""
    first_error: Reason | None = None
    """What was wrong with the first of them."""
    handle: dict[str, int | str] = {}
    """What the runtime needs to find it again after the node agent restarted: process id, its start time, …"""


ALIVE: Final = ("starting", "ready", "unready")
"""Phases in which something runs, or may at any moment."""


def because(local: Local, code: str, detail: str = "") -> Reason:
    return Reason(code=code, subject=f"instance/{local.instance.name}", detail=detail)


def into(local: Local, phase: Phase, now: int, reason: Reason | None) -> Local:
    since = local.since if local.phase == phase else now
    return msgspec.structs.replace(local, phase=phase, since=since, reason=reason, retry_at=None)


def shifted(local: Local, by_ms: int) -> Local:
    """The same with its instants in a clock that is set to another time."""
    return msgspec.structs.replace(
        local,
        since=local.since + by_ms,
        retry_at=local.retry_at + by_ms if local.retry_at is not None else None,
        first_ready_at=local.first_ready_at + by_ms if local.first_ready_at is not None else None,
    )


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


StopCause = Literal["unassigned", "replaced", "lease_lapsed", "not_live", "changed", "probation_failed"]


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
