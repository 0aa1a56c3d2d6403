"""Ending tasks for certain: what every process here does when it goes down, said once."""

from __future__ import annotations

import asyncio
from contextlib import suppress
from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    from nats.aio.client import Client

INSIST_EVERY_S: Final = 0.2


async def end(*tasks: asyncio.Task[Any] | None) -> None:
    """Cancels until all are gone: before Python 3.12 a cancellation that meets an arriving answer is lost in
    `asyncio.wait_for`, and the broker's client waits with that. Whoever calls is left out: it goes by itself.

    What a task raises in its end is of no interest any more.
    """
    mine = asyncio.current_task()
    ending = {task for task in tasks if task is not None and task is not mine}
    left = {task for task in ending if not task.done()}
    while left:
        for task in left:
            task.cancel()
        _, left = await asyncio.wait(left, timeout=INSIST_EVERY_S)
    for task in ending:
        if not task.cancelled():
            task.exception()


async def hang_up(client: Client) -> None:
    """Closes a broker's client for certain. It cancels its own tasks once; when that meets a connection that was just
    refused, it goes on trying for ever, and the process never ends."""
    # Who only ends tasks needs no client of a broker, and its fifteen megabytes.
    from nats.errors import Error as NatsError

    with suppress(NatsError, OSError, TimeoutError):
        await client.close()
    await end(client._reconnection_task, client._reading_task, client._ping_interval_task, client._flusher_task)
