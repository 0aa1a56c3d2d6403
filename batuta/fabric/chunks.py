"""What is said about artifacts over the fabric, once for all who say it: nodes to the hub, and nodes to each other.

An answer is one line of JSON and then bytes. One that begins with `{"error": …}` is a no, with its reason.
"""

from __future__ import annotations

from typing import Any, Final

import msgspec

CHUNK_BYTES_MAX: Final = 1 << 20
"""No chunk is larger, whatever a recipe says."""
HEAD_BYTES_MAX: Final = 4_096
CARD_BYTES_MAX: Final = 256 * 1024


class RecipeWanted(msgspec.Struct, frozen=True):
    """A part of an artifact's recipe; of no length to learn only what it is."""

    digest: str
    offset: int = 0
    length: int = 0


class ChunksWanted(msgspec.Struct, frozen=True):
    """Some chunks of an artifact, by their numbers in its recipe; or, over a slow link, a part of one."""

    digest: str
    chunks: tuple[int, ...] = ()
    recipe: str = ""
    """Which recipe is meant, where that is not certain."""
    begin: int = 0
    most: int = 0
    """So many bytes at most, from `begin`; 0 for all."""


class Head(msgspec.Struct, frozen=True, rename="camel"):
    """The line before the bytes."""

    size: int = -1
    recipe: str = ""
    bytes: int = -1
    sizes: tuple[int, ...] = ()
    error: str = ""
    message: str = ""
    subject: str = ""
    until_ms: int = 0


class Card(msgspec.Struct, frozen=True, omit_defaults=True):
    """What a node tells its neighbours about one file: how much of it is here, and what is on its way."""

    digest: str
    recipe: str = ""
    count: int = 0
    has: bytes = b""
    """One bit for each chunk, the first in the lowest bit of the first byte."""
    claims: bytes = b""
    """Asked of the hub."""
    whole: bool = False
    wants: bool = False


def head_of(answer: bytes) -> tuple[Head, memoryview[int]]:
    """The line and the bytes after it. Raises ValueError when there is no such line."""
    end = answer.find(b"\n", 0, HEAD_BYTES_MAX)
    if end < 0:
        raise ValueError("the answer has no first line")
    try:
        return msgspec.json.decode(answer[:end], type=Head), memoryview(answer)[end + 1 :]
    except msgspec.MsgspecError as error:
        raise ValueError(f"the answer cannot be read: {error}") from error


def split(sizes: tuple[int, ...], data: memoryview[int]) -> list[memoryview[int]]:
    """The chunks of an answer. Raises ValueError when the sizes are not those of the bytes."""
    if any(size < 0 for size in sizes) or sum(sizes) != len(data):
        raise ValueError("the sizes are not those of the bytes")
    found, at = [], 0
    for size in sizes:
        found.append(data[at : at + size])
        at += size
    return found


def bits(chunks: int, count: int) -> bytes:
    """A set of chunks as bytes."""
    return chunks.to_bytes(-(-count // 8), "little")


def from_bits(data: bytes, count: int) -> int:
    """The set again, of chunks that there are."""
    return int.from_bytes(data, "little") & ((1 << count) - 1)


def line(head: dict[str, Any]) -> bytes:
    return msgspec.json.encode(head) + b"\n"
