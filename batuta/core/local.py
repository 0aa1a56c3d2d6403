"""The node's half: an assignment and what is there become actions. It needs no hub, only the ledger.

`step` looks at state, never at messages: what should run (the Assignment), what the runtimes say is there (one Local per
instance), which artifacts are held, and when the hub last answered. It returns Actions, values that the actuator performs;
what comes of them is folded in by `heard` as an Event. Backoff is state, not a sleep. Running `step` again before anything
happened plans nothing new.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal, NamedTuple

from batuta.core.decided import Assignment, Instance
from batuta.core.observed import Phase
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
    reason: Reason | None = None
    handle: dict[str, int | str] = {}
    """What the runtime needs to find it again after the node agent restarted: process id, its start time, …"""


# --- What the node may do -------------------------------------------------------------------------------------------


class Fetch(NamedTuple):
    """Get these artifacts, verified, from wherever they are."""

    name: str
    digests: tuple[str, ...]


class Start(NamedTuple):
    """Start this instance; answered by Started or Failed, then by Ready."""

    name: str
    instance: Instance


class Stop(NamedTuple):
    """Stop what is called so, politely and then not; answered by Gone."""

    name: str
    why: Literal["unassigned", "replaced", "lease_lapsed", "not_live", "changed"]


Action = Fetch | Start | Stop


# --- What may be heard ----------------------------------------------------------------------------------------------


class Fetched(NamedTuple):
    name: str


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


Event = Fetched | Started | Ready | Unready | Failed | Gone


class Plan(NamedTuple):
    """What to do now, what is then known, and when to look again if nothing happens."""

    actions: tuple[Action, ...]
    locals: Mapping[str, Local]
    """By instance name; those whose Stop was answered and that nobody wants any more are dropped."""
    wake_at: int | None
