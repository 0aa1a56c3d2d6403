"""A real hub over the memory fabric, and nodes that say what a test wants them to say."""

from __future__ import annotations

from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any

import msgspec

from batuta.config import HubConfig
from batuta.core.observed import Inventory, Report
from batuta.fabric import identity, subjects
from batuta.fabric.clock import SystemClock
from batuta.fabric.memory import MemoryBroker
from batuta.hub.enrol import EnrolRequest
from batuta.hub.hub import Hub
from batuta.kinds.base import Bytes, Millicores, encode_hook

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from pathlib import Path

    from batuta.fabric.clock import Clock
    from batuta.fabric.memory import MemoryFabric
    from batuta.hub.enrol import EnrolAnswer

PROCESS_APP = """
apiVersion: batuta.dev/v1
kind: Application
metadata: {name: NAME}
spec:
  components:
  - name: run
    process: {command: [sleep, "1000"]}
    replicas: {count: 1}
"""


@asynccontextmanager
async def running(
    directory: Path, broker: MemoryBroker | None = None, clock: Clock | None = None, **settings: Any
) -> AsyncIterator[Hub]:
    """A hub that decides, until the block ends."""
    broker = broker or MemoryBroker()
    config = HubConfig(state=str(directory), **settings)
    fabric = broker.connect("hub")
    hub = Hub(config, fabric, clock or SystemClock(), hubs=("https://h:8443",), leafs=("tls://h:7422",))
    await hub.start()
    try:
        yield hub
    finally:
        await hub.stop()
        await fabric.close()


async def join(hub: Hub, node: str, site: str = "berlin", key: str = "") -> EnrolAnswer:
    """Enrols a node with a token of its own."""
    text, _ = await hub.enrolment.create_token(site=site, node="", ttl_ms=60_000, uses=1)
    return await hub.enrolment.enrol(request_for(hub, text, node, key))


def request_for(hub: Hub, token: str, node: str, key: str = "", apart_ms: int = 0) -> EnrolRequest:
    read = identity.read_token(token)
    return EnrolRequest(
        token_id=read.id,
        secret=read.secret,
        node=node,
        request=identity.make_request(key or identity.make_key(), node),
        now=hub.clock.now() + apart_ms,
    )


class Voice:
    """A node as far as the hub can tell."""

    def __init__(self, broker: MemoryBroker, name: str) -> None:
        self.name = name
        self.fabric: MemoryFabric = broker.connect_node(name)
        self.sequence = 0

    async def beat(self, timeout_s: float = 5.0, *, boot: str = "b", machine: str = "m") -> dict[str, Any]:
        self.sequence += 1
        said = msgspec.json.encode({"boot": boot, "sequence": self.sequence, "serial": 0, "machine": machine})
        heard = await self.fabric.request(subjects.alive(self.name), said, timeout_s)
        answer: dict[str, Any] = msgspec.json.decode(heard)
        return answer

    async def report(self, **said: Any) -> None:
        self.sequence += 1
        inventory = Inventory(
            cpu_millis=Millicores(2000), memory_bytes=Bytes(2**30), disk_bytes=Bytes(2**34), runtimes=("process",)
        )
        report = Report(node=self.name, boot="b", sequence=self.sequence, at=0, **{"inventory": inventory, **said})
        body = msgspec.json.encode(report, enc_hook=encode_hook)
        await self.fabric.table("observed").put(subjects.report_key(self.name), body)

    async def ask(self, verb: str, body: object) -> bytes:
        return await self.fabric.request(subjects.ask(self.name, verb), msgspec.json.encode(body))
