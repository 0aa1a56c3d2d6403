"""Runs nothing, at the pace of the event loop: the contract's second tenant, for fleets in virtual time.

A Machine is what survives a node agent: instances run on it whether or not a runtime watches them, but for those with
a lease, which end with the agent: whoever plays an agent's death says so to the Machine. Scripts say how
instances of a component behave; without one they start at once and stay well.
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, NamedTuple

from batuta.core.observed import Measures
from batuta.errors import RuntimeFailure
from batuta.runtimes.base import Condition

if TYPE_CHECKING:
    from collections.abc import Mapping

    from batuta.core.decided import Instance
    from batuta.runtimes.base import Handle, Order


class Script(NamedTuple):
    """How an instance behaves. Times count from its start."""

    refuses: str = ""
    """Reason code with which it cannot be started at all."""
    start_ms: int = 0
    """How long `start` takes."""
    ready_after_ms: int = 0
    unready_after_ms: int | None = None
    dead_after_ms: int | None = None
    """When its liveness fails."""
    ends_after_ms: int | None = None
    ends_with: str = "exit status 1"
    final: bool = False
    stop_ms: int = 0
    """How long it takes to end when asked; longer than the grace, it is killed."""


class Running(NamedTuple):
    instance: Instance
    script: Script
    pid: int
    since_s: float


class Machine:
    """A simulated machine: what runs on it, and everything that ever happened there."""

    def __init__(self, scripts: Mapping[str, Script] | None = None) -> None:
        self.scripts: dict[str, Script] = dict(scripts or {})
        """By instance name, else by component."""
        self.running: dict[str, Running] = {}
        self.starts: dict[str, int] = {}
        self.story: list[tuple[int, str, str]] = []
        """Millisecond of the loop's time, what happened, instance name."""
        self.most_at_once: dict[tuple[str, str, str], int] = {}
        """By slot: how many of it ever ran at the same time. For laws about `never-twice`."""

    def script_of(self, instance: Instance) -> Script:
        return self.scripts.get(instance.name) or self.scripts.get(instance.component) or Script()

    def begin(self, instance: Instance) -> Running:
        name = instance.name
        self.starts[name] = self.starts.get(name, 0) + 1
        pid = 1000 + sum(self.starts.values())
        self.running[name] = Running(instance, self.script_of(instance), pid, _now_s())
        slot = _slot(instance)
        at_once = sum(_slot(each.instance) == slot for each in self.alive().values())
        self.most_at_once[slot] = max(at_once, self.most_at_once.get(slot, 0))
        self.tell("started", name)
        return self.running[name]

    def alive(self) -> dict[str, Running]:
        return {name: run for name, run in self.running.items() if not has_ended(run)}

    def crash(self) -> None:
        """The machine loses power: nothing runs any more."""
        for name in sorted(self.running):
            self.tell("crashed", name)
        self.running.clear()

    def agent_ended(self, *names: str) -> None:
        """The node agent is gone; the machine ends what is tied to it (or only `names`), and the rest runs on."""
        for name, run in sorted(self.alive().items()):
            if run.instance.lease_ms is not None and (not names or name in names):
                self.tell("killed", name)
                del self.running[name]

    def tell(self, what: str, name: str) -> None:
        self.story.append((int(_now_s() * 1000), what, name))


class SimulatedRuntime:
    """Implements `Runtime` on a Machine."""

    def __init__(self, machine: Machine, name: str = "process") -> None:
        self.name = name
        self.machine = machine
        self.updates: list[tuple[str, tuple[str, ...]]] = []
        self._watched: set[str] = set()

    def available(self) -> bool:
        return True

    async def start(self, order: Order) -> Handle:
        name, script = order.instance.name, self.machine.script_of(order.instance)
        if name in self.machine.alive():
            raise RuntimeFailure("start_failed", f"{name} runs already, as process {self.machine.running[name].pid}")
        if script.refuses:
            self.machine.tell("refused", name)
            raise RuntimeFailure(script.refuses, f"{name} was told to refuse")
        await asyncio.sleep(script.start_ms / 1000)
        run = self.machine.begin(order.instance)
        self._watched.add(name)
        return {"pid": run.pid, "starts": self.machine.starts[name]}

    async def recover(self, order: Order, handle: Handle) -> bool:
        name = order.instance.name
        run = self.machine.alive().get(name)
        # Without a handle the machine's own note of the last start is believed, as real runtimes do.
        if run is None or handle.get("pid", run.pid) != run.pid:
            return False
        if run.instance.lease_ms is not None and name not in self._watched:
            self.machine.agent_ended(name)
            return False
        self._watched.add(name)
        return True

    async def inspect(self, name: str) -> Condition:
        run = self.machine.running.get(name)
        if run is None or name not in self._watched:
            return Condition("gone", "it was not started here")
        script, age_ms = run.script, _age_ms(run)
        if has_ended(run):
            return Condition("gone", script.ends_with, "exited", final=script.final)
        if script.dead_after_ms is not None and age_ms >= script.dead_after_ms:
            return Condition("unready", "scripted to fail its liveness", "not_live", measures=Measures())
        if age_ms < script.ready_after_ms:
            return Condition("running", "scripted to be slow", "not_ready", measures=Measures())
        if script.unready_after_ms is not None and age_ms >= script.unready_after_ms:
            return Condition("unready", "scripted to become unready", "not_ready", measures=Measures())
        return Condition("ready", measures=Measures())

    async def update(self, order: Order) -> None:
        self.updates.append((order.instance.name, order.neighbours))

    async def stop(self, name: str, grace_ms: int) -> None:
        run = self.machine.running.get(name)
        if run is not None and name in self._watched:
            if not has_ended(run):
                await asyncio.sleep(min(run.script.stop_ms, grace_ms) / 1000)
                self.machine.tell("stopped" if run.script.stop_ms <= grace_ms else "killed", name)
            if self.machine.running.get(name) is run:
                del self.machine.running[name]
        self._watched.discard(name)

    async def close(self) -> None:
        self._watched.clear()


def has_ended(run: Running) -> bool:
    return run.script.ends_after_ms is not None and _age_ms(run) >= run.script.ends_after_ms


def _age_ms(run: Running) -> int:
    return round((_now_s() - run.since_s) * 1000)


def _now_s() -> float:
    return asyncio.get_running_loop().time()


def _slot(instance: Instance) -> tuple[str, str, str]:
    return (instance.app, instance.component, instance.slot)
