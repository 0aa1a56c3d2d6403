"""Feed: every resource with its status, as the API shows it, and every change of either, under one rising version.

Status is computed, so it has no revision of its own. The feed compares what is shown now with what was shown
before; each difference gets the next version, and the newest differences are kept so that a watch can go on where a
list ended. A version begins with the hub's epoch: one from an earlier life is recognised as too old, never
mistaken.
"""

from __future__ import annotations

import hashlib
from collections import deque
from typing import TYPE_CHECKING, Any, Final, NamedTuple

import msgspec

from batuta.core.fleet import Fleet
from batuta.core.view import status
from batuta.kinds import API_VERSION, KINDS
from batuta.kinds.base import Ref, Resource, encode_hook

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from batuta.core.state import State
    from batuta.fabric.clock import Clock
    from batuta.hub.loop import HubLoop

VERSIONS_A_LIFE: Final = 10**9
EVENTS_MAX: Final = 4096
EVENT_BYTES_MAX: Final = 4 * 2**20
FRESH_MS: Final = 200
"""What was computed from the same tables so recently is shown again."""


class Row(NamedTuple):
    """One resource as shown."""

    ref: Ref
    resource: Resource
    version: int
    declared: int
    """The version at which people last changed it: a write that knows this one overwrites nobody."""
    labels: Mapping[str, str]
    digest: bytes
    body: bytes
    """Its JSON, with status."""


class FeedEvent(NamedTuple):
    """One difference. Labels are None where it was not there."""

    version: int
    ref: Ref
    before: Mapping[str, str] | None
    after: Mapping[str, str] | None
    body: bytes


class TooOld(Exception):
    """What happened since that version is no longer known: list again."""


class Feed:
    """What the API shows."""

    def __init__(self, loop: HubLoop, clock: Clock, epoch: int) -> None:
        self._loop = loop
        self._clock = clock
        self._begin = epoch * VERSIONS_A_LIFE
        self.version = self._begin
        self._rows: dict[str, dict[str, Row]] = {kind.plural: {} for kind in KINDS}
        self._events: deque[FeedEvent] = deque()
        self._event_bytes = 0
        self._forgotten = self._begin
        """The newest version that a watch can no longer go on from, exclusively."""
        self._shown: dict[str, tuple[State, int]] = {}
        self._fleet = Fleet()

    def rows(self, plural: str) -> dict[str, Row]:
        """All of one kind by key, sorted, as of now."""
        state, now = self._loop.state, self._clock.now()
        shown = self._shown.get(plural)
        if shown is None or shown[0] is not state or now - shown[1] >= FRESH_MS:
            self._refresh(plural, state, now)
            self._shown[plural] = (state, now)
        return self._rows[plural]

    def row(self, ref: Ref) -> Row | None:
        """One resource, as of now."""
        state = self._loop.state
        self._show(ref.key, ref, state.desired.get(ref.key), state, self._clock.now())
        return self._rows[ref.plural].get(ref.key)

    def since(self, plural: str, version: int) -> Iterator[FeedEvent]:
        """What changed after `version`, in order; raises TooOld."""
        if version < self._forgotten or version > self.version:
            raise TooOld
        self.rows(plural)
        return (event for event in tuple(self._events) if event.version > version and event.ref.plural == plural)

    def preview(self, resource: Resource, state: State) -> bytes:
        """What would be shown of a resource that is not stored."""
        document = _document(resource, status(state, resource.ref, self._clock.now()))
        return msgspec.json.encode(document, enc_hook=encode_hook)

    def _refresh(self, plural: str, state: State, now: int) -> None:
        mine = {key: r for key, r in state.desired.items() if r.plural == plural}
        for key in [k for k in self._rows[plural] if k not in mine]:
            self._show(key, self._rows[plural][key].ref, None, state, now)
        for key in sorted(mine):
            self._show(key, mine[key].ref, mine[key], state, now)

    def _show(self, key: str, ref: Ref, resource: Resource | None, state: State, now: int) -> None:
        rows = self._rows[ref.plural]
        before = rows.get(key)
        if resource is None:
            if before is not None:
                del rows[key]
                self.version += 1
                document = msgspec.json.decode(before.body)
                self._note(ref, before.labels, None, _body(document, self.version))
            return
        document = _document(resource, status(state, ref, now, self._fleet))
        digest = hashlib.blake2b(msgspec.json.encode(document, enc_hook=encode_hook), digest_size=16).digest()
        if before is not None and before.digest == digest:
            return
        self.version += 1
        declared = before.declared if before is not None and before.resource == resource else self.version
        labels = resource.metadata.labels
        body = _body(document, self.version)
        rows[key] = Row(ref, resource, self.version, declared, labels, digest, body)
        if before is None:
            # Rows are kept in the order of their keys, for lists and their pages.
            self._rows[ref.plural] = dict(sorted(rows.items()))
        self._note(ref, before.labels if before is not None else None, labels, body)

    def _note(self, ref: Ref, before: Mapping[str, str] | None, after: Mapping[str, str] | None, body: bytes) -> None:
        self._events.append(FeedEvent(self.version, ref, before, after, body))
        self._event_bytes += len(body)
        while len(self._events) > EVENTS_MAX or self._event_bytes > EVENT_BYTES_MAX:
            oldest = self._events.popleft()
            self._event_bytes -= len(oldest.body)
            self._forgotten = oldest.version


def _document(resource: Resource, computed: Mapping[str, Any]) -> dict[str, Any]:
    """The resource as JSON values, status added, version left out."""
    plain: dict[str, Any] = msgspec.to_builtins(resource, enc_hook=encode_hook)
    metadata = {k: v for k, v in plain["metadata"].items() if k != "resourceVersion"}
    if resource.namespaced:
        metadata["namespace"] = resource.ref.namespace
    return {
        "apiVersion": API_VERSION,
        "kind": plain["kind"],
        "metadata": metadata,
        "spec": plain.get("spec", {}),
        "status": computed,
    }


def _body(document: dict[str, Any], version: int) -> bytes:
    metadata = {**document["metadata"], "resourceVersion": str(version)}
    return msgspec.json.encode({**document, "metadata": metadata}, enc_hook=encode_hook)
