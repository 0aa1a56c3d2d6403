"""Artifacts: a cache of files named by their SHA-256, filled from the hub in pieces that resume.

A file gets its name only after its bytes were hashed, so what has a name was right once. Whether it still is: the
whole file is hashed again on its first use after the machine booted, and whenever its size, inode or modification
time differ from the list; in between the list is believed. So a restart of the agent costs nothing, and a card that
went bad while the power was off is found before a model runs from it. A damaged file is set aside and fetched again.

Room: what the ledger needs is never removed; the rest goes, oldest use first, when a new file would not fit the budget.
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import os
import re
import time
from typing import TYPE_CHECKING, Final, NamedTuple, Protocol

import msgspec

from batuta.agent.ledger import FULL
from batuta.core.reasons import Reason
from batuta.errors import ArtifactRefused, FabricUnavailable

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping
    from pathlib import Path

DIGEST: Final = re.compile(r"^sha256:[0-9a-f]{64}$")
FIRST_PIECE_BYTES: Final = 64 * 1024
LARGEST_PIECE_BYTES: Final = 512 * 1024
SMALLEST_PIECE_BYTES: Final = 8 * 1024
QUICK_S: Final = 0.5
"""A piece that took less is followed by a larger one; on a slow link they stay small, and orders pass between them."""
SPARE_BYTES: Final = 16 * 2**20
"""Left free on the disk, for the ledger and for logs."""
LONGEST_PAUSE_S: Final = 5.0
READ_BYTES: Final = 1 << 20


class Piece(NamedTuple):
    """A part of an artifact and the size of the whole."""

    data: bytes
    size_bytes: int


class Source(Protocol):
    """Where artifacts come from. Raises FabricUnavailable when it cannot be asked, ArtifactRefused when it says no."""

    async def piece(self, digest: str, offset: int, length: int) -> Piece: ...


class Known(NamedTuple):
    """What a file was like when it was last hashed, and during which run of the machine."""

    size_bytes: int
    inode: int
    mtime_ns: int
    machine_boot: str


class Artifacts:
    """The files of one node."""

    def __init__(
        self, directory: Path, source: Source, *, node: str, machine_boot: str, budget_bytes: int, apart: bool = True
    ) -> None:
        self.source = source
        self.node = node
        self.machine_boot = machine_boot
        self.budget_bytes = budget_bytes
        self.apart = apart
        """Hash in a thread. In virtual time there are no threads."""
        self.files = directory / "sha256"
        self.partial = directory / "partial"
        self.corrupt = directory / "corrupt"
        self.list = directory / "list.json"
        self.refused = 0
        """Files whose bytes were not what their digest says: from the hub, or on this disk."""
        self.fetched_bytes = 0
        self.problem: Reason | None = None
        """The newest damage found on this disk, until the file is whole again."""
        self._known: dict[str, Known] = {}
        self._verified: set[str] = set()
        self._fetches: dict[str, asyncio.Lock] = {}

    def open(self) -> None:
        for directory in (self.files, self.partial, self.corrupt):
            directory.mkdir(parents=True, exist_ok=True, mode=0o700)
        try:
            self._known = msgspec.json.decode(self.list.read_bytes(), type=dict[str, Known])
        except (OSError, msgspec.MsgspecError):  # the list only saves time: without it every file is hashed
            self._known = {}
        for path in self.files.iterdir():
            digest = f"sha256:{path.name}"
            if DIGEST.match(digest) and self._known.get(digest) == self._looks(path):
                self._verified.add(digest)

    @property
    def held(self) -> frozenset[str]:
        """Digests whose files are here and verified."""
        return frozenset(self._verified)

    def path(self, digest: str) -> Path:
        _check(digest)
        return self.files / digest.removeprefix("sha256:")

    async def verify(self, digests: Iterable[str]) -> None:
        """Look at files that are here but not yet vouched for in this boot, so that `held` says all there is."""
        for digest in digests:
            if DIGEST.match(digest) and digest not in self._verified and self.path(digest).exists():
                await self._still_whole(digest)

    async def fetch(self, digest: str, needed: Callable[[], frozenset[str]] = frozenset) -> Path:
        """The verified file, from here or from the source. Two who want the same file share one fetch."""
        path = self.path(digest)
        async with self._fetches.setdefault(digest, asyncio.Lock()):
            if await self._still_whole(digest):
                return path
            try:
                await self._download(digest, path, needed)
            except OSError as error:
                self._forget_partial(digest)  # it takes the room that is missing
                code = "disk_full" if error.errno in FULL else "artifact_unwritable"
                raise ArtifactRefused(code, f"{digest[:19]}…: {error.strerror}") from error
        return path

    async def _hash_of(self, path: Path) -> str:
        return await asyncio.to_thread(_hash_of, path) if self.apart else _hash_of(path)

    async def _still_whole(self, digest: str) -> bool:
        path = self.path(digest)
        if not path.exists():
            self._verified.discard(digest)
            return False
        if digest in self._verified and self._known.get(digest) == self._looks(path):
            # Disks are often mounted without access times; this one says when the file was last of use.
            os.utime(path, ns=(time.time_ns(), path.stat().st_mtime_ns))
            return True
        self._verified.discard(digest)
        looks = self._looks(path)
        if await self._hash_of(path) == digest.removeprefix("sha256:"):
            self._keep(digest, looks)
            return True
        self.refused += 1
        self.problem = Reason(
            code="digest_mismatch", subject=f"node/{self.node}", detail=f"{digest[:19]}… is damaged on this disk"
        )
        path.replace(self.corrupt / path.name)
        self._known.pop(digest, None)
        return False

    async def _download(self, digest: str, path: Path, needed: Callable[[], frozenset[str]]) -> None:
        partial = self.partial / path.name
        length, pause_s, size = FIRST_PIECE_BYTES, 0.2, -1
        with partial.open("ab") as file:
            while size < 0 or file.tell() < size:
                asked_at = time.monotonic()
                try:
                    piece = await self.source.piece(digest, file.tell(), length)
                except FabricUnavailable:
                    # Not a failure of this artifact: the link comes back, and what is here is kept.
                    length = max(SMALLEST_PIECE_BYTES, length // 2)
                    await asyncio.sleep(pause_s)
                    pause_s = min(LONGEST_PAUSE_S, pause_s * 2)
                    continue
                pause_s = 0.2
                if size < 0:
                    size = piece.size_bytes
                    if file.tell() > size:
                        file.truncate(0)
                        continue
                    self._make_room(digest, size, file.tell(), needed())
                if piece.size_bytes != size or len(piece.data) > length or (not piece.data and file.tell() < size):
                    raise ArtifactRefused("artifact_missing", f"{digest[:19]}…: the hub's pieces do not fit together")
                file.write(piece.data)
                file.flush()
                self.fetched_bytes += len(piece.data)
                if time.monotonic() - asked_at < QUICK_S:
                    length = min(LARGEST_PIECE_BYTES, length * 2)
            if self.apart:
                await asyncio.to_thread(os.fsync, file.fileno())
        if await self._hash_of(partial) != path.name:
            self.refused += 1
            self._forget_partial(digest)
            raise ArtifactRefused("digest_mismatch", f"{size} bytes from the hub are not {digest[:19]}…")
        partial.chmod(0o400)
        partial.replace(path)
        self._keep(digest, self._looks(path))

    def _make_room(self, digest: str, size: int, have: int, needed: frozenset[str]) -> None:
        present = {d: s for d, s in self._sizes().items() if d != digest}
        used = sum(present.values())
        for old in sorted(present, key=lambda d: self.path(d).stat().st_atime_ns):
            if used + size <= self.budget_bytes:
                break
            if old not in needed:
                used -= present[old]
                self.remove(old)
        if used + size > self.budget_bytes:
            raise ArtifactRefused(
                "disk_full",
                f"{size} bytes do not fit: of {self.budget_bytes} allowed, {used} are in use by what runs here",
            )
        free = os.statvfs(self.files)
        if free.f_bavail * free.f_frsize + have < size + SPARE_BYTES:
            raise ArtifactRefused(
                "disk_full", f"{size} bytes needed, {free.f_bavail * free.f_frsize} free, {SPARE_BYTES} kept spare"
            )

    def collect(self, needed: frozenset[str], keep_s: float = 86_400.0) -> int:
        """Remove what nobody needs and nobody used for `keep_s`; how many went."""
        gone, oldest = 0, time.time() - keep_s
        for digest in self._sizes():
            if digest not in needed and self.path(digest).stat().st_atime < oldest:
                self.remove(digest)
                gone += 1
        for leftover in (*self.partial.iterdir(), *self.corrupt.iterdir()):
            if f"sha256:{leftover.name}" not in needed and leftover.stat().st_mtime < oldest:
                leftover.unlink(missing_ok=True)
                gone += 1
        return gone

    def remove(self, digest: str) -> None:
        self.path(digest).unlink(missing_ok=True)
        self._verified.discard(digest)
        self._known.pop(digest, None)
        self._write_list()

    def _sizes(self) -> Mapping[str, int]:
        return {
            f"sha256:{path.name}": path.stat().st_size
            for path in sorted(self.files.iterdir())
            if DIGEST.match(f"sha256:{path.name}")
        }

    def _keep(self, digest: str, looks: Known) -> None:
        self._known[digest] = looks
        self._verified.add(digest)
        self._write_list()
        if self.problem is not None and digest[:19] in self.problem.detail:
            self.problem = None

    def _looks(self, path: Path) -> Known:
        stat = path.stat()
        return Known(stat.st_size, stat.st_ino, stat.st_mtime_ns, self.machine_boot)

    def _write_list(self) -> None:
        # Not flushed: losing the list costs hashing, nothing else. No room for it is no reason to fail either.
        new = self.list.with_suffix(".new")
        try:
            new.write_bytes(msgspec.json.encode(self._known))
            new.replace(self.list)
        except OSError:
            new.unlink(missing_ok=True)

    def _forget_partial(self, digest: str) -> None:
        with contextlib.suppress(OSError):
            (self.partial / digest.removeprefix("sha256:")).unlink()


def _check(digest: str) -> None:
    if not DIGEST.match(digest):
        raise ArtifactRefused("artifact_missing", f"{digest[:80]!r} is not a digest")


def _hash_of(path: Path) -> str:
    sha = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(READ_BYTES):
            sha.update(block)
    return sha.hexdigest()
