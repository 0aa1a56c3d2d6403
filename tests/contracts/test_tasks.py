"""A cancellation that is lost once is said again."""

from __future__ import annotations

import asyncio

from batuta.fabric.tasks import end


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
    async with asyncio.timeout(10):
        await end(*tasks)
    assert lost == 2
    assert all(task.done() for task in tasks)
