"""What a node hears of its site, over real brokers: neighbours that are alive, and where topics are published first."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

import paho.mqtt.client as mqtt
import pytest

from batuta.agent.gravity import EVERY_S, LISTEN_S, Gravity
from batuta.agent.neighbours import Neighbours
from batuta.agent.steady import MachineClock, Steady
from batuta.fabric.nats import NatsFabric

if TYPE_CHECKING:
    from collections.abc import Callable

pytestmark = pytest.mark.e2e


async def until(what: Callable[[], Any], within_s: float = 60.0) -> Any:
    async with asyncio.timeout(within_s):
        while not (found := what()):  # noqa: ASYNC110  what happens in another process cannot be awaited
            await asyncio.sleep(0.05)
        return found


async def test_neighbours_hear_each_other_and_only_the_first_broker_counts_a_topic(new_town: Any) -> None:
    town = await new_town()
    fabrics = {}
    for name, earlier in (("a", ()), ("b", ("a",))):
        node = await town.node(name, earlier=earlier)
        url = f"nats://127.0.0.1:{node.client_port}"
        fabrics[name] = await NatsFabric.open(name, url, "site", "site-secret", is_node=False)
    steady = Steady(MachineClock())
    hear = {name: Neighbours(fabric, steady, name) for name, fabric in fabrics.items()}
    gravity = {name: Gravity(fabric) for name, fabric in fabrics.items()}
    for each in gravity.values():
        each.follow(("cameras/+/frame", "$SYS/#"))
        assert each.watched == ("cameras/+/frame",)
    tasks = [asyncio.create_task(each.run()) for each in (*hear.values(), *gravity.values())]
    camera = mqtt.Client(mqtt.CallbackAPIVersion.VERSION2, client_id="camera")
    camera.connect("127.0.0.1", town.nodes["b"].mqtt_port)
    camera.loop_start()
    try:
        await until(lambda: "b" in hear["a"].hears() and "a" in hear["b"].hears())
        assert hear["a"].hears()["b"] < 2_000

        def counted() -> int:
            camera.publish("cameras/c1/frame", b"x" * 1000, qos=1)
            return gravity["b"].topics().get("cameras/+/frame", 0)

        assert await until(counted, EVERY_S + LISTEN_S + 5) > 0
        b = gravity["b"]
        assert b.topic_bytes() == {"cameras/+/frame": 1000 * b.topics()["cameras/+/frame"]}
        assert gravity["a"].topics() == {}, "what came over a link was published elsewhere"
        await town.kill("b")
        await until(lambda: hear["a"].hears()["b"] > 2_000)
    finally:
        camera.loop_stop()
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        for fabric in fabrics.values():
            await fabric.close()
