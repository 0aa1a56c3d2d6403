"""Sources: what can be listed and watched over HTTP, in one shape. A declared kind is one; so is each core view.

A Source says how it is called and how it looks as a row; reading, watching, Tables, discovery and OpenAPI are written
once, over Sources.
"""

from __future__ import annotations

from functools import lru_cache
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol

from batuta.hub.history import EVENTS_MAX
from batuta.kinds.base import API_VERSION
from batuta.web.ages import age, instant_ms

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from batuta.hub.history import FeedEvent
    from batuta.hub.hub import Hub
    from batuta.kinds.base import Ref, Resource

ABSENT = "<none>"
_INSTANTS = ("since", "At")
_MILLISECONDS_MIN = 10**11


class Named(Protocol):
    """One thing that is there: what most selectors need to know of it."""

    @property
    def key(self) -> str: ...
    @property
    def ref(self) -> Ref: ...
    @property
    def labels(self) -> Mapping[str, str]: ...


class Shown(Protocol):
    """One thing as shown: all that reading needs to know of a row."""

    @property
    def ref(self) -> Ref: ...
    @property
    def labels(self) -> Mapping[str, str]: ...
    @property
    def body(self) -> bytes: ...


class Column(NamedTuple):
    """A column of a Table. `priority` above 0 is for wide views alone."""

    name: str
    type: str = "string"
    priority: int = 0
    format: str = ""


NAME = Column("Name", format="name")
AGE = Column("Age")


class Source(Protocol):
    """What can be listed and watched."""

    api_version: str
    kind: str
    plural: str
    namespaced: bool
    short_names: tuple[str, ...]
    categories: tuple[str, ...]
    verbs: tuple[str, ...]
    columns: tuple[Column, ...]
    selectable: tuple[str, ...]
    """Fields to select by, beside name and namespace."""
    is_scalable: bool

    @property
    def version(self) -> int: ...
    def named(self) -> Sequence[Named]:
        """All, sorted by key, before anybody computes how they look."""

    def shown(self, keys: Sequence[str]) -> Sequence[Shown]:
        """These, as of now; what is not there is left out."""

    def row(self, ref: Ref) -> Shown | None: ...
    def refresh(self, limit: int | None = None) -> bool:
        """Brings everything up to date, or `limit` of what is not. False: some is left."""

    def since(self, version: int, limit: int = ...) -> Sequence[FeedEvent]:
        """What changed after `version`, as of the last refresh, in order, `limit` at most; raises TooOld."""

    def cells(self, document: Mapping[str, Any], now: int) -> list[Any]:
        """One value for each column."""


class KindSource:
    """A declared kind, as its class says it is."""

    api_version = API_VERSION
    categories: tuple[str, ...] = ("all", "batuta")
    verbs: tuple[str, ...] = ("create", "delete", "get", "list", "patch", "update", "watch")
    selectable: tuple[str, ...] = ()

    def __init__(self, hub: Hub, kind: type[Resource]) -> None:
        self._hub = hub
        self._kind = kind
        self.kind = kind.__name__
        self.plural = kind.plural
        self.namespaced = kind.namespaced
        self.short_names = kind.short_names
        self.is_scalable = kind.scale is not None
        self.columns = columns_of(kind)

    @property
    def version(self) -> int:
        return self._hub.feed.version

    def named(self) -> Sequence[Named]:
        return self._hub.feed.named(self.plural)

    def shown(self, keys: Sequence[str]) -> Sequence[Shown]:
        return self._hub.feed.shown(self.plural, keys)

    def row(self, ref: Ref) -> Shown | None:
        return self._hub.feed.row(ref)

    def refresh(self, limit: int | None = None) -> bool:
        return self._hub.feed.refresh(self.plural, limit)

    def since(self, version: int, limit: int = EVENTS_MAX) -> Sequence[FeedEvent]:
        return self._hub.feed.since(self.plural, version, limit)

    def cells(self, document: Mapping[str, Any], now: int) -> list[Any]:
        return cells_of(self._kind, document, now)


def columns_of(kind: type[Resource]) -> tuple[Column, ...]:
    more = (Column(heading.title(), priority=1) for heading, _ in kind.wide_columns)
    return (NAME, *(Column(heading.title()) for heading, _ in kind.columns), AGE, *more)


def cells_of(kind: type[Resource], document: Mapping[str, Any], now: int) -> list[Any]:
    metadata = document["metadata"]
    found, more = (
        [cell(path, at(document, path), now) for _, path in columns] for columns in (kind.columns, kind.wide_columns)
    )
    return [metadata["name"], *found, age(instant_ms(metadata.get("creationTimestamp")), now), *more]


def at(document: Mapping[str, Any], path: str) -> Any:
    """What is at a dotted path; None when it is not there. Through a list, each value that is there."""
    return _along(document, _steps(path))


@lru_cache(maxsize=1024)
def _steps(path: str) -> tuple[str, ...]:
    """Paths are those of the kinds' columns; ten thousand rows ask for the same few."""
    return tuple(path.split("."))


def _along(value: Any, steps: tuple[str, ...]) -> Any:
    for i, step in enumerate(steps):
        if isinstance(value, dict):
            value = value.get(step)
        elif isinstance(value, list):
            found = (_along(member, steps[i:]) for member in value if isinstance(member, dict))
            flat = (v for each in found for v in (each if isinstance(each, list) else [each]))
            return list(dict.fromkeys(v for v in flat if v is not None))
        else:
            return None
    return value


def cell(path: str, value: Any, now: int) -> Any:
    """A value as a cell; what its path says it is decides how."""
    if isinstance(value, str):
        return value or ABSENT
    if value is None or value in ([], {}):
        return ABSENT
    if isinstance(value, int) and value > _MILLISECONDS_MIN and path.endswith(_INSTANTS):
        return age(value, now)
    if isinstance(value, int | float):
        return str(value)
    return ", ".join(str(part) for part in value) if isinstance(value, list) else str(value)
