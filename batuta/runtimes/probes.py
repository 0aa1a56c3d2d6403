"""Asking an instance whether it is well: a GET, a connection, or a command. Evaluated by the node agent.

A probe's answer is None when it is well, else the sentence that says what was wrong. Everything is bounded: time by the
probe's timeout, what is read of an answer by its first line.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
from typing import TYPE_CHECKING

from batuta.errors import RuntimeFailure
from batuta.runtimes import processes
from batuta.runtimes.base import Condition
from batuta.runtimes.sandbox import Program, launch

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from batuta.core.observed import Measures
    from batuta.kinds.program import HttpProbe, Probe
    from batuta.runtimes.logs import Logs

FIRST_LINE_BYTES_MAX = 4096


class Probed:
    """What a probe has said so far."""

    def __init__(self, probe: Probe | None) -> None:
        self.probe = probe
        self.passed = asyncio.Event()
        """It has passed at least once."""
        self.failures = 0
        """In a row."""
        self.said = ""
        if probe is None:
            self.passed.set()

    @property
    def has_failed(self) -> bool:
        return self.probe is not None and self.failures >= self.probe.failures

    def hear(self, said: str | None) -> None:
        if said is None:
            self.passed.set()
            self.failures, self.said = 0, ""
        else:
            self.failures, self.said = self.failures + 1, said


def judged(ready: Probed, live: Probed, measures: Measures) -> Condition:
    """How an instance is, by what its probes have said."""
    if live.has_failed:
        return Condition("unready", live.said, "not_live", measures=measures)
    if not ready.passed.is_set():
        return Condition("running", ready.said, "not_ready", measures=measures)
    if ready.has_failed:
        return Condition("unready", ready.said, "not_ready", measures=measures)
    return Condition("ready", measures=measures)


async def ask(probe: Probe, execute: Callable[[tuple[str, ...]], Awaitable[str | None]]) -> str | None:
    """One question. `execute` runs a command beside the instance."""
    try:
        async with asyncio.timeout(probe.timeout_ms / 1000):
            if probe.http is not None:
                return await _get(probe.http)
            if probe.tcp is not None:
                return await _connect(probe.tcp)
            assert probe.exec is not None, "admission lets no probe pass that asks nothing"
            return await execute(probe.exec)
    except TimeoutError:
        return f"{describe(probe)} did not answer within {int(probe.timeout_ms)} ms"
    except OSError as error:
        return f"{describe(probe)} failed: {error.strerror or error}"


def describe(probe: Probe) -> str:
    if probe.http is not None:
        return f"GET {probe.http.path} on port {probe.http.port}"
    if probe.tcp is not None:
        return f"connecting to port {probe.tcp}"
    return f"command {(probe.exec or ('?',))[0]}"


async def _get(probe: HttpProbe) -> str | None:
    reader, writer = await asyncio.open_connection("127.0.0.1", probe.port, limit=FIRST_LINE_BYTES_MAX)
    try:
        path = probe.path.translate({ord(c): None for c in "\r\n "})
        lines = (f"GET {path} HTTP/1.1", f"Host: 127.0.0.1:{probe.port}", "Connection: close", "", "")
        writer.write("\r\n".join(lines).encode())
        await writer.drain()
        try:
            line = await reader.readline()
        except ValueError:
            line = b""
        words = line.split(b" ")
        if len(words) < 2 or not words[0].startswith(b"HTTP/1.") or not words[1].isdigit():
            return f"GET {probe.path} on port {probe.port} answered something that is not HTTP"
        status = int(words[1])
        return None if 200 <= status < 400 else f"GET {probe.path} answered {status}"
    finally:
        writer.close()
        with contextlib.suppress(OSError):
            await writer.wait_closed()


async def _connect(port: int) -> str | None:
    _, writer = await asyncio.open_connection("127.0.0.1", port)
    writer.close()
    with contextlib.suppress(OSError):
        await writer.wait_closed()
    return None


async def execute(command: tuple[str, ...], program: Program, logs: Logs) -> str | None:
    """A command in a program's surroundings; what it prints joins `logs`."""
    try:
        child = await launch(program._replace(command=command, stdin=b""), logs)
    except RuntimeFailure as failure:
        return failure.message
    try:
        if (seen := processes.look(child.pid)) is not None:
            await processes.until_end(child.pid, seen.created)
        status = child.wait()
    finally:
        if child.returncode is None:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(child.pid, signal.SIGKILL)
            child.wait()
    return None if status == 0 else f"command {command[0]} ended with {status}"
