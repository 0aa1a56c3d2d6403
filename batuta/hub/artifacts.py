"""Artifacts: files named by the SHA-256 of their bytes. What is here was verified on its way in, or is not here; before
anybody who has the bytes is told that we have them, they are looked at again.

People put whole files over HTTP; nodes ask for chunks over the fabric (`hub.recipes`), so that a cut resumes where it
was and orders pass between chunks on a slow link. What nobody refers to any more goes after a while.
"""

from __future__ import annotations

import asyncio
import errno
import hashlib
import os
import re
import secrets
import threading
import time
from typing import TYPE_CHECKING, Final, NamedTuple

from batuta.errors import ArtifactRefused

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable
    from pathlib import Path

    from batuta.hub.counters import Counters

DIGEST: Final = re.compile(r"^sha256:[0-9a-f]{64}$")
_FULL: Final = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


class Looks(NamedTuple):
    """What tells a file from the one it was, without reading it."""

    size_bytes: int
    inode: int
    mtime_ns: int


class ArtifactStore:
    """The hub's files by digest."""

    def __init__(self, directory: Path, counters: Counters, *, bytes_max: int) -> None:
        self._files = directory / "sha256"
        self._incoming = directory / "incoming"
        self._damaged = directory / "damaged"
        self._counters = counters
        self._bytes_max = bytes_max
        self._whole: dict[str, Looks] = {}
        """What a file was like when its bytes were last looked at, by this process."""
        self._moving = threading.Lock()
        """Files come to their names and leave them by one hand at a time: chunks are cut in a thread."""
        self.on_put: Callable[[str], None] = lambda _: None

    def open(self) -> None:
        """What was half received when the hub ended is of no use to anybody."""
        for directory in (self._files, self._incoming, self._damaged):
            directory.mkdir(parents=True, exist_ok=True, mode=0o700)
        for leftover in self._incoming.iterdir():
            leftover.unlink(missing_ok=True)

    def path(self, digest: str) -> Path:
        if not DIGEST.match(digest):
            raise ArtifactRefused("digest_malformed", f"{digest[:80]!r} is not a digest: sha256: and 64 hex digits")
        return self._files / digest.removeprefix("sha256:")

    async def whole(self, digest: str) -> Path | None:
        """The file, if its bytes are still what its name says. One that went bad is set aside: it can be put again."""
        path = self.path(digest)
        try:
            looks = looks_of(path)
            if self._whole.get(digest) == looks:
                return path
            found = await asyncio.to_thread(_digest_of, path)
        except FileNotFoundError:
            return None
        if found == digest:
            self._whole[digest] = looks
            return path
        self.set_aside(digest, looks)
        return None

    def set_aside(self, digest: str, looks: Looks) -> None:
        """A file that looked so was read, and is not what its name says. It is moved and counted once, however many
        found it; and not when another is in its place by now."""
        path = self.path(digest)
        with self._moving:
            try:
                if looks_of(path) != looks:
                    return
                path.replace(self._damaged / path.name)
            except FileNotFoundError:
                return
            self._whole.pop(digest, None)
            self._counters.add("artifacts_refused", "damaged")

    async def look_again(self, digest: str) -> bool:
        """A part of it was not as it should be: all of it is read. True when it is whole after all."""
        self._whole.pop(digest, None)
        return await self.whole(digest) is not None

    def held(self) -> list[str]:
        return sorted(f"sha256:{path.name}" for path in self._files.iterdir())

    async def put(self, digest: str, chunks: AsyncIterator[bytes]) -> int:
        """Keeps the bytes when they are what `digest` says; returns their number. Otherwise nothing is kept."""
        path = self.path(digest)
        partial = self._incoming / secrets.token_hex(8)
        try:
            size = await self._receive(digest, partial, chunks)
            with self._moving:
                partial.replace(path)
                self._whole[digest] = looks_of(path)
            self.on_put(digest)
        except OSError as error:
            if error.errno not in _FULL:
                raise
            self._counters.add("artifacts_refused", "disk_full")
            raise ArtifactRefused(
                "disk_full", "the hub's disk is full; nothing was kept", next_step="free some space on the hub"
            ) from error
        finally:
            partial.unlink(missing_ok=True)
        return size

    async def _receive(self, digest: str, partial: Path, chunks: AsyncIterator[bytes]) -> int:
        sha, size = hashlib.sha256(), 0
        with partial.open("xb") as file:
            async for chunk in chunks:
                size += len(chunk)
                if size > self._bytes_max:
                    self._counters.add("artifacts_refused", "too_large")
                    raise ArtifactRefused("too_large", f"an artifact has {self._bytes_max} bytes at most")
                sha.update(chunk)
                file.write(chunk)
            file.flush()
            await asyncio.to_thread(os.fsync, file.fileno())
        if f"sha256:{sha.hexdigest()}" != digest:
            self._counters.add("artifacts_refused", "digest_mismatch")
            raise ArtifactRefused(
                "digest_mismatch",
                f"the {size} bytes received are sha256:{sha.hexdigest()}, not {digest}; nothing was kept",
                next_step="push the file again",
            )
        return size

    def collect(self, needed: Callable[[], frozenset[str]], keep_s: float) -> list[str]:
        """Remove files that nobody refers to and that came more than `keep_s` ago; which ones went.

        `needed` is asked after the files were listed: what is pushed is put here first and referred to afterwards.
        """
        oldest = time.time() - keep_s
        old = [path for path in sorted(self._files.iterdir()) if path.stat().st_mtime < oldest]
        referred = needed() if old else frozenset()
        gone = [f"sha256:{path.name}" for path in old if f"sha256:{path.name}" not in referred]
        for digest in gone:
            self.path(digest).unlink(missing_ok=True)
            self._whole.pop(digest, None)
        for leftover in self._damaged.iterdir():
            if leftover.stat().st_mtime < oldest:
                leftover.unlink(missing_ok=True)
        self._counters.add("artifacts_collected", by=len(gone))
        return gone


def looks_of(path: Path) -> Looks:
    stat = path.stat()
    return Looks(stat.st_size, stat.st_ino, stat.st_mtime_ns)


def _digest_of(path: Path) -> str:
    with path.open("rb") as file:
        return f"sha256:{hashlib.file_digest(file, 'sha256').hexdigest()}"
