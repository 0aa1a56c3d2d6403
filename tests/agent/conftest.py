"""A node in virtual time: the real loop over the memory fabric, on a simulated machine, with a hub of a few lines."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import msgspec
import pytest

from batuta.agent.node import Node, Parts
from batuta.agent.steady import Steady
from batuta.core.decided import Assignment, Commons, Instance
from batuta.core.observed import Inventory, Report, Vitals
from batuta.fabric import subjects
from batuta.fabric.base import Entry
from batuta.fabric.clock import VirtualClock
from batuta.fabric.memory import MemoryBroker, MemoryFabric
from batuta.kinds.base import decode_hook, encode_hook
from batuta.runtimes.simulated import Machine, SimulatedRuntime
from tests.agent.shelf import chunk_of, digest_of, recipe_of

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from pathlib import Path

    from batuta.fabric.base import Message

EPOCH_MS = 1_790_000_000_000


class SteppingClock(VirtualClock):
    """A wall clock that somebody sets; the monotonic one goes on."""

    ahead_ms = 0

    def now(self) -> int:
        return super().now() + self.ahead_ms


def instance(component: str = "c", revision: int = 1, slot: str = "0", **more: Any) -> Instance:
    from batuta.kinds.application import ProcessUse

    more.setdefault("process", ProcessUse(command=("true",)))
    return Instance(
        namespace="default", application="a", component=component, revision=revision, slot=slot,
        epoch=more.pop("epoch", 1), **more,
    )  # fmt: skip


@dataclass
class Rig:
    """One node `pi`, and what stands for the hub."""

    home: Path
    machine: Machine = field(default_factory=Machine)
    clock: SteppingClock = field(default_factory=lambda: SteppingClock(EPOCH_MS))
    broker: MemoryBroker = field(default_factory=MemoryBroker)
    machine_boot: str = "boot-1"
    reports: list[Report] = field(default_factory=list)
    serial: int = 0
    hub_answers: bool = True
    hub_refuses: str = ""
    hub_asks: bool = False
    """It wants a report with every heartbeat."""
    commons: Commons = field(default_factory=lambda: Commons(site="home", serial=0))
    shared: list[Commons] = field(default_factory=list)
    """What the data flows were told to follow."""
    starts: int = 0
    files: dict[str, bytes] = field(default_factory=dict)
    hub: MemoryFabric = field(init=False)
    node: Node = field(init=False)
    task: asyncio.Task[None] = field(init=False)

    async def open(self) -> None:
        self.hub = self.broker.connect("hub")
        await self.hub.subscribe(subjects.ALL_ALIVE, self._alive)
        await self.hub.subscribe(subjects.ALL_ASKS, self._answer)
        self._watch = asyncio.create_task(self._collect())

    async def _alive(self, message: Message) -> None:
        if self.hub_refuses:
            await message.respond(msgspec.json.encode({"error": self.hub_refuses}))
        elif self.hub_answers:
            answer = {"serial": self.serial, "everyMs": 1000, "hubEpoch": 1}
            answer |= {"commons": self.commons.serial} if self.commons.serial else {}
            await message.respond(msgspec.json.encode(answer | ({"report": True} if self.hub_asks else {})))

    async def _answer(self, message: Message) -> None:
        if subjects.verb_of(message.subject) == "commons":
            await message.respond(msgspec.json.encode(self.commons))
        else:
            await self._artifact(message)

    async def _artifact(self, message: Message) -> None:
        asked = msgspec.json.decode(message.data)
        data = self.files.get(asked["digest"])
        if data is None:
            await message.respond(b'{"error": "artifact_missing", "message": "not here"}\n')
        elif subjects.verb_of(message.subject) == "recipe":
            recipe = recipe_of(data)
            head = {"size": len(data), "recipe": digest_of(recipe), "bytes": len(recipe)}
            piece = recipe[asked["offset"] : asked["offset"] + asked["length"]]
            await message.respond(msgspec.json.encode(head) + b"\n" + piece)
        else:
            found = [chunk_of(data, n) for n in asked["chunks"]]
            await message.respond(msgspec.json.encode({"sizes": [*map(len, found)]}) + b"\n" + b"".join(found))

    async def _collect(self) -> None:
        async for change in self.hub.table("observed").watch(subjects.report_key("pi")):
            if isinstance(change, Entry) and change.value is not None:
                self.reports.append(msgspec.json.decode(change.value, type=Report, dec_hook=decode_hook))

    async def assign(self, *instances: Instance, serial: int | None = None) -> None:
        self.serial = self.serial + 1 if serial is None else serial
        made = Assignment(node="pi", site="home", serial=self.serial, instances=instances)
        await self.hub.table("decided").put(
            subjects.assignment_key("pi"), msgspec.json.encode(made, enc_hook=encode_hook)
        )

    def start(self) -> Node:
        self.starts += 1
        self.node = Node(
            Parts(
                fabric=self.broker.connect_node("pi"),
                steady=Steady(self.clock),
                runtimes={"process": SimulatedRuntime(self.machine), "onnx": SimulatedRuntime(self.machine, "onnx")},
                home=self.home,
                boot=f"run-{self.starts}",
                machine_boot=self.machine_boot,
                inventory=Inventory,
                vitals=lambda: Vitals(cpu_percent=float(len(self.reports))),
                places=lambda: ("10.0.0.1:7422", "10.0.0.1:1883"),
                share=self.shared.append,
                apart=False,
            )
        )
        self.task = asyncio.create_task(self.node.run())
        return self.node

    async def kill(self) -> None:
        """kill -9: nothing is written down, nobody is told; what runs goes on, unless it has a lease."""
        self.task.cancel()
        await asyncio.gather(self.task, return_exceptions=True)
        self.machine.agent_ended()
        self.node.actuator.keep_only(())
        await self.node.parts.fabric.close()

    async def leave(self) -> None:
        self.node.end()
        await self.task
        await self.node.leave()

    async def until(self, what: Callable[[], object], within_s: float = 60.0) -> None:
        """Waits in virtual time; says what did not come true."""
        deadline = asyncio.get_running_loop().time() + within_s
        while not what():
            assert asyncio.get_running_loop().time() < deadline, (self.phases(), self.machine.story)
            await asyncio.sleep(0.01)

    def phases(self) -> Mapping[str, str]:
        return {name.rpartition("/")[2]: local.phase for name, local in self.node.loop.locals.items()}

    @property
    def report(self) -> Report:
        return self.reports[-1]

    def codes(self) -> list[str]:
        return [reason.code for reason in self.report.problems]


@pytest.fixture
def rig_in() -> Callable[[Path], Rig]:
    return Rig


@pytest.fixture
def make_instance() -> Callable[..., Instance]:
    return instance
