"""Feed: every resource with its status, as the API shows it, and every change of either, under one rising version.

Status is computed, so it has no revision of its own. The feed compares what is shown now with what was shown
before; each difference gets the next version, and the newest differences are kept so that a watch can go on where a
list ended. A version begins with the hub's epoch: one from an earlier life is recognised as too old, never
mistaken.

Nothing is computed that nobody asks for. A row is computed when it is first shown, and again only when it may look
different (`core.view_changes`). What people declare is an event at once; a status that nobody was ever shown has no
past, so computing it the first time is none.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final, NamedTuple

import msgspec

from batuta.core.fleet import Fleet
from batuta.core.view import status
from batuta.core.view_changes import changed, differing, is_at_rest
from batuta.hub.history import EVENTS_MAX, FeedEvent, History, TooOld
from batuta.kinds import API_VERSION, KINDS
from batuta.kinds.base import Ref, Resource, encode_hook

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from batuta.core.state import State
    from batuta.fabric.clock import Clock
    from batuta.hub.loop import HubLoop

__all__ = ["FRESH_MS", "VERSIONS_A_LIFE", "Feed", "FeedEvent", "Named", "Row", "TooOld"]

VERSIONS_A_LIFE: Final = 10**9
FRESH_MS: Final = 200
"""What was computed from the same tables so recently is shown again."""


class Named(NamedTuple):
    """One that is there, before anybody computes how it looks."""

    key: str
    ref: Ref
    labels: Mapping[str, str]


class Row(NamedTuple):
    """One resource as shown, in the parts that change apart from each other."""

    ref: Ref
    resource: Resource
    version: int
    declared: int
    """The version at which people last changed it: a write that knows this one overwrites nobody."""
    head: bytes
    """Its JSON up to the version, and from there to the status; both follow from the resource alone."""
    spec: bytes
    status: bytes

    @property
    def labels(self) -> Mapping[str, str]:
        return self.resource.metadata.labels

    @property
    def body(self) -> bytes:
        return _body(self.head, self.version, self.spec, self.status)


class Feed:
    """What the API shows."""

    def __init__(self, loop: HubLoop, clock: Clock, epoch: int) -> None:
        self._loop = loop
        self._clock = clock
        self.version = epoch * VERSIONS_A_LIFE + 1
        self._kinds = {kind.plural: _Kind(kind.plural, self.version) for kind in KINDS}
        self._fleet = Fleet()

    def named(self, plural: str) -> Sequence[Named]:
        """All of one kind, sorted by key. Nothing is computed."""
        return self._look(plural).named()

    def shown(self, plural: str, keys: Sequence[str]) -> list[Row]:
        """These, as of now, in the order asked for; what is not there is left out."""
        kind = self._look(plural)
        for key in keys:
            if key not in kind.rows or key in kind.stale:
                self._show(kind, key)
        return [row for key in keys if (row := kind.rows.get(key)) is not None]

    def rows(self, plural: str) -> dict[str, Row]:
        """All of one kind by key, sorted, as of now."""
        self.refresh(plural)
        kind = self._kinds[plural]
        return {each.key: kind.rows[each.key] for each in kind.named()}

    def refresh(self, plural: str, limit: int | None = None) -> bool:
        """Brings every row of a kind up to date, or `limit` of those that are not. False: some are left."""
        kind = self._look(plural)
        if not kind.is_whole:
            kind.stale.update(each.key for each in kind.named() if each.key not in kind.rows)
            kind.is_whole = True
        for key in sorted(kind.stale)[:limit]:
            self._show(kind, key)
        return not kind.stale

    def row(self, ref: Ref) -> Row | None:
        """One resource, as of this instant."""
        kind, state, now = self._kinds[ref.plural], self._loop.state, self._clock.now()
        self._follow(kind, state, now)
        if ref.key in state.desired:
            self._compute(kind, ref.key, state, now)
        return kind.rows.get(ref.key)

    def since(self, plural: str, version: int, limit: int = EVENTS_MAX) -> Sequence[FeedEvent]:
        """What changed after `version`, as of the last look, in order and no more than `limit`; raises TooOld."""
        if version > self.version:
            raise TooOld
        return self._kinds[plural].history.since(version, limit)

    def preview(self, resource: Resource, state: State) -> bytes:
        """What would be shown of a resource that is not stored."""
        said = status(state, resource.ref, self._clock.now())
        return _body(_head(resource), None, _spec(resource), _json(said))

    # --- Looking ---

    def _look(self, plural: str) -> _Kind:
        """Follows the tables, and finds which rows may have become stale since the last look."""
        kind, state, now = self._kinds[plural], self._loop.state, self._clock.now()
        before, was = kind.seen, kind.seen_at
        if before is state and 0 <= now - was < FRESH_MS:
            return kind
        kind.seen, kind.seen_at = state, now
        if before is not None:
            found = changed(plural, before, state, was, now)
            kind.stale.update(kind.rows if found is None else (key for key in found if key in kind.rows))
            kind.stale |= kind.restless
        self._follow(kind, state, now)
        return kind

    def _follow(self, kind: _Kind, state: State, now: int) -> None:
        """What people declared since it was last looked at is an event, whether or not it was ever shown to anybody:
        somebody may choose by what it says now. What was there at the first look has no past."""
        before, after = kind.desired, state.desired
        if before is after:
            return
        kind.desired, kind.names = after, None
        if before is None:
            return
        for key in sorted(key for key in differing(before, after) if key.startswith(kind.prefix)):
            old, new = before.get(key), after.get(key)
            if old is not None and key not in kind.rows:
                kind.rows[key] = Row(old.ref, old, self.version, self.version, _head(old), _spec(old), b"{}")
            if new is None:
                self._drop(kind, key)
            else:
                self._compute(kind, key, state, now, is_news=old is None)

    def _show(self, kind: _Kind, key: str) -> None:
        """Computes a row by what was seen at the last look, so that the next one can tell what changed since."""
        assert kind.seen is not None
        if key in kind.seen.desired:
            self._compute(kind, key, kind.seen, kind.seen_at)
        kind.stale.discard(key)

    def _compute(self, kind: _Kind, key: str, state: State, now: int, *, is_news: bool = False) -> None:
        before, resource = kind.rows.get(key), state.desired[key]
        found = status(state, resource.ref, now, self._fleet)
        (kind.restless.discard if is_at_rest(kind.plural, found) else kind.restless.add)(key)
        # It may be newer than the last look, so that the next one could not tell from its own two ends.
        kind.stale.add(key)
        said = _json(found)
        is_same = before is not None and before.resource is resource
        head, spec = (
            (before.head, before.spec) if before is not None and is_same else (_head(resource), _spec(resource))
        )
        if before is not None and (before.head, before.spec, before.status) == (head, spec, said):
            kind.rows[key] = before._replace(resource=resource)
            return
        if before is not None or is_news:
            self.version += 1
        was_declared = before is not None and (is_same or before.resource == resource)
        declared = before.declared if before is not None and was_declared else self.version
        row = kind.rows[key] = Row(resource.ref, resource, self.version, declared, head, spec, said)
        if before is not None or is_news:
            old = before.labels if before is not None else None
            kind.history.note(FeedEvent(row.version, row.ref, old, row.labels, row.body))

    def _drop(self, kind: _Kind, key: str) -> None:
        gone = kind.rows.pop(key)
        kind.stale.discard(key)
        kind.restless.discard(key)
        self.version += 1
        body = _body(gone.head, self.version, gone.spec, gone.status)
        kind.history.note(FeedEvent(self.version, gone.ref, gone.labels, None, body))


class _Kind:
    """What is shown of one kind."""

    def __init__(self, plural: str, begin: int) -> None:
        self.plural, self.prefix = plural, f"{plural}."
        self.rows: dict[str, Row] = {}
        """What somebody was shown. Each is of the resource in `desired`."""
        self.desired: Mapping[str, Resource] | None = None
        self.names: list[Named] | None = None
        self.seen: State | None = None
        """The state at the last look, and when that was."""
        self.seen_at = 0
        self.stale: set[str] = set()
        """Rows that may look different by now."""
        self.restless: set[str] = set()
        """Rows that may look different with whatever changes."""
        self.is_whole = False
        """Every one that is there has a row."""
        self.history = History(begin)

    def named(self) -> list[Named]:
        if self.names is None:
            rows = sorted((key, row) for key, row in (self.desired or {}).items() if key.startswith(self.prefix))
            self.names = [Named(key, row.ref, row.metadata.labels) for key, row in rows]
        return self.names


# --- The JSON of a resource, in parts ---------------------------------------------------------------------------------


def _head(resource: Resource) -> bytes:
    """Up to its version, which comes last in the metadata."""
    namespace = resource.ref.namespace or None
    metadata = msgspec.structs.replace(resource.metadata, namespace=namespace, resource_version=None)
    kind = {"apiVersion": API_VERSION, "kind": type(resource).__name__}
    return _json(kind)[:-1] + b',"metadata":' + _json(metadata)[:-1]


def _spec(resource: Resource) -> bytes:
    return _json(getattr(resource, "spec", {}))


def _body(head: bytes, version: int | None, spec: bytes, said: bytes) -> bytes:
    stamp = b"" if version is None else b',"resourceVersion":"%d"' % version
    return b"".join((head, stamp, b'},"spec":', spec, b',"status":', said, b"}"))


def _json(value: Any) -> bytes:
    return msgspec.json.encode(value, enc_hook=encode_hook)
