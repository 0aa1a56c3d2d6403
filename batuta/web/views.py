"""Views: what is shown and not declared, made of what Batuta knows: what Kubernetes clients know by their own names,
and what is under way. Read, never kept.

A view is sketched whole and drawn anew only where a sketch has changed; each difference is an event, as with the
feed's resources, so that it can be watched.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any, Final, NamedTuple

import msgspec

from batuta.hub.feed import FRESH_MS, VERSIONS_A_LIFE
from batuta.hub.history import EVENTS_MAX, FeedEvent, History, TooOld
from batuta.kinds.base import Ref
from batuta.web.sources import Column

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from batuta.hub.hub import Hub

    Sketches = Callable[[Hub], Iterable["Sketch"]]
    Cells = Callable[[Mapping[str, Any], int], list[Any]]

READ: Final = ("get", "list", "watch")


class Sketch(NamedTuple):
    """One object of a view before it is drawn. While `mark` stays equal, so does what would be drawn."""

    namespace: str
    name: str
    mark: tuple[Any, ...]
    draw: Callable[[], dict[str, Any]]


class ViewRow(NamedTuple):
    """One object of a view, in the parts that its version stands between."""

    key: str
    ref: Ref
    labels: Mapping[str, str]
    mark: tuple[Any, ...]
    version: int
    rest: bytes
    metadata: bytes

    @property
    def body(self) -> bytes:
        return self.rest + b',"metadata":' + self.metadata + b',"resourceVersion":"%d"}}' % self.version


class View:
    """Something that is shown and not declared, such as the core resources of Kubernetes."""

    is_scalable = False

    def __init__(
        self,
        hub: Hub,
        kind: str,
        sketches: Sketches,
        cells: Cells,
        columns: tuple[Column, ...],
        *,
        namespaced: bool,
        short_names: tuple[str, ...] = (),
        categories: tuple[str, ...] = (),
        verbs: tuple[str, ...] = READ,
        selectable: tuple[str, ...] = (),
        api_version: str = "v1",
    ) -> None:
        self._hub = hub
        self.api_version = api_version
        self._sketches = sketches
        self.cells = cells
        self.kind = kind
        self.plural = f"{kind.lower()}s"
        self.columns = columns
        self.namespaced = namespaced
        self.short_names = short_names
        self.categories = categories
        self.verbs = verbs
        self.selectable = selectable
        self._rows: dict[str, ViewRow] = {}
        self._sorted: list[ViewRow] | None = None
        self._history: History | None = None
        self._version = 0
        self._computed: tuple[object, int] | None = None

    @property
    def version(self) -> int:
        self._begin()
        return self._version

    def refresh(self, limit: int | None = None) -> bool:  # noqa: ARG002  drawn whole, from what is computed in parts
        """Brings everything up to date."""
        state, now = self._hub.loop.state, self._hub.clock.now()
        if self._computed is None or self._computed[0] is not state or not 0 <= now - self._computed[1] < FRESH_MS:
            self._refresh()
            self._computed = (state, now)
        return True

    def named(self) -> Sequence[ViewRow]:
        self.refresh()
        if self._sorted is None:
            self._sorted = sorted(self._rows.values(), key=lambda row: row.key)
        return self._sorted

    def shown(self, keys: Sequence[str]) -> Sequence[ViewRow]:
        return [row for key in keys if (row := self._rows.get(key)) is not None]

    def row(self, ref: Ref) -> ViewRow | None:
        self.refresh()
        return self._rows.get(ref.key)

    def since(self, version: int, limit: int = EVENTS_MAX) -> Sequence[FeedEvent]:
        if version > self.version:
            raise TooOld
        return self._begin().since(version, limit)

    def _begin(self) -> History:
        if self._history is None:
            # A version of an earlier life of the hub is told apart, as the feed's are.
            self._version = self._hub.store.epoch * VERSIONS_A_LIFE + 1
            self._history = History(self._version)
        return self._history

    def _refresh(self) -> None:
        """Draws anew whose mark has changed. What is drawn the first time a view is asked for has no past."""
        history, is_first = self._begin(), self._computed is None
        gone = dict(self._rows)
        for sketch in sorted(self._sketches(self._hub), key=lambda sketch: (sketch.namespace, sketch.name)):
            ref = Ref(self.plural, sketch.namespace, sketch.name)
            key = ref.key
            before = gone.pop(key, None)
            if before is not None and before.mark == sketch.mark:
                continue
            document = sketch.draw()
            labels = document["metadata"].get("labels") or {}
            metadata = msgspec.json.encode(document.pop("metadata"))[:-1]
            rest = msgspec.json.encode(document)[:-1]
            row = ViewRow(key, ref, labels, sketch.mark, self._version, rest, metadata)
            self._sorted = None
            if before is not None and (before.rest, before.metadata) == (rest, metadata):
                self._rows[key] = row._replace(version=before.version)
                continue
            if not is_first:
                self._version += 1
                row = row._replace(version=self._version)
                history.note(FeedEvent(row.version, ref, before.labels if before else None, labels, row.body))
            self._rows[key] = row
        for key, row in gone.items():
            del self._rows[key]
            self._sorted = None
            self._version += 1
            body = row._replace(version=self._version).body
            history.note(FeedEvent(self._version, row.ref, row.labels, None, body))
