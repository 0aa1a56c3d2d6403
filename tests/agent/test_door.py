"""The inference gateway as the agent keeps it: started by a knock, started again when killed, adopted, ended."""

from __future__ import annotations

import asyncio
import json
import os
import signal
from typing import TYPE_CHECKING, Any

import pytest

from batuta.agent.config import AgentConfig
from batuta.agent.door import Door
from batuta.core.flags import FLAGS_FILE, FlagOrder, Sheet, written
from batuta.fabric.broker import free_port
from batuta.fabric.tasks import end
from batuta.runtimes import processes

if TYPE_CHECKING:
    from pathlib import Path

    from batuta.agent.news import Ailing

pytestmark = pytest.mark.slow


async def live(port: int) -> bytes:
    """What the gateway says to whoever asks whether it lives; waits as long as nobody answers."""
    async with asyncio.timeout(60):
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        writer.write(b"GET /v2/health/live HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
        said = await reader.read()
        writer.close()
        return said


def door_of(tmp_path: Path, town: Any, said: list[Ailing]) -> Door:
    config = AgentConfig(state=str(tmp_path), mqtt_port=0)
    made = Door(config, "n1", said.append)
    credentials = tmp_path / "site.json"
    credentials.write_text(json.dumps({"user": "site", "password": "site-secret"}))
    url = f"nats://127.0.0.1:{town.nodes['n1'].client_port}"
    made.broker = {"url": url, "credentials": str(credentials), "node": "n1"}
    return made


async def test_flags_are_answered_where_no_broker_is_reached(tmp_path: Path) -> None:
    """As after a power cut that the broker's store did not survive: whoever asks a model waits, flags are there."""
    door = Door(AgentConfig(state=str(tmp_path), mqtt_port=0), "n1", [].append)
    door.broker = {"url": f"nats://127.0.0.1:{free_port('127.0.0.1')}", "node": "n1"}
    door.open()
    order = FlagOrder(namespace="default", name="colour", why="STATIC", variants={"red": "#f00"})
    (door.directory / FLAGS_FILE).write_bytes(written(Sheet(flags=(order,))))
    running = asyncio.create_task(door.run())
    try:
        waiting = asyncio.create_task(live(door.port))
        async with asyncio.timeout(60):
            reader, writer = await asyncio.open_connection("127.0.0.1", door.port)
            writer.write(b"POST /ofrep/v1/evaluate/flags/colour HTTP/1.1\r\nConnection: close\r\n\r\n")
            assert b'"value":"#f00"' in await reader.read()
            writer.close()
        assert not waiting.done()
        waiting.cancel()
    finally:
        await end(running)
        await door.stop()


async def test_a_knock_starts_it_and_nobody_is_refused_while_it_is_killed(new_town: Any, tmp_path: Path) -> None:
    town = await new_town()
    await town.node("n1", with_hub=False)
    said: list[Ailing] = []
    door = door_of(tmp_path, town, said)
    door.open()
    running = asyncio.create_task(door.run())
    try:
        assert (door.pid, door.measures()) == (0, None)
        assert b'{"live":true}' in await live(door.port)
        first = door.pid
        os.kill(first, signal.SIGKILL)
        answers = await asyncio.gather(*(live(door.port) for _ in range(20)))
        assert all(b'{"live":true}' in each for each in answers)
        assert door.pid != first
        assert (door.starts, door.broken) == (2, 1)
        assert [each.reason.code for each in said if each.reason is not None] == ["gateway_failed"]
        # Another agent comes: it adopts the gateway, and the port stays.
        await end(running)
        second = door.pid
        await door.leave()
        later = door_of(tmp_path, town, said)
        later.open()
        running = asyncio.create_task(later.run())
        assert (later.pid, later.port) == (second, door.port)
        assert b'{"live":true}' in await live(later.port)
        async with asyncio.timeout(60):
            while later.measures() is None:  # noqa: ASYNC110  a file cannot be awaited
                await asyncio.sleep(0.05)
        # The one that was adopted had the socket; killed, the port is listened at again.
        os.kill(second, signal.SIGKILL)
        async with asyncio.timeout(60):
            while later.pid == second or not await _answers(later.port):  # noqa: ASYNC110
                await asyncio.sleep(0.05)
        third = later.pid
        await end(running)
        await later.stop()
        assert processes.look(third) is None or not processes.look(third).is_alive  # type: ignore[union-attr]
    finally:
        await end(running)
        await door.stop()


async def _answers(port: int) -> bool:
    try:
        return b'{"live":true}' in await live(port)
    except OSError:
        return False


async def test_a_port_that_somebody_chose_is_taken_wherever_the_gateway_was_before(tmp_path: Path) -> None:
    for config in (
        AgentConfig(state=str(tmp_path), mqtt_port=0),
        AgentConfig(state=str(tmp_path), mqtt_port=0, inference_port=18600),
        AgentConfig(state=str(tmp_path), mqtt_port=0),
    ):
        door = Door(config, "n1", [].append)
        door.open()
        await door.leave()
        assert config.inference_port is None or door.port >= 18600
    assert door.port >= 18600, "without a choice it stays where it was"


async def test_a_port_that_is_taken_is_left_to_whoever_has_it(tmp_path: Path) -> None:
    said: list[Ailing] = []
    first = Door(AgentConfig(state=str(tmp_path / "a"), inference_port=18500), "a", said.append)
    second = Door(AgentConfig(state=str(tmp_path / "b"), inference_port=18500), "b", said.append)
    first.open()
    second.open()
    try:
        assert second.port > first.port >= 18500
        reason = said[-1].reason
        assert reason is not None
        assert (reason.code, second.url in reason.detail) == ("port_taken", True)
    finally:
        await first.leave()
        await second.leave()
