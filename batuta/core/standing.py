"""Standing: what the hub remembers of a slot or a component beside who holds it. One writer, the hub.

Each row explains itself to whoever asks why, and each has an end: a deed that makes it pointless, looked for whenever
its application is tended. Keys of the decided table: `displaced.…`, `scaled.…`, `moving.…`, each followed
by namespace, application, component and, where it is about one, the slot.
"""

from __future__ import annotations

from typing import Any, Literal

from batuta.core.decided import Assignment, Commons, Fence, Release
from batuta.kinds.base import Record


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


_WORDS: dict[type[Standing], str] = {
    Displaced: "displaced", Scaled: "scaled", Moving: "moving",
}  # fmt: skip
DECIDED: dict[str, type[Any]] = {
    "assignment": Assignment, "commons": Commons, "release": Release, "fence": Fence,
    **{word: kind for kind, word in _WORDS.items()},
}  # fmt: skip
"""What the decided table holds, by the first word of the key."""
