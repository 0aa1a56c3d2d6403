"""What /proc says about processes: who they are, which session they are of, how much memory they hold.

A process id is reused; a process id with its start time, within one boot of the machine, is not.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Iterator

PAGE_BYTES = os.sysconf("SC_PAGE_SIZE")
ENVIRONMENT_BYTES_MAX = 1 << 20
POLL_S = 0.05


class Seen(NamedTuple):
    """One line of the process table."""

    pid: int
    state: str
    """One letter; `Z` and `X` have ended."""
    session: int
    created: int
    """Clock ticks between the machine's boot and the process's start."""
    rss_bytes: int

    @property
    def is_alive(self) -> bool:
        return self.state not in ("Z", "X", "x")


def look(pid: int) -> Seen | None:
    """The process of this id, alive or not yet reaped; None when there is none."""
    try:
        with open(f"/proc/{pid}/stat", "rb") as file:
            line = file.read(4096)
    except OSError:
        return None
    # The name stands in brackets and may hold anything, brackets too: what follows the last one is plain.
    fields = line[line.rfind(b")") + 2 :].split()
    if len(fields) < 22:
        return None
    return Seen(
        pid=pid,
        state=fields[0].decode(),
        session=int(fields[3]),
        created=int(fields[19]),
        rss_bytes=int(fields[21]) * PAGE_BYTES,
    )


def peak_bytes(pid: int) -> int:
    """The most that it has held at once since it executed its program; 0 when it has ended."""
    try:
        with open(f"/proc/{pid}/status", "rb") as file:
            text = file.read(4096)
    except OSError:
        return 0
    _, found, rest = text.partition(b"\nVmHWM:")
    return int(rest.split(maxsplit=1)[0]) << 10 if found else 0


def table() -> Iterator[Seen]:
    """Every process there is."""
    for name in os.listdir("/proc"):
        if name.isdigit() and (seen := look(int(name))) is not None:
            yield seen


def of_session(session: int) -> list[Seen]:
    """The living processes of a session."""
    return [seen for seen in table() if seen.session == session and seen.is_alive]


def marked(name: str, value: str) -> list[Seen]:
    """The living processes that were started with `name=value` in their environment and are ours to look into."""
    wanted = f"{name}={value}".encode()
    return [seen for seen in table() if seen.is_alive and wanted in environment(seen.pid)]


def environment(pid: int) -> list[bytes]:
    """`NAME=value` as given at the start of the process; empty when it is gone or not ours to read."""
    with contextlib.suppress(OSError), open(f"/proc/{pid}/environ", "rb") as file:
        return file.read(ENVIRONMENT_BYTES_MAX).split(b"\0")
    return []


def boot() -> str:
    """Names this boot of the machine."""
    return Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii").strip()


async def until_end(pid: int, created: int) -> None:
    """Returns when that process has ended: by a process descriptor, for children and strangers alike.

    Kernels before 5.3 have none; there the table is read again and again.
    """
    try:
        descriptor = os.pidfd_open(pid)
    except ProcessLookupError:
        return
    except OSError:
        while is_there(pid, created):  # noqa: ASYNC110 - nothing tells us; there is only looking
            await asyncio.sleep(POLL_S)
        return
    try:
        # The id may have changed hands before the descriptor was opened.
        if is_there(pid, created):
            await until_readable(descriptor)
    finally:
        os.close(descriptor)


async def until_readable(descriptor: int) -> None:
    loop = asyncio.get_running_loop()
    readable = asyncio.Event()
    loop.add_reader(descriptor, readable.set)
    try:
        await readable.wait()
    finally:
        loop.remove_reader(descriptor)


def is_there(pid: int, created: int) -> bool:
    seen = look(pid)
    return seen is not None and seen.is_alive and seen.created == created
