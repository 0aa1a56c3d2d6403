"""The engine's HTTP: requests over a Unix socket, one connection each, nothing read without a bound.

Podman and Docker speak the same REST over it. This is the small part of HTTP/1.1 that they use towards a client: a
status, headers, and a body of a stated length, in chunks, or up to the end of the connection. The node agent has no
room for an HTTP library.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
from typing import TYPE_CHECKING, Any, NamedTuple
from urllib.parse import quote, urlencode

import msgspec

from batuta.errors import RuntimeFailure

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Mapping
    from pathlib import Path

API = "/v1.41"
HEAD_BYTES_MAX = 64 << 10
ANSWER_BYTES_MAX = 4 << 20
PIECE_BYTES = 64 << 10
ASK_TIMEOUT_S = 30.0
CONNECT_TIMEOUT_S = 5.0
MESSAGE_CHARS_MAX = 400


class EngineRefused(RuntimeFailure):
    """The engine answered, and said no. `status` is its HTTP status."""

    def __init__(self, status: int, message: str, *, code: str = "start_failed") -> None:
        super().__init__(code, message[:MESSAGE_CHARS_MAX])
        self.status = status


class Answer(NamedTuple):
    """What came back, head first; the body is read from `pieces`."""

    status: int
    headers: Mapping[str, str]
    pieces: AsyncIterator[bytes]


class EngineSocket:
    """Questions to one engine. Raises RuntimeFailure `engine_unreachable` when nobody answers."""

    def __init__(self, path: str) -> None:
        self.path = path

    async def ask(
        self,
        method: str,
        path: str,
        query: Mapping[str, str] | None = None,
        body: Any = None,
        *,
        timeout_s: float | None = ASK_TIMEOUT_S,
    ) -> Any:
        """The decoded answer, None when it is empty. Raises EngineRefused for a status of 400 and above."""
        try:
            async with asyncio.timeout(timeout_s), self.open(method, path, query, body) as answer:
                data = await whole(answer.pieces, ANSWER_BYTES_MAX)
        except TimeoutError:
            raise unreachable(self.path, f"{method} {path} took longer than {timeout_s:g} s") from None
        try:
            return msgspec.json.decode(data) if data else None
        except msgspec.MsgspecError as error:
            raise EngineRefused(answer.status, f"{method} {path} answered what is not JSON: {error}") from None

    @contextlib.asynccontextmanager
    async def open(
        self,
        method: str,
        path: str,
        query: Mapping[str, str] | None = None,
        body: Any = None,
        *,
        upload: Path | None = None,
    ) -> AsyncIterator[Answer]:
        """One request; its answer's body is there to be read until the block ends, and not after. The file `upload` is
        sent as it is, as a tar."""
        try:
            async with asyncio.timeout(CONNECT_TIMEOUT_S):
                reader, writer = await asyncio.open_unix_connection(self.path, limit=PIECE_BYTES)
        except (OSError, TimeoutError) as error:
            raise unreachable(self.path, str(error) or "no connection") from error
        try:
            data = b"" if body is None else msgspec.json.encode(body)
            await _send(writer, f"{method} {_target(path, query)}", data, upload)
            status, headers = await _head(reader)
            if status >= 400:
                data = await whole(_body(reader, headers), ANSWER_BYTES_MAX)
                raise EngineRefused(status, _complaint(data) or f"{method} {path} answered {status}")
            yield Answer(status, headers, _body(reader, headers))
        except (OSError, EOFError, ValueError) as error:
            raise unreachable(self.path, f"{method} {path}: {error or type(error).__name__}") from error
        finally:
            writer.close()
            with contextlib.suppress(OSError):
                await writer.wait_closed()


def unreachable(path: str, why: str) -> RuntimeFailure:
    return RuntimeFailure("engine_unreachable", f"{path}: {why}"[:MESSAGE_CHARS_MAX])


async def whole(pieces: AsyncIterator[bytes], bytes_max: int) -> bytes:
    """All of a body. Raises ValueError when it is longer than anybody should make us keep."""
    data = bytearray()
    async for piece in pieces:
        data += piece
        if len(data) > bytes_max:
            raise ValueError(f"an answer of more than {bytes_max} bytes")
    return bytes(data)


def _target(path: str, query: Mapping[str, str] | None) -> str:
    return API + quote(path, safe="/:@") + (f"?{urlencode(query)}" if query else "")


async def _send(writer: asyncio.StreamWriter, asked: str, data: bytes, upload: Path | None) -> None:
    lines = [f"{asked} HTTP/1.1", "Host: engine", "Connection: close"]
    if upload is not None:
        lines += ["Content-Type: application/x-tar", f"Content-Length: {os.stat(upload).st_size}"]
    elif not asked.startswith("GET "):
        lines += ["Content-Type: application/json"] if data else []
        lines.append(f"Content-Length: {len(data)}")
    writer.write("\r\n".join((*lines, "", "")).encode() + data)
    await writer.drain()
    if upload is not None:
        with open(upload, "rb") as file:  # noqa: ASYNC230  page by page, and the agent's own cache has just hashed it
            while piece := file.read(PIECE_BYTES):
                writer.write(piece)
                await writer.drain()


async def _head(reader: asyncio.StreamReader) -> tuple[int, dict[str, str]]:
    first = await _line(reader)
    words = first.split(" ", 2)
    if len(words) < 2 or not words[0].startswith("HTTP/1.") or not words[1].isdigit():
        raise ValueError(f"it does not speak HTTP: {first[:40]!r}")
    headers: dict[str, str] = {}
    size = len(first)
    while line := await _line(reader):
        size += len(line)
        if size > HEAD_BYTES_MAX:
            raise ValueError("its headers do not end")
        name, _, value = line.partition(":")
        headers[name.strip().lower()] = value.strip()
    return int(words[1]), headers


async def _line(reader: asyncio.StreamReader) -> str:
    line = await reader.readline()
    if not line.endswith(b"\n"):
        raise EOFError("the connection ended in the middle of an answer")
    return line.decode("latin-1").rstrip("\r\n")


async def _body(reader: asyncio.StreamReader, headers: Mapping[str, str]) -> AsyncIterator[bytes]:
    if "chunked" in headers.get("transfer-encoding", "").lower():
        while size := int((await _line(reader)).partition(";")[0], 16):
            async for piece in _exactly(reader, size):
                yield piece
            await _line(reader)
        return
    if "content-length" in headers:
        async for piece in _exactly(reader, int(headers["content-length"])):
            yield piece
        return
    while piece := await reader.read(PIECE_BYTES):
        yield piece


async def _exactly(reader: asyncio.StreamReader, size: int) -> AsyncIterator[bytes]:
    while size > 0:
        piece = await reader.read(min(size, PIECE_BYTES))
        if not piece:
            raise EOFError("the connection ended in the middle of an answer")
        size -= len(piece)
        yield piece


def _complaint(data: bytes) -> str:
    """What an engine says when it says no: `{"message": …}`, and now and then plain text."""
    try:
        said = msgspec.json.decode(data)
    except msgspec.MsgspecError:
        return data[:MESSAGE_CHARS_MAX].decode("utf-8", "replace").strip()
    return str(said.get("message", "")) if isinstance(said, dict) else ""
