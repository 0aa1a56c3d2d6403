"""Request bodies: bounded, decoded, and never believed."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final, TypeVar

import msgspec

from batuta.kinds.base import decode_hook
from batuta.web.answers import Wrong

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from starlette.requests import Request

BODY_BYTES_MAX: Final = 8 * 2**20
T = TypeVar("T")


async def body_of(request: Request, bytes_max: int = BODY_BYTES_MAX) -> bytes:
    """The whole body; refused as soon as it is known to be too large."""
    said = request.headers.get("content-length", "")
    if said.isdigit() and int(said) > bytes_max:
        raise _too_large(bytes_max)
    parts, size = [], 0
    async for part in request.stream():
        size += len(part)
        if size > bytes_max:
            raise _too_large(bytes_max)
        parts.append(part)
    return b"".join(parts)


async def text_of(request: Request) -> str:
    try:
        return (await body_of(request)).decode("utf-8")
    except UnicodeDecodeError as error:
        raise Wrong(400, f"the body is not UTF-8: byte {error.start} is {error.object[error.start]:#04x}") from None


async def json_of(request: Request) -> Any:
    text = await text_of(request)
    try:
        return msgspec.json.decode(text)
    except (msgspec.DecodeError, RecursionError) as error:
        raise Wrong(400, f"the body is not JSON: {error}") from None


async def record_of(request: Request, kind: type[T], bytes_max: int = BODY_BYTES_MAX) -> T:
    data = await body_of(request, bytes_max)
    try:
        return msgspec.json.decode(data or b"{}", type=kind, dec_hook=decode_hook)
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise Wrong(400, f"the body does not fit: {error}") from None


async def chunks_of(request: Request) -> AsyncIterator[bytes]:
    """The body as it comes, without empty parts."""
    async for chunk in request.stream():
        if chunk:
            yield chunk


def in_namespace(resource: Any, namespace: str) -> Any:
    """The same resource in this namespace, when it names none itself."""
    if not namespace or not resource.namespaced or resource.metadata.namespace:
        return resource
    return msgspec.structs.replace(resource, metadata=msgspec.structs.replace(resource.metadata, namespace=namespace))


def _too_large(bytes_max: int) -> Wrong:
    return Wrong(413, f"a body has {bytes_max} bytes at most here")
