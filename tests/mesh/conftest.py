"""A gateway in the test's own process, over real brokers and instances that really listen."""

from __future__ import annotations

import asyncio
import contextlib
import json
import socket
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from batuta.core.gateway import GatewayOrder
from batuta.dataflow.gateway import Gateway
from batuta.fabric import subjects
from batuta.fabric.broker_config import GATEWAY_USER
from batuta.fabric.tasks import end
from tests.mesh.instances import Instance

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable


@dataclass
class Yard:
    """A town, with gateways and instances at its nodes."""

    town: Any
    directory: Path
    gateways: dict[str, Gateway] = field(default_factory=dict)
    ports: dict[str, int] = field(default_factory=dict)
    instances: list[Instance] = field(default_factory=list)
    tasks: list[asyncio.Task[None]] = field(default_factory=list)

    def home(self, node: str) -> Path:
        made = self.directory / f"home-{node}"
        made.mkdir(exist_ok=True)
        return made

    async def gateway(self, node: str, *, far: bool = False) -> Gateway:
        listener = socket.socket()
        listener.bind(("127.0.0.1", 0))
        listener.listen(128)
        listener.setblocking(False)
        self.ports[node] = listener.getsockname()[1]
        order = GatewayOrder(
            node=node, directory=str(self.home(node)), instances=str(self.home(node) / "instances"),
            listener=listener.detach(), broker={},
        )  # fmt: skip
        control = None
        if far:
            port = self.town.nodes[node].client_port
            control = await self.town.client(port, GATEWAY_USER, "gateway-secret", subjects.gateway_inbox(node))
        made = self.gateways[node] = Gateway(order, await self.town.site_client(node), control)
        self.tasks.append(asyncio.create_task(made.run(asyncio.Event())))
        return made

    async def instance(self, node: str, slot: str = "0", **options: Any) -> Instance:
        client = await self.town.site_client(node)
        made = Instance(node, client, self.home(node) / "instances", slot, **options)
        self.instances.append(made)
        return await made.open()

    async def heard(self, node: str, count: int) -> None:
        """Until the gateway knows so many instances."""
        async with asyncio.timeout(60):
            while len(list(self.gateways[node].cards.all(now()))) != count:  # noqa: ASYNC110  it tells nobody
                await asyncio.sleep(0.01)

    async def close(self) -> None:
        await end(*self.tasks)
        for each in self.instances:
            await each.die()


def now() -> int:
    from batuta.dataflow.mesh.call import clock_ms

    return clock_ms()


@pytest.fixture
async def yard(new_town: Callable[[], Awaitable[Any]], tmp_path: Path) -> AsyncIterator[Yard]:
    made = Yard(await new_town(), tmp_path)
    try:
        yield made
    finally:
        await made.close()


@dataclass
class Said:
    status: int
    headers: dict[str, str]
    body: bytes

    @property
    def json(self) -> Any:
        return json.loads(self.body)


async def http(port: int, method: str, path: str, body: bytes = b"", **headers: str) -> Said:
    """One request on a connection of its own."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    try:
        lines = [f"{method} {path} HTTP/1.1", "Host: here", f"Content-Length: {len(body)}"]
        lines += [f"{name.replace('_', '-')}: {value}" for name, value in headers.items()]
        writer.write("\r\n".join((*lines, "", "")).encode() + body)
        first, *rest = (await reader.readuntil(b"\r\n\r\n")).decode().split("\r\n")
        pairs = (line.partition(":") for line in rest if line)
        answered = {name.lower(): value.strip() for name, _, value in pairs}
        return Said(int(first.split()[1]), answered, await reader.readexactly(int(answered.get("content-length", 0))))
    finally:
        writer.close()
        with contextlib.suppress(OSError):
            await writer.wait_closed()


ONE = json.dumps({"inputs": [{"name": "x", "shape": [2], "datatype": "FP32", "data": [1.0, 2.0]}]}).encode()


async def infer(port: int, model: str = "adder", **headers: str) -> Said:
    return await http(port, "POST", f"/v2/models/{model}/infer", ONE, **headers)
