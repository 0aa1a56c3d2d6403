"""What an instance prints: two files it appends to by itself, kept small from outside.

The instance holds its files open, with or without a node agent, so they are rotated by copying and truncating: what was
written is copied to the next file and the file is cut to nothing; the instance goes on at its new end. A line written
between the last read and the cut is lost, and so is all but the newest part of a burst larger than one file; the second
is counted, the first cannot be.
"""

from __future__ import annotations

import contextlib
import os
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pathlib import Path

FILE_BYTES_MAX = 1 << 20
OLD_FILES = 2
"""Beside the one being written: three in all."""
STREAMS = ("stdout", "stderr")


class Logs:
    """The printed output of one instance, in `directory/log`."""

    def __init__(self, directory: Path, *, file_bytes_max: int = FILE_BYTES_MAX) -> None:
        self.directory = directory / "log"
        self.file_bytes_max = file_bytes_max
        self.rotations = 0
        self.dropped_bytes = 0
        """What a burst overran before it could be kept."""

    def path(self, stream: str) -> Path:
        return self.directory / f"{stream}.log"

    def make_room(self) -> None:
        """Nobody but the node's own user reads what an instance keeps or prints."""
        self.directory.mkdir(parents=True, exist_ok=True, mode=0o700)

    def open(self, stream: str) -> int:
        """A descriptor to give to the child; appending, so that it goes on rightly after a cut."""
        self.make_room()
        return os.open(self.path(stream), os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, 0o600)

    def rotate(self) -> None:
        """Cuts the files that have grown over their limit."""
        for stream in STREAMS:
            path = self.path(stream)
            try:
                size = path.stat().st_size
            except FileNotFoundError:
                continue
            if size > self.file_bytes_max:
                self._cut(path)

    def _cut(self, path: Path) -> None:
        for number in range(OLD_FILES, 1, -1):
            with contextlib.suppress(FileNotFoundError):
                path.with_suffix(f".log.{number - 1}").replace(path.with_suffix(f".log.{number}"))
        descriptor = os.open(path, os.O_RDWR | os.O_CLOEXEC)
        try:
            size = os.fstat(descriptor).st_size
            begin = max(0, size - self.file_bytes_max)
            kept = os.pread(descriptor, size - begin, begin)
            path.with_suffix(".log.1").write_bytes(kept)
            os.ftruncate(descriptor, 0)
        finally:
            os.close(descriptor)
        self.rotations += 1
        self.dropped_bytes += begin

    def size_bytes(self, stream: str) -> int:
        try:
            return self.path(stream).stat().st_size
        except FileNotFoundError:
            return 0

    def complaint(self, before_bytes: int, *, bytes_max: int = 1_000) -> str:
        """The newest of what it complained about, but nothing of the first bytes, which are of earlier starts. A file
        that is shorter than those was cut since."""
        size_bytes = self.size_bytes("stderr")
        own_bytes = size_bytes - before_bytes if size_bytes >= before_bytes else size_bytes
        return _tail(self.path("stderr"), min(bytes_max, own_bytes))

    def last_lines(self, count: int = 3, *, bytes_max: int = 400) -> str:
        """The newest lines, of what it complained about if it complained, else of what it said; on one line."""
        for stream in ("stderr", "stdout"):
            lines = _tail(self.path(stream), bytes_max * 4).splitlines()
            text = " | ".join(line.strip() for line in lines[-count:] if line.strip())
            if text:
                return text[-bytes_max:]
        return ""


def _tail(path: Path, bytes_max: int) -> str:
    try:
        with path.open("rb") as file:
            file.seek(max(0, file.seek(0, os.SEEK_END) - bytes_max))
            return file.read(bytes_max).decode("utf-8", "replace")
    except OSError:
        return ""
