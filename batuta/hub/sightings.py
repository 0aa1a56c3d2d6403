"""The hub's own ears: heartbeats and link events become Sightings. Kept in memory only; a new hub listens anew.

A heartbeat is answered at once, with the newest serials of the node's assignment and of what its site shares: the
answer is the node's contact with the hub, by which leases run, and tells a node that missed an order. A hub that has
decided nothing yet hears and says nothing. Nothing is decided here.
"""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Final

import msgspec

from batuta.core.liveness import every_ms, missed_ms, sighted, witnesses
from batuta.core.state import Change
from batuta.fabric import subjects
from batuta.hub.boots import Boots

if TYPE_CHECKING:
    from collections.abc import Callable

    from batuta.core.observed import Sighting
    from batuta.core.state import State
    from batuta.fabric.base import Fabric, Message, Subscription
    from batuta.fabric.clock import Clock
    from batuta.hub.counters import Counters

HEARTBEAT_BYTES_MAX: Final = 4096
WITNESSED_EVERY_MS: Final = 500


class Heartbeat(msgspec.Struct, frozen=True):
    """What a node says every second. Unknown fields are for newer hubs."""

    boot: str = ""
    sequence: int = 0
    serial: int = 0
    machine: str = ""
    """Which run of the machine it is; nothing from older agents."""
    flags: str | None = None
    """The digest of the flags that it has; None from older agents, which have none."""


class Sightings:
    """When each node was last heard."""

    def __init__(
        self,
        clock: Clock,
        counters: Counters,
        state: Callable[[], State],
        on_change: Callable[[], None],
        *,
        newest_serial: Callable[[str], int | None],
        epoch: Callable[[], int],
        deaf_ms: Callable[[], int] = lambda: 0,
        flags: Callable[[str], str] = lambda _: "",
    ) -> None:
        self._clock = clock
        self._counters = counters
        self._state = state
        self._on_change = on_change
        self._newest_serial = newest_serial
        self._epoch = epoch
        self.deaf_ms = deaf_ms
        """For how long the hub could not listen, up to now."""
        self._flags = flags
        """The digest of the flags that a node should have."""
        self._rows: dict[str, Sighting] = {}
        self._fresh: set[str] = set()
        self._witnesses: frozenset[str] = frozenset()
        self._witnessed_at = 0
        self._boots = Boots()
        self._subscription: Subscription | None = None

    async def open(self, fabric: Fabric) -> None:
        self._subscription = await fabric.subscribe(subjects.ALL_ALIVE, self._hear)

    async def close(self) -> None:
        if self._subscription is not None:
            await self._subscription.close()

    def take(self) -> list[Change]:
        """The sightings that are newer than the last call."""
        fresh, self._fresh = sorted(self._fresh), set()
        return [Change("sightings", node, self._rows.get(node)) for node in fresh]

    def heard(self, node: str, flags: str | None = None) -> None:
        """A sign of life. It wakes the loop only when it is news: silence is decided by when it was last heard."""
        before = self._rows.get(node)
        self._rows[node] = after = sighted(
            before, self._clock.now(), missed_ms(self._state()), self.deaf_ms(), flags or ""
        )
        self._fresh.add(node)
        if before is None or before.online_since != after.online_since:
            self._on_change()

    def reported(self, node: str) -> None:
        """Its report came: what it says of its neighbours is as old as this."""
        before = self._rows.get(node)
        if before is not None:
            self._rows[node] = msgspec.structs.replace(before, reported_at=self._clock.now())
            self._fresh.add(node)

    def link_closed(self, node: str) -> None:
        """The broker saw the node's link close. That is a hint, not silence: a link may come back at once."""
        before = self._rows.get(node)
        if before is None or before.disconnected_at is not None:
            return
        self._rows[node] = msgspec.structs.replace(before, disconnected_at=self._clock.now())
        self._fresh.add(node)
        self._on_change()

    def forget(self, node: str) -> None:
        self._boots.forget(node)
        if self._rows.pop(node, None) is not None:
            self._fresh.add(node)
            self._on_change()

    async def _hear(self, message: Message) -> None:
        node = subjects.node_of(message.subject)
        state = self._state()
        if node not in state.nodes:
            self._counters.add("heartbeats_refused", "node_unknown")
            return
        try:
            if len(message.data) > HEARTBEAT_BYTES_MAX:
                raise ValueError("a heartbeat is short")
            beat = msgspec.json.decode(message.data, type=Heartbeat)
        except (ValueError, msgspec.DecodeError):
            self._counters.add("heartbeats_refused", "garbled")
            return
        quiet_ms = missed_ms(state) * 3 // 2
        voice = self._boots.heard(node, beat.boot, beat.machine, self._clock.now(), quiet_ms)
        if voice == "two":
            # Neither is the node: both fall silent to us, and their leases end.
            self._counters.add("heartbeats_refused", "two_machines")
            await self._answer(message, {"error": "two_machines"})
            return
        self.heard(node, beat.flags)
        if voice == "new":
            self._counters.add("heartbeats_unanswered", "new_machine")
            return
        serial = self._newest_serial(node)
        if serial is None:
            self._counters.add("heartbeats_unanswered", "undecided")
        else:
            answer: dict[str, int | str] = {"serial": serial, "everyMs": every_ms(state), "hubEpoch": self._epoch()}
            commons = state.commons.get(state.nodes[node].spec.site)
            if commons is not None:
                answer["commons"] = commons.serial
            if beat.flags is not None and beat.flags != self._flags(node):
                answer["flags"] = True
            if self._is_witness(node, state):
                self._counters.add("reports_asked_for")
                answer["report"] = True
            await self._answer(message, answer)

    def _is_witness(self, node: str, state: State) -> bool:
        """Looked at for all nodes at once, twice a second at most."""
        now = self._clock.now()
        if now - self._witnessed_at >= WITNESSED_EVERY_MS:
            self._witnessed_at = now
            self._witnesses = witnesses(state, partial(self._unheard_ms, now, self.deaf_ms()))
        return node in self._witnesses

    def _unheard_ms(self, now: int, deaf_ms: int, node: str) -> int:
        """One that this hub has not heard yet is not missed."""
        row = self._rows.get(node)
        return 0 if row is None else now - row.last_seen - max(0, deaf_ms - row.deaf_ms)

    async def _answer(self, message: Message, answer: dict[str, int | str]) -> None:
        if message.reply:
            await message.respond(msgspec.json.encode(answer))
