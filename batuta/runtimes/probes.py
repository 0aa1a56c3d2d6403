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
from batuta.runtimes.sandbox import Program, launch

if TYPE_CHECKING:
    from batuta.kinds.application import HttpProbe, Probe
    from batuta.runtimes.logs import Logs

FIRST_LINE_BYTES_MAX = 4096


async def ask(probe: Probe, program: Program, logs: Logs) -> str | None:
    """One question. `program` lends its surroundings to a command, and what that prints joins `logs`."""
    try:
        async with asyncio.timeout(probe.timeout_ms / 1000):
            if probe.http is not None:
                return await _get(probe.http)
            if probe.tcp is not None:
                return await _connect(probe.tcp)
            assert probe.exec is not None, "admission lets no probe pass that asks nothing"
            return await _execute(probe.exec, program, logs)
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


async def _execute(command: tuple[str, ...], program: Program, logs: Logs) -> str | None:
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
