"""The path to an instance on this node: HTTP over its Unix socket, on connections that are kept.

A connection carries one request at a time. One that was kept may have been closed by the other side meanwhile; then
nothing was answered, and the request goes again on a new one, once.
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Final

from batuta.core.beside import HEADER_INSTANCE
from batuta.core.serving import HEADER_CLASS, HEADER_DEADLINE, HEADER_ERROR, HEADER_JSON_BYTES
from batuta.dataflow.mesh.talk import JSON, Broken, Reply, Unreached, of_release, path_of
from batuta.dataflow.unix import connect_unix

if TYPE_CHECKING:
    from batuta.dataflow.mesh.talk import Ask

KEPT_MOST: Final = 32
HEAD_BYTES_MAX: Final = 64 * 1024
ANSWER_BYTES_MAX: Final = 256 << 20


class UnixPath:
    """Leads to one instance."""

    def __init__(self, path: str) -> None:
        self.path = path
        self._kept: list[_Line] = []

    async def send(self, ask: Ask, version: str, left_ms: int, traceparent: str) -> Reply:
        data = _request(ask, version, left_ms, traceparent)
        while self._kept:
            line = self._kept.pop()
            if line.is_open:
                try:
                    return await self._on(line, data)
                except Broken:
                    if line.has_heard:
                        raise
        return await self._on(await self._connect(), data)

    async def _on(self, line: _Line, data: bytes) -> Reply:
        try:
            reply = await line.ask(data)
        except BaseException:
            # Also when nobody waits any more: what comes later must not be taken for the next answer.
            line.close()
            raise
        if line.is_open and len(self._kept) < KEPT_MOST:
            self._kept.append(line)
        else:
            line.close()
        return reply

    async def _connect(self) -> _Line:
        try:
            made = connect_unix(self.path)
        except OSError as error:
            # `EAGAIN` is a full backlog: somebody is there, and does not keep up.
            raise (Broken if isinstance(error, BlockingIOError) else Unreached)(str(error)) from None
        loop = asyncio.get_running_loop()
        _, line = await loop.create_unix_connection(_Line, sock=made)
        return line

    def close(self) -> None:
        while self._kept:
            self._kept.pop().close()


def _request(ask: Ask, version: str, left_ms: int, traceparent: str) -> bytes:
    lines = [
        f"{'POST' if ask.verb == 'infer' else 'GET'} {path_of(ask, version)} HTTP/1.1",
        "Host: instance",
        f"{HEADER_DEADLINE}: {left_ms}",
        f"{HEADER_CLASS}: {ask.urgency}",
        f"traceparent: {traceparent}",
    ]
    lines += [f"{name}: {value}" for name, value in of_release(ask, path=True)]
    if ask.tracestate:
        lines.append(f"tracestate: {ask.tracestate}")
    if ask.verb == "infer":
        lines += [f"Content-Type: {ask.content_type}", f"Content-Length: {len(ask.body)}"]
        if ask.json_bytes:
            lines.append(f"{HEADER_JSON_BYTES}: {ask.json_bytes}")
    return "\r\n".join((*lines, "", "")).encode("latin-1") + ask.body


class _Line(asyncio.Protocol):
    """One connection."""

    def __init__(self) -> None:
        self.is_open = True
        self.has_heard = False
        """Something of the present answer has come."""
        self._transport: asyncio.Transport
        self._answer: asyncio.Future[Reply] | None = None
        self._buffer = bytearray()
        self._head: tuple[int, dict[str, str]] | None = None
        self._length = 0

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self._transport = transport

    async def ask(self, data: bytes) -> Reply:
        self._answer = asyncio.get_running_loop().create_future()
        self.has_heard = False
        self._transport.write(data)
        return await self._answer

    def close(self) -> None:
        self.is_open = False
        self._transport.close()

    def connection_lost(self, exc: Exception | None) -> None:
        self.is_open = False
        self._fail(str(exc or "the connection was closed before an answer"))

    def data_received(self, data: bytes) -> None:
        if self._answer is None or self._answer.done():
            self.close()  # it speaks out of turn: nothing that it says can be believed
            return
        self.has_heard = True
        self._buffer += data
        if self._head is None and not self._read_head():
            return
        assert self._head is not None
        if len(self._buffer) < self._length:
            return
        status, headers = self._head
        body = bytes(self._buffer[: self._length])
        del self._buffer[: self._length]
        self._head = None
        if headers.get("connection", "").lower() == "close" or self._buffer:
            self.is_open = False
        self._answer.set_result(
            Reply(
                status,
                body,
                headers.get(HEADER_JSON_BYTES.lower(), ""),
                headers.get("content-type", JSON),
                headers.get(HEADER_ERROR.lower(), ""),
                by=headers.get(HEADER_INSTANCE.lower(), ""),
            )
        )

    def _read_head(self) -> bool:
        end = self._buffer.find(b"\r\n\r\n")
        if end < 0:
            if len(self._buffer) > HEAD_BYTES_MAX:
                self._fail("its answer has no end of headers")
            return False
        first, *lines = bytes(self._buffer[:end]).decode("latin-1").split("\r\n")
        del self._buffer[: end + 4]
        pairs = (line.partition(":") for line in lines)
        headers = {name.strip().lower(): value.strip() for name, _, value in pairs}
        try:
            status, length = int(first.split(" ", 2)[1]), int(headers.get("content-length", "0"))
        except (IndexError, ValueError):
            self._fail(f"its answer cannot be read: {first[:80]!r}")
            return False
        if not 0 <= length <= ANSWER_BYTES_MAX or "transfer-encoding" in headers:
            self._fail("its answer is too long, or of unknown length")
            return False
        self._head, self._length = (status, headers), length
        return True

    def _fail(self, why: str) -> None:
        if self._answer is not None and not self._answer.done():
            self._answer.set_exception(Broken(why))
        if self.is_open:
            self.close()
