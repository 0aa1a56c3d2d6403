"""Runtime: the contract between the node agent and whatever runs an instance.

A runtime starts, finds again, watches and stops instances. It decides nothing: when to start or retry is
`core.local`'s.
Every tenant passes the one suite in `tests/contracts/test_runtime.py`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal, NamedTuple, Protocol, runtime_checkable

if TYPE_CHECKING:
    from collections.abc import Collection, Mapping
    from pathlib import Path

    from batuta.core.decided import Instance
    from batuta.core.observed import Measures

Handle = dict[str, "int | str"]
"""What finds an instance again after the node agent restarted; plain data, kept in the ledger."""


class Order(NamedTuple):
    """An instance and the place prepared for it on this node."""

    instance: Instance
    directory: Path
    """Its own directory: working files, and `log/` for what it prints."""
    artifacts: Mapping[str, Path]
    """Verified files by digest."""
    broker: Mapping[str, str]
    """How it reaches the node's broker: `url`, `credentials` (a 0600 file), `node`, `domain`, `mqtt` address,
    and where models are asked: `inference`."""
    neighbours: tuple[str, ...] = ()
    """Nodes of the site, this one included, whose inboxes it serves."""


LOCK_DIRECTORY = "update"
LOCK_FILE = "lock"


def lock_of(directory: Path) -> Path:
    """While this file is there, who made it asks to be left as it is. It goes with the run that made it."""
    return directory / LOCK_DIRECTORY / LOCK_FILE


class Condition(NamedTuple):
    """How an instance is, this moment."""

    state: Literal["running", "ready", "unready", "gone"]
    detail: str = ""
    """Why it is unready or gone: `exit status 1`, `killed by SIGKILL (out of memory?)`, `GET /health answered 503`."""
    code: str = ""
    """Reason code for `unready` and `gone`: `exited`, `not_live`, `not_ready`, `artifact_unreadable`, …"""
    final: bool = False
    """The same order would end in the same way."""
    measures: Measures | None = None


class Runtime(Protocol):
    """How one type of instance runs. Raises RuntimeFailure, with a Reason code, when it cannot do as asked."""

    name: str

    def available(self) -> bool:
        """Can this machine run such instances?"""
        ...

    async def start(self, order: Order) -> Handle:
        """Start it, in a session of its own, so that it survives the node agent; but what has a lease must end with the
        node agent that counts it. Returns once it runs, ready or not."""
        ...

    async def recover(self, order: Order, handle: Handle) -> bool:
        """Find again what `handle` names: True when the same instance still runs, and is watched from now on. False:
        nothing of it is left. Another node agent's instance with a lease is never found."""
        ...

    async def inspect(self, name: str) -> Condition:
        """How it is now; cheap enough to ask every second."""
        ...

    async def update(self, order: Order) -> None:
        """Tell a running instance that its surroundings changed (neighbours), without restarting it."""
        ...

    async def stop(self, name: str, grace_ms: int) -> None:
        """Ask it to end, wait, then make it. Idempotent; returns when nothing of it is left."""
        ...

    async def close(self) -> None:
        """Stop watching; what runs goes on running."""
        ...


@runtime_checkable
class Sweeper(Protocol):
    """A runtime that keeps things where the node agent does not see them: with an engine, which outlives both."""

    name: str

    async def sweep(self, needed: Collection[Instance], standby: Collection[Instance] = ()) -> None:
        """Remove what is ours and of none of these instances; what those on standby need to start is kept. Raises
        RuntimeFailure."""
        ...
