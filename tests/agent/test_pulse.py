"""The pulse of a node in a large fleet: slow when nothing hangs on it, every second under a lease."""

from __future__ import annotations

import asyncio

import msgspec

from batuta.agent.pulse import Contact, Pulse, Refused
from batuta.agent.steady import Steady
from batuta.fabric import subjects
from batuta.fabric.base import Message
from batuta.fabric.clock import SystemClock
from batuta.fabric.memory import MemoryBroker

SLOW_MS = 50_000
"""What the hub of fifty thousand nodes asks for."""


async def test_a_node_under_a_lease_beats_though_the_hub_asks_for_slow_beats():
    broker = MemoryBroker()
    hub, fabric = broker.connect("hub"), broker.connect_node("pi-4")
    leased, told = False, asyncio.Queue[Contact | Refused]()

    async def answer(message: Message) -> None:
        await message.respond(msgspec.json.encode({"serial": 1, "everyMs": SLOW_MS, "hubEpoch": 1}))

    await hub.subscribe(subjects.ALL_ALIVE, answer)
    pulse = Pulse(
        fabric, Steady(SystemClock()), boot="b", machine_boot="m", serial=lambda: 1, tell=told.put_nowait,
        is_leased=lambda: leased,
    )  # fmt: skip
    beating = asyncio.create_task(pulse.run())
    try:
        async with asyncio.timeout(40):  # the slow beat that is asked for would come later than this
            await told.get()
            assert pulse.every_ms == SLOW_MS
            leased = True
            for _ in range(3):
                await told.get()
    finally:
        beating.cancel()
        await asyncio.gather(beating, return_exceptions=True)
        await fabric.close()
        await hub.close()
    assert pulse.sent >= 4
