"""A crowd: a real hub whose ten thousand nodes are simulated, over the memory fabric. Benchmarks and tests share it.

Everything of the hub is real: its store, its loop, its feed, its web application on a real socket. The nodes are one
connection that speaks for all of them: they were declared by an earlier life of the hub, take what it assigns, and
report what they run, without a process each. Only their heartbeats are noted as heard without being sent: a thousand
messages a second would measure this fabric, and nodes and hub share one processor here.
"""

from __future__ import annotations

import asyncio
import secrets
import socket
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any, NamedTuple

import msgspec

from batuta.config import HubConfig
from batuta.core.decided import Assignment
from batuta.core.liveness import every_ms
from batuta.core.observed import InstanceReport, Inventory, Measures, Report, Vitals
from batuta.fabric import subjects
from batuta.fabric.clock import SystemClock
from batuta.fabric.memory import MemoryBroker
from batuta.fabric.tasks import end
from batuta.hub.hub import Hub
from batuta.kinds import manifest
from batuta.kinds.base import Bytes, Millicores, decode_hook, encode_hook
from batuta.web.access import Access
from batuta.web.app import application
from batuta.web.serve import Listener, settings

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from pathlib import Path

    from batuta.fabric.base import Message

SETTLED_MS = 200
"""A hub that has no more to decide needs less than this for a turn."""
BEAT_EVERY_LOOKS = 4
SITES, GROUPS, COMPONENTS_A_NODE = 100, 10, 5
SITE = "apiVersion: batuta.dev/v1\nkind: Site\nmetadata: {name: %s}\nspec: {}\n"
NODE = """
apiVersion: batuta.dev/v1
kind: Node
metadata: {name: %s, uid: uid-%s, generation: 1, creationTimestamp: "2026-01-01T00:00:00Z", labels: {group: "%d"}}
spec: {site: %s}
"""
APPLICATION = """
apiVersion: batuta.dev/v1
kind: Application
metadata: {name: %s}
spec:
  components:
  - name: run
    process: {command: [run]}
    replicas: {everyNode: true}
    resources: {cpu: 10m, memory: 16Mi}
    placement: {where: 'node.labels.group == "%d"'}
"""


class Crowd(NamedTuple):
    """A running hub with its nodes, and where it listens."""

    hub: Hub
    nodes: Nodes
    port: int
    token: str
    listener: Listener

    @property
    def server(self) -> str:
        return f"http://127.0.0.1:{self.port}"


class Nodes:
    """All nodes, as far as the hub can tell."""

    def __init__(self, broker: MemoryBroker, count: int) -> None:
        self.names = [f"node-{i:05d}" for i in range(count)]
        self._fabric = broker.connect("crowd")
        self._reports: dict[str, Report] = {}
        self._clock = SystemClock()
        self._beating: asyncio.Task[None] | None = None
        self.changes = 0
        """Reports said by `change`."""

    async def declare(self) -> None:
        """Sites and nodes, as an earlier life of the hub has left them, and what each node said last."""
        desired = self._fabric.table("desired")
        for i in range(SITES):
            (site,) = manifest.parse(SITE % f"site-{i:02d}")
            await desired.put(site.ref.key, manifest.to_json(site))
        (sample,) = manifest.parse(NODE % ("sample", "sample", 0, "site-00"))
        for i, name in enumerate(self.names):
            metadata = msgspec.structs.replace(
                sample.metadata, name=name, uid=f"uid-{name}", labels={"group": str(i % GROUPS)}
            )
            spec = msgspec.structs.replace(sample.spec, site=f"site-{i % SITES:02d}")  # type: ignore[attr-defined]
            node = msgspec.structs.replace(sample, metadata=metadata, spec=spec)  # type: ignore[call-arg]
            await desired.put(node.ref.key, manifest.to_json(node))
            self._reports[name] = Report(
                node=name,
                boot="one",
                sequence=1,
                at=self._clock.now(),
                inventory=INVENTORY,
                address=f"10.{i >> 16}.{i >> 8 & 255}.{i & 255}:7000",
            )
            await self._say(name)

    async def live(self) -> None:
        """From now on they obey."""
        await self._fabric.subscribe("batuta.assignment.*", self._obey)

    def beat_all(self, hub: Hub) -> None:
        for name in self.names:
            hub.sightings.heard(name)

    def beat_on(self, hub: Hub) -> None:
        """From now on all of them beat as often as the hub wants."""
        self.beat_all(hub)
        self._beating = asyncio.create_task(self._beat_on(hub), name="beat")

    async def change(self, name: str) -> None:
        """One more report of this node: its vitals have changed, by which nothing is decided."""
        self.changes += 1
        vitals = Vitals(cpu_percent=float(self.changes), memory_free_bytes=Bytes(2**30))
        self._reports[name] = msgspec.structs.replace(self._reports[name], vitals=vitals)
        await self._say(name)

    async def close(self) -> None:
        await end(self._beating)
        await self._fabric.close()

    async def _obey(self, message: Message) -> None:
        assignment = msgspec.json.decode(message.data, type=Assignment, dec_hook=decode_hook)
        now = self._clock.now()
        instances = tuple(
            InstanceReport(name=i.name, epoch=i.epoch, phase="ready", since=now, starts=1, measures=Measures())
            for i in assignment.instances
        )
        known = self._reports[assignment.node]
        self._reports[assignment.node] = msgspec.structs.replace(known, serial=assignment.serial, instances=instances)
        await self._say(assignment.node)

    async def _say(self, name: str) -> None:
        known = self._reports[name]
        report = msgspec.structs.replace(known, sequence=known.sequence + 1, at=self._clock.now())
        self._reports[name] = report
        body = msgspec.json.encode(report, enc_hook=encode_hook)
        await self._fabric.table("observed").put(subjects.report_key(name), body)

    async def _beat_on(self, hub: Hub) -> None:
        """A part of the fleet every tenth of a second, all of it as often as the hub wants."""
        turn = 0
        while True:
            rounds = max(1, every_ms(hub.loop.state) // 100)
            for name in self.names[turn % rounds :: rounds]:
                hub.sightings.heard(name)
            turn += 1
            await asyncio.sleep(0.1)


INVENTORY = Inventory(
    architecture="x86_64",
    cpu_millis=Millicores(4_000),
    memory_bytes=Bytes(4 * 2**30),
    disk_bytes=Bytes(64 * 2**30),
    runtimes=("process", "onnx"),
    os="Debian GNU/Linux 12",
    kernel="6.1.0",
    hostname="edge",
    agent_version="0.1.0",
)


@asynccontextmanager
async def crowd(directory: Path, nodes: int, *, instances_a_node: int = COMPONENTS_A_NODE) -> AsyncIterator[Crowd]:
    """The hub has decided, and every node runs what it should, when the block begins."""
    broker = MemoryBroker()
    fleet = Nodes(broker, nodes)
    await fleet.declare()
    hub = Hub(HubConfig(state=str(directory)), broker.connect("hub"), SystemClock())
    await hub.start()
    token = secrets.token_hex(16)
    with socket.create_server(("127.0.0.1", 0), backlog=1024) as bound:
        bound.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        listener = Listener(settings(Access(application(hub), hub, token, is_tls=False)))
        serving = asyncio.create_task(listener.serve([bound]), name="serve")
        try:
            await fleet.live()
            fleet.beat_all(hub)
            documents = [
                APPLICATION % (f"app-{group}-{k}", group) for group in range(GROUPS) for k in range(instances_a_node)
            ]
            await hub.declarations.apply(manifest.parse("---".join(documents)))
            # Nodes and hub share one event loop here: while the hub decides fifty thousand placements nobody beats.
            looks = 0
            while not _is_settled(hub, nodes * instances_a_node):
                looks += 1
                if looks % BEAT_EVERY_LOOKS == 0:
                    fleet.beat_all(hub)
                await asyncio.sleep(0.5)
            fleet.beat_on(hub)
            yield Crowd(hub, fleet, bound.getsockname()[1], token, listener)
        finally:
            listener.should_exit = True
            await asyncio.gather(serving, return_exceptions=True)
            await fleet.close()
            await hub.stop()


def _is_settled(hub: Hub, instances: int) -> bool:
    state = hub.loop.state
    if hub.loop.lag_ms > SETTLED_MS:
        return False
    ready: Any = (i.phase == "ready" for report in state.observed.values() for i in report.instances)
    return sum(map(len, state.held.values())) == instances and sum(ready) == instances
