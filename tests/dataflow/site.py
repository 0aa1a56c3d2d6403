"""A site for tests: brokers as nodes run them, linked as a site links them, and devices that speak MQTT.

The links are without TLS, which changes nothing for data; who may link is proven where identity is.
"""

from __future__ import annotations

import asyncio
import contextlib
import threading
import time
from typing import TYPE_CHECKING, Any

import msgspec
import nats
import paho.mqtt.client as mqtt

from batuta.fabric import subjects
from batuta.fabric.broker import Broker, NodeBroker, free_port, node_config

if TYPE_CHECKING:
    from collections.abc import Iterable
    from pathlib import Path

    from nats.aio.client import Client


class TestNode:
    """One node's broker."""

    __test__ = False

    def __init__(self, name: str, directory: Path, elder: TestNode | None = None) -> None:
        self.name = name
        self.directory = directory / name
        self.port, self.mqtt_port, self.leaf_port = (free_port("127.0.0.1") for _ in range(3))
        self.elder = elder
        self.broker = Broker(self.directory / "broker", tied=True)

    async def start(self) -> None:
        config = node_config(
            NodeBroker(
                node=self.name,
                store=self.directory / "store",
                client_port=self.port,
                mqtt_port=self.mqtt_port,
                agent_password="a",
                site_password="s",
            )
        )
        own = f'["{subjects.MQTT_KEPT}.>", "$MQTT.qos2.>", "$MQTT.out.>"]'
        remote = (
            f'remotes: [{{account: SITE, urls: ["nats-leaf://site:s@127.0.0.1:{self.elder.leaf_port}"], '
            f"deny_imports: {own}, deny_exports: {own}}}]"
            if self.elder is not None
            else ""
        )
        config += f'\nleafnodes {{ listen: "127.0.0.1:{self.leaf_port}", reconnect: 1, {remote} }}\n'
        await self.broker.start(config)

    async def kill(self) -> None:
        """Without a chance to say goodbye."""
        import os

        os.kill(self.broker.pid, 9)
        await self.broker.wait()

    async def connect(self) -> Client:
        return await nats.connect(
            f"nats://127.0.0.1:{self.port}", user="site", password="s", max_reconnect_attempts=-1,
            reconnect_time_wait=0.1,
        )  # fmt: skip

    def for_instances(self) -> dict[str, str]:
        secret = self.directory / "site.json"
        secret.write_bytes(msgspec.json.encode({"user": "site", "password": "s"}))
        secret.chmod(0o600)
        return {"url": f"nats://127.0.0.1:{self.port}", "credentials": str(secret), "node": self.name}


class Device:
    """Publishes with QoS 1 and hears topics; a thread of its own, as devices are."""

    def __init__(self, node: TestNode, *hears: str) -> None:
        self.heard: list[tuple[str, Any]] = []
        self.kept = 0
        """Publications that the broker said it has."""
        self._lock = threading.Lock()
        self._client = mqtt.Client(mqtt.CallbackAPIVersion.VERSION2, protocol=mqtt.MQTTv311)
        self._client.max_inflight_messages_set(500)
        self._client.max_queued_messages_set(0)
        self._client.on_message = self._hear
        self._client.on_publish = self._count
        self._client.reconnect_delay_set(1, 1)
        self._subscribed = threading.Event()
        self._client.on_subscribe = lambda *_: self._subscribed.set()
        self._client.on_connect = lambda *_: [self._client.subscribe(topic, qos=0) for topic in hears]
        self._client.connect("127.0.0.1", node.mqtt_port)
        self._client.loop_start()
        if hears:
            assert self._subscribed.wait(10)

    def publish(self, topic: str, payload: bytes) -> None:
        self._client.publish(topic, payload, qos=1)

    async def all_kept(self, count: int, timeout_s: float = 30.0) -> None:
        await until(lambda: self.kept >= count, timeout_s)

    def _count(self, *_: Any) -> None:
        with self._lock:
            self.kept += 1

    def _hear(self, _client: Any, _userdata: Any, message: mqtt.MQTTMessage) -> None:
        with self._lock:
            self.heard.append((message.topic, msgspec.json.decode(message.payload)))

    def close(self) -> None:
        with contextlib.suppress(Exception):
            self._client.disconnect()
        self._client.loop_stop()


PATIENCE = 4.0
"""How many times longer than usual a busy machine may take."""


async def until(true: Any, timeout_s: float = 30.0) -> None:
    """Returns once `true()` is; fails when that takes too long."""
    end = time.monotonic() + timeout_s * PATIENCE
    while True:
        found = true()
        if asyncio.iscoroutine(found):
            found = await found
        if found:
            return
        assert time.monotonic() < end, "it did not come about"
        await asyncio.sleep(0.02)


@contextlib.asynccontextmanager
async def site_of(directory: Path, names: Iterable[str]) -> Any:
    """Nodes of one site, each linked to the first."""
    nodes: list[TestNode] = []
    try:
        for name in names:
            nodes.append(TestNode(name, directory, nodes[0] if nodes else None))
            await nodes[-1].start()
        yield nodes
    finally:
        for node in reversed(nodes):
            await node.broker.stop()
