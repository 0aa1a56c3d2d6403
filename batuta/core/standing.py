"""Standing: what the hub remembers of a slot or a component beside who holds it. One writer, the hub.

Each row explains itself to whoever asks why, and each has an end: a deed that makes it pointless, looked for whenever
its application is tended. Keys of the decided table: `displaced.…`, `scaled.…`, `moving.…`, `moved.…`, `awaited.…`,
`surge.…`, each followed by namespace, application, component and, where it is about one, the slot; and `looked.…`, by
policy.
"""

from __future__ import annotations

from typing import Any, Literal

import msgspec

from batuta.core.decided import Assignment, Commons, Fence, Release
from batuta.core.known import KnownProfile
from batuta.core.rollout import Rollout
from batuta.kinds.base import Bytes, Millicores, Record
from batuta.kinds.policy import Moves


class Standing(Record):
    """What every such row says: whom it is about."""

    namespace: str
    application: str
    component: str
    slot: str = ""

    @property
    def app(self) -> str:
        return f"{self.namespace}/{self.application}"

    @property
    def key(self) -> str:
        """Its key in the decided table."""
        where = (_WORDS[type(self)], self.namespace, self.application, self.component, self.slot)
        return ".".join(part for part in where if part)


class Displaced(Standing, kw_only=True):
    """A slot that gave way to a higher priority. Until it is filled again it displaces nobody: no cascades."""

    node: str
    """Where it was."""
    priority: int
    """Its own, then: what has been raised since may ask anew."""
    by: str
    """The instance that took its place."""
    by_priority: int
    at: int

    @property
    def said(self) -> str:
        """Who took its place, for people."""
        return f"to {self.by} (priority {self.by_priority} over {self.priority}) on {self.node}"


class Scaled(Standing, kw_only=True):
    """How many replicas an autoscaled component has, and where its load is heading."""

    count: int
    since: int
    """When it last changed."""
    because: str = ""
    """What changed it: `load 1.6`, `window 0 8 * * mon-fri`."""
    look_at: int | None = None
    """The next instant at which time alone may change it."""
    heading: Literal["up", "down"] | None = None
    """The load has been asking for more, or for fewer, since `heading_since`, and for `heading_to` at least."""
    heading_since: int = 0
    heading_to: int = 0
    settles_at: int = 0
    """Until then the load is not followed: there are fewer since just now, and what was measured is of more."""
    sampled_at: int | None = None
    """When the messages taken in were last counted, how many they were, and how many a second came until then."""
    sampled: int = 0
    rate: float | None = None


class Moving(Standing, kw_only=True):
    """A move that somebody asked for: this slot's instance leaves `node`, and `to` is where it goes."""

    node: str
    to: str
    by: str
    """Who asked."""
    why: str = ""
    at: int

    @property
    def said(self) -> str:
        """For people: who asked, and why."""
        return f"asked by {self.by}" + (f": {self.why}" if self.why else "")


class Room(Standing, kw_only=True):
    """Room that is kept free on a node for an instance to come: others of its priority or a lower one see it taken."""

    node: str = ""
    """Where; empty while there is none, or none is needed any more."""
    cpu_millis: Millicores = msgspec.field(default_factory=lambda: Millicores(0), name="cpu")
    memory_bytes: Bytes = msgspec.field(default_factory=lambda: Bytes(0), name="memory")
    disk_bytes: Bytes = msgspec.field(default_factory=lambda: Bytes(0), name="disk")
    ports: tuple[int, ...] = ()
    devices: tuple[str, ...] = ()
    cards: tuple[tuple[int, int], ...] = ()
    """Of accelerators: which, and how much of its memory; -1 for all of it."""


class Awaited(Room, kw_only=True):
    """A slot that was emptied before its next instance could start, until that one is ready."""

    left: str
    """Where it was."""


class Surge(Room, kw_only=True):
    """Room for the next new instance of a component that is being replaced one by one."""


class Left(Record):
    """A node that a policy moved a slot away from."""

    node: str
    at: int


class Moved(Standing, kw_only=True):
    """The last move of a slot that a policy made by itself: it stays for a while, and never goes back."""

    policy: str
    node: str
    """Where it was."""
    to: str
    why: str
    """What it gained."""
    at: int
    left: tuple[Left, ...] = ()
    """Where policies moved it away from, the last one last."""

    @property
    def said(self) -> str:
        """For people: by whom, from where, and what for."""
        return f"moved by policy {self.policy} from {self.node}: {self.why}"


class Looked(Record):
    """A policy has looked for moves that pay: when, how far it came, and when it looks again."""

    policy: str
    moves: Moves
    """What it said then: when that changes, it looks anew."""
    at: int
    next_at: int
    after: tuple[str, str, str] | None = None
    """The last it looked at, as application, component and slot, while there are others after that."""
    is_over: bool = True
    """This round has ended: it was through, or has begun as many moves as it may."""
    made: int = 0
    """Moves begun in this round."""
    looked_at: int = 0
    """Instances weighed in this round."""

    @property
    def key(self) -> str:
        """Its key in the decided table."""
        return f"looked.{self.policy}"


_WORDS: dict[type[Standing], str] = {
    Displaced: "displaced", Scaled: "scaled", Moving: "moving", Moved: "moved", Awaited: "awaited", Surge: "surge",
}  # fmt: skip
DECIDED: dict[str, type[Any]] = {
    "assignment": Assignment, "commons": Commons, "release": Release, "fence": Fence, "looked": Looked,
    "profile": KnownProfile, "rollout": Rollout,
    **{word: kind for kind, word in _WORDS.items()},
}  # fmt: skip
"""What the decided table holds, by the first word of the key."""
