"""What a hub answers, as values: the clients give them out, and nothing in them asks for more."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Generic, Literal, NamedTuple, TypeVar

from batuta.kinds.base import Resource

R = TypeVar("R", bound=Resource)


class Found(NamedTuple, Generic[R]):
    """A resource as the hub knows it: what was declared, and what is so."""

    resource: R
    status: Mapping[str, Any]
    """Computed by the hub, never stored."""
    document: Mapping[str, Any]
    """The whole answer, as it came."""


class Event(NamedTuple, Generic[R]):
    """A resource was added, modified or deleted."""

    type: Literal["ADDED", "MODIFIED", "DELETED"]
    found: Found[R]


class Applied(NamedTuple):
    """What became of one applied resource."""

    kind: str
    namespace: str
    name: str
    action: Literal["created", "configured", "unchanged"]


class Changed(NamedTuple):
    """What would become of one resource, field by field."""

    kind: str
    namespace: str
    name: str
    action: Literal["created", "configured", "unchanged"]
    fields: tuple[Mapping[str, Any], ...]
    """Each with `op` (`+`, `-` or `~`), `path`, `before` and `after`."""


class Foreseen(NamedTuple):
    """What manifests would change, and what would move, were they applied now."""

    items: tuple[Changed, ...]
    steps: tuple[Mapping[str, Any], ...]
    """Each with `app`, `component`, `slot`, `action` (start, stop, move, replace), `node`, `instance`, `wasOn`, `was`,
    `why`, and `anyway` when it comes without the change too."""
    reasons: Mapping[str, tuple[Mapping[str, Any], ...]]
    """By application: what would still not be as wished."""
    is_whole: bool
    hidden: int = 0
    """Steps of namespaces that this client's token does not see."""

    @property
    def differs(self) -> bool:
        return any(item.action != "unchanged" for item in self.items)


class Token(NamedTuple):
    """A join token or an API token. `token` is its text; it is shown once."""

    id: str
    site: str
    expires: str
    token: str = ""
    name: str = ""
    used_by: str = ""
    state: str = ""
    """`open`, `used` or `expired`."""
    sort: str = "join"
    """`join` or `api`; what follows is of API tokens."""
    role: str = ""
    namespaces: str = ""
    created_by: str = ""
    last_used: str = ""
    last_used_from: str = ""
    approval: str = ""
    """`asked` of a join token by which machines only get as far as waiting to be approved."""


class Pinned(NamedTuple):
    """A file or image that a release names."""

    component: str
    what: str
    """`model digits 2 int8`, `image registry.example/reader`."""
    digest: str


class Chapter(NamedTuple):
    """One kept release of an application."""

    revision: int
    at: int
    """When it was made, in milliseconds."""
    is_newest: bool
    pins: tuple[Pinned, ...]
    changes: tuple[Mapping[str, Any], ...]
    """Against the one before it that is kept: each with `op`, `path`, `before` and `after`."""
    by: str = ""
    """Who made it, as far as the audit still knows."""
    rollout: str = ""
    """Of the one that arrives or arrived last, how that stands: `rolling`, `done`, `undone`, …"""


class Check(NamedTuple):
    """One question of the doctor, its answer, and the command that mends it."""

    name: str
    result: Literal["pass", "warn", "fail"]
    message: str
    next_step: str = ""
