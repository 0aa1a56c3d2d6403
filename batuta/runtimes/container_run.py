"""One container that is watched: until it ends, however often its engine goes away and comes back meanwhile."""

from __future__ import annotations

import asyncio
import signal
from typing import TYPE_CHECKING, Any

from batuta.core.observed import Measures
from batuta.errors import RuntimeFailure
from batuta.fabric.tasks import end
from batuta.kinds.base import Bytes
from batuta.runtimes import probes
from batuta.runtimes.base import Condition
from batuta.runtimes.container_http import EngineRefused, whole
from batuta.runtimes.container_logs import ContainerLogs
from batuta.runtimes.container_order import use_of
from batuta.runtimes.probes import Probed

if TYPE_CHECKING:
    from batuta.kinds.program import Probe
    from batuta.runtimes.base import Order
    from batuta.runtimes.container_http import EngineSocket

AGAIN_AFTER_S = 1.0
AWAY_SAID_AFTER_S = 5.0
"""An engine that is replaced is away for a moment, and its containers do not mind."""
MEASURE_EVERY_S = 10.0
LAST_WORDS_S = 3.0
PROBE_OUTPUT_BYTES_MAX = 64 << 10
NOT_FOUND = 404


class ContainerRun:
    """A container from the moment at which it was started, or found, to its end."""

    def __init__(self, engine: EngineSocket, order: Order, container: str, memory_bytes: int) -> None:
        use = use_of(order)
        self.engine = engine
        self.order = order
        self.container = container
        self.ended = asyncio.Event()
        """It has ended, and is not there any more."""
        self.last = Condition("gone")
        """How it ended."""
        self.faults = 0
        """Times that its end could not be cleared up, or its log not be read."""
        self.asked = False
        """It was told to end."""
        self.logs = ContainerLogs(engine, container, order.directory)
        self.ready = Probed(use.ready)
        self.live = Probed(use.live)
        self._memory_bytes = memory_bytes
        self._rss_bytes = 0
        self._away_since: float | None = None
        self._why_away = ""
        self._reading = asyncio.create_task(self._read_logs(), name=f"logs of {container[:12]}")
        self._tasks = [
            asyncio.create_task(self._watch(), name=f"watch {container[:12]}"),
            asyncio.create_task(self._measure()),
        ]
        for probe, probed, after in ((use.ready, self.ready, None), (use.live, self.live, self.ready.passed)):
            if probe is not None:
                self._tasks.append(asyncio.create_task(self._probe(probe, probed, after)))

    # --- How it is ---

    def fares(self) -> Condition:
        if self.ended.is_set():
            return self.last
        measures = Measures(rss_bytes=Bytes(self._rss_bytes) if self._rss_bytes else None)
        if self._away_since is not None and _now() - self._away_since >= AWAY_SAID_AFTER_S:
            return Condition("unready", self._why_away, "engine_unreachable", measures=measures)
        return probes.judged(self.ready, self.live, measures)

    def away(self, failure: RuntimeFailure) -> None:
        """The engine does not answer. The container may well go on."""
        self._away_since = self._away_since if self._away_since is not None else _now()
        self._why_away = failure.message

    def back(self) -> None:
        self._away_since = None

    async def close(self) -> None:
        """Stop watching; it goes on running."""
        await end(*self._tasks, self._reading)
        if self._reading.done() and not self.ended.is_set():
            self.logs.write_place()

    # --- Until it ends ---

    async def _watch(self) -> None:
        while True:
            try:
                # Answered when it ends, which may be in a year.
                await self.engine.ask("POST", f"/containers/{self.container}/wait", timeout_s=None)
                state = (await self.engine.ask("GET", f"/containers/{self.container}/json"))["State"]
            except EngineRefused as error:
                if error.status == NOT_FOUND:
                    detail = "it was stopped" if self.asked else "its container was removed by somebody else"
                    self.last = Condition("gone", detail, "exited")
                    break
                self.away(error)
            except RuntimeFailure as failure:
                self.away(failure)
            else:
                self.back()
                if state.get("Status") not in ("running", "paused", "restarting", "stopping"):
                    self.last = await self._obituary(state)
                    break
            await asyncio.sleep(AGAIN_AFTER_S)
        await self._remove()
        self.ended.set()

    async def _obituary(self, state: dict[str, Any]) -> Condition:
        status = int(state.get("ExitCode") or 0)
        if state.get("OOMKilled"):
            words = f"killed for its memory: {self._memory_bytes >> 20}Mi allowed"
        elif status > 128 and status - 128 in signal.valid_signals():
            words = f"killed by {signal.Signals(status - 128).name}"
        else:
            words = f"exit status {status}"
        if said := str(state.get("Error") or ""):
            words += f" ({said[:200]})"
        # Its last words are still on their way.
        await asyncio.wait([self._reading], timeout=LAST_WORDS_S)
        last = self.logs.logs.last_lines()
        return Condition("gone", words + (f": {last}" if last else ""), "exited")

    async def _remove(self) -> None:
        """What has ended is of no use to anybody. Whoever starts it again, or sweeps, tries once more."""
        try:
            await self.engine.ask("DELETE", f"/containers/{self.container}", {"force": "1", "v": "1"})
        except RuntimeFailure:
            self.faults += 1

    # --- Meanwhile ---

    async def _read_logs(self) -> None:
        while not self.ended.is_set():
            try:
                await self.logs.follow()
            except EngineRefused as error:
                if error.status == NOT_FOUND:
                    return
            except (RuntimeFailure, ValueError):
                self.faults += 1
            else:
                # Its output ended: either it did, or the engine has let go of us.
                if not await self._is_running():
                    return
            await asyncio.sleep(AGAIN_AFTER_S)

    async def _is_running(self) -> bool:
        try:
            found = await self.engine.ask("GET", f"/containers/{self.container}/json")
        except EngineRefused as error:
            return error.status != NOT_FOUND
        except RuntimeFailure:
            return True
        return bool(found["State"].get("Running"))

    async def _measure(self) -> None:
        """Also tells whether the engine still answers: a connection that waits for the end does not."""
        path, query = f"/containers/{self.container}/stats", {"stream": "0", "one-shot": "1"}
        while not self.ended.is_set():
            try:
                said = await self.engine.ask("GET", path, query)
            except EngineRefused:
                pass  # between two states there is nothing to measure
            except RuntimeFailure as failure:
                self.away(failure)
            else:
                self.back()
                memory = (said or {}).get("memory_stats") or {}
                cache = (memory.get("stats") or {}).get("inactive_file", 0)
                self._rss_bytes = max(0, int(memory.get("usage") or 0) - int(cache or 0))
            await asyncio.sleep(AGAIN_AFTER_S if self._away_since is not None else MEASURE_EVERY_S)

    async def _probe(self, probe: Probe, probed: Probed, after: asyncio.Event | None) -> None:
        if after is not None:
            await after.wait()
        while not self.ended.is_set():
            try:
                probed.hear(await probes.ask(probe, self._execute))
            except RuntimeFailure as failure:
                # That nobody can ask says nothing about the container.
                if failure.code == "engine_unreachable":
                    self.away(failure)
                else:
                    probed.hear(failure.message)
            every_ms = probe.every_ms if probed.passed.is_set() else min(probe.every_ms, 500)
            await asyncio.sleep(every_ms / 1000)

    async def _execute(self, command: tuple[str, ...]) -> str | None:
        """A command inside of it. What hangs there is left to its limit of processes: no engine can end it."""
        wanted = {"AttachStdout": True, "AttachStderr": True, "Cmd": list(command)}
        made = await self.engine.ask("POST", f"/containers/{self.container}/exec", body=wanted)
        begin = {"Detach": False, "Tty": False}
        async with self.engine.open("POST", f"/exec/{made['Id']}/start", body=begin) as answer:
            await whole(answer.pieces, PROBE_OUTPUT_BYTES_MAX)
        status = (await self.engine.ask("GET", f"/exec/{made['Id']}/json")).get("ExitCode")
        return None if status == 0 else f"command {command[0]} ended with {status}"


def _now() -> float:
    return asyncio.get_running_loop().time()
