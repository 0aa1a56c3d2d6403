"""The tables as the hub holds them: rows in memory, a revision that guards every write, changes for the loop.

Rows come from the fabric's watches and from this process's own writes, whichever is first; an echo of what is known
already changes nothing. So a write is visible to its writer at once, and a restarted hub knows what the old one
wrote and no more.
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any, Final

import msgspec

from batuta.core.decided import Commons
from batuta.core.observed import Report
from batuta.core.reasons import Reason
from batuta.core.standing import DECIDED
from batuta.core.state import Change
from batuta.errors import Refused
from batuta.fabric.base import SNAPSHOT_DONE, Entry, Table
from batuta.fabric.subjects import report_key, site_changed
from batuta.fabric.tasks import end
from batuta.kinds import manifest
from batuta.kinds.base import Ref, Resource, decode_hook, encode_hook

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from batuta.fabric.base import Fabric
    from batuta.hub.counters import Counters

REPORT_BYTES_MAX: Final = 1 << 20
EPOCH_KEY: Final = "hub.epoch"


class Store:
    """Desired, decided and observed, as far as this hub knows."""

    def __init__(self, fabric: Fabric, counters: Counters, on_change: Callable[[], None]) -> None:
        self._tables: dict[str, Table] = {name: fabric.table(name) for name in ("desired", "decided", "observed")}
        self._fabric = fabric
        self._counters = counters
        self._on_change = on_change
        self._revisions: dict[tuple[str, str], int] = {}
        """Of rows that exist: what a write must name."""
        self._heard: dict[tuple[str, str], int] = {}
        """The newest revision seen of a key, also of one we deleted: a late echo must not bring it back."""
        self._pending: list[Change] = []
        self._watches: list[asyncio.Task[None]] = []
        self.garbled: dict[str, Reason] = {}
        """Nodes whose last report could not be read, and why."""
        self.epoch = 0
        """Counts the lives of this hub; nodes and old list versions tell them apart by it."""

    async def open(self) -> None:
        """Reads all tables, then follows them. Returns once what is in them is known."""
        await self._begin_epoch()
        ready = [asyncio.Event() for _ in self._tables]
        self._watches = [
            asyncio.create_task(self._follow(name, event), name=f"follow {name}")
            for name, event in zip(self._tables, ready, strict=True)
        ]

        async def everything() -> None:
            for event in ready:
                await event.wait()

        known = asyncio.create_task(everything())
        try:
            done, _ = await asyncio.wait((known, *self._watches), return_when=asyncio.FIRST_COMPLETED)
            for task in done:
                task.result()
        finally:
            known.cancel()

    async def close(self) -> None:
        await end(*self._watches)

    async def failed(self) -> None:
        """Returns never, unless a watch ends: then it raises what ended it, and the hub must start anew."""
        await asyncio.gather(*self._watches)

    @property
    def has_news(self) -> bool:
        """Is there something to take?"""
        return bool(self._pending)

    def take(self) -> list[Change]:
        """The changes since the last call, in order."""
        taken, self._pending = self._pending, []
        return taken

    # --- Writing ---

    async def put_resource(self, resource: Resource, expected: int | None) -> None:
        """Writes a declaration. `expected` is the revision it replaces, 0 for a new one; raises Stale."""
        key = resource.ref.key
        body = manifest.to_json(_without_version(resource))
        revision = await self._tables["desired"].put(key, body, expected)
        self._learn("desired", key, resource, revision)

    async def delete_resource(self, ref: Ref, expected: int | None) -> None:
        await self._delete("desired", ref.key, expected)

    async def commit(self, change: Change, decided_on: int | None = None) -> None:
        """Writes one decided row over the revision that was decided on, or the newest that is known; raises Stale when
        that is not the newest."""
        revision = self.revision("decided", change.key) if decided_on is None else decided_on
        if change.value is None:
            await self._delete("decided", change.key, revision or None)
            return
        body = msgspec.json.encode(change.value, enc_hook=encode_hook)
        written = await self._tables["decided"].put(change.key, body, revision)
        self._learn("decided", change.key, change.value, written)
        if isinstance(change.value, Commons):
            # Those who miss it learn it from the answer to their next heartbeat.
            await self._fabric.publish(site_changed(change.value.site), b"")

    async def forget_report(self, node: str) -> None:
        """Drops what a removed node last said of itself."""
        await self._delete("observed", report_key(node), None)
        self.garbled.pop(node, None)

    async def reread(self, table: str, key: str) -> None:
        """Learns what the newest row is, after a write was told that it is not what we thought."""
        entry = await self._tables[table].get(key)
        if entry is None or entry.value is None:
            self._revisions.pop((table, key), None)
            self._note(table, key, None)
        else:
            self._hear(table, entry)

    def revision(self, table: str, key: str) -> int:
        """The newest known revision of a row; 0 when there is none."""
        return self._revisions.get((table, key), 0)

    async def _delete(self, table: str, key: str, expected: int | None) -> None:
        await self._tables[table].delete(key, expected)
        self._revisions.pop((table, key), None)
        self._note(table, key, None)

    # --- Reading ---

    async def _begin_epoch(self) -> None:
        table = self._tables["decided"]
        entry = await table.get(EPOCH_KEY)
        self.epoch = (int(entry.value) if entry and entry.value else 0) + 1
        await table.put(EPOCH_KEY, str(self.epoch).encode(), entry.revision if entry else None)

    async def _follow(self, name: str, ready: asyncio.Event) -> None:
        async for change in self._tables[name].watch():
            if change is SNAPSHOT_DONE:
                ready.set()
            elif isinstance(change, Entry):
                self._hear(name, change)
        raise RuntimeError(f"the watch of table {name} ended")

    def _hear(self, table: str, entry: Entry) -> None:
        at = (table, entry.key)
        if entry.key == EPOCH_KEY or entry.revision <= self._heard.get(at, -1):
            return
        if entry.value is None:
            # A watch keeps order, so nothing older of this key can follow.
            self._heard.pop(at, None)
            self._revisions.pop(at, None)
            self._note(table, entry.key, None)
            return
        try:
            value = self._decode(table, entry)
        except (ValueError, msgspec.DecodeError, Refused) as error:
            self._heard[at] = self._revisions[at] = entry.revision
            self._garbled(table, entry.key, str(error))
            return
        if table == "observed":
            self.garbled.pop(value.node, None)
        self._learn(table, entry.key, value, entry.revision)

    def _decode(self, table: str, entry: Entry) -> Any:
        assert entry.value is not None
        if table == "desired":
            return manifest.from_json(entry.value)
        if table == "decided":
            kind = DECIDED.get(entry.key.split(".", 1)[0])
            if kind is None:
                raise ValueError(f"no kind of decision is kept under {entry.key!r}")
            return msgspec.json.decode(entry.value, type=kind, dec_hook=decode_hook)
        if len(entry.value) > REPORT_BYTES_MAX:
            raise ValueError(f"{len(entry.value)} bytes; a report has {REPORT_BYTES_MAX} at most")
        report = msgspec.json.decode(entry.value, type=Report, dec_hook=decode_hook)
        if report_key(report.node) != entry.key:
            raise ValueError(f"it speaks for node {report.node!r}")
        return report

    def _garbled(self, table: str, key: str, why: str) -> None:
        self._counters.add("rows_garbled", table)
        if table == "observed":
            node = key.removeprefix("report.")
            self.garbled[node] = Reason(code="report_garbled", subject=f"node/{node}", detail=why[:200])
        self._on_change()

    def _learn(self, table: str, key: str, value: Any, revision: int) -> None:
        if revision > self._heard.get((table, key), -1):
            self._heard[table, key] = self._revisions[table, key] = revision
            self._note(table, key, value)

    def _note(self, table: str, key: str, value: Any) -> None:
        # State keeps reports under the node's name alone.
        row = key.removeprefix("report.") if table == "observed" else key
        self._pending.append(Change(table, row, value))  # type: ignore[arg-type]
        self._on_change()


def encode_all(changes: Sequence[Change]) -> list[bytes]:
    """The bytes of each value, for comparing decisions."""
    return [msgspec.json.encode(c.value, enc_hook=encode_hook) for c in changes]


def _without_version(resource: Resource) -> Resource:
    metadata = msgspec.structs.replace(resource.metadata, resource_version=None)
    return msgspec.structs.replace(resource, metadata=metadata)
