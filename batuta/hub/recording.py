"""The recording: what this hub knew and what it decided, turn by turn, in a ring of files for `batuta twin replay`.

The loop only hands over what it holds anyway: immutable tables, changes, decisions. Writing them down happens in a
thread, once a second, and whatever goes wrong with it (a full disk, a slow one) costs the recording a gap, which is
counted, and the hub nothing.
"""

from __future__ import annotations

import asyncio
import contextlib
import gzip
import threading
from typing import TYPE_CHECKING, Final, NamedTuple

from batuta import __version__
from batuta.core.decide import APPLICATION
from batuta.fabric.broker_health import ROOM_BYTES, room_bytes
from batuta.fabric.tasks import end
from batuta.twin.replay_frames import Begin, There, Turn, to_line
from batuta.twin.replay_rows import row_of, rows_of

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping, Sequence
    from pathlib import Path
    from typing import Any

    from batuta.core.decide import Decision
    from batuta.core.state import Change, State, Table
    from batuta.hub.counters import Counters

WRITE_EVERY_S: Final = 1.0
TURNS_WAITING_MAX: Final = 4_096
"""A disk that is further behind costs a gap."""
FILES: Final = 8
"""The ring has about so many; the oldest goes first."""
SUFFIX: Final = ".jsonl.gz"


class _Before(NamedTuple):
    """What the loop went on from."""

    state: State
    at: int
    open: frozenset[str] = frozenset()


class _Decided(NamedTuple):
    """One decision, as the loop made it."""

    before: _Before
    at: int
    deaf_ms: int
    heard: Mapping[tuple[Table, str], Any]
    changes: Sequence[Change]
    everything: bool


class Recording:
    """One hub process's part of the ring."""

    def __init__(self, directory: Path, counters: Counters, *, bytes_max: int) -> None:
        self.directory = directory
        self.bytes_max = bytes_max
        """All files together; 0 records nothing."""
        self._counters = counters
        self._before: _Before | None = None
        self._heard: dict[tuple[Table, str], Any] = {}
        self._waiting: list[_Decided | None] = []
        """None where some were left out."""
        self._file: Path | None = None
        """Where the present stretch is written; None when the next turn begins one."""
        self._writing: asyncio.Task[None] | None = None
        self._one_at_a_time = threading.Lock()

    # --- What the loop calls ---

    def begins(self, state: State, now: int) -> None:
        """A hub begins to decide, from these tables."""
        if self.bytes_max:
            self._before, self._heard = _Before(state, now), {}

    def heard(self, changes: Iterable[Change]) -> None:
        """These were folded into the tables."""
        if self._before is not None:
            self._heard.update(((c.table, c.key), c.value) for c in changes)

    def decided(self, state: State, now: int, decision: Decision, *, everything: bool) -> None:
        """This was decided on the tables as they are."""
        if self._before is None:
            return
        if len(self._waiting) >= TURNS_WAITING_MAX:
            self._counters.add("recording_gaps", "behind")
            self._waiting = [None]
        self._waiting.append(_Decided(self._before, now, state.deaf_ms, self._heard, decision.changes, everything))
        self._before = _Before(state, now, frozenset(APPLICATION + app for app in decision.pending))
        self._heard = {}

    # --- Writing ---

    def open(self) -> None:
        if self.bytes_max:
            self._writing = asyncio.create_task(self._write_again_and_again(), name="recording")

    async def close(self) -> None:
        await end(self._writing)
        await self.flush()

    async def flush(self) -> None:
        """Everything that was decided by now is in the files."""
        waiting, self._waiting = self._waiting, []
        if waiting:
            await asyncio.to_thread(self._write, waiting)

    def files(self) -> list[Path]:
        """Oldest first."""
        return sorted(self.directory.glob(f"*{SUFFIX}")) if self.directory.is_dir() else []

    async def _write_again_and_again(self) -> None:
        while True:
            await asyncio.sleep(WRITE_EVERY_S)
            await self.flush()

    def _write(self, waiting: list[_Decided | None]) -> None:
        with self._one_at_a_time:
            try:
                self._write_pieces(waiting)
            except OSError:
                self._counters.add("recording_gaps", "unwritable")
                self._file = None

    def _write_pieces(self, waiting: list[_Decided | None]) -> None:
        """Each piece is a whole gzip member, so that a crash tears off the last one and no more."""
        decided = [each for each in waiting if each is not None]
        if not decided:
            return
        if room_bytes(self.directory.parent) < ROOM_BYTES:
            raise OSError("the disk is full")  # what the tables need is not for us to take
        if self._file is None or None in waiting:
            self._begin(decided[0].before)
        self._append(to_line(_turn_of(each)) for each in decided)
        self._trim()

    def _begin(self, before: _Before) -> None:
        self.directory.mkdir(parents=True, exist_ok=True, mode=0o700)
        files = self.files()
        number = int(files[-1].name.removesuffix(SUFFIX)) + 1 if files else 1
        self._file = self.directory / f"{number:08d}{SUFFIX}"
        self._append(_begin_of(before))

    def _append(self, lines: Iterable[bytes]) -> None:
        assert self._file is not None
        with self._file.open("ab") as file, gzip.GzipFile(fileobj=file, mode="wb", compresslevel=1, mtime=0) as packed:
            for line in lines:
                packed.write(line)
        self._file.chmod(0o600)

    def _trim(self) -> None:
        """The next turn begins a file when this one is large, and the oldest go."""
        assert self._file is not None
        sizes = {file: file.stat().st_size for file in self.files()}
        if sizes[self._file] >= self.bytes_max // FILES:
            self._file = None
        total = sum(sizes.values())
        for oldest in list(sizes)[:-1]:
            if total <= self.bytes_max:
                return
            with contextlib.suppress(FileNotFoundError):  # somebody was quicker
                oldest.unlink()
            total -= sizes[oldest]


def _begin_of(before: _Before) -> Iterator[bytes]:
    state = before.state
    tables = (state.desired, state.decided, state.observed, state.sightings)
    yield to_line(
        Begin(
            at=before.at,
            hub_since=state.hub_since,
            deaf_ms=state.deaf_ms,
            rows=sum(len(table) for table in tables),
            open=tuple(sorted(before.open)),
            version=__version__,
        )
    )
    for row in rows_of(state):
        yield to_line(There(row=row))


def _turn_of(decided: _Decided) -> Turn:
    return Turn(
        at=decided.at,
        deaf_ms=decided.deaf_ms,
        heard=tuple(row_of(table, key, value) for (table, key), value in decided.heard.items()),
        decided=tuple(row_of(c.table, c.key, c.value) for c in decided.changes),
        everything=decided.everything,
    )
