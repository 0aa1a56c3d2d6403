"""Partial: a file that is being put together, and the journal of what is in it.

Every chunk is checked before it is written, and noted after: so what the journal names is there, whenever this process
ends. Not so when the machine does; therefore all of it is looked at again when an earlier run began the file.
"""

from __future__ import annotations

import hashlib
import os
import threading
from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    from collections.abc import Iterable
    from pathlib import Path

    from batuta.agent.recipe import Place, Recipe

NAME_BYTES: Final = 71
"""The journal begins with the digest of its recipe; after that one byte stands for each chunk."""


def recipe_named(path: Path) -> str:
    """The digest of the recipe by which an earlier run began this file; empty when none did."""
    try:
        with journal_of(path).open("rb") as file:
            return file.read(NAME_BYTES).decode("ascii", "replace").rstrip()
    except FileNotFoundError:
        return ""


def journal_of(path: Path) -> Path:
    return path.with_name(f"{path.name}.have")


class Partial:
    """One file under way. `has` is only changed by who called, never in a thread.

    Whoever waits for a thread may be cancelled, and the thread works on. So it looks, under the lock, whether the file
    is still open: what it wrote after that would land in whatever has the file's number by then.
    """

    def __init__(self, path: Path, recipe: Recipe) -> None:
        self.path = path
        self.journal = journal_of(path)
        self.recipe = recipe
        self.has = 0
        self._fd = self._journal_fd = -1
        self._lock = threading.Lock()
        self._is_closed = False

    def open(self) -> int:
        """Take up what an earlier run left; returns the bytes of it that are good."""
        with self._lock:
            noted = b"" if self._is_closed else self._open()
        found, size = bytearray(-(-self.recipe.total // 8)) if noted else bytearray(), 0
        for n, is_noted in enumerate(noted[NAME_BYTES:]):
            if is_noted and (data := self._read(n)) is not None:
                found[n // 8] |= 1 << n % 8
                size += len(data)
        self.has = int.from_bytes(found, "little")
        return size

    def _open(self) -> bytes:
        """The journal."""
        name = self.recipe.digest.encode().ljust(NAME_BYTES)
        self._fd = os.open(self.path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        self._journal_fd = os.open(self.journal, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        noted = os.pread(self._journal_fd, NAME_BYTES + self.recipe.total, 0)
        if noted[:NAME_BYTES] != name:
            # By another recipe, or by none: nobody knows what is what in it.
            os.ftruncate(self._journal_fd, 0)
            os.ftruncate(self._fd, 0)
            os.pwrite(self._journal_fd, name, 0)
            noted = name
        return noted

    def put(self, n: int, data: bytes | memoryview[Any]) -> bool:
        """Write a chunk; False when its bytes are not what the recipe says: then nothing is written."""
        sha = hashlib.sha256(data).digest()
        with self._lock:
            if self._is_closed:
                return False
            chunk = self.recipe.chunk(n)
            if len(data) != chunk.size_bytes or sha != chunk.digest:
                return False
            at, left = chunk.begin, memoryview(data)
            while left:
                written = os.pwrite(self._fd, left, at)
                at, left = at + written, left[written:]
            os.pwrite(self._journal_fd, b"\1", NAME_BYTES + n)
        return True

    def take(self, n: int) -> bytes | None:
        """A chunk that is here, looked at once more; None when it is not, or went bad."""
        return self._read(n) if self.has >> n & 1 else None

    def copy(self, places: Iterable[Place]) -> int:
        """Chunks that lie in other files here; returns which of them were good."""
        copied = 0
        for place in places:
            if self._is_closed:
                break
            with place.file.open("rb") as file:
                file.seek(place.begin)
                if self.put(place.chunk, file.read(self.recipe.chunk(place.chunk).size_bytes)):
                    copied |= 1 << place.chunk
        return copied

    def flush(self) -> None:
        with self._lock:
            if self._is_closed:
                return
            own = os.dup(self._fd)
        try:
            os.fsync(own)  # it may take a while, and nobody shall wait for the lock so long
        finally:
            os.close(own)

    def close(self) -> None:
        with self._lock:
            self._is_closed = True
            for fd in (self._fd, self._journal_fd):
                if fd >= 0:
                    os.close(fd)
            self._fd = self._journal_fd = -1

    def _read(self, n: int) -> bytes | None:
        with self._lock:
            if self._is_closed:
                return None
            chunk = self.recipe.chunk(n)
            data = os.pread(self._fd, chunk.size_bytes, chunk.begin)
        return data if hashlib.sha256(data).digest() == chunk.digest else None
