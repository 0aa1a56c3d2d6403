"""Recipe: the list of an artifact's chunks, as a file. It is read where it lies: that of a large file is large itself.

Forty bytes a chunk: its SHA-256, and the offset at which it ends. The hub makes recipes; here they are only believed
as far as they can be checked: each chunk by its digest, and the whole by the artifact's own.
"""

from __future__ import annotations

import hashlib
import os
import struct
from typing import TYPE_CHECKING, Final, NamedTuple

from batuta.fabric.chunks import CHUNK_BYTES_MAX

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator
    from pathlib import Path

RECORD: Final = struct.Struct(">32sQ")
RECORDS_AT_ONCE: Final = 1_024
LOOKED_FOR_AT_ONCE: Final = 4_096
"""Chunks that are looked for in one reading of other recipes: so much of the list is in memory."""


class Chunk(NamedTuple):
    digest: bytes
    begin: int
    size_bytes: int


class Recipe:
    """An open recipe. Close it."""

    def __init__(self, path: Path, digest: str = "") -> None:
        self.digest = digest
        """Its own, where that was checked."""
        self._fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        self.total = os.fstat(self._fd).st_size // RECORD.size

    @property
    def size_bytes(self) -> int:
        """Of the artifact."""
        return self._end(self.total - 1)

    def chunk(self, n: int) -> Chunk:
        digest, end = RECORD.unpack(os.pread(self._fd, RECORD.size, n * RECORD.size))
        begin = self._end(n - 1)
        return Chunk(digest, begin, end - begin)

    def chunks(self) -> Iterator[Chunk]:
        """All of them, in order, a few records in memory at a time."""
        begin = 0
        for n in range(0, self.total, RECORDS_AT_ONCE):
            for digest, end in RECORD.iter_unpack(self._records(n)):
                yield Chunk(digest, begin, end - begin)
                begin = end

    @staticmethod
    def size_in(path: Path) -> int:
        """The size of the artifact by a recipe that was checked when it came."""
        recipe = Recipe(path)
        try:
            return recipe.size_bytes
        finally:
            recipe.close()

    def _records(self, n: int) -> bytes:
        data = os.pread(self._fd, RECORDS_AT_ONCE * RECORD.size, n * RECORD.size)
        return data[: len(data) // RECORD.size * RECORD.size]

    def _end(self, n: int) -> int:
        return int.from_bytes(os.pread(self._fd, 8, n * RECORD.size + 32)) if n >= 0 else 0

    def close(self) -> None:
        os.close(self._fd)


def check(path: Path, size_bytes: int) -> str:
    """The digest of a recipe for a file of this size. Raises ValueError when it cannot be one."""
    recipe, begin = Recipe(path), 0
    sha = hashlib.sha256()
    try:
        if path.stat().st_size % RECORD.size:
            raise ValueError("it ends within a chunk's record")
        for chunk in recipe.chunks():
            if not 0 < chunk.size_bytes <= CHUNK_BYTES_MAX:
                raise ValueError(f"a chunk of {chunk.size_bytes} bytes")
            sha.update(RECORD.pack(chunk.digest, chunk.begin + chunk.size_bytes))
            begin = chunk.begin + chunk.size_bytes
    finally:
        recipe.close()
    if begin != size_bytes:
        raise ValueError(f"its chunks are {begin} bytes, and the file has {size_bytes}")
    return f"sha256:{sha.hexdigest()}"


class Place(NamedTuple):
    """Where a chunk of a new file lies already: in which file, and from where."""

    chunk: int
    file: Path
    begin: int


def found_in(recipe: Recipe, missing: int, others: Iterable[tuple[Path, Path]]) -> Iterator[Place]:
    """Chunks that are missing and lie in other files. `others`: the recipe of each, and the file itself."""
    others = list(others)
    for first in range(0, recipe.total, LOOKED_FOR_AT_ONCE):
        sought: dict[bytes, list[int]] = {}
        for n in range(first, min(first + LOOKED_FOR_AT_ONCE, recipe.total)):
            if missing >> n & 1:
                sought.setdefault(recipe.chunk(n).digest, []).append(n)
        for path, file in others:
            if not sought:
                break
            try:
                other = Recipe(path)
            except OSError:
                continue  # it was removed meanwhile, with its file
            try:
                for chunk in other.chunks():
                    for n in sought.pop(chunk.digest, ()):
                        yield Place(n, file, chunk.begin)
            finally:
                other.close()
