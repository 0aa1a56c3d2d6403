"""The contract between Batuta and whatever carries its bytes.

Three ways to talk, and no fourth. *Messages* are said once and may be lost: pulses, questions, answers. A *table*
holds the newest value of every key and says when it changes: what is desired, decided and observed. A *log* holds
every entry in order until it is acknowledged or too old: data that must arrive, and the audit.

`memory` and `nats` are its tenants, and one suite tests both. On a node some names are views of the hub's: table
`decided` reads the node's own assignment and nothing else, table `observed` takes its own report, logs `up-*` only
append. Code written against the contract cannot tell, which is the point.

What cannot be reached, or does not answer in time, raises `FabricUnavailable`; a write against an old revision raises
`Stale`; an operation that a view does not have raises `PermissionError`, because no waiting will help.
"""

from __future__ import annotations

import enum
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from dataclasses import dataclass, field
from typing import Final, Protocol

REQUEST_TIMEOUT_S: Final = 5.0


async def _nobody_asked(_data: bytes) -> None:
    raise ValueError("this message is not a question: it has no reply subject")


@dataclass(frozen=True, slots=True)
class Message:
    """Bytes that arrived under a subject."""

    subject: str
    data: bytes
    headers: Mapping[str, str] = field(default_factory=dict)
    reply: str = ""
    respond: Callable[[bytes], Awaitable[None]] = _nobody_asked
    """Answers a question. The answer may be lost; whoever asked then asks again."""


Handler = Callable[[Message], Awaitable[None]]


class Subscription(Protocol):
    """A standing wish to hear a subject."""

    async def close(self) -> None: ...


@dataclass(frozen=True, slots=True)
class Entry:
    """One row of a table. `value` is None when the key was deleted."""

    key: str
    value: bytes | None
    revision: int


class Marker(enum.Enum):
    """Things a watch says that are not rows."""

    SNAPSHOT_DONE = "snapshot done"


SNAPSHOT_DONE: Final = Marker.SNAPSHOT_DONE
Change = Entry | Marker


class Table(Protocol):
    """The newest value of every key. A key is dotted words: `assignment.pi-4`."""

    async def get(self, key: str) -> Entry | None:
        """The row, or None when there is none or it was deleted."""
        ...

    async def put(self, key: str, value: bytes, revision: int | None = None) -> int:
        """Writes and returns the new revision. `revision`: None writes anyway, 0 creates, else it must be newest."""
        ...

    async def delete(self, key: str, revision: int | None = None) -> None:
        """Deletes, under the same rule. Deleting what is not there is no error."""
        ...

    def watch(self, prefix: str = "") -> AsyncIterator[Change]:
        """Every row now, then `SNAPSHOT_DONE` once, then every change as it happens, across lost connections.

        `prefix` is "" for all keys, `report.` for all below, or one whole key. A change that is overtaken by a newer
        one of the same key may be left out; the newest never is. Deleted rows are not part of the snapshot.
        """
        ...

    async def keys(self, prefix: str = "") -> list[str]:
        """The keys that exist, sorted; `prefix` as in `watch`."""
        ...


@dataclass(frozen=True, slots=True)
class Appended:
    """Where an entry landed. `duplicate`: it was there already, under the same `msg_id`."""

    sequence: int
    duplicate: bool


@dataclass(frozen=True, slots=True)
class LogEntry:
    """One entry of a log."""

    sequence: int
    key: str
    data: bytes
    at_ms: int
    headers: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Delivery:
    """An entry handed to a follower, which owns it until it acknowledges."""

    entry: LogEntry
    attempt: int
    ack: Callable[[], Awaitable[None]]
    """Done with it; returns once the log knows."""
    retry: Callable[[], Awaitable[None]]
    """Not done: hand it out again, at once."""


class Log(Protocol):
    """Every entry, in order, bounded by size and age."""

    async def append(self, key: str, data: bytes, msg_id: str | None = None) -> Appended:
        """Returns when the entry is kept. The same `msg_id` again, within two minutes, is kept once."""
        ...

    async def read(self, after: int = 0, limit: int = 100) -> list[LogEntry]:
        """Up to `limit` entries with a sequence greater than `after`, in order."""
        ...

    def follow(self, consumer: str) -> AsyncIterator[Delivery]:
        """Entries not yet acknowledged by `consumer`, then new ones, for ever; unacknowledged ones come again.

        What `consumer` acknowledged is remembered by the log, so a restarted process goes on where it was.
        """
        ...


class Fabric(Protocol):
    """One process's connection to all the others."""

    @property
    def name(self) -> str:
        """Who we are here: `hub`, or the name of the node."""
        ...

    @property
    def is_connected(self) -> bool:
        """On a node: the hub is heard. In the hub: its broker is."""
        ...

    async def wait_connected(self, timeout_s: float | None = None) -> None:
        """Returns when connected; raises `FabricUnavailable` after `timeout_s`."""
        ...

    def on_reconnect(self, callback: Callable[[], None]) -> None:
        """`callback` is called each time the connection is back. It should wake a loop, not work."""
        ...

    async def publish(self, subject: str, data: bytes, headers: Mapping[str, str] | None = None) -> None:
        """Says it once. Returning means sent, not heard."""
        ...

    async def request(self, subject: str, data: bytes, timeout_s: float = REQUEST_TIMEOUT_S) -> bytes:
        """Asks, and returns the first answer; raises `FabricUnavailable` when nobody listens or answers in time."""
        ...

    async def subscribe(self, subject: str, handler: Handler) -> Subscription:
        """Calls `handler` for each message, one after the other. What it raises is logged, and the next one comes."""
        ...

    def table(self, name: str) -> Table: ...

    def log(self, name: str) -> Log: ...

    async def close(self) -> None: ...
