"""Request bodies: bounded in size and time, decoded, and never believed."""

from __future__ import annotations

import asyncio
import json
from itertools import islice
from typing import TYPE_CHECKING, Any, Final, TypeVar

import msgspec

from batuta.errors import Refused
from batuta.kinds import manifest
from batuta.kinds.base import Problem, decode_hook
from batuta.kinds.documents import read
from batuta.web.answers import Wrong

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from starlette.requests import Request

    from batuta.kinds.manifest import Manifest

BODY_BYTES_MAX: Final = 8 * 2**20
PATIENCE_S: Final = 15.0
"""So long a body may stand still, and so much longer than `PACE_BYTES` a second all of it may take."""
PACE_BYTES: Final = 4096
LARGE_CHARACTERS: Final = 64 * 1024
"""To look twice at more than this is work for a thread of its own."""
REPEATED_MAX: Final = 20
T = TypeVar("T")


async def body_of(request: Request, bytes_max: int = BODY_BYTES_MAX) -> bytes:
    """The whole body; refused as soon as it is known to be too large."""
    said = request.headers.get("content-length", "")
    if said.isdigit() and int(said) > bytes_max:
        raise _too_large(bytes_max)
    parts, size = [], 0
    async for part in chunks_of(request):
        size += len(part)
        if size > bytes_max:
            raise _too_large(bytes_max)
        parts.append(part)
    return b"".join(parts)


async def text_of(request: Request) -> str:
    """A manifest, or one document of any sort that we read."""
    _media(request, "yaml", "json", "text/plain")
    return await _text(request)


async def manifest_of(request: Request) -> Manifest:
    """A manifest, read."""
    return await manifest_in(request, await text_of(request))


async def manifest_in(request: Request, text: str) -> Manifest:
    """A large one is read in a thread of its own: the hub has nodes to answer meanwhile."""
    name = request.query_params.get("file", "")[:256]
    if len(text) < LARGE_CHARACTERS:
        return manifest.parse_manifest(text, name)
    return await asyncio.to_thread(manifest.parse_manifest, text, name)


async def _text(request: Request) -> str:
    try:
        return (await body_of(request)).decode("utf-8")
    except UnicodeDecodeError as error:
        raise Wrong(400, f"the body is not UTF-8: byte {error.start} is {error.object[error.start]:#04x}") from None


async def json_of(request: Request) -> Any:
    """One document: JSON, or YAML when the request says so."""
    media = _media(request, "json", "yaml")
    text = await _text(request)
    if media.endswith("yaml"):
        return _one_document(text) if len(text) < LARGE_CHARACTERS else await asyncio.to_thread(_one_document, text)
    try:
        document = msgspec.json.decode(text)
        again = _repeated(text) if len(text) < LARGE_CHARACTERS else await asyncio.to_thread(_repeated, text)
    except (msgspec.DecodeError, RecursionError, ValueError) as error:
        raise Wrong(400, f"the body is not JSON: {error}") from None
    if again:
        message = "the key is there twice in one object, and only one of them could count"
        raise Refused([Problem(path=key[:80], code="duplicate", message=message, hint="keep one") for key in again])
    return document


def _repeated(text: str) -> list[str]:
    """Keys that one object has more than once. Decoders take the last of them and say nothing."""
    found: dict[str, None] = {}

    def look(pairs: list[tuple[str, Any]]) -> None:
        if len(dict(pairs)) < len(pairs) and len(found) < REPEATED_MAX:
            seen: set[str] = set()
            for key, _ in pairs:
                if key in seen:
                    found[key] = None
                seen.add(key)

    json.loads(text, object_pairs_hook=look)
    return list(found)[:REPEATED_MAX]


async def record_of(request: Request, kind: type[T], bytes_max: int = BODY_BYTES_MAX) -> T:
    _media(request, "json")
    data = await body_of(request, bytes_max)
    try:
        return msgspec.json.decode(data or b"{}", type=kind, dec_hook=decode_hook)
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise Wrong(400, f"the body does not fit: {error}") from None


async def chunks_of(request: Request) -> AsyncIterator[bytes]:
    """The body as it comes, without empty parts. One that stands still, or drips, is not waited for."""
    stream = aiter(request.stream())
    now = asyncio.get_running_loop().time
    began, size = now(), 0
    while True:
        until = min(now() + PATIENCE_S, began + PATIENCE_S + size / PACE_BYTES)
        try:
            async with asyncio.timeout_at(until):
                chunk = await anext(stream, None)
        except TimeoutError:
            raise Wrong(408, f"the body came too slowly: {size} bytes in {now() - began:.0f} s") from None
        if chunk is None:
            return
        size += len(chunk)
        if chunk:
            yield chunk


def _media(request: Request, *known: str) -> str:
    """The media type of the body, "" when nothing is said of it; its end must be known here."""
    media = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if media and not media.endswith(known):
        words = " or ".join(word if "/" in word else f"application/{word}" for word in known)
        raise Wrong(415, f"a body of type {media[:80]} is not read here", next_step=f"send it as {words}")
    coding = request.headers.get("content-encoding", "identity").strip().lower()
    if coding not in ("identity", ""):
        raise Wrong(415, f"a body that is packed as {coding[:80]} is not read here", next_step="send it as it is")
    return media


def _one_document(text: str) -> Any:
    documents = list(islice(read(text), 2))
    problems = [p for d in documents for p in ([d] if isinstance(d, Problem) else d.problems)]
    if problems:
        raise Refused(problems)
    if len(documents) != 1 or isinstance(documents[0], Problem):
        raise Wrong(400, "the body is to be one document", next_step="POST several of them to /apply")
    return documents[0].value


def in_namespace(resource: Any, namespace: str) -> Any:
    """The same resource in this namespace, when it names none itself."""
    if not namespace or not resource.namespaced or resource.metadata.namespace:
        return resource
    return msgspec.structs.replace(resource, metadata=msgspec.structs.replace(resource.metadata, namespace=namespace))


def _too_large(bytes_max: int) -> Wrong:
    return Wrong(413, f"a body has {bytes_max} bytes at most here")
