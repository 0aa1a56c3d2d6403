"""Runs a program of the node: `process` components.

Ready means: no readiness probe, or one that passes. With a readiness probe, liveness is asked only once it was ready,
so that a slow start is not a death.
"""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import TYPE_CHECKING

from batuta.core.observed import Measures
from batuta.errors import RuntimeFailure
from batuta.kinds.base import Bytes
from batuta.runtimes import probes
from batuta.runtimes.keeping import Keeping, Run, environment
from batuta.runtimes.probes import Probed
from batuta.runtimes.sandbox import Limits, Program

if TYPE_CHECKING:
    from batuta.kinds.application import ProcessUse
    from batuta.kinds.program import Probe
    from batuta.runtimes.base import Condition, Order
    from batuta.runtimes.kept import Kept


class ProcessRun(Run):
    def __init__(self, order: Order, program: Program, kept: Kept) -> None:
        super().__init__(order, program, kept)
        use = _use(order)
        self.ready = Probed(use.ready)
        self.live = Probed(use.live)
        if use.ready is not None:
            self.tasks.append(asyncio.create_task(self._ask(use.ready, self.ready)))
        if use.live is not None:
            self.tasks.append(asyncio.create_task(self._ask(use.live, self.live, after=self.ready.passed)))

    async def _ask(self, probe: Probe, probed: Probed, *, after: asyncio.Event | None = None) -> None:
        if after is not None:
            await after.wait()
        while not self.kept.ended.is_set():
            probed.hear(await probes.ask(probe, self._execute))
            # Until it first passes, readiness is asked more often: waiting for a start is what people notice.
            every_ms = probe.every_ms if probed.passed.is_set() else min(probe.every_ms, 250)
            await asyncio.sleep(every_ms / 1000)

    async def _execute(self, command: tuple[str, ...]) -> str | None:
        return await probes.execute(command, self.program, self.kept.logs)


class ProcessRuntime(Keeping[ProcessRun]):
    """One process of its own session per instance."""

    name = "process"

    def program(self, order: Order) -> Program:
        use = _use(order)
        directory = order.directory / use.working_directory if use.working_directory else order.directory
        return Program(
            command=use.command,
            env={**environment(order), **use.env},
            directory=Path(directory),
            limits=Limits(memory_bytes=int(order.instance.memory_bytes)),
        )

    def watch(self, order: Order, program: Program, kept: Kept) -> ProcessRun:
        return ProcessRun(order, program, kept)

    def fares(self, run: ProcessRun) -> Condition:
        measures = Measures(rss_bytes=Bytes(run.kept.rss_bytes) if run.kept.rss_bytes else None)
        return probes.judged(run.ready, run.live, measures)


def _use(order: Order) -> ProcessUse:
    if order.instance.process is None:
        raise RuntimeFailure("start_failed", f"{order.instance.name} is not a process")
    return order.instance.process
