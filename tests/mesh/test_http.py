"""The gateway's door by itself: what it takes for a request, and what it turns away. No broker, real sockets."""

from __future__ import annotations

import asyncio
import socket
from typing import TYPE_CHECKING

import pytest

from batuta.dataflow.mesh import http as door_module
from batuta.dataflow.mesh.http import Door, Request, Response

if TYPE_CHECKING:
    from collections.abc import AsyncIterator


@pytest.fixture
async def door() -> AsyncIterator[tuple[Door, int]]:
    """It says what it was asked; `/wait` waits for ever, `/fault` is a mistake."""

    async def serve(request: Request) -> Response:
        if request.path == "/wait":
            await asyncio.Event().wait()
        if request.path == "/fault":
            raise KeyError("a mistake")
        return Response(200, f"{request.method} {request.path} {len(request.body)}".encode(), "text/plain")

    made = Door(serve)
    listener = socket.socket()
    listener.bind(("127.0.0.1", 0))
    listener.setblocking(False)
    await made.open(listener)
    try:
        yield made, listener.getsockname()[1]
    finally:
        await made.close(grace_s=0.1)


async def said(port: int, *pieces: bytes, until: bytes = b"") -> bytes:
    """Everything that comes back, up to these words, or until the door hangs up."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    found = b""
    try:
        for piece in pieces:
            writer.write(piece)
            await writer.drain()
            await asyncio.sleep(0)
        async with asyncio.timeout(60):
            while not (until and until in found) and (data := await reader.read(65_536)):
                found += data
    except ConnectionError:
        pass  # it hung up on what was still being sent
    writer.close()
    return found


async def let_go(made: Door) -> None:
    """Until no body is held any more."""
    async with asyncio.timeout(60):
        while made.held_bytes:  # noqa: ASYNC110  the door tells nobody
            await asyncio.sleep(0.01)


def post(path: str, body: bytes, *lines: str) -> bytes:
    return (
        "\r\n".join((f"POST {path} HTTP/1.1", "Host: x", f"Content-Length: {len(body)}", *lines, "", "")).encode()
        + body
    )


async def test_requests_one_after_the_other_in_pieces_and_ahead(door: tuple[Door, int]) -> None:
    made, port = door
    whole = post("/a?x=1", b"12345") + post("/b", b"")
    assert b"POST /a 5" in await said(port, whole, until=b"POST /b 0")
    in_pieces = (whole[i : i + 1] for i in range(70))
    assert b"POST /a 5" in await said(port, *in_pieces, whole[70:], until=b"POST /b 0")
    found = await said(port, post("/big", b"x" * 300_000), post("/next", b""), until=b"POST /next 0")
    assert b"POST /big 300000" in found
    assert b"Connection: close" in await said(port, b"GET /old HTTP/1.0\r\n\r\n")
    patient = b"POST /c HTTP/1.1\r\nExpect: 100-continue\r\nContent-Length: 3\r\n\r\n"
    assert b"100 Continue" in await said(port, patient, until=b"\r\n\r\n")
    await let_go(made)


@pytest.mark.parametrize(
    ("status", "request_"),
    [
        (400, b"nonsense\r\n\r\n"),
        (400, b"GET http://elsewhere/ HTTP/1.1\r\n\r\n"),
        (400, b"GET / HTTP/1.1\r\nA B : c\r\n\r\n"),
        (400, b"POST / HTTP/1.1\r\nContent-Length: 3\r\nContent-Length: 4\r\n\r\nabcd"),
        (400, b"POST / HTTP/1.1\r\nContent-Length: -1\r\n\r\n"),
        (400, b"POST / HTTP/1.1\r\nContent-Length: 1e3\r\n\r\n"),
        (411, b"POST / HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n"),
        (413, b"POST / HTTP/1.1\r\nContent-Length: 2147483648\r\n\r\n"),
        (431, b"GET / HTTP/1.1\r\nX: " + b"x" * 40_000),
    ],
)
async def test_what_is_no_request_is_turned_away_in_words(door: tuple[Door, int], status: int, request_: bytes) -> None:
    made, port = door
    found = await said(port, request_)
    assert found.startswith(b"HTTP/1.1 %d " % status), found[:200]
    assert b'{"error":' in found
    assert b"Connection: close" in found
    assert (made.refused, made.held_bytes) == (1, 0)
    assert b"GET /still 0" in await said(port, b"GET /still HTTP/1.1\r\n\r\n", until=b"/still 0")


async def test_all_bodies_together_are_bounded(door: tuple[Door, int], monkeypatch: pytest.MonkeyPatch) -> None:
    made, port = door
    monkeypatch.setattr(door_module, "HELD_BYTES_MAX", 1_000)
    _, waiting = await asyncio.open_connection("127.0.0.1", port)
    waiting.write(post("/wait", b"x" * 800))
    async with asyncio.timeout(30):
        while made.held_bytes < 800:  # noqa: ASYNC110  the door tells nobody
            await asyncio.sleep(0.01)
    assert b"503" in await said(port, post("/a", b"x" * 300))
    assert b"200 OK" in await said(port, post("/a", b"x" * 100), until=b"/a 100")
    waiting.close()
    await let_go(made)
    assert b"200 OK" in await said(port, post("/a", b"x" * 300), until=b"/a 300")


async def test_a_mistake_is_one_requests_misfortune(door: tuple[Door, int]) -> None:
    made, port = door
    found = await said(port, post("/fault", b""), post("/after", b""), until=b"/after 0")
    assert b"500" in found
    assert b"POST /after 0" in found
    assert made.faults == 1


async def test_who_begins_and_does_not_go_on_is_sent_away(
    door: tuple[Door, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    made, port = door
    _, slow = await asyncio.open_connection("127.0.0.1", port)
    slow.write(b"GET /slow HT")
    async with asyncio.timeout(60):
        while not [line for line in made.lines if line._buffer]:  # noqa: ASYNC110
            await asyncio.sleep(0.01)
    [line] = made.lines
    assert not line.is_overdue(door_module.time.monotonic())
    assert line.is_overdue(door_module.time.monotonic() + door_module.STALLED_S + 1)
    monkeypatch.setattr(door_module, "CONNECTIONS_MAX", 1)
    assert b"503" in await said(port, b"")
    slow.close()
