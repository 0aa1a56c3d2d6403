"""What the two say to each other: messages of a length and MessagePack, each bounded.

Frames and requests go as they came, not as tensors: what a release makes of a message, how it shapes an image and which
words it has for its classes is as much the release as its weights.
"""

from __future__ import annotations

import struct
from typing import TYPE_CHECKING, Any, Final, Literal

import msgspec

if TYPE_CHECKING:
    import asyncio

FORMAT: Final = 1
"""Who speaks another is as good as not there."""
LENGTH: Final = struct.Struct("<I")
MESSAGE_BYTES_MAX: Final = 80 << 20
"""A request may have 64 MiB, and its answer is beside it."""
HELLO_BYTES_MAX: Final = 64 * 1024
PIECE_BYTES: Final = 1 << 20
"""Messages are filled up to about this size; what is larger goes by itself."""


class Hello(msgspec.Struct, forbid_unknown_fields=False):
    """The first word of the new one: who it is, and what for."""

    format: int
    instance: str
    model: str
    """Name and version, as answers tell it."""
    mode: Literal["shadow", "split"]
    share: float
    salt: str
    inputs: bool
    """It reads topics."""


class Frame(msgspec.Struct, array_like=True):
    """A message of a topic."""

    topic: str
    data: memoryview
    age_ms: float = 0.0
    """For how long the old one has had it."""
    said: Any = None
    """In shadow: what the old one made of it."""


class Request(msgspec.Struct, array_like=True):
    """A request of the protocol."""

    body: memoryview
    json_bytes: int | None
    urgency: int = 1
    timeout_ms: float | None = None
    said: bytes = b""
    """In shadow: the old one's answer."""
    said_json_bytes: int | None = None


class Handed(msgspec.Struct, array_like=True):
    """From the old one."""

    number: int
    """0: nobody waits for an answer."""
    frames: list[Frame] = []
    requests: list[Request] = []


class Answer(msgspec.Struct, array_like=True):
    """To one frame or request, in order; or why there is none."""

    fault: str = ""
    body: bytes = b""
    """To a request."""
    json_bytes: int | None = None
    made: Any = None
    """Of a frame."""
    id: str | None = None
    """The name that a frame's publisher gave it."""


class Back(msgspec.Struct, array_like=True):
    """From the new one."""

    number: int
    """0: it is about to end, and is to be given nothing more."""
    answers: list[Answer] = []


hellos: Final = msgspec.msgpack.Decoder(Hello)
handed: Final = msgspec.msgpack.Decoder(Handed)
backs: Final = msgspec.msgpack.Decoder(Back)
_encoder: Final = msgspec.msgpack.Encoder()


def packed(message: Hello | Handed | Back) -> bytearray:
    """With its length before it. Raises ValueError when it is too long to be read."""
    buffer = bytearray(LENGTH.size)
    _encoder.encode_into(message, buffer, LENGTH.size)
    size = len(buffer) - LENGTH.size
    if size > MESSAGE_BYTES_MAX:
        raise ValueError(f"a message of {size} bytes; the most is {MESSAGE_BYTES_MAX}")
    LENGTH.pack_into(buffer, 0, size)
    return buffer


async def read(reader: asyncio.StreamReader, most: int = MESSAGE_BYTES_MAX) -> bytes:
    """One message. Raises EOFError when there is none left, ValueError when it is longer than it may be."""
    (size,) = LENGTH.unpack(await reader.readexactly(LENGTH.size))
    if size > most:
        raise ValueError(f"a message of {size} bytes; the most is {most}")
    return await reader.readexactly(size)
