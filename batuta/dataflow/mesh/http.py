"""The node's HTTP door: HTTP/1.1 on loopback, for programs that know nothing else.

Small on purpose: a request is read whole, given away, and its answer written; one after the other on a connection.
What a peer says about sizes is believed only up to a bound, and what all requests together hold in memory is bounded
too. A connection that begins a request and does not go on is closed.
"""

from __future__ import annotations

import asyncio
import logging
import time
from http import HTTPStatus
from typing import TYPE_CHECKING, Final, NamedTuple

import msgspec

from batuta.fabric.tasks import end

if TYPE_CHECKING:
    import socket
    from collections.abc import Awaitable, Callable, Mapping

log = logging.getLogger("gateway")

HEAD_BYTES_MAX: Final = 32 * 1024
BODY_BYTES_MAX: Final = 64 << 20
HELD_BYTES_MAX: Final = 128 << 20
"""All bodies that are here at one time."""
CONNECTIONS_MAX: Final = 12_000
STALLED_S: Final = 60.0
"""A request that has begun and does not get whole."""
IDLE_S: Final = 600.0
SWEEP_S: Final = 5.0
BACKLOG: Final = 1_024


class Request(NamedTuple):
    method: str
    path: str
    """Without what follows a question mark."""
    headers: Mapping[str, str]
    """Names in lower case."""
    body: bytes


class Response(NamedTuple):
    status: int
    body: bytes = b""
    content_type: str = "application/json"
    headers: tuple[tuple[str, str], ...] = ()


class Wrong(Exception):
    """What came is no request that can be answered; the connection ends with it."""

    def __init__(self, status: int, message: str, code: str) -> None:
        super().__init__(message)
        self.response = Response(status, msgspec.json.encode({"error": message}), headers=(("Batuta-Error", code),))


class Door:
    """Everyone who is connected."""

    def __init__(self, serve: Callable[[Request], Awaitable[Response]]) -> None:
        self.serve = serve
        self.held_bytes = 0
        self.refused = 0
        """Connections and requests that were turned away before anybody looked at them."""
        self.faults = 0
        """Requests that met a mistake of this program."""
        self.last_at_s = time.monotonic()
        """When somebody was here last."""
        self.lines: set[_Line] = set()
        self._server: asyncio.Server | None = None
        self._sweeping: asyncio.Task[None] | None = None

    async def open(self, listener: socket.socket) -> None:
        loop = asyncio.get_running_loop()
        self._server = await loop.create_server(lambda: _Line(self), sock=listener, backlog=BACKLOG)
        self._sweeping = asyncio.create_task(self._sweep())

    async def close(self, grace_s: float = 5.0) -> None:
        """No new ones; those that are being answered get a while."""
        if self._server is not None:
            self._server.close()
        until = time.monotonic() + grace_s
        for line in tuple(self.lines):
            line.end_when_idle()
        while self.lines and time.monotonic() < until:
            await asyncio.wait([line.ended for line in self.lines], timeout=max(0.0, until - time.monotonic()))
        for line in tuple(self.lines):
            line.abort()
        await end(self._sweeping)

    async def _sweep(self) -> None:
        while True:
            await asyncio.sleep(SWEEP_S)
            now = time.monotonic()
            for line in tuple(self.lines):
                if line.is_overdue(now):
                    self.refused += 1
                    line.abort()


class _Line(asyncio.Protocol):
    """One connection."""

    def __init__(self, door: Door) -> None:
        self.door = door
        self.ended: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._transport: asyncio.Transport
        self._buffer = bytearray()
        self._head: tuple[str, str, dict[str, str], int] | None = None
        self._answering: asyncio.Task[None] | None = None
        self._is_last = False
        self._moved_at = time.monotonic()
        self._writable: asyncio.Future[None] | None = None

    # --- What the transport says ---

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self._transport = transport
        self.door.lines.add(self)
        if len(self.door.lines) > CONNECTIONS_MAX:
            self._turn_away(Wrong(503, f"{CONNECTIONS_MAX} connections are open at this node already", "overloaded"))

    def connection_lost(self, _exc: Exception | None) -> None:
        self._release()
        self.door.lines.discard(self)
        if self._answering is not None:
            self._answering.cancel()  # nobody waits for the answer
        if self._writable is not None and not self._writable.done():
            self._writable.set_result(None)
        if not self.ended.done():
            self.ended.set_result(None)

    def data_received(self, data: bytes) -> None:
        self._moved_at = self.door.last_at_s = time.monotonic()
        self._buffer += data
        if self._answering is not None:
            if len(self._buffer) > HEAD_BYTES_MAX:
                self._transport.pause_reading()  # it sends ahead; let it wait
            return
        self._read()

    def pause_writing(self) -> None:
        self._writable = asyncio.get_running_loop().create_future()

    def resume_writing(self) -> None:
        if self._writable is not None and not self._writable.done():
            self._writable.set_result(None)
        self._writable = None

    # --- Reading ---

    def _read(self) -> None:
        """Begins to answer, if a request is whole."""
        try:
            if self._head is None:
                self._head = self._read_head()
            if self._head is None:
                return
            method, target, headers, length = self._head
            if len(self._buffer) < length:
                return
        except Wrong as wrong:
            self._turn_away(wrong)
            return
        body = bytes(memoryview(self._buffer)[:length])
        del self._buffer[:length]
        self._is_last = headers.get("connection", "").lower() == "close" or self._is_last
        request = Request(method, target.partition("?")[0], headers, body)
        self._answering = asyncio.create_task(self._answer(request))

    def _read_head(self) -> tuple[str, str, dict[str, str], int] | None:
        end_at = self._buffer.find(b"\r\n\r\n")
        if end_at > HEAD_BYTES_MAX or (end_at < 0 and len(self._buffer) > HEAD_BYTES_MAX):
            raise Wrong(431, f"the head of a request may have {HEAD_BYTES_MAX} bytes", "head_too_large")
        if end_at < 0:
            return None
        first, *lines = bytes(memoryview(self._buffer)[:end_at]).decode("latin-1").split("\r\n")
        del self._buffer[: end_at + 4]
        words = first.split(" ")
        if len(words) != 3 or words[2] not in ("HTTP/1.1", "HTTP/1.0") or not words[1].startswith("/"):
            raise Wrong(400, "this is not an HTTP/1.1 request", "malformed")
        headers: dict[str, str] = {}
        for line in lines:
            name, colon, value = line.partition(":")
            name = name.lower()
            # Two lengths, or a name with a space, are how one request is made to look like two.
            if not colon or name != name.strip() or (name == "content-length" and name in headers):
                raise Wrong(400, f"a header cannot be read: {line[:80]!r}", "malformed")
            headers[name] = value.strip()
        if words[2] == "HTTP/1.0":
            headers.setdefault("connection", "close")
        if "transfer-encoding" in headers:
            raise Wrong(411, "the length of the body must be said: Content-Length", "length_missing")
        said = headers.get("content-length", "0")
        if not said.isascii() or not said.isdigit() or len(said) > 15:
            raise Wrong(400, "Content-Length is not a number", "malformed")
        length = int(said)
        if length > BODY_BYTES_MAX:
            raise Wrong(413, f"{length} bytes are too many: this gateway takes {BODY_BYTES_MAX}", "too_large")
        if self.door.held_bytes + length > HELD_BYTES_MAX:
            raise Wrong(503, "too many large requests are under way at this node", "overloaded")
        self.door.held_bytes += length
        if headers.get("expect", "").lower() == "100-continue":
            self._transport.write(b"HTTP/1.1 100 Continue\r\n\r\n")
        return words[0], words[1], headers, length

    # --- Answering ---

    async def _answer(self, request: Request) -> None:
        try:
            response = await self.door.serve(request)
        except Exception:  # a mistake of ours is one request's misfortune
            self.door.faults += 1
            log.exception("%s %s could not be answered", request.method, request.path[:200])
            response = Response(500, b'{"error":"the gateway made a mistake; its log says more"}')
        finally:
            self._release()
        self._answering = None
        if self._transport.is_closing():
            return
        self._write(response, keep=not self._is_last)
        self._moved_at = time.monotonic()
        if self._is_last:
            self._transport.close()
            return
        if self._writable is not None:
            await self._writable
        self._transport.resume_reading()
        self._read()

    def _turn_away(self, wrong: Wrong) -> None:
        self.door.refused += 1
        self._write(wrong.response, keep=False)
        self._transport.close()

    def _write(self, response: Response, *, keep: bool) -> None:
        lines = [
            f"HTTP/1.1 {response.status} {_PHRASES.get(response.status, '')}",
            f"Content-Type: {response.content_type}",
            f"Content-Length: {len(response.body)}",
            *(f"{name}: {value}" for name, value in response.headers),
            *(() if keep else ("Connection: close",)),
        ]
        self._transport.write("\r\n".join((*lines, "", "")).encode("latin-1", "replace") + response.body)

    def _release(self) -> None:
        if self._head is not None:
            self.door.held_bytes -= self._head[3]
            self._head = None

    # --- The end ---

    def is_overdue(self, now_s: float) -> bool:
        if self._answering is not None:
            return False
        waited_s = now_s - self._moved_at
        return waited_s > (STALLED_S if self._head is not None or self._buffer else IDLE_S)

    def end_when_idle(self) -> None:
        self._is_last = True
        if self._answering is None:
            self._transport.close()

    def abort(self) -> None:
        self._transport.abort()


_PHRASES: Final = {status.value: status.phrase for status in HTTPStatus}
