"""Batching: who runs when, and with whom.

Everything that a worker is to run, frames of topics and requests alike, stands in one line for each class; the more
urgent line goes first. What waits together runs together, as far as it is of one shape and the batch has room: nobody
waits for company unless the component says `linger`, and then no longer than the tightest deadline among those who wait
allows. While a run lasts, the next batch gathers by itself.

A run that is over in an instant is done where the requests are read; handing it to a thread would take longer than it
does. Longer ones run in a thread, so that health is answered and deadlines are kept meanwhile.

Only so many may wait, fewer of the less urgent. Whoever comes when the place is full is told at once, and when to try
again; the urgent one takes the place of the least urgent instead.
"""

from __future__ import annotations

import asyncio
import math
import time
from collections import deque
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any, Final

import numpy as np

from batuta.dataflow.oip.faults import Fault
from batuta.dataflow.oip.trying import tried

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from batuta.dataflow.engines import Engine
    from batuta.dataflow.oip.datatypes import Array, Port

ROOM: Final = 1024
"""Requests that may be waiting or running."""
SHARES: Final = (1.0, 0.9, 0.5)
"""How much of the room may be taken when one of each class comes: critical, normal, bulk."""
INSTANT_S: Final = 0.0005
"""A run that is expected to be over within this is done at once."""
SLOWER_COUNTS: Final = 0.05
"""How much a run that took longer changes what is expected of the next. One that was quicker is believed at once: a run
is never quicker than it is, and is often slower because somebody else had the processor."""
RETRY_AFTER_MAX_S: Final = 30


class Job:
    """Rows to be run, and who is told."""

    __slots__ = ("alone", "deadline", "done", "feeds", "guest", "is_over", "own", "rows", "shape", "timer", "urgency")

    def __init__(
        self,
        feeds: dict[str, Array],
        rows: int,
        done: Callable[[Sequence[Any] | None, Exception | None], None],
        *,
        urgency: int = 1,
        deadline: float | None = None,
        guest: bool = True,
        alone: bool = False,
        own: int | None = None,
    ) -> None:
        self.feeds = feeds
        self.rows = rows
        self.own = rows if own is None else own
        """The rows that are somebody's; the others only fill up."""
        self.done = done
        """Called once, with outputs or with a fault."""
        self.urgency = urgency
        """0 critical, 1 normal, 2 bulk."""
        self.deadline = deadline
        """In the loop's time."""
        self.guest = guest
        """It may be turned away. Frames may not: they are asked for only when there is room."""
        self.alone = alone
        """It shares its run with nobody."""
        self.shape = tuple([array.shape[1:] for array in feeds.values()])
        self.is_over = False
        self.timer: asyncio.TimerHandle | None = None

    def end(self, outputs: Sequence[Any] | None, fault: Exception | None) -> None:
        if self.is_over:
            return
        self.is_over = True
        if self.timer is not None:
            self.timer.cancel()
        self.done(outputs, fault)


class Batching:
    """The lines before one model."""

    def __init__(self, engine: Engine, batch: int = 32, linger_ms: float = 0, room: int = ROOM) -> None:
        self.engine = engine
        self.batch = batch
        self.room = room
        self.guests = 0
        """Requests waiting or running."""
        self.shed: dict[str, int] = {}
        """How many were turned away, by why."""
        self.runs = 0
        self.rows = 0
        self.look: Callable[[dict[str, Array], Sequence[Any], int, Sequence[Port]], None] | None = None
        """Sees what was run and what came of it: feeds, outputs, and how many rows of them are somebody's."""
        self.mixes = False
        """Rows of several requests may run together: it was tried, and they do not touch each other."""
        self._linger_s = linger_ms / 1000
        self._lines: tuple[deque[Job], ...] = (deque(), deque(), deque())
        self._waiting_rows = 0
        self._due: asyncio.Handle | None = None
        self._due_at = 0.0
        self._busy = False
        self._run_s = 0.0
        """How long a run is expected to take, whatever its rows."""
        self._row_s = 0.0
        self._loop = asyncio.get_running_loop()
        self._drained: asyncio.Future[None] | None = None
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="model")

    async def drain(self, most_s: float) -> bool:
        """Waits until every request has its answer; False when that took too long."""
        if self.guests:
            self._drained = self._loop.create_future()
            await asyncio.wait({self._drained}, timeout=most_s)
        return not self.guests

    def close(self) -> None:
        self._thread.shutdown(wait=False, cancel_futures=True)

    def try_out(self) -> None:
        """Gets to know the model. Blocks, so it is done before anybody is served."""
        self.mixes, self._run_s = tried(self.engine, together=self.batch > 1)

    # --- Coming ---

    def submit(self, job: Job) -> None:
        """Stands in line. Raises Fault when there is no place, or no time left."""
        if job.guest:
            if self.guests >= self.room * SHARES[job.urgency] and not self._make_way(job):
                raise self._refusal("overloaded", f"{self.guests} requests wait already")
            if job.deadline is not None:
                now = self._loop.time()
                if job.deadline <= now:
                    raise self._refusal("deadline_passed", "the deadline had passed when the request came")
                job.timer = self._loop.call_at(job.deadline, self._expire, job)
            self.guests += 1
        self._lines[job.urgency].append(job)
        self._waiting_rows += job.rows
        if self._busy:
            return
        if not self._linger_s or self._waiting_rows >= self.batch:
            self._run_at(0.0)
        else:
            self._run_at(self._no_later(job))

    async def run(self, feeds: dict[str, Array], rows: int, own: int | None = None) -> Sequence[Any]:
        """Runs rows that are not turned away; `own` of them are somebody's. Raises what the model raises."""
        found: asyncio.Future[Sequence[Any]] = self._loop.create_future()

        def done(outputs: Sequence[Any] | None, fault: Exception | None) -> None:
            if found.done():
                return
            if fault is not None:
                found.set_exception(fault)
            elif outputs is not None:
                found.set_result(outputs)

        self.submit(Job(feeds, rows, done, guest=False, own=own))
        return await found

    def _no_later(self, job: Job) -> float:
        until = self._loop.time() + self._linger_s
        if job.deadline is not None:
            until = min(until, job.deadline - 2 * self._expected_s(self._waiting_rows))
        return min(until, self._due_at) if self._due is not None else until

    def _run_at(self, at: float) -> None:
        """`at` 0: as soon as what is there to be read has been read."""
        if self._due is not None:
            if self._due_at <= at:
                return
            self._due.cancel()
        self._due_at = at
        self._due = self._loop.call_at(at, self._begin) if at > self._loop.time() else self._loop.call_soon(self._begin)

    def _make_way(self, job: Job) -> bool:
        """A less urgent one that waits gives its place to a more urgent one."""
        for line in reversed(self._lines[job.urgency + 1 :]):
            for other in reversed(line):
                if other.guest and not other.is_over:
                    line.remove(other)
                    self._waiting_rows -= other.rows
                    self._end(other, None, self._refusal("overloaded", "gave way to a more urgent request"))
                    return True
        return False

    def _expire(self, job: Job) -> None:
        """Told at its deadline, whether it waits or runs; what it waits in finds it over."""
        fault = self._refusal("deadline_passed", "there was no answer by the deadline")
        self._end(job, None, fault)

    def _refusal(self, code: str, why: str) -> Fault:
        self.shed[code] = self.shed.get(code, 0) + 1
        wait_s = 0
        if code == "overloaded":
            runs = math.ceil(self._waiting_rows / self.batch) if self.mixes else sum(map(len, self._lines))
            wait_s = max(1, min(RETRY_AFTER_MAX_S, math.ceil(runs * self._expected_s(self.batch))))
        return Fault(code, why, wait_s)

    # --- Running ---

    def _expected_s(self, rows: int) -> float:
        return max(self._run_s, self._row_s * rows)

    def _begin(self) -> None:
        self._due = None
        if self._busy:
            return
        jobs, rows = self._next()
        if not jobs:
            return
        feeds = jobs[0].feeds
        if len(jobs) > 1:
            feeds = {name: np.concatenate([job.feeds[name] for job in jobs]) for name in feeds}
        if self._expected_s(rows) <= INSTANT_S:
            begun = time.perf_counter()
            outputs, fault = self._ran(feeds)
            self._after(jobs, rows, feeds, outputs, fault, time.perf_counter() - begun)
        else:
            self._busy = True
            self._loop.run_in_executor(self._thread, self._timed, feeds).add_done_callback(
                lambda future: self._back(jobs, rows, feeds, future)
            )

    def _next(self) -> tuple[list[Job], int]:
        """The oldest of the most urgent, and those behind it that can share its run."""
        jobs: list[Job] = []
        rows = 0
        for line in self._lines:
            while line:
                job = line[0]
                if job.is_over:
                    line.popleft()
                    self._waiting_rows -= job.rows
                    continue
                if jobs and not self._fits(jobs[0], rows, job):
                    return jobs, rows
                line.popleft()
                self._waiting_rows -= job.rows
                jobs.append(job)
                rows += job.rows
        return jobs, rows

    def _fits(self, first: Job, rows: int, job: Job) -> bool:
        if not self.mixes or first.alone or job.alone:
            return False
        return rows + job.rows <= self.batch and job.shape == first.shape

    def _ran(self, feeds: dict[str, Array]) -> tuple[Sequence[Any] | None, Exception | None]:
        try:
            return self.engine.run(feeds), None
        except Exception as error:  # runtimes raise their own kinds
            return None, error

    def _timed(self, feeds: dict[str, Array]) -> tuple[Sequence[Any] | None, Exception | None, float]:
        begun = time.perf_counter()
        outputs, fault = self._ran(feeds)
        return outputs, fault, time.perf_counter() - begun

    def _back(self, jobs: list[Job], rows: int, feeds: dict[str, Array], future: asyncio.Future[Any]) -> None:
        self._busy = False
        if future.cancelled():
            outputs, fault, took_s = None, Fault("not_ready", "the worker is stopping"), 0.0
        else:
            outputs, fault, took_s = future.result()
        self._after(jobs, rows, feeds, outputs, fault, took_s)

    def _after(  # noqa: PLR0917
        self,
        jobs: list[Job],
        rows: int,
        feeds: dict[str, Array],
        outputs: Sequence[Any] | None,
        fault: Exception | None,
        took_s: float,
    ) -> None:
        self.runs += 1
        self.rows += rows
        if outputs is not None:
            self._run_s = _learned(self._run_s, took_s)
            self._row_s = _learned(self._row_s or took_s / rows, took_s / rows)
        if len(jobs) == 1:
            if outputs is not None and self.look is not None:
                self.look(feeds, outputs, jobs[0].own, self.engine.outputs)
            self._end(jobs[0], outputs, fault)
        elif outputs is None or any(len(each) != rows for each in outputs):
            # Somebody among them is at fault, or the rows of a run are not its own: each for itself, then, and first.
            self.mixes = self.mixes and outputs is None
            for job in reversed(jobs):
                job.alone = True
                self._lines[job.urgency].appendleft(job)
                self._waiting_rows += job.rows
        else:
            if self.look is not None and all(job.own == job.rows for job in jobs):
                self.look(feeds, outputs, rows, self.engine.outputs)
            at = 0
            for job in jobs:
                self._end(job, [each[at : at + job.rows] for each in outputs], None)
                at += job.rows
        if self._waiting_rows or any(self._lines):
            self._run_at(0.0)

    def _end(self, job: Job, outputs: Sequence[Any] | None, fault: Exception | None) -> None:
        if job.is_over:
            return
        if job.guest:
            self.guests -= 1
        job.end(outputs, fault)
        self.settle()

    def settle(self) -> None:
        """Whoever waits for the last guest hears when there is none."""
        if self._drained is not None and not self.guests and not self._drained.done():
            self._drained.set_result(None)


def _learned(before_s: float, took_s: float) -> float:
    return took_s if took_s < before_s else before_s + (took_s - before_s) * SLOWER_COUNTS
