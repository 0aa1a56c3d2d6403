"""Views: what Kubernetes clients know by their own names, made of what Batuta knows. Read, never kept.

A view is computed whole and compared with what it was, as the feed does with resources, so that it can be watched.
"""

from __future__ import annotations

import hashlib
from collections import deque
from typing import TYPE_CHECKING, Any, Final, NamedTuple

import msgspec

from batuta.hub.feed import EVENTS_MAX, FRESH_MS, VERSIONS_A_LIFE, FeedEvent, TooOld
from batuta.kinds.base import Ref
from batuta.web.sources import Column

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping

    from batuta.hub.hub import Hub

    Documents = Callable[[Hub], Iterator[dict[str, Any]]]
    Cells = Callable[[Mapping[str, Any], int], list[Any]]

READ: Final = ("get", "list", "watch")


class ViewRow(NamedTuple):
    """One object of a view."""

    ref: Ref
    labels: Mapping[str, str]
    digest: bytes
    body: bytes


class View:
    """One of the core resources of Kubernetes."""

    api_version = "v1"
    is_scalable = False

    def __init__(
        self,
        hub: Hub,
        kind: str,
        documents: Documents,
        cells: Cells,
        columns: tuple[Column, ...],
        *,
        namespaced: bool,
        short_names: tuple[str, ...] = (),
        categories: tuple[str, ...] = (),
        verbs: tuple[str, ...] = READ,
        selectable: tuple[str, ...] = (),
    ) -> None:
        self._hub = hub
        self._documents = documents
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
        self._events: deque[FeedEvent] = deque()
        self._version = 0
        self._forgotten = 0
        self._computed: tuple[object, int] | None = None

    @property
    def version(self) -> int:
        self._begin()
        return self._version

    def rows(self) -> Mapping[str, ViewRow]:
        state, now = self._hub.loop.state, self._hub.clock.now()
        if self._computed is None or self._computed[0] is not state or now - self._computed[1] >= FRESH_MS:
            self._refresh()
            self._computed = (state, now)
        return self._rows

    def row(self, ref: Ref) -> ViewRow | None:
        return self.rows().get(ref.key)

    def since(self, version: int) -> Iterator[FeedEvent]:
        self._begin()
        if version < self._forgotten or version > self._version:
            raise TooOld
        self.rows()
        return (event for event in tuple(self._events) if event.version > version)

    def _begin(self) -> None:
        if not self._version:
            # A version of an earlier life of the hub is told apart, as the feed's are.
            self._version = self._forgotten = self._hub.store.epoch * VERSIONS_A_LIFE

    def _refresh(self) -> None:
        self._begin()
        found = {}
        for document in self._documents(self._hub):
            metadata = document["metadata"]
            ref = Ref(self.plural, metadata.get("namespace", ""), metadata["name"])
            found[ref.key] = (ref, document)
        for key in [key for key in self._rows if key not in found]:
            gone = self._rows.pop(key)
            self._note(gone.ref, gone.labels, None, msgspec.json.decode(gone.body))
        for key, (ref, document) in sorted(found.items()):
            digest = hashlib.blake2b(msgspec.json.encode(document), digest_size=16).digest()
            before = self._rows.get(key)
            if before is not None and before.digest == digest:
                continue
            labels = document["metadata"].get("labels") or {}
            body = self._note(ref, before.labels if before else None, labels, document)
            self._rows[key] = ViewRow(ref, labels, digest, body)
        self._rows = dict(sorted(self._rows.items()))

    def _note(
        self, ref: Ref, before: Mapping[str, str] | None, after: Mapping[str, str] | None, document: dict[str, Any]
    ) -> bytes:
        self._version += 1
        metadata = {**document["metadata"], "resourceVersion": str(self._version)}
        body = msgspec.json.encode({**document, "metadata": metadata})
        self._events.append(FeedEvent(self._version, ref, before, after, body))
        while len(self._events) > EVENTS_MAX:
            self._forgotten = self._events.popleft().version
        return body
