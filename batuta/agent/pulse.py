"""Pulse: a heartbeat to the hub, and what its answer tells.

The answer proves contact *as of the sending*: that instant feeds the leases. It also carries the newest serial of our
assignment, so a missed message costs at most one beat. The pulse only says what it heard; the loop draws conclusions.
"""

from __future__ import annotations

import asyncio
import contextlib
from typing import TYPE_CHECKING, Final, NamedTuple

import msgspec

from batuta.errors import FabricUnavailable
from batuta.fabric import subjects

if TYPE_CHECKING:
    from collections.abc import Callable

    from batuta.agent.steady import Steady
    from batuta.fabric.base import Fabric

FASTEST_MS: Final = 100
SLOWEST_MS: Final = 60_000
LEASED_MS: Final = 1_000
ANSWER_S: Final = 2.0


class Contact(NamedTuple):
    """The hub answered a heartbeat that was sent when our monotonic clock said `sent_ms`."""

    sent_ms: int
    serial: int
    hub_epoch: int
    is_asked: bool = False
    """It wants to know what is heard here."""
    commons: int = 0
    """The serial of what the nodes of our site share."""
    flags: bool = False
    """Our flags are not those that we should have."""


class Refused(NamedTuple):
    """The hub heard a heartbeat and does not take it for ours; with no code, it does again."""

    code: str


class Beat(msgspec.Struct, frozen=True):
    boot: str
    sequence: int
    serial: int
    machine: str
    """Which run of the machine this is: a copy of our disk in another machine has another."""
    flags: str = ""
    """The digest of the flags we have."""


class Echo(msgspec.Struct, frozen=True, rename="camel"):
    serial: int = 0
    every_ms: int = 1_000
    hub_epoch: int = 0
    error: str = ""
    report: bool = False
    commons: int = 0
    flags: bool = False


class Pulse:
    """Beats for ever; `every_ms` is what the hub asked for last."""

    def __init__(
        self, fabric: Fabric, steady: Steady, *, boot: str, machine_boot: str, serial: Callable[[], int],
        tell: Callable[[Contact | Refused], None], every_ms: int = 1_000, is_leased: Callable[[], bool] = lambda: False,
        flags: Callable[[], str] = str,
    ) -> None:  # fmt: skip
        self.fabric = fabric
        self.steady = steady
        self.boot = boot
        self.machine_boot = machine_boot
        self.serial = serial
        self.tell = tell
        self.every_ms = every_ms
        self.is_leased = is_leased
        self.flags = flags
        self.sent = 0
        self.unanswered = 0
        self._refused = ""
        self._linked = asyncio.Event()

    async def run(self) -> None:
        """A link that comes back is told of at once: the hub compares us with neighbours that were quicker."""
        self.fabric.on_reconnect(self._linked.set)
        while True:
            self._linked.clear()
            began_ms = self.steady.monotonic_ms()
            async with asyncio.TaskGroup() as group:
                beating = group.create_task(self.beat())
                linking = group.create_task(self._linked.wait())
                # A question that went out before the link came back will not be answered any more.
                await asyncio.wait({beating, linking}, return_when=asyncio.FIRST_COMPLETED)
                beating.cancel()
                linking.cancel()
            spent_ms = self.steady.monotonic_ms() - began_ms
            await self._pause(self.every_ms - spent_ms)

    async def _pause(self, left_ms: int) -> None:
        """Until the next beat is due. The hub of a large fleet asks for slow beats, but a lease lasts five seconds
        whatever the fleet: whoever holds one, or just got one, goes on every second."""
        while not self._linked.is_set():
            slice_ms = max(0, min(left_ms, LEASED_MS))
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(slice_ms / 1000):
                    await self._linked.wait()
            left_ms -= slice_ms
            if left_ms <= 0 or self.is_leased():
                return

    async def beat(self) -> None:
        self.sent += 1
        sent_ms = self.steady.monotonic_ms()
        beat = Beat(self.boot, self.sent, self.serial(), self.machine_boot, self.flags())
        try:
            answer = await self.fabric.request(
                subjects.alive(self.fabric.name), msgspec.json.encode(beat), timeout_s=ANSWER_S
            )
            echo = msgspec.json.decode(answer, type=Echo)
        except (FabricUnavailable, msgspec.MsgspecError):
            self.unanswered += 1
            return
        if echo.error != self._refused:
            self._refused = echo.error
            self.tell(Refused(echo.error))
        if echo.error:
            self.unanswered += 1
            return
        self.every_ms = min(SLOWEST_MS, max(FASTEST_MS, echo.every_ms))
        self.tell(Contact(sent_ms, echo.serial, echo.hub_epoch, echo.report, echo.commons, echo.flags))
