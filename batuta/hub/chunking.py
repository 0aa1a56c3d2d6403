"""Chunking: a file cut where its own bytes say so, and the list of the pieces.

The cut comes where a rolling sum over the last 32 bytes has enough zeros. So a changed byte changes the chunk it is in,
maybe the next, and no other, wherever it is and whatever was put in or taken out: a fine-tuned model shares with the
one it was made from every chunk in which nothing changed. Chunks have about 64 KiB, and never more than twice as many:
a node asks for them one or two at a time, and orders pass between them on a slow link.

A *recipe* is the list: 40 bytes a chunk, its SHA-256 and where it ends. Only the hub cuts; who assembles only checks.
"""

from __future__ import annotations

import hashlib
import struct
from typing import TYPE_CHECKING, Final

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path
    from typing import IO

LEAST_BYTES: Final = 16 * 1024
USUAL_BYTES: Final = 64 * 1024
MOST_BYTES: Final = 128 * 1024
RECORD: Final = struct.Struct(">32sQ")
"""One chunk: its SHA-256, and the offset at which it ends."""

_BLOCK_BYTES: Final = 1 << 20
_REACH: Final = 32
"""Bytes that a cut depends on: after so many shifts a byte has left a sum of 32 bits."""
_STRICT: Final = np.uint32(0xFFFF8000)
"""Up to the usual size one place in 2^17 will do; beyond it one in 2^14: most chunks have about the usual size."""
_LOOSE: Final = np.uint32(0xFFFC0000)


def _gear() -> np.ndarray[tuple[int], np.dtype[np.uint32]]:
    """A number for every value of a byte: the same for ever, or nothing would be shared any more."""
    numbers = [hashlib.sha256(b"batuta chunk %d" % value).digest()[:4] for value in range(256)]
    return np.frombuffer(b"".join(numbers), dtype=">u4").astype(np.uint32)


_GEAR: Final = _gear()


def write_recipe(path: Path, to: IO[bytes]) -> tuple[str, str]:
    """The recipe of a file, written to `to`; returns the digests of the recipe and of the file, as it was read."""
    recipe, whole, at = hashlib.sha256(), hashlib.sha256(), 0
    with path.open("rb") as file:
        for size in sizes(path):
            data = file.read(size)
            at += len(data)
            whole.update(data)
            record = RECORD.pack(hashlib.sha256(data).digest(), at)
            recipe.update(record)
            to.write(record)
    return f"sha256:{recipe.hexdigest()}", f"sha256:{whole.hexdigest()}"


def sizes(path: Path) -> Iterator[int]:
    """The sizes of a file's chunks, in order."""
    end = path.stat().st_size
    strict, loose = _places(path)
    start = 0
    while end - start > LEAST_BYTES:
        cut = _first(strict, start + LEAST_BYTES, start + USUAL_BYTES)
        if cut is None:
            cut = _first(loose, start + USUAL_BYTES, start + MOST_BYTES)
        if cut is None:
            cut = start + MOST_BYTES
        if cut >= end:
            break
        yield cut - start
        start = cut
    if end > start:
        yield end - start


def _first(places: np.ndarray[tuple[int], np.dtype[np.int64]], least: int, most: int) -> int | None:
    """The first place in [least, most)."""
    n = int(np.searchsorted(places, least))
    return int(places[n]) if n < len(places) and places[n] < most else None


def _places(path: Path) -> tuple[np.ndarray[tuple[int], np.dtype[np.int64]], ...]:
    """Where a file may be cut, by the strict rule and by the loose one."""
    strict: list[np.ndarray[tuple[int], np.dtype[np.int64]]] = [np.empty(0, np.int64)]
    loose: list[np.ndarray[tuple[int], np.dtype[np.int64]]] = [np.empty(0, np.int64)]
    at, before = 0, b""
    with path.open("rb") as file:
        while block := file.read(_BLOCK_BYTES):
            sums = _sums(before + block)[len(before) :]
            may = np.flatnonzero((sums & _LOOSE) == 0)
            loose.append(may + (at + 1))
            strict.append(may[(sums[may] & _STRICT) == 0] + (at + 1))
            at += len(block)
            before = (before + block)[1 - _REACH :]
    return np.concatenate(strict), np.concatenate(loose)


def _sums(data: bytes) -> np.ndarray[tuple[int], np.dtype[np.uint32]]:
    """At each byte: the numbers of the last 32, each shifted by its age. Five doublings instead of 32 steps."""
    sums = _GEAR[np.frombuffer(data, dtype=np.uint8)]
    reach = 1
    while reach < _REACH and reach < len(sums):
        older = sums[:-reach] << np.uint32(reach)
        sums = sums.copy()
        sums[reach:] += older
        reach *= 2
    return sums
