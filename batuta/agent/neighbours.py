"""Neighbours: who of the site is heard, and whom this node links to.

Every second each node says on SITE that it is alive; what it hears, and how long ago, goes into its report. So a hub
that lost sight of a node can know that its neighbours still see it. Whom to link to comes with the assignment: the
nodes that joined the site earlier, in order, which can never make a circle.
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Final

from batuta.errors import FabricUnavailable
from batuta.fabric import subjects

if TYPE_CHECKING:
    from batuta.agent.steady import Steady
    from batuta.core.decided import Assignment
    from batuta.fabric.base import Fabric, Message, Subscription

EVERY_S: Final = 1.0
FORGET_AFTER_MS: Final = 60_000
MOST: Final = 1_024


class Neighbours:
    """What one node hears of the others of its site."""

    def __init__(self, site: Fabric, steady: Steady, node: str) -> None:
        self.site = site
        self.steady = steady
        self.node = node
        self.unsaid = 0
        """Times we could not even tell our own broker."""
        self._heard_ms: dict[str, int] = {}
        self._subscription: Subscription | None = None

    async def run(self) -> None:
        if self._subscription is None:
            self._subscription = await self.site.subscribe(subjects.ALL_NEIGHBOURS, self._hear)
        while True:
            try:
                await self.site.publish(subjects.neighbour(self.node), b"")
            except FabricUnavailable:
                self.unsaid += 1
            await asyncio.sleep(EVERY_S)

    async def _hear(self, message: Message) -> None:
        name = message.subject.rpartition(".")[2]
        if name == self.node or (name not in self._heard_ms and len(self._heard_ms) >= MOST):
            return
        self._heard_ms[name] = self.steady.monotonic_ms()

    def hears(self) -> dict[str, int]:
        """Name and age in milliseconds, of those heard lately."""
        now_ms = self.steady.monotonic_ms()
        self._heard_ms = {name: at for name, at in self._heard_ms.items() if now_ms - at <= FORGET_AFTER_MS}
        return {name: now_ms - at for name, at in sorted(self._heard_ms.items())}


def links(assignment: Assignment | None) -> tuple[str, ...]:
    """Addresses of the earlier nodes, in the order of joining: what our broker's SITE link tries, first to last."""
    if assignment is None:
        return ()
    addresses = {peer.node: peer.address for peer in assignment.peers}
    return tuple(addresses[elder] for elder in assignment.elders if addresses.get(elder))


def served(assignment: Assignment | None, node: str) -> tuple[str, ...]:
    """Nodes whose inboxes an instance here serves: this one first, then its neighbours."""
    return (node, *(peer.node for peer in assignment.peers)) if assignment is not None else (node,)
