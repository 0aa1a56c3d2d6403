"""Connecting to a broker that is away, that does not know us, or that comes later; and being told to stop meanwhile."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

import msgspec

from batuta.dataflow import connect as connecting
from batuta.dataflow.connect import connect
from batuta.fabric.broker import free_port
from tests.dataflow.site import TestNode

if TYPE_CHECKING:
    from pathlib import Path

    import pytest


async def test_who_is_told_to_stop_stops_also_while_nobody_is_there() -> None:
    stop = asyncio.Event()
    trying = asyncio.create_task(connect({"url": f"nats://127.0.0.1:{free_port('127.0.0.1')}"}, "w", stop))
    await asyncio.sleep(0.3)
    assert not trying.done()
    stop.set()
    async with asyncio.timeout(2):
        assert await trying is None


async def test_a_broker_that_comes_later_with_another_password_is_found(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(connecting, "TRY_S", 0.5)
    node, stop = TestNode("na", tmp_path), asyncio.Event()
    secret = tmp_path / "site.json"
    secret.write_bytes(msgspec.json.encode({"user": "site", "password": "an earlier one"}))
    broker = {"url": f"nats://127.0.0.1:{node.port}", "credentials": str(secret)}
    trying = asyncio.create_task(connect(broker, "w", stop))
    try:
        await asyncio.sleep(0.2)
        await node.start()
        await asyncio.sleep(1)
        assert not trying.done()
        secret.write_bytes(msgspec.json.encode({"user": "site", "password": "s"}))
        async with asyncio.timeout(60):
            client = await trying
        assert client is not None
        assert client.is_connected
        await client.close()
    finally:
        stop.set()
        await trying
        await node.broker.stop()
