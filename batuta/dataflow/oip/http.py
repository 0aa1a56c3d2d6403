"""HTTP/1.1 for an endpoint: one protocol object for each connection, nothing between it and the socket.

A connection has one request at a time; what it sends ahead waits. Bodies that came whole with their head are read where
they lie; larger ones are gathered in one piece of memory of their announced size, laid so that the tensors in it begin
at an even address. All sizes and numbers are bounded, and a client that stops in the middle of a request is let go.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import zlib
from typing import TYPE_CHECKING, Any, Final

import httptools

from batuta.core.beside import HEADER_INSTANCE
from batuta.core.serving import HEADER_ERROR, HEADER_JSON_BYTES
from batuta.dataflow.oip.endpoint import Asking
from batuta.dataflow.oip.faults import Fault
from batuta.dataflow.oip.heads import HEAD_BYTES_MAX, Heads
from batuta.dataflow.oip.paths import Asked, answered, is_infer
from batuta.dataflow.oip.regions import Regions, owner_of_peer

if TYPE_CHECKING:
    from batuta.dataflow.oip.endpoint import Endpoint
    from batuta.dataflow.oip.heads import Head

MIB: Final = 1 << 20
BODY_BYTES_MAX: Final = 64 * MIB
HELD_BYTES_MAX: Final = 256 * MIB
"""All bodies of more than a read that are being received or answered."""
CONNECTIONS_MAX: Final = 3_000
STALLED_S: Final = 30.0
"""A request that makes no progress for so long is given up."""
DISCARD_S: Final = 2.0
"""How long the rest of a refused body is read away, so that the refusal is seen before the connection ends."""
READ_AWAY_BYTES: Final = 64 * 1024
AHEAD_BYTES_MAX: Final = 256 * 1024
ALIGNED: Final = 16
LOOK_EVERY_S: Final = 5.0
_STATUS: Final = {
    200: "OK", 400: "Bad Request", 403: "Forbidden", 404: "Not Found", 405: "Method Not Allowed",
    408: "Request Timeout", 411: "Length Required", 413: "Content Too Large", 415: "Unsupported Media Type",
    431: "Request Header Fields Too Large", 500: "Internal Server Error", 501: "Not Implemented",
    503: "Service Unavailable", 504: "Gateway Timeout",
}  # fmt: skip
_JSON: Final = b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n"
_BINARY: Final = (
    b"HTTP/1.1 200 OK\r\nContent-Type: application/octet-stream\r\n"
    + HEADER_JSON_BYTES.encode() + b": %d\r\nContent-Length: %d\r\n\r\n"
)  # fmt: skip


class Listener:
    """All connections of one worker, at its socket and at its port."""

    def __init__(
        self, endpoint: Endpoint, body_bytes_max: int = BODY_BYTES_MAX, held_bytes_max: int = HELD_BYTES_MAX
    ) -> None:
        self.endpoint = endpoint
        self.regions = Regions()
        self.heads = Heads()
        self.body_bytes_max = min(body_bytes_max, held_bytes_max)
        self.held_bytes_max = held_bytes_max
        self.held_bytes = 0
        self.connections: set[Connection] = set()
        self.refused = 0
        """Connections that there was no room for, and clients that were let go."""
        self.is_closing = False
        self._servers: list[asyncio.Server] = []
        self._looking: asyncio.TimerHandle | None = None

    async def listen(self, *, port: int | None = None, sock: Any = None) -> None:
        """At a port of loopback, or at a socket that listens already. Raises OSError when the port is taken."""
        loop = asyncio.get_running_loop()
        if sock is not None:
            self._servers.append(await loop.create_unix_server(lambda: Connection(self, is_local=True), sock=sock))
        else:
            made = await loop.create_server(lambda: Connection(self), "127.0.0.1", port, backlog=1024)
            self._servers.append(made)
        if self._looking is None:
            self._look()

    def close(self) -> None:
        """Takes no new connections; those that have a request get their answer, and end."""
        self.is_closing = True
        for server in self._servers:
            server.close()
        if self._looking is not None:
            self._looking.cancel()
        for connection in list(self.connections):
            connection.close_when_idle()
        self.regions.unregister()

    def hold(self, count: int) -> None:
        if self.held_bytes + count > self.held_bytes_max:
            raise Fault("overloaded", f"{self.held_bytes >> 20} MiB of requests are here already", 1)
        self.held_bytes += count

    def _look(self) -> None:
        loop = asyncio.get_running_loop()
        self._looking = loop.call_later(LOOK_EVERY_S, self._look)
        before = loop.time() - STALLED_S
        for connection in list(self.connections):
            connection.let_go_if_stalled(before)


class Connection(asyncio.Protocol):
    """One client."""

    __slots__ = (
        "_ahead", "_at", "_body", "_busy", "_chunks", "_discarding", "_head", "_held", "_is_local", "_listener",
        "_loop", "_moved_at", "_pad", "_parsing", "_paused", "_transport",
    )  # fmt: skip

    def __init__(self, listener: Listener, *, is_local: bool | None = None) -> None:
        self._listener = listener
        self._is_local = is_local
        self._transport: Any = None
        self._loop = asyncio.get_running_loop()
        self._head: Head | None = None
        self._ahead = b""
        """What came and was not looked at yet."""
        self._body: bytearray | None = None
        self._chunks: _Chunks | None = None
        self._at = self._pad = 0
        self._held = 0
        self._busy = False
        """A request is being answered."""
        self._parsing = False
        self._paused = False
        """The client does not read what it is sent."""
        self._discarding = False
        self._moved_at = 0.0

    # --- Coming and going ---

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = transport
        self._moved_at = self._loop.time()
        self._listener.connections.add(self)
        if len(self._listener.connections) > CONNECTIONS_MAX or self._listener.is_closing:
            self._turn_away()

    def _turn_away(self) -> None:
        """There is no room for another connection, nor for one that is told so at leisure: it is told and closed."""
        self._listener.refused += 1
        self._discarding = True
        fault = Fault("overloaded", f"{CONNECTIONS_MAX} connections are open already", 1)
        with contextlib.suppress(OSError):
            # What it has sent already is read away: closed over unread bytes, it would lose what it is told.
            os.read(self._transport.get_extra_info("socket").fileno(), READ_AWAY_BYTES)
        self._transport.write(_refusal(fault, ends=True) + fault.body)
        self._transport.close()

    def connection_lost(self, _exc: Exception | None) -> None:
        self._listener.connections.discard(self)
        self._transport = None
        self._body = self._chunks = None
        if not self._busy:
            self._release()

    def eof_received(self) -> bool:
        # Who has said all may still hear; but half a request will never be whole.
        return self._busy

    def pause_writing(self) -> None:
        self._paused = True

    def resume_writing(self) -> None:
        self._paused = False
        self._go_on()

    def close_when_idle(self) -> None:
        if not self._busy and self._transport is not None:
            self._transport.close()

    def let_go_if_stalled(self, before: float) -> None:
        if self._transport is None or self._moved_at > before:
            return
        if self._paused:
            self._listener.refused += 1
            self._transport.abort()
        elif not self._busy and (self._ahead or self._body is not None or self._chunks is not None):
            self._listener.refused += 1
            self._refuse(Fault("too_slow", f"nothing came for {STALLED_S:.0f} s, in the middle of a request"))

    # --- Reading ---

    def data_received(self, data: bytes) -> None:
        self._moved_at = self._loop.time()
        if self._discarding:
            return
        if self._body is not None:
            self._fill(data)
        elif self._chunks is not None:
            self._feed(data)
        elif self._busy or self._paused:
            self._ahead += data
            if len(self._ahead) > AHEAD_BYTES_MAX:
                self._transport.pause_reading()
        else:
            self._parse(self._ahead + data if self._ahead else data)

    def _go_on(self) -> None:
        """After an answer: what came ahead meanwhile."""
        if self._busy or self._paused or self._parsing or self._transport is None or not self._ahead:
            return
        data, self._ahead = self._ahead, b""
        self._transport.resume_reading()
        self._parse(data)

    def _parse(self, data: bytes) -> None:
        self._parsing = True
        try:
            while data and not self._busy and not self._paused and self._transport is not None:
                end = data.find(b"\r\n\r\n") + 4
                if end < 4 or end > HEAD_BYTES_MAX:
                    if len(data) > HEAD_BYTES_MAX:
                        self._refuse(
                            Fault("head_too_large", f"heads of {HEAD_BYTES_MAX} bytes are read, and no larger")
                        )
                        return
                    break
                head = self._listener.heads.read(data[:end])
                self._head = head
                whole = end + head.length
                if head.fault is not None:
                    self._refuse(head.fault)
                    return
                if head.chunked or whole > len(data):
                    self._begin_body(head, data[end:])
                    return
                body = memoryview(data)[end:whole]
                data = data[whole:]
                self._answer(head, body)
            if self._transport is not None:
                self._ahead = data
        finally:
            self._parsing = False

    def _begin_body(self, head: Head, begun: bytes) -> None:
        self._ahead = b""
        most = self._listener.body_bytes_max
        try:
            if head.length > most:
                raise Fault("too_large", f"a body of {head.length} bytes; the most is {most}")
            if head.chunked:
                self._chunks = _Chunks(most)
            else:
                self._listener.hold(head.length)
                self._held = head.length
        except Fault as fault:
            self._refuse(fault)
            return
        if head.expects:
            self._transport.write(b"HTTP/1.1 100 Continue\r\n\r\n")
        if self._chunks is not None:
            self._chunks.begin()
            self._feed(begun)
            return
        self._pad = -(head.json_bytes or 0) % ALIGNED
        self._body, self._at = bytearray(self._pad + head.length), self._pad
        self._fill(begun)

    def _fill(self, data: bytes) -> None:
        assert self._body is not None
        assert self._head is not None
        room = len(self._body) - self._at
        taken = data if len(data) <= room else data[:room]
        self._body[self._at : self._at + len(taken)] = taken
        self._at += len(taken)
        if self._at < len(self._body):
            return
        body = memoryview(self._body)[self._pad :]
        self._body = None
        self._ahead = data[room:]
        self._answer(self._head, body)
        self._go_on()

    def _feed(self, data: bytes) -> None:
        assert self._chunks is not None
        assert self._head is not None
        try:
            before = self._chunks.size
            whole = self._chunks.feed(data)
            self._listener.hold(self._chunks.size - before)
            self._held += self._chunks.size - before
        except Fault as fault:
            self._refuse(fault)
            return
        if whole is not None:
            self._chunks = None
            self._answer(self._head, memoryview(whole))

    # --- Answering ---

    def _answer(self, head: Head, body: memoryview) -> None:
        self._busy = True
        listener = self._listener
        try:
            if head.encoding:
                body = _unpacked(body, listener.body_bytes_max)
            if head.infers is None:
                head.infers = is_infer(head.method, head.path, listener.endpoint)
            if head.infers:
                asking = Asking(head.urgency, head.timeout_ms, self._shared, head.key, head.pinned)
                listener.endpoint.infer(body, head.json_bytes, asking, self._say)
                return
            said = answered(head.method, head.path, Asked(listener.endpoint, self._shared, {}, body))
        except Fault as fault:
            self._say(fault.body, None, fault)
        else:
            self._say(said, None, None)

    def _shared(self) -> Regions:
        """Shared memory, when this client may use it: asked when it first wants to."""
        if self._is_local is None:
            peer = self._transport.get_extra_info("peername") if self._transport is not None else None
            owner = owner_of_peer(peer[0], peer[1]) if peer else None
            self._is_local = owner is not None and owner in (0, os.getuid())
        if not self._is_local:
            raise Fault("forbidden", "shared memory is for programs of the worker's own user on its own machine")
        return self._listener.regions

    def _say(self, body: bytes, json_bytes: int | None, fault: Fault | None, by: str = "", /) -> None:
        self._busy = False
        transport, head = self._transport, self._head
        if self._held:
            self._release()
        if transport is None or head is None:
            return
        if fault is not None:
            transport.write(_refusal(fault, ends=not head.keep_alive) + body)
        elif head.keep_alive and not head.http10 and not self._listener.is_closing:
            begun = _begun(body, json_bytes, by)
            if len(body) < AHEAD_BYTES_MAX:
                transport.write(begun + body)
            else:
                transport.writelines((begun, body))
        else:
            begun = _begun(body, json_bytes, by)
            stays = head.keep_alive and not self._listener.is_closing
            said = b"Connection: keep-alive\r\n\r\n" if stays else b"Connection: close\r\n\r\n"
            transport.writelines((begun[:-2], said, body))
        if not head.keep_alive or head.chunked or self._listener.is_closing:
            transport.close()
        elif self._ahead and not self._parsing:
            self._loop.call_soon(self._go_on)

    def _refuse(self, fault: Fault) -> None:
        """Says why, and ends the connection: what follows could not be told from the rest of this request."""
        transport = self._transport
        self._body = self._chunks = None
        self._ahead = b""
        self._release()
        if transport is None or self._discarding:
            return
        self._discarding = True
        transport.write(_refusal(fault, ends=True) + fault.body)
        if transport.can_write_eof():
            transport.write_eof()
        self._loop.call_later(DISCARD_S, transport.abort)

    def _release(self) -> None:
        self._listener.held_bytes -= self._held
        self._held = 0


class _Chunks:
    """A body that comes in chunks, read by llhttp."""

    def __init__(self, most: int) -> None:
        self.size = 0
        self._most = most
        self._parts: list[bytes] = []
        self._whole = False
        self._parser = httptools.HttpRequestParser(self)

    def begin(self) -> None:
        self._parser.feed_data(b"POST / HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n")

    def on_body(self, part: bytes) -> None:
        self.size += len(part)
        if self.size <= self._most:
            self._parts.append(part)

    def on_message_complete(self) -> None:
        self._whole = True

    def feed(self, data: bytes) -> bytes | None:
        try:
            self._parser.feed_data(data)
        except httptools.HttpParserError as error:
            if not self._whole:
                raise Fault("malformed", f"not HTTP: {error}") from None
        if self.size > self._most:
            raise Fault("too_large", f"a body of more than {self._most} bytes, which is the most")
        return b"".join(self._parts) if self._whole else None


def _unpacked(body: memoryview, most: int) -> memoryview:
    """gzip and deflate, by what the bytes themselves say."""
    unpacking = zlib.decompressobj(wbits=47)
    try:
        found = unpacking.decompress(body, most + 1)
    except zlib.error as error:
        raise Fault("malformed", f"the body cannot be decompressed: {error}") from None
    if len(found) > most:
        raise Fault("too_large", f"a body of more than {most} bytes, which is the most")
    if not unpacking.eof:
        raise Fault("malformed", "the compressed body ends too early")
    return memoryview(found)


def _begun(body: bytes, json_bytes: int | None, by: str) -> bytes:
    """The head of an answer; while there are two who answer, it says which one did."""
    begun = _JSON % len(body) if json_bytes is None else _BINARY % (json_bytes, len(body))
    return begun if not by else begun[:-2] + f"{HEADER_INSTANCE}: {by}\r\n\r\n".encode("ascii")


def _refusal(fault: Fault, *, ends: bool) -> bytes:
    lines = [
        f"HTTP/1.1 {fault.status} {_STATUS[fault.status]}",
        "Content-Type: application/json",
        f"Content-Length: {len(fault.body)}",
        f"{HEADER_ERROR}: {fault.code}",
    ]
    if fault.retry_after_s:
        lines.append(f"Retry-After: {fault.retry_after_s}")
    if ends:
        lines.append("Connection: close")
    return ("\r\n".join(lines) + "\r\n\r\n").encode("ascii")
