"""Many watchers of a real listener: nothing lost, nothing out of order.

Who does not read is dropped, and who comes back too late is told so. The same crowd and the same watchers at full size
are in `benchmarks/api.py`.
"""

from __future__ import annotations

import asyncio
import socket
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any

import msgspec
import pytest

from batuta.hub import history
from batuta.hub.feed import Feed
from batuta.kinds import Node
from batuta.web import lookout, patience, watch
from batuta.web.lookout import Lookout, refresh
from batuta.web.selectors import selector
from batuta.web.sources import KindSource
from batuta.web.watch import Watch
from benchmarks.api_client import Watcher
from benchmarks.crowd import crowd

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable
    from pathlib import Path

    from benchmarks.crowd import Crowd

NODES = "/apis/batuta.dev/v1/nodes"
PATIENCE_S = 90


@pytest.fixture
async def fleet(tmp_path: Path) -> AsyncIterator[Crowd]:
    async with crowd(tmp_path, 40) as running:
        yield running


async def until(holds: Callable[[], Any]) -> None:
    async with asyncio.timeout(PATIENCE_S):
        while not holds():  # noqa: ASYNC110  counters have no event
            await asyncio.sleep(0.02)


@asynccontextmanager
async def asking(fleet: Crowd, path: str) -> AsyncIterator[tuple[asyncio.StreamReader, asyncio.StreamWriter]]:
    """A connection that has sent its request; it keeps little of what it does not read."""
    sock = socket.socket()
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
    sock.setblocking(False)
    await asyncio.get_running_loop().sock_connect(sock, ("127.0.0.1", fleet.port))
    reader, writer = await asyncio.open_connection(sock=sock, limit=4096)
    writer.write(request_for(fleet, path))
    try:
        yield reader, writer
    finally:
        writer.transport.abort()


def request_for(fleet: Crowd, path: str) -> bytes:
    return f"GET {path} HTTP/1.0\r\nHost: 127.0.0.1\r\nAuthorization: Bearer {fleet.token}\r\n\r\n".encode()


async def get(fleet: Crowd, path: str) -> Any:
    async with asyncio.timeout(PATIENCE_S), asking(fleet, path) as (reader, _):
        head, _, body = (await reader.read(-1)).partition(b"\r\n\r\n")
    assert b" 200 " in head, head
    return msgspec.json.decode(body)


async def say(fleet: Crowd, changes: int, seen: Callable[[], int]) -> None:
    """Node after node reports something new, none of them twice before all of it was seen."""
    names = fleet.nodes.names
    for i in range(changes):
        if i % len(names) == 0:
            await until(lambda: seen() == fleet.nodes.changes)
        await fleet.nodes.change(names[i % len(names)])


async def test_every_watcher_sees_every_change_once_and_in_order(fleet: Crowd) -> None:
    changes, loop = 400, asyncio.get_running_loop()
    version = (await get(fleet, f"{NODES}?limit=1"))["metadata"]["resourceVersion"]
    path = f"{NODES}?watch=true&resourceVersion={version}"
    done = asyncio.Semaphore(0)
    watchers = [Watcher(request_for(fleet, path), changes, done, None) for _ in range(20)]
    opened = [await loop.create_connection(lambda w=w: w, "127.0.0.1", fleet.port) for w in watchers]
    try:
        await until(lambda: all(w.is_in_body for w in watchers))
        await say(fleet, changes, lambda: min(w.distinct for w in watchers))
        async with asyncio.timeout(PATIENCE_S):
            for _ in watchers:
                await done.acquire()
    finally:
        for transport, _ in opened:
            transport.abort()
    assert [(w.distinct, w.reordered, w.errors) for w in watchers] == [(changes, 0, 0)] * 20
    assert fleet.hub.counters["watches_dropped"] == 0


async def test_who_does_not_read_is_dropped_and_counted(
    fleet: Crowd, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(watch, "STALL_S", 0.5)
    monkeypatch.setattr(lookout, "PACE_MS", 1)
    monkeypatch.setattr(lookout, "PIECE_BYTES", 16_384)
    async with asking(fleet, f"{NODES}?watch=true") as (reader, writer):
        await reader.readuntil(b"\r\n\r\n")
        writer.transport.pause_reading()  # type: ignore[attr-defined]
        until_dropped = asyncio.create_task(until(lambda: fleet.hub.counters["watches_dropped"]))
        while not until_dropped.done():
            await fleet.nodes.change(fleet.nodes.names[fleet.nodes.changes % 40])
            await asyncio.sleep(0.001)
        await until_dropped
        await until(lambda: not fleet.listener.server_state.connections)
    assert not [r.getMessage() for r in caplog.records if r.name.startswith("uvicorn")], "it is counted, and no fault"
    said = {(name, label): count for name, label, count in fleet.hub.counters.items()}
    assert said["watches_dropped", "not_read"] == 1


async def test_who_takes_nothing_of_a_list_is_hung_up_on(fleet: Crowd, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(patience, "TAKEN_S", 0.3)
    monkeypatch.setattr(Feed, "shown", lambda feed, plural, _: list(feed.rows(plural).values()) * 500)
    async with asking(fleet, NODES) as (reader, writer):
        await reader.readuntil(b"\r\n\r\n")
        writer.transport.pause_reading()  # type: ignore[attr-defined]
        await until(lambda: not fleet.listener.server_state.connections)


async def test_who_reads_on_too_late_is_told_to_list_again(fleet: Crowd, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(history, "EVENTS_MAX", 50)
    monkeypatch.setattr(watch, "STALL_S", PATIENCE_S)
    source = KindSource(fleet.hub, Node)
    looking = Lookout(fleet.hub, source)
    await refresh(source)
    begin = source.version
    watching = Watch(looking, looking.group("", selector("", ""), None, None), {"resourceVersion": str(begin)})
    sent: list[bytes] = []
    reads_on = asyncio.Event()

    async def send(message: Any) -> None:
        if body := message.get("body"):
            sent.append(body)
            await reads_on.wait()

    saying = asyncio.create_task(watching({}, asyncio.Event().wait, send))  # type: ignore[arg-type]
    try:
        while not sent or source.version < begin + 200:
            await fleet.nodes.change(fleet.nodes.names[fleet.nodes.changes % 40])
            await asyncio.sleep(0.001)
        assert len(sent) == 1, "it was given more before it took what it had"
        reads_on.set()
        async with asyncio.timeout(PATIENCE_S):
            await saying
    finally:
        saying.cancel()
        await asyncio.gather(saying, return_exceptions=True)
    event = msgspec.json.decode(sent[-1])
    assert (event["type"], event["object"]["code"]) == ("ERROR", 410)
    said = {(name, label): count for name, label, count in fleet.hub.counters.items()}
    assert said["watches_dropped", "too_slow"] == 1


async def test_what_is_not_on_the_page_is_not_computed(fleet: Crowd, monkeypatch: pytest.MonkeyPatch) -> None:
    from batuta.hub import feed

    computed: list[str] = []
    real = feed.status

    def status(state: Any, ref: Any, *rest: Any) -> Any:
        computed.append(ref.name)
        return real(state, ref, *rest)

    monkeypatch.setattr(feed, "status", status)
    first = await get(fleet, f"{NODES}?limit=7")
    assert computed == fleet.nodes.names[:7]
    assert first["metadata"]["remainingItemCount"] == 33
    names = [item["metadata"]["name"] for item in first["items"]]
    token = first["metadata"]["continue"]
    while token:
        page = await get(fleet, f"{NODES}?limit=7&continue={token}")
        names += [item["metadata"]["name"] for item in page["items"]]
        token = page["metadata"].get("continue")
    assert names == fleet.nodes.names


async def test_a_list_computes_again_only_what_changed(fleet: Crowd, monkeypatch: pytest.MonkeyPatch) -> None:
    from batuta.hub import feed

    await get(fleet, NODES)
    computed: set[str] = set()
    real = feed.status
    monkeypatch.setattr(feed, "status", lambda state, ref, *rest: computed.add(ref.name) or real(state, ref, *rest))
    await fleet.nodes.change("node-00007")
    await until(lambda: fleet.hub.loop.state.observed["node-00007"].vitals.cpu_percent == fleet.nodes.changes)
    items = (await get(fleet, NODES))["items"]
    assert items[7]["status"]["vitals"]["cpuPercent"] == fleet.nodes.changes
    # A slow machine may have missed a heartbeat of others meanwhile, but not of all of them.
    assert "node-00007" in computed
    assert len(computed) < 40


async def test_what_was_declared_before_anybody_looked_is_an_event_afterwards(fleet: Crowd) -> None:
    """Nobody was ever shown this node; who chose by labels that it has since then must hear of it."""
    from batuta.kinds.base import Ref

    chosen = "labelSelector=colour%3Dred"
    listed = await get(fleet, f"{NODES}?{chosen}&limit=5")
    assert listed["items"] == []
    version = listed["metadata"]["resourceVersion"]
    node = fleet.hub.loop.state.get(Ref("nodes", "", "node-00003"))
    assert node is not None
    labels = {**node.metadata.labels, "colour": "red"}
    metadata = msgspec.structs.replace(node.metadata, labels=labels)
    await fleet.hub.declarations.apply([msgspec.structs.replace(node, metadata=metadata)])
    path = f"{NODES}?watch=true&{chosen}&resourceVersion={version}"
    async with asyncio.timeout(PATIENCE_S), asking(fleet, path) as (reader, _):
        await reader.readuntil(b"\r\n\r\n")
        event = msgspec.json.decode(await reader.readuntil(b"\n"))
    assert (event["type"], event["object"]["metadata"]["name"]) == ("ADDED", "node-00003")
