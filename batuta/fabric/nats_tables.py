"""Tables over NATS: the hub's own, and what a node sees of them."""

from __future__ import annotations

import asyncio
from contextlib import suppress
from typing import TYPE_CHECKING, Final

from batuta.errors import FabricUnavailable, Stale
from batuta.fabric import subjects
from batuta.fabric.base import SNAPSHOT_DONE, Change, Entry, Message
from batuta.fabric.nats_reading import in_order

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from nats.aio.msg import Msg

    from batuta.fabric.nats import NatsFabric

RETRY_EVERY_S: Final = 0.5


def _entry(key: str, message: Msg) -> Entry | None:
    """The row in the answer to a direct get; None when there is no such key."""
    headers = message.headers or {}
    if "Nats-Sequence" not in headers:
        return None
    value = None if "KV-Operation" in headers else bytes(message.data)
    return Entry(key, value, int(headers["Nats-Sequence"]))


class NatsTable:
    """A table of the hub, as the hub sees it."""

    def __init__(self, fabric: NatsFabric, name: str) -> None:
        self._fabric = fabric
        self._name = name
        self._stream = subjects.table_stream(name)

    async def get(self, key: str) -> Entry | None:
        row = await self._newest(key)
        return row if row and row.value is not None else None

    async def put(self, key: str, value: bytes, revision: int | None = None) -> int:
        return await self._write(key, value, revision, {})

    async def delete(self, key: str, revision: int | None = None) -> None:
        if await self.get(key) is not None:
            await self._write(key, b"", revision, {"KV-Operation": "DEL"})

    async def watch(self, prefix: str = "") -> AsyncIterator[Change]:
        await self._fabric.ensure_table(self._name)
        start = subjects.table_key(self._name, "")
        wanted = subjects.table_key(self._name, f"{prefix}>" if not prefix or prefix.endswith(".") else prefix)
        is_snapshot = True
        async for seen in in_order(self._fabric, self._stream, wanted, newest_only=True):
            if seen is None:
                is_snapshot = False
                yield SNAPSHOT_DONE
                continue
            deleted = "KV-Operation" in (seen.message.headers or {})
            if not (is_snapshot and deleted):
                value = None if deleted else bytes(seen.message.data)
                yield Entry(seen.message.subject.removeprefix(start), value, seen.sequence)

    async def keys(self, prefix: str = "") -> list[str]:
        found: list[str] = []
        changes = self.watch(prefix)
        async for change in changes:
            if not isinstance(change, Entry):
                break
            found.append(change.key)
        await changes.aclose()  # type: ignore[attr-defined]
        return sorted(found)

    async def _newest(self, key: str) -> Entry | None:
        await self._fabric.ensure_table(self._name)
        subject = f"$JS.API.DIRECT.GET.{self._stream}.{subjects.table_key(self._name, key)}"
        return _entry(key, await self._fabric.ask(subject, b""))

    async def _write(self, key: str, value: bytes, revision: int | None, headers: dict[str, str]) -> int:
        await self._fabric.ensure_table(self._name)
        subject = subjects.table_key(self._name, key)
        if revision is None:
            return int((await self._fabric.store(subject, value, headers))["seq"])
        expected = {"Nats-Expected-Last-Subject-Sequence": str(revision)}
        try:
            return int((await self._fabric.store(subject, value, headers | expected))["seq"])
        except Stale:
            row = await self._newest(key)
            if revision != 0 or row is None or row.value is not None:
                raise
            # A deleted row still has a revision; creating means writing after that.
            return await self._write(key, value, row.revision, headers)


class NodeTable:
    """What a node sees of the hub's tables: its own assignment to read, its own report to write."""

    def __init__(self, fabric: NatsFabric, name: str) -> None:
        if name not in ("decided", "observed"):
            raise PermissionError(f"a node has no view of table {name}")
        self._fabric = fabric
        self._name = name

    async def get(self, key: str) -> Entry | None:
        self._check_readable(key)
        subject = subjects.direct_get(subjects.HUB_DOMAIN, self._name, key)
        row = _entry(key, await self._fabric.ask(subject, b""))
        return row if row and row.value is not None else None

    async def put(self, key: str, value: bytes, revision: int | None = None) -> int:
        if self._name != "observed" or key != subjects.report_key(self._fabric.name):
            raise PermissionError(f"a node may not write {key} in table {self._name}")
        expected = {} if revision is None else {"Nats-Expected-Last-Subject-Sequence": str(revision)}
        return int((await self._fabric.store(subjects.report(self._fabric.name), value, expected))["seq"])

    async def delete(self, key: str, revision: int | None = None) -> None:
        raise PermissionError(f"a node may not delete {key} in table {self._name}, at revision {revision} or any")

    async def watch(self, prefix: str = "") -> AsyncIterator[Change]:
        """The assignment, and again whenever it changes. Read anew after each silence of the hub, so none is missed."""
        self._check_readable(prefix)
        woken = asyncio.Event()
        self._fabric.on_reconnect(woken.set)

        async def changed(_message: Message) -> None:
            woken.set()

        subscription = await self._fabric.subscribe(subjects.assignment(self._fabric.name), changed)
        revision, is_snapshot = 0, True
        try:
            while True:
                woken.clear()
                try:
                    row = await self.get(prefix)
                except FabricUnavailable:
                    await self._pause(woken)
                    continue
                if row is not None and row.revision > revision:
                    revision = row.revision
                    yield row
                elif row is None and revision and not is_snapshot:
                    yield Entry(prefix, None, revision)
                    revision = 0
                if is_snapshot:
                    is_snapshot = False
                    yield SNAPSHOT_DONE
                await woken.wait()
        finally:
            self._fabric.off_reconnect(woken.set)
            await subscription.close()

    async def keys(self, prefix: str = "") -> list[str]:
        return [prefix] if await self.get(prefix) is not None else []

    async def _pause(self, woken: asyncio.Event) -> None:
        with suppress(TimeoutError):
            async with asyncio.timeout(RETRY_EVERY_S):
                await woken.wait()

    def _check_readable(self, key: str) -> None:
        if self._name != "decided" or key != subjects.assignment_key(self._fabric.name):
            raise PermissionError(f"a node may not read {key or 'all'} in table {self._name}")
