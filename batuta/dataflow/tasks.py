"""Ending tasks for certain."""

from __future__ import annotations

import asyncio
from typing import Any

INSIST_EVERY_S = 0.2


async def end(*tasks: asyncio.Task[Any]) -> None:
    """Cancels until all are gone: one cancellation that meets an arriving answer is lost in `asyncio.wait_for`, and the
    broker's client waits with that. What a task raises in its end is of no interest any more."""
    left = {task for task in tasks if not task.done()}
    while left:
        for task in left:
            task.cancel()
        _, left = await asyncio.wait(left, timeout=INSIST_EVERY_S)
    for task in tasks:
        if not task.cancelled():
            task.exception()
