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
from typing import TYPE_CHECKING, NamedTuple, TypeVar

import psutil

from batuta.client import Client
from batuta.errors import BatutaError
from batuta.kinds import Node

if TYPE_CHECKING:
    from collections.abc import Callable


T = TypeVar("T")


class Actor(NamedTuple):
    """A node on the stage."""

    name: str
    site: str
    state: Path
    process: subprocess.Popen[bytes]


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
        self._client = wait_for("the hub", self._connect, 30, alive=self._hub)

    def _connect(self) -> Client | None:
        try:
            client = Client.from_state(self.hub_state)
            client.list(Node)
        except (BatutaError, OSError):
            return None
        return client

    def kill_hub(self) -> None:
        """Kill -9 the hub's machine: supervisor, hub process and broker at once."""
        assert self._hub is not None
        for victim in processes_in(self.hub_state):
            with contextlib.suppress(psutil.NoSuchProcess):
                victim.kill()
        self._hub.wait(10)
        self._hub = None

    def leaf_address(self) -> tuple[str, int]:
        """Where the hub takes links from nodes."""
        address = str(self.client.hub()["leaf"])
        host, _, port = address.rpartition(":")
        return host, int(port)

    # --- Nodes ---

    def start_node(self, name: str, site: str, *, via: int | None = None) -> None:
        """`batuta join TOKEN` as a process of its own; `via` is a port of loopback through which it reaches the hub."""
        token = self.client.create_token(site=site, name=name)
        arguments = [
            "join",
            token,
            "--name",
            name,
            "--site",
            site,
            "--cpu",
            "1",
            "--memory",
            "512Mi",
            "--mqtt-port",
            "0",
        ]
        if via is not None:
            arguments += ["--via", f"127.0.0.1:{via}"]
        self._run_node(name, site, arguments)

    def restart_node(self, name: str) -> None:
        """The machine comes back: the same command, no token, what its disk remembers."""
        self._run_node(name, self.nodes[name].site, ["join"])

    def _run_node(self, name: str, site: str, arguments: list[str]) -> None:
        state = self.directory / name
        process = self._spawn(name, [*arguments, "--state", str(state)])
        self.nodes[name] = Actor(name, site, state, process)

    def kill_node(self, name: str) -> int:
        """Kill -9 everything of a node at once; returns how many processes died."""
        victims = processes_in(self.nodes[name].state)
        for victim in victims:
            with contextlib.suppress(psutil.NoSuchProcess):
                victim.kill()
        self.nodes[name].process.wait(10)
        return len(victims)

    def mqtt_of(self, name: str) -> tuple[str, int]:
        """Where a node takes MQTT, as it reports."""
        status = self.client.get(Node, name).status
        host, _, port = str(status["mqtt"]).rpartition(":")
        return host, int(port)

    # --- What it costs ---

    def rss_mb(self) -> dict[str, float]:
        """Resident memory in MB: the largest node agent, the largest node broker, the hub with its supervisor."""
        agents, brokers = [], []
        for actor in self.nodes.values():
            for process in processes_in(actor.state):
                with contextlib.suppress(psutil.NoSuchProcess):
                    if process.pid == actor.process.pid:
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
        everyone = [a.process for a in self.nodes.values()] + ([self._hub] if self._hub is not None else [])
        for group in ([a.process for a in self.nodes.values()], [self._hub] if self._hub is not None else []):
            for process in group:
                if process.poll() is None:
                    process.send_signal(signal.SIGINT)
            for process in group:
                with contextlib.suppress(subprocess.TimeoutExpired):
                    process.wait(15)
        killed = []
        for process in [psutil.Process(p.pid) for p in everyone if p.poll() is None] + processes_in(self.directory):
            with contextlib.suppress(psutil.NoSuchProcess):
                killed.append(f"{process.pid} {' '.join(process.cmdline())[:80]}")
                process.kill()
        for process in everyone:
            process.wait(5)
        return killed

    def log_tail(self, name: str, lines: int = 15) -> str:
        """The last words of a process, for when it did not do what it should."""
        path = self.directory / f"{name}.out"
        return "\n".join(path.read_text(errors="replace").splitlines()[-lines:]) if path.exists() else ""

    def _spawn(self, name: str, arguments: list[str]) -> subprocess.Popen[bytes]:
        self.directory.mkdir(parents=True, exist_ok=True)
        env = {k: v for k, v in os.environ.items() if not k.startswith("BATUTA_")}
        with (self.directory / f"{name}.out").open("ab") as out:
            return subprocess.Popen(
                [sys.executable, "-m", "batuta", *arguments],
                stdin=subprocess.DEVNULL,
                stdout=out,
                stderr=subprocess.STDOUT,
                start_new_session=True,  # Ctrl-C is for the demo: it ends the others in order
                env=env,
            )


def processes_in(directory: Path) -> list[psutil.Process]:
    """Every process that works in, or was told of, `directory`."""
    found = []
    needle = str(directory)
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.NoSuchProcess, psutil.AccessDenied, psutil.ZombieProcess):
            words = process.cmdline()
            if any(w == needle or w.startswith(needle + "/") for w in words) or _within(process.cwd(), needle):
                found.append(process)
    return found


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
