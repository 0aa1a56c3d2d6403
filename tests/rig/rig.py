"""The rig: a real hub and real node agents over the memory fabric, on simulated machines, in virtual time.

Everything between the manifest and the runtime is the code that runs in production; only the wire, the clock and the
machines are simulated. Faults are called by name: a machine crashes, a link is cut, the hub dies.
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

from batuta.agent.node import Node, Parts
from batuta.agent.steady import Steady
from batuta.config import HubConfig
from batuta.core.observed import Inventory, Vitals
from batuta.fabric.clock import VirtualClock
from batuta.fabric.memory import MemoryBroker
from batuta.hub.hub import Hub
from batuta.kinds import manifest
from batuta.kinds.base import Bytes, Millicores
from batuta.runtimes.simulated import Machine, SimulatedRuntime
from tests.hub.hubs import join

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from batuta.fabric.memory import MemoryFabric

EPOCH_MS = 1_790_000_000_000
LOOK_EVERY_S = 0.05


class Rig:
    """One hub and its nodes."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.clock = VirtualClock(EPOCH_MS)
        self.broker = MemoryBroker()
        self.machines: dict[str, Machine] = {}
        self._agents: dict[str, tuple[Node, asyncio.Task[None], MemoryFabric]] = {}
        self._boots: dict[str, int] = {}
        self._hub: Hub | None = None
        self._hub_fabric: MemoryFabric | None = None

    # --- The hub ---

    @property
    def hub(self) -> Hub:
        assert self._hub is not None, "start the hub first"
        return self._hub

    async def start_hub(self) -> Hub:
        self._hub_fabric = self.broker.connect("hub")
        self._hub = Hub(
            HubConfig(state=str(self.directory / "hub"), recording_bytes_max=0), self._hub_fabric, self.clock
        )
        await self._hub.start()
        return self._hub

    async def kill_hub(self) -> None:
        """The process is gone; what it wrote is not."""
        assert self._hub_fabric is not None
        await self.hub.stop()
        await self._hub_fabric.close()
        self._hub = None

    # --- Nodes ---

    async def add_node(self, name: str, site: str = "berlin") -> None:
        await join(self.hub, name, site)
        self.machines[name] = Machine()
        self.start_agent(name)

    def start_agent(self, name: str) -> None:
        """The agent begins, from whatever its ledger remembers."""
        fabric, machine = self.broker.connect_node(name), self.machines[name]
        self._boots[name] = boot = self._boots.get(name, 0) + 1
        parts = Parts(
            fabric=fabric,
            steady=Steady(self.clock),
            runtimes={"process": SimulatedRuntime(machine)},
            home=self.directory / name,
            boot=f"{name}-{boot}",
            machine_boot="one",
            inventory=_inventory,
            vitals=Vitals,
            apart=False,
        )
        node = Node(parts)
        self._agents[name] = (node, asyncio.create_task(node.run(), name=f"agent {name}"), fabric)

    async def kill_agent(self, name: str) -> None:
        """The agent dies; what it runs goes on, unless it has a lease."""
        _, task, fabric = self._agents.pop(name)
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
        self.machines[name].agent_ended()
        await fabric.close()

    async def crash(self, name: str) -> None:
        """The machine loses power."""
        await self.kill_agent(name)
        self.machines[name].crash()

    def cut(self, name: str) -> None:
        self.broker.cut(name)

    def heal(self, name: str) -> None:
        self.broker.heal(name)

    async def close(self) -> None:
        for name in tuple(self._agents):
            await self.kill_agent(name)
        if self._hub is not None:
            await self.kill_hub()

    # --- What people do and see ---

    async def apply(self, text: str) -> None:
        await self.hub.declarations.apply(manifest.parse(text))

    def running(self) -> dict[str, tuple[str, ...]]:
        """What really runs, by machine."""
        return {name: tuple(sorted(m.alive())) for name, m in sorted(self.machines.items()) if m.alive()}

    def holders(self, instance: str) -> list[str]:
        """Machines on which an instance of this slot runs."""
        return [name for name, names in self.running().items() if any(n.endswith(instance) for n in names)]

    def stories(self) -> list[tuple[int, str, str, str]]:
        """Everything that happened on all machines, in order."""
        return sorted((at, name, what, who) for name, m in self.machines.items() for at, what, who in m.story)

    def status(self, plural: str, name: str, namespace: str = "") -> dict[str, Any]:
        from batuta.core.view import status
        from batuta.kinds.base import Ref

        return status(self.hub.loop.state, Ref(plural, namespace, name), self.clock.now())

    async def until(self, what: str, holds: Callable[[], Any], seconds: float = 30) -> float:
        """Virtual seconds until `holds`; raises when it takes longer."""
        loop = asyncio.get_running_loop()
        began = loop.time()
        while not holds():
            took_s = loop.time() - began
            assert took_s < seconds, f"{what}: not within {seconds} s; runs {self.running()}"
            await asyncio.sleep(LOOK_EVERY_S)
        return loop.time() - began

    async def settle(self, seconds: float = 10) -> None:
        """Time passes."""
        await asyncio.sleep(seconds)


def _inventory() -> Inventory:
    return Inventory(
        architecture="x86_64",
        cpu_millis=Millicores(2_000),
        memory_bytes=Bytes(2**30),
        disk_bytes=Bytes(2**34),
        runtimes=("process",),
    )
