"""Starts a program in a session of its own, under limits, with a clean environment.

| limit | how it is kept |
|---|---|
| memory | `RLIMIT_DATA` well above the promise stops a runaway at once; watching the most resident holds the promise |
| processor | niceness 5: instances yield to the node agent and its broker; among themselves they share alike |
| open files | `RLIMIT_NOFILE` |
| core dumps | none: they hold secrets and fill disks |
| privileges | `no_new_privs`: nothing that an instance executes can gain any |
| out of memory | the kernel takes instances before it takes the node agent or its broker |
| lease | what is tied is killed by the kernel at the instant at which the node agent ends |
"""

from __future__ import annotations

import asyncio
import errno
import json
import os
import subprocess
import sys
import threading
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from batuta.errors import RuntimeFailure
from batuta.runtimes import processes
from batuta.runtimes.logs import STREAMS

if TYPE_CHECKING:
    from collections.abc import Mapping

    from batuta.runtimes.logs import Logs

LAUNCHER = Path(__file__).with_name("launcher.py")
LAUNCH_TIMEOUT_S = 10.0
OPEN_FILES_MAX = 4096
NICE = 5
OOM_SCORE = 300
# Address space that a program reserves is more than it uses: allocators, thread stacks. The resident watch is the
# exact limit; this one is for what grows faster than the watch looks.
DATA_SLACK_BYTES = 512 << 20


class Limits(NamedTuple):
    memory_bytes: int = 0
    """0: none."""
    open_files: int = OPEN_FILES_MAX
    nice: int = NICE
    """How far it yields to others."""


class Program(NamedTuple):
    """What to execute, and in what surroundings."""

    command: tuple[str, ...]
    env: Mapping[str, str]
    directory: Path
    limits: Limits = Limits()
    stdin: bytes = b""
    tied: bool = False
    """It must not outlive this process."""
    inherited: tuple[int, ...] = ()
    """Open descriptors that it keeps, under the same numbers."""


async def launch(program: Program, logs: Logs) -> subprocess.Popen[bytes]:
    """Returns once the command itself runs, as leader of its own session. Raises RuntimeFailure when it cannot."""
    # The kernel ties a child to the thread that forked it, and only the main thread lives as long as its process.
    assert not program.tied or threading.current_thread() is threading.main_thread(), "tied to a thread that may end"
    _refuse_nul(program)
    if not program.directory.is_dir():
        raise RuntimeFailure("start_failed", f"the working directory {program.directory} does not exist")
    limits = program.limits
    reading, status = os.pipe2(os.O_CLOEXEC)
    order = {
        "status": status,
        "command": program.command,
        "tiedTo": os.getpid() if program.tied else 0,
        "limits": {
            "openFiles": limits.open_files,
            "dataBytes": limits.memory_bytes * 2 + DATA_SLACK_BYTES if limits.memory_bytes else 0,
            "nice": limits.nice,
            "oomScore": OOM_SCORE,
        },
    }
    opened = [status]
    try:
        # A file without a name: the child reads it whenever it likes, and no pipe can fill up or break.
        stdin = os.memfd_create("stdin", os.MFD_CLOEXEC)
        opened.append(stdin)
        os.write(stdin, program.stdin)
        os.lseek(stdin, 0, os.SEEK_SET)
        outputs = [logs.open(stream) for stream in STREAMS]
        opened.extend(outputs)
        # Not asyncio's: its transports end their children with the loop, and these are to outlive it.
        child = subprocess.Popen(  # noqa: ASYNC220
            [sys.executable, "-I", "-S", str(LAUNCHER), json.dumps(order)],
            stdin=stdin,
            stdout=outputs[0],
            stderr=outputs[1],
            cwd=program.directory,
            env=dict(program.env),
            start_new_session=True,
            pass_fds=(status, *program.inherited),
        )
    except OSError as error:
        os.close(reading)
        raise RuntimeFailure("start_failed", f"{program.command[0]} could not be started: {error}") from error
    finally:
        for descriptor in opened:
            os.close(descriptor)
    try:
        fault = await _status(reading)
    except BaseException:
        child.kill()
        child.wait()
        raise
    if fault is None:
        return child
    # Whatever stands between fork and exec is ours alone: no instance has begun.
    child.kill()
    child.wait()
    number, detail = fault
    if number in (errno.ENOENT, errno.EACCES, errno.ENOEXEC, errno.ENOTDIR):
        raise RuntimeFailure("command_missing", f"{program.command[0]}: {detail}", next_step="install it on the node")
    raise RuntimeFailure("start_failed", f"{program.command[0]}: {detail}")


async def _status(reading: int) -> tuple[int, str] | None:
    """What the launcher says: nothing, once it has become the command."""
    try:
        async with asyncio.timeout(LAUNCH_TIMEOUT_S):
            await processes.until_readable(reading)
        said = os.read(reading, 4096)
    except TimeoutError:
        return (errno.ETIMEDOUT, f"it was not executed within {LAUNCH_TIMEOUT_S:.0f} s")
    finally:
        os.close(reading)
    if not said:
        return None
    fault = json.loads(said)
    return (int(fault["errno"]), str(fault["detail"]))


def _refuse_nul(program: Program) -> None:
    texts = (*program.command, *program.env, *program.env.values())
    if any("\0" in text for text in texts):
        raise RuntimeFailure("start_failed", "a command and its environment cannot hold NUL characters")
