"""Frames that may be what kills the worker: run alone, written down while they run, refused once they are convicted.

A model runs in native code; a frame on which that crashes takes the whole process along, and comes again, for ever.
Which one of a batch it was, nobody can say. So what was handed out too often is run alone, and its name is in a file
for as long as it runs: what a start finds there is what ran when the process died. That one then runs after all others.

Having been handed out often is no guilt by itself. A broker that is away does that to every frame in hand, and refusing
those would lose what a device was told is kept.
"""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING, NamedTuple

import msgspec

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence
    from pathlib import Path

    from batuta.dataflow.hand import Frame

SUSPECTS_FILE = "suspects.json"
HANDED_OUT_MAX = 3
"""Handed out more often, a frame is run alone."""
DEATHS_MAX = 3
"""So often the process died of it alone, and it is refused: once or twice may have been somebody else's doing."""
REMEMBERED_MAX = 64
CLEARED_MAX = 4_096
NOTE_BYTES_MAX = 64 * 1024


class Note(msgspec.Struct):
    """What outlives the process."""

    alone: str = ""
    """Runs, and nothing else does."""
    deaths: dict[str, int] = {}


class Sorted(NamedTuple):
    """Frames by how they may be run."""

    together: list[Frame]
    alone: list[Frame]
    """The likeliest culprits last."""
    convicted: list[Frame]


class Suspects:
    """What this instance knows of frames and of its own deaths."""

    def __init__(self, path: Path, complain: Callable[[str], None]) -> None:
        self._path = path
        self._complain = complain
        self._note = self._read()
        self._cleared: dict[str, None] = {}
        """Ran without harm in this process, oldest first."""
        if died_of := self._note.alone:
            # The newest go last, so that the oldest are forgotten first.
            deaths = self._note.deaths.pop(died_of, 0) + 1
            kept = list(self._note.deaths.items())[-REMEMBERED_MAX + 1 :]
            self._note = Note(deaths={**dict(kept), died_of: deaths})
            self._write()

    def deaths_of(self, frame: Frame) -> int:
        """How often the process died while it ran on this and on nothing else."""
        return self._note.deaths.get(_key(frame), 0)

    def sort(self, frames: Sequence[Frame]) -> Sorted:
        found = Sorted([], [], [])
        for frame in frames:
            deaths = self.deaths_of(frame)
            if deaths >= DEATHS_MAX:
                found.convicted.append(frame)
            elif deaths or (frame.place.delivered > HANDED_OUT_MAX and _key(frame) not in self._cleared):
                found.alone.append(frame)
            else:
                found.together.append(frame)
        found.alone.sort(key=self.deaths_of)
        return found

    @contextlib.contextmanager
    def alone(self, frame: Frame) -> Iterator[None]:
        """While this runs, nothing else does; whoever comes back from it is innocent."""
        self._note.alone = _key(frame)
        self._write()
        try:
            yield
        finally:
            self._note.alone = ""
            self._note.deaths.pop(_key(frame), None)
            self._write()
            self._cleared[_key(frame)] = None
            if len(self._cleared) > CLEARED_MAX:
                del self._cleared[next(iter(self._cleared))]

    def _read(self) -> Note:
        try:
            with self._path.open("rb") as file:
                return msgspec.json.decode(file.read(NOTE_BYTES_MAX), type=Note)
        except FileNotFoundError:
            return Note()
        except (OSError, ValueError) as error:
            self._complain(f"what earlier runs died of cannot be read: {error}")
            return Note()

    def _write(self) -> None:
        new = self._path.with_name(f".{self._path.name}.new")
        try:
            new.write_bytes(msgspec.json.encode(self._note))
            new.replace(self._path)
        except OSError as error:
            # It is run all the same: should it be deadly, it will be until there is room to say so.
            self._complain(f"what runs alone cannot be written down: {error}")


def _key(frame: Frame) -> str:
    """Names a frame for ever: its node, its place there, and when it was kept."""
    return f"{frame.ingest}:{frame.place.sequence}:{frame.place.at_ns}"
