"""The ledger: what a node must know to go on without a hub, and after any crash.

Two generations, `ledger` and `ledger.old`. A write goes to a temporary file, is flushed to the disk, takes the name,
and then the directory is flushed; whatever instant the power fails at, one whole generation is there. Each file
begins with one line (format, schema, SHA-256 of the rest), so damage is seen and never acted upon: a damaged file is
set aside as `ledger.corrupt-<n>` and the older generation is used. Nothing is written when nothing changed, because
flash wears out.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import os
from typing import TYPE_CHECKING, Final, NamedTuple

import msgspec

from batuta.core.decided import Assignment, Commons
from batuta.core.local import Local
from batuta.core.probation import Fallen
from batuta.core.proving import Proven
from batuta.core.reasons import Reason
from batuta.errors import LedgerCorrupt
from batuta.kinds.base import Record, decode_hook, encode_hook

if TYPE_CHECKING:
    from pathlib import Path

FORMAT: Final = "batuta-ledger"
SCHEMA: Final = 1
MOST_BYTES: Final = 64 * 2**20
"""A ledger larger than this is not one of ours."""
MOST_CORRUPT_KEPT: Final = 5
FULL: Final = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EFBIG})
"""What the system says when there is no room: the disk, the quota, the largest file allowed."""


class Page(Record):
    """One generation: the last order, how far it was carried out, and when, in two clocks."""

    assignment: Assignment | None = None
    commons: Commons | None = None
    """What the nodes of our site share."""
    locals: tuple[Local, ...] = ()
    """By instance name, sorted."""
    at: int = 0
    """The wall clock when this was written, milliseconds."""
    steady_ms: int = 0
    """The machine's monotonic clock at the same moment; means something only in the same `machine_boot`."""
    machine_boot: str = ""
    hub_epoch: int = 0
    """Newest epoch of a hub seen; orders of an older one are not followed."""
    proven: tuple[Proven, ...] = ()
    """What models proved to be on this machine."""
    fallen: tuple[Fallen, ...] = ()
    """What was turned down here in favour of what ran before."""


class Opened(NamedTuple):
    """What was found at the start: the newest whole page, and what was wrong with the others."""

    page: Page
    problems: tuple[Reason, ...]


_encoder = msgspec.json.Encoder(enc_hook=encode_hook)
_decoder = msgspec.json.Decoder(Page, dec_hook=decode_hook)


class Ledger:
    """Keeps the newest Page on disk. `problem` is why the disk does not have it yet, if so."""

    def __init__(self, directory: Path, node: str) -> None:
        self.directory = directory
        self.node = node
        self.newest = directory / "ledger"
        self.older = directory / "ledger.old"
        self.problem: Reason | None = None
        self.writes = 0
        self._kept = b""

    def open(self) -> Opened:
        """Read the newest whole generation. Damage is a Reason, never an exception: a node must start."""
        self.directory.mkdir(parents=True, exist_ok=True, mode=0o700)
        problems: list[Reason] = []
        for path in (self.newest, self.older):
            try:
                page = read(path)
            except FileNotFoundError:
                continue
            except LedgerCorrupt as error:
                problems.append(self._set_aside(path, str(error)))
                continue
            self._kept = _what_counts(page)
            return Opened(page, tuple(problems))
        return Opened(Page(), tuple(problems))

    def write(self, page: Page) -> bool:
        """Make `page` the newest generation; True when the disk has it. No room is a Reason, and the next write
        retries."""
        what = _what_counts(page)
        if what == self._kept and self.problem is None:
            return True
        try:
            self._write(seal(page))
        except OSError as error:
            code = "disk_full" if error.errno in FULL else "ledger_unwritable"
            self.problem = Reason(code=code, subject=f"node/{self.node}", detail=f"the ledger: {error.strerror}")
            return False
        self._kept = what
        self.problem = None
        self.writes += 1
        return True

    def _write(self, data: bytes) -> None:
        temporary = self.directory / "ledger.new"
        try:
            with open(temporary, "wb", opener=_private) as file:
                file.write(data)
                file.flush()
                os.fsync(file.fileno())
        except OSError:
            with contextlib.suppress(OSError):  # a half-written file only takes the room that is missing
                temporary.unlink()
            raise
        if self.newest.exists():
            # A link, not a rename: there is no instant at which no generation is called `ledger`.
            with contextlib.suppress(FileNotFoundError):
                self.older.unlink()
            os.link(self.newest, self.older)
        temporary.replace(self.newest)
        flush_directory(self.directory)

    def _set_aside(self, path: Path, why: str) -> Reason:
        n = 1
        while (aside := self.directory / f"ledger.corrupt-{n}").exists() and n < MOST_CORRUPT_KEPT:
            n += 1
        detail = f"{why}; kept as {aside.name}"
        try:
            path.replace(aside)
        except OSError as error:
            detail = f"{why}; it could not be set aside: {error.strerror}"
        return Reason(code="ledger_corrupt", subject=f"node/{self.node}", detail=detail)


def seal(page: Page) -> bytes:
    """A page as it lies on disk: the line that vouches for the rest, and the rest."""
    body = _encoder.encode(page)
    return f"{FORMAT} {SCHEMA} {hashlib.sha256(body).hexdigest()}\n".encode() + body


def read(path: Path) -> Page:
    """One generation; LedgerCorrupt says what is wrong with it."""
    try:
        with path.open("rb") as file:
            data = file.read(MOST_BYTES + 1)
    except FileNotFoundError:
        raise
    except OSError as error:
        raise LedgerCorrupt(f"{path.name} cannot be read: {error.strerror}") from error
    if len(data) > MOST_BYTES:
        raise LedgerCorrupt(f"{path.name} is larger than any ledger")
    head, newline, body = data.partition(b"\n")
    words = head.split(b" ")
    if not newline or len(words) != 3 or words[0] != FORMAT.encode():
        raise LedgerCorrupt(f"{path.name} does not begin like a ledger")
    if words[1] != str(SCHEMA).encode():
        raise LedgerCorrupt(
            f"{path.name} has schema {words[1][:8].decode(errors='replace')}, this agent reads {SCHEMA}"
        )
    if words[2] != hashlib.sha256(body).hexdigest().encode():
        raise LedgerCorrupt(f"{path.name} has the wrong checksum")
    try:
        return _decoder.decode(body)
    except msgspec.MsgspecError as error:
        raise LedgerCorrupt(f"{path.name}: {error}") from error


def flush_directory(directory: Path) -> None:
    """A rename is on disk only when its directory is."""
    descriptor = os.open(directory, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _what_counts(page: Page) -> bytes:
    """All but the instants of writing: they change always, and alone are not worth a write."""
    return _encoder.encode(msgspec.structs.replace(page, at=0, steady_ms=0))


def _private(path: str, flags: int) -> int:
    return os.open(path, flags, 0o600)
