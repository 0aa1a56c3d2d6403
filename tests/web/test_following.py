"""Logs of several instances, followed at once: whoever hangs up leaves nobody reading on."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

from batuta.web.actions import _following

if TYPE_CHECKING:
    from collections.abc import AsyncIterator


async def test_who_hangs_up_leaves_nobody_reading_on() -> None:
    lost: list[str] = []

    async def stream(name: str) -> AsyncIterator[str]:
        yield f"from {name}\n"
        while True:
            try:
                await asyncio.sleep(60)
            except asyncio.CancelledError:
                # As when the cancellation meets an arriving answer, in the broker's client.
                if name in lost:
                    raise
                lost.append(name)

    before = asyncio.all_tasks()
    following = _following([stream("a"), stream("b")], ["a", "b"])
    async with asyncio.timeout(60):
        heard = {await anext(following) for _ in range(2)}
        await following.aclose()
    assert heard == {b"a: from a\n", b"b: from b\n"}
    assert asyncio.all_tasks() == before
    assert sorted(lost) == ["a", "b"]
