"""A cancellation that is lost once is said again."""

from __future__ import annotations

import asyncio
import random

from nats.aio.client import Client

from batuta.fabric.tasks import end, hang_up


async def test_a_task_that_loses_a_cancellation_still_ends() -> None:
    lost = 0

    async def stubborn() -> None:
        nonlocal lost
        while True:
            try:
                await asyncio.sleep(60)
            except asyncio.CancelledError:
                if lost == 2:
                    raise
                lost += 1

    async def failing() -> None:
        raise ValueError("in its end")

    tasks = [asyncio.create_task(stubborn()), asyncio.create_task(failing())]
    await asyncio.sleep(0)
    async with asyncio.timeout(60):
        await end(*tasks)
    assert lost == 2
    assert all(task.done() for task in tasks)


async def test_a_client_that_is_hung_up_in_the_middle_of_a_try_never_tries_again() -> None:
    """Its broker is gone and every try is refused at once: of a hundred closed by the library alone, four went on."""

    async def greet(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(b'INFO {"server_id":"x","version":"2.15.0","max_payload":1024,"headers":true}\r\n')
        while (line := await reader.readline()) and line != b"BYE\r\n":
            writer.write(b"PONG\r\n" if line.startswith(b"PING") else b"")
        writer.close()

    async def quiet(_error: Exception) -> None:
        """It is refused on purpose."""

    chance = random.Random(7)
    for _ in range(100):
        server = await asyncio.start_server(greet, "127.0.0.1", 0)
        port = server.sockets[0].getsockname()[1]
        client, away = Client(), asyncio.Event()

        async def lost(away: asyncio.Event = away) -> None:
            away.set()

        await client.connect(
            f"nats://127.0.0.1:{port}", max_reconnect_attempts=-1, reconnect_time_wait=0.002,  # type: ignore[arg-type]
            error_cb=quiet, disconnected_cb=lost,
        )  # fmt: skip
        server.close()
        client._transport._io_writer.transport.abort()  # type: ignore[union-attr]
        await away.wait()
        await asyncio.sleep(chance.uniform(0.002, 0.012))  # anywhere in a try
        async with asyncio.timeout(60):
            await hang_up(client)
        assert client._reconnection_task is not None
        assert client._reconnection_task.done()
