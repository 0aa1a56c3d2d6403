"""Artifacts: files named by the SHA-256 of their bytes. What is here was verified on its way in, or is not here; before
anybody who has the bytes is told that we have them, they are looked at again.

People put whole files over HTTP; nodes ask for pieces over the fabric, so that a cut resumes where it was and
orders pass between pieces on a slow link.
"""

from __future__ import annotations

import asyncio
import errno
import hashlib
import os
import re
import secrets
from typing import TYPE_CHECKING, Final, NamedTuple

import msgspec

from batuta.errors import ArtifactRefused

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from pathlib import Path

    from batuta.hub.counters import Counters

DIGEST: Final = re.compile(r"^sha256:[0-9a-f]{64}$")
PIECE_BYTES_MAX: Final = 512 * 1024
_FULL: Final = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


class _Looks(NamedTuple):
    """What tells a file from the one it was, without reading it."""

    size_bytes: int
    inode: int
    mtime_ns: int


class PieceWanted(msgspec.Struct, frozen=True):
    """A node asks for a part of a file."""

    digest: str
    offset: int = 0
    length: int = PIECE_BYTES_MAX


class ArtifactStore:
    """The hub's files by digest."""

    def __init__(self, directory: Path, counters: Counters, *, bytes_max: int) -> None:
        self._files = directory / "sha256"
        self._incoming = directory / "incoming"
        self._damaged = directory / "damaged"
        self._counters = counters
        self._bytes_max = bytes_max
        self._whole: dict[str, _Looks] = {}
        """What a file was like when its bytes were last looked at, by this process."""

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
            looks = _looks(path)
            if self._whole.get(digest) == looks:
                return path
            found = await asyncio.to_thread(_digest_of, path)
        except FileNotFoundError:
            return None
        if found == digest:
            self._whole[digest] = looks
            return path
        self._counters.add("artifacts_refused", "damaged")
        path.replace(self._damaged / path.name)
        return None

    def held(self) -> list[str]:
        return sorted(f"sha256:{path.name}" for path in self._files.iterdir())

    async def put(self, digest: str, chunks: AsyncIterator[bytes]) -> int:
        """Keeps the bytes when they are what `digest` says; returns their number. Otherwise nothing is kept."""
        path = self.path(digest)
        partial = self._incoming / secrets.token_hex(8)
        try:
            size = await self._receive(digest, partial, chunks)
            partial.replace(path)
            self._whole[digest] = _looks(path)
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

    def piece(self, wanted: bytes) -> tuple[bytes, int]:
        """The bytes that a node asked for and the size of the whole; raises ArtifactRefused."""
        try:
            asked = msgspec.json.decode(wanted, type=PieceWanted)
        except msgspec.DecodeError as error:
            raise ArtifactRefused("request_malformed", str(error)) from None
        path = self.path(asked.digest)
        if asked.length < 1 or asked.offset < 0:
            raise ArtifactRefused("request_malformed", "offset and length are not negative")
        try:
            with path.open("rb") as file:
                file.seek(asked.offset)
                data = file.read(min(asked.length, PIECE_BYTES_MAX))
                size = os.fstat(file.fileno()).st_size
        except FileNotFoundError:
            self._counters.add("artifacts_refused", "artifact_missing")
            raise ArtifactRefused("artifact_missing", f"the hub does not have {asked.digest}") from None
        self._counters.add("artifact_bytes_sent", by=len(data))
        return data, size


def _looks(path: Path) -> _Looks:
    stat = path.stat()
    return _Looks(stat.st_size, stat.st_ino, stat.st_mtime_ns)


def _digest_of(path: Path) -> str:
    with path.open("rb") as file:
        return f"sha256:{hashlib.file_digest(file, 'sha256').hexdigest()}"
