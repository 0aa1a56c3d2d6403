"""One process kept: started or found again, watched until it ends, ended when asked.

The process leads its own session and outlives the node agent, unless it is tied to it. It is identified by its process
id, its start time and the machine's boot; a note in the instance's directory says the same as the handle in the ledger,
for the case that the node agent died between starting it and writing that down. What neither knows is found by a mark
in its environment.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import signal
from typing import TYPE_CHECKING

from batuta.fabric.tasks import end
from batuta.runtimes import processes
from batuta.runtimes.endings import Exit, judged, killed_for_memory
from batuta.runtimes.logs import Logs
from batuta.runtimes.sandbox import Limits, Program, launch

if TYPE_CHECKING:
    import subprocess
    from collections.abc import Collection, Iterator
    from pathlib import Path

    from batuta.runtimes.base import Handle

LOOK_EVERY_S = 0.5
LOOK_AT_SESSION_EVERY = 8
"""Every so many looks, all processes of the session are summed up; in between only its leader is looked at."""
POLL_END_S = 0.05
LEFTOVERS_GRACE_S = 2.0
MARK = "BATUTA_DIRECTORY"


class Kept:
    """A process of this machine that an instance is."""

    def __init__(self, directory: Path, limits: Limits, pid: int, created: int, starts: int) -> None:
        self.directory = directory
        self.pid = pid
        self.created = created
        self.starts = starts
        self.logs = Logs(directory)
        self.exit: Exit | None = None
        self.ended = asyncio.Event()
        """It has ended, and nothing of its session is left."""
        self.rss_bytes = 0
        self.faults = 0
        """Looks at it that failed: its logs could not be rotated."""
        self._limits = limits
        self._child: subprocess.Popen[bytes] | None = None
        self._asked_until: float | None = None
        """It was told to end, and has until then, in the loop's time."""
        self._verdict = ""
        self._inherited_bytes = 0
        """The kernel's books on a child's memory begin with that of the process that forked it: up to here they say
        nothing of the child."""
        self._complained_before_bytes = 0
        """So much of its standard error is of earlier starts."""
        self._watch: asyncio.Task[None] | None = None

    @property
    def handle(self) -> Handle:
        return {"pid": self.pid, "created": self.created, "boot": processes.boot(), "starts": self.starts}

    # --- Coming to be ---

    @classmethod
    async def start(cls, directory: Path, program: Program) -> Kept:
        """Ends what an earlier start may have left behind, then starts anew."""
        await end_all(directory, grace_s=0.0)
        Logs(directory).make_room()
        starts = starts_so_far(directory) + 1
        write_whole(directory / "starts", str(starts))
        env = {**program.env, MARK: str(directory), "BATUTA_START": str(starts)}
        complained_before_bytes = Logs(directory).size_bytes("stderr")
        child = await launch(program._replace(env=env), Logs(directory))
        seen = processes.look(child.pid)
        assert seen is not None, "a child that was not waited for is in the process table"
        kept = cls(directory, program.limits, child.pid, seen.created, starts)
        kept._child = child
        kept._inherited_bytes = processes.peak_bytes(os.getpid())
        kept._complained_before_bytes = complained_before_bytes
        write_whole(directory / "run.json", json.dumps(kept.handle))
        kept._begin()
        return kept

    @classmethod
    def find(cls, directory: Path, limits: Limits, handle: Handle) -> Kept | None:
        """The process that `handle`, or the note in its directory, names, if it is still the same one."""
        for pid, created, starts in _named(directory, handle):
            seen = processes.look(pid)
            if seen is None or not seen.is_alive or seen.created != created or not _bears_mark(pid, directory):
                continue
            kept = cls(directory, limits, pid, created, starts)
            kept._begin()
            return kept
        return None

    # --- Being ---

    def _begin(self) -> None:
        self._watch = asyncio.create_task(self._watch_until_end(), name=f"watch {self.pid}")

    async def _watch_until_end(self) -> None:
        ending = asyncio.ensure_future(processes.until_end(self.pid, self.created))
        looks = 0
        try:
            while not (await asyncio.wait({ending}, timeout=LOOK_EVERY_S))[0]:
                looks += 1
                self._look(whole_session=looks % LOOK_AT_SESSION_EVERY == 0)
        finally:
            ending.cancel()
        self.exit = self._judge()
        # What a dead leader leaves running would hold its ports and do its work twice.
        grace_s = LEFTOVERS_GRACE_S
        if self._asked_until is not None:
            grace_s = self._asked_until - asyncio.get_running_loop().time()
        await end_all(self.directory, sessions=(self.pid,), grace_s=grace_s)
        self.ended.set()

    def _look(self, *, whole_session: bool) -> None:
        try:
            self.logs.rotate()
        except OSError:
            self.faults += 1
        leader = processes.look(self.pid)
        rss_bytes = leader.rss_bytes if leader is not None else 0
        if whole_session:
            rss_bytes = sum(seen.rss_bytes for seen in processes.of_session(self.pid))
        self.rss_bytes = rss_bytes
        most = self._limits.memory_bytes
        if not most or self._verdict:
            return
        # What it held between two looks counts as well: else it would depend on chance who is caught.
        held_bytes = max(rss_bytes, processes.peak_bytes(self.pid))
        if held_bytes > most:
            self._verdict = killed_for_memory(held_bytes, most)
            _signal(self.pid, signal.SIGKILL)

    def _judge(self) -> Exit:
        status, peak_bytes = self._reap()
        asked = self._asked_until is not None
        if self._verdict:
            return Exit(self._verdict, asked, "memory_exceeded")
        return judged(
            status,
            asked=asked,
            most_bytes=self._limits.memory_bytes,
            held_bytes=peak_bytes if peak_bytes > self._inherited_bytes else 0,
            complaint=self.logs.complaint(self._complained_before_bytes),
        )

    def _reap(self) -> tuple[int | None, int]:
        """Its exit status, and the most that it held at once; None and 0 when it was not started by this process."""
        if self._child is None or self._child.returncode is not None:
            return (self._child.returncode if self._child is not None else None), 0
        try:
            _, status, usage = os.wait4(self.pid, 0)
        except ChildProcessError:  # somebody else has asked after it
            return self._child.wait(), 0
        self._child.returncode = os.waitstatus_to_exitcode(status)
        return self._child.returncode, usage.ru_maxrss << 10

    # --- Ending ---

    async def end(self, grace_ms: int) -> None:
        """Politely, then not; returns when nothing of its session is left."""
        if self.ended.is_set():
            return
        self._asked_until = asyncio.get_running_loop().time() + grace_ms / 1000
        _signal(self.pid, signal.SIGTERM)
        try:
            async with asyncio.timeout(grace_ms / 1000):
                await self.ended.wait()
        except TimeoutError:
            _signal(self.pid, signal.SIGKILL)
            await self.ended.wait()

    async def close(self) -> None:
        """Stops watching; it goes on running."""
        await end(self._watch)
        if self._child is not None and self._child.returncode is None:
            # It outlives this object on purpose, and says so to the interpreter, which would warn.
            self._child.returncode = 0


async def end_all(directory: Path, *, grace_s: float, sessions: Collection[int] = ()) -> None:
    """Ends every process of the sessions, and every one that bears the directory's mark; returns when none is left."""
    loop = asyncio.get_running_loop()
    begun = loop.time()
    polite: set[int] = set()
    while left := _left(directory, sessions):
        for pid in left:
            if loop.time() - begun >= grace_s:
                _signal_one(pid, signal.SIGKILL)
            elif pid not in polite:
                polite.add(pid)
                _signal_one(pid, signal.SIGTERM)
        await asyncio.sleep(POLL_END_S)


def sessions_of(directory: Path, handle: Handle) -> frozenset[int]:
    """The sessions led by what `handle` and the note in its directory name, where something of them may be left.

    The number of a session is not given to another while anything of it is left; so where somebody else bears it,
    nothing is.
    """

    def may_be_left(pid: int, created: int) -> bool:
        leader = processes.look(pid)
        return leader is None or (leader.created == created and _bears_mark(pid, directory))

    return frozenset(pid for pid, created, _ in _named(directory, handle) if may_be_left(pid, created))


def _named(directory: Path, handle: Handle) -> Iterator[tuple[int, int, int]]:
    """Process id, birth and start as the handle and the note say, as far as they are of this boot."""
    for named in (handle, _note(directory)):
        pid, created = named.get("pid"), named.get("created")
        if isinstance(pid, int) and isinstance(created, int) and named.get("boot") == processes.boot():
            yield pid, created, int(named.get("starts", 0))


def _left(directory: Path, sessions: Collection[int]) -> set[int]:
    mark = f"{MARK}={directory}".encode()
    return {
        seen.pid
        for seen in processes.table()
        if seen.is_alive and (seen.session in sessions or mark in processes.environment(seen.pid))
    }


def _signal(group: int, number: signal.Signals) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.killpg(group, number)


def _signal_one(pid: int, number: signal.Signals) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.kill(pid, number)


def _bears_mark(pid: int, directory: Path) -> bool:
    """False only when it is marked as somebody else's: a program may have written over its own environment."""
    marks = [each for each in processes.environment(pid) if each.startswith(f"{MARK}=".encode())]
    return not marks or f"{MARK}={directory}".encode() in marks


def starts_so_far(directory: Path) -> int:
    """How often this instance was started here, by any node agent."""
    try:
        return int((directory / "starts").read_text(encoding="ascii")[:20])
    except (OSError, ValueError):
        return 0


def _note(directory: Path) -> Handle:
    try:
        note = json.loads((directory / "run.json").read_bytes()[:4096])
    except (OSError, ValueError):
        return {}
    return note if isinstance(note, dict) else {}


def write_whole(path: Path, text: str) -> None:
    """Whole or not at all."""
    new = path.with_name(f".{path.name}.new")
    new.write_text(text, encoding="utf-8")
    new.replace(path)
