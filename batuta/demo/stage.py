"""The stage: a hub and nodes as real processes of this machine, in one directory that vanishes with them.

Everything is started with the commands that a user types. A node is killed as a machine dies: node agent, broker and
workers at once, without a word.
"""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, TypeVar

import psutil

from batuta.client import Client, connect
from batuta.errors import BatutaError, NotFound
from batuta.kinds import Application, Node

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence


T = TypeVar("T")


class Actor(NamedTuple):
    """A node on the stage."""

    name: str
    site: str
    state: Path
    options: tuple[str, ...]
    process: subprocess.Popen[bytes] | None = None

    @property
    def running(self) -> subprocess.Popen[bytes]:
        assert self.process is not None, f"{self.name} was never started"
        return self.process


class Stage:
    """Starts and ends processes; knows what runs where. Nothing it started outlives `close`."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.nodes: dict[str, Actor] = {}
        self.hub_state = directory / "hub-machine"
        self._hub: subprocess.Popen[bytes] | None = None
        self._client: Client | None = None

    @property
    def client(self) -> Client:
        assert self._client is not None, "start the hub first"
        return self._client

    # --- The hub ---

    def start_hub(self) -> None:
        """`batuta up`, until it answers."""
        ports = ["--http-port", "0", "--https-port", "0", "--leaf-port", "0"]
        self._hub = self._spawn("hub", ["up", "--state", str(self.hub_state), *ports])
        self._client = wait_for("the hub", self._connect, 120, alive=self._hub)

    def _connect(self) -> Client | None:
        try:
            client = connect(self.hub_state)
            client.list(Node)
        except (BatutaError, OSError):
            return None
        return client

    def kill_hub(self) -> None:
        """Kill -9 the hub's machine: supervisor, hub process and broker at once."""
        assert self._hub is not None
        kill(processes_in(self.hub_state))
        self._hub.wait(60)
        self._hub = None

    def leaf_address(self) -> tuple[str, int]:
        """Where the hub takes links from nodes."""
        address = str(self.client.hub()["leaf"])
        host, _, port = address.rpartition(":")
        return host, int(port)

    # --- Nodes ---

    def start_node(self, name: str, site: str, *, via: int | None = None, more: Sequence[str] = ()) -> None:
        """`batuta join` with a token as its own process, and `more` options; `via` is a port of loopback that leads to
        the hub's broker."""
        token = self.client.create_token(site, name=name).token
        options = ["--name", name, "--cpu", "1", "--memory", "512Mi", "--mqtt-port", "0", *more]
        options += ["--via", f"127.0.0.1:{via}"] if via is not None else []
        self._join(Actor(name, site, self.directory / name, tuple(options)), token)

    def restart_node(self, name: str) -> None:
        """The machine comes back: the same command without a token, and what its disk remembers."""
        self._join(self.nodes[name])

    def _join(self, actor: Actor, token: str = "") -> None:
        words = ["join", *(["-"] if token else []), "--state", str(actor.state), *actor.options]
        self.nodes[actor.name] = actor._replace(process=self._spawn(actor.name, words, said=token))

    def kill_node(self, name: str) -> int:
        """Kill -9 everything of a node at once; returns how many processes died."""
        victims = processes_in(self.nodes[name].state)
        kill(victims)
        self.nodes[name].running.wait(60)
        return len(victims)

    def mqtt_of(self, name: str) -> tuple[str, int]:
        """Where a node takes MQTT, as it reports."""
        host, _, port = str(self.node_status(name)["mqtt"]).rpartition(":")
        return host, int(port)

    # --- Looking ---

    def another_client(self) -> Client:
        """A connection of one's own, for another thread."""
        return connect(self.hub_state)

    def node_status(self, name: str) -> Mapping[str, Any]:
        return self.client.get(Node, name).status

    def online(self, name: str) -> bool | None:
        """For `wait_for`: the hub hears the node, and the node has said where devices connect."""
        try:
            status = self.node_status(name)
        except NotFound:
            return None  # it has not joined yet
        return (status["link"]["word"] == "online" and bool(status.get("mqtt"))) or None

    def instances(self, application: str) -> list[Mapping[str, Any]]:
        """Every instance of an application, as its status tells."""
        status = self.client.get(Application, application).status
        return [i for c in status["components"] for i in c["instances"]]

    # --- What it costs ---

    def rss_mb(self) -> dict[str, float]:
        """Resident memory in MB: the largest node agent, the largest node broker, the hub with its supervisor."""
        agents, brokers = [], []
        for actor in self.nodes.values():
            for process in processes_in(actor.state):
                with contextlib.suppress(psutil.NoSuchProcess):
                    if process.pid == actor.running.pid:
                        agents.append(process.memory_info().rss)
                    elif "nats-server" in process.name():
                        brokers.append(process.memory_info().rss)
        hub = [p.memory_info().rss for p in processes_in(self.hub_state) if "nats-server" not in p.name()]
        return {
            "agent": round(max(agents, default=0) / 1e6, 1),
            "broker": round(max(brokers, default=0) / 1e6, 1),
            "hub": round(sum(hub) / 1e6, 1),
        }

    # --- The end ---

    def close(self) -> list[str]:
        """End everything politely, then not; returns what had to be killed."""
        nodes = [a.running for a in self.nodes.values()]
        hub = [self._hub] if self._hub is not None else []
        for group in (nodes, hub):
            for process in group:
                if process.poll() is None:
                    process.send_signal(signal.SIGINT)
            for process in group:
                with contextlib.suppress(subprocess.TimeoutExpired):
                    process.wait(60)
        killed = []
        for stubborn in processes_in(self.directory):
            with contextlib.suppress(psutil.NoSuchProcess):
                killed.append(f"{stubborn.pid} {' '.join(stubborn.cmdline())[:80]}")
                stubborn.kill()
        for process in (*nodes, *hub):
            process.wait(30)
        return killed

    def log_tail(self, name: str, lines: int = 15) -> str:
        """The last words of a process, for when it did not do what it should."""
        path = self.directory / f"{name}.out"
        return "\n".join(path.read_text(errors="replace").splitlines()[-lines:]) if path.exists() else ""

    def _spawn(self, name: str, arguments: list[str], said: str = "") -> subprocess.Popen[bytes]:
        """Start `batuta ARGUMENTS` in a session of its own; `said` is put on its standard input, never in arguments."""
        self.directory.mkdir(parents=True, exist_ok=True)
        env = {k: v for k, v in os.environ.items() if not k.startswith("BATUTA_")}
        with (self.directory / f"{name}.out").open("ab") as out:
            process = subprocess.Popen(
                [sys.executable, "-m", "batuta", *arguments],
                stdin=subprocess.PIPE if said else subprocess.DEVNULL,
                stdout=out,
                stderr=subprocess.STDOUT,
                start_new_session=True,  # Ctrl-C is for the demo: it ends the others in order
                env=env,
            )
        if process.stdin is not None:
            process.stdin.write(said.encode())
            process.stdin.close()
        return process


def processes_in(directory: Path) -> list[psutil.Process]:
    """Every process that works in, or was told of, `directory`; but not this one, nor those that started it."""
    found = []
    ours = {os.getpid(), *(p.pid for p in psutil.Process().parents())}
    needle = str(directory)
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.NoSuchProcess, psutil.AccessDenied, psutil.ZombieProcess):
            words = process.cmdline()
            if process.pid in ours:
                continue
            if any(w == needle or w.startswith(needle + "/") for w in words) or _within(process.cwd(), needle):
                found.append(process)
    return found


def kill(victims: Sequence[psutil.Process]) -> None:
    """Kill -9 them at once; returns when none of them runs any more."""
    for victim in victims:
        with contextlib.suppress(psutil.NoSuchProcess):
            victim.kill()
    for victim in victims:
        wait_for(f"the end of {victim.pid}", lambda victim=victim: _has_ended(victim) or None, 60)  # type: ignore[misc]


def _has_ended(process: psutil.Process) -> bool:
    """Also of one that its parent has not asked after yet."""
    try:
        return not process.is_running() or process.status() == psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return True


def _within(path: str, directory: str) -> bool:
    return path == directory or path.startswith(directory + "/")


def wait_for(what: str, ask: Callable[[], T | None], seconds: float, alive: subprocess.Popen[bytes] | None = None) -> T:
    """Ask until there is an answer. Raises BatutaError naming `what` when time is up or `alive` has ended."""
    until = time.monotonic() + seconds
    while True:
        answer = ask()
        if answer is not None:
            return answer
        if alive is not None and alive.poll() is not None:
            raise BatutaError(f"{what} ended with status {alive.returncode} before it answered")
        if time.monotonic() > until:
            raise BatutaError(f"{what} did not answer within {seconds:.0f} s")
        time.sleep(0.02)
