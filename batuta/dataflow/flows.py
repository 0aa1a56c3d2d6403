"""All data flows of a node, as its agent keeps them: stores on its broker, and a forwarder for each that goes up."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

from batuta.dataflow.forward import Forwarder
from batuta.dataflow.inbox import Inbox
from batuta.fabric.tasks import end

if TYPE_CHECKING:
    from collections.abc import Iterable

    from nats.aio.client import Client

    from batuta.core.decided import Capture
    from batuta.core.observed import Flow
    from batuta.dataflow.forward import PublishUp
    from batuta.dataflow.stores import Room

AGAIN_AFTER_S = 1.0


class Flows:
    """`follow` what the assignment says, `run` for ever, and read the `books`."""

    def __init__(self, client: Client, node: str, publish_up: PublishUp, room: Room | None = None) -> None:
        """`client` is connected to the node's own broker, account SITE (see `dataflow.connect`)."""
        self.inbox = Inbox(client, node, room)
        self.forwarders: dict[str, Forwarder] = {}
        """By first level of the output topics."""
        self.faults: dict[str, int] = {}
        """How often a forwarder failed in a way it should not have, and was begun again."""
        self._client = client
        self._node = node
        self._publish_up = publish_up
        self._tasks: dict[str, asyncio.Task[None]] = {}

    def follow(self, captures: Iterable[Capture]) -> None:
        """From now on these; begins and ends no task, so it may be called at any time."""
        self.inbox.follow(captures)

    async def run(self) -> None:
        keeping = asyncio.create_task(self.inbox.run(), name="inbox")
        try:
            while not keeping.done():
                self._tend()
                await asyncio.wait({keeping}, timeout=AGAIN_AFTER_S)
            keeping.result()
        finally:
            await end(keeping, *self._tasks.values())
            self._tasks.clear()

    def _tend(self) -> None:
        """A forwarder for every root that forwards; one whose captures are gone still sends what is left."""
        for root, forwards in self.inbox.roots.items():
            if forwards and root not in self.forwarders:
                self.forwarders[root] = Forwarder(self._client, self._node, root, self._publish_up)
        for root, forwarder in self.forwarders.items():
            task = self._tasks.get(root)
            if task is not None and task.done() and not task.cancelled() and task.exception() is not None:
                self.faults[root] = self.faults.get(root, 0) + 1
            if task is None or task.done():
                self._tasks[root] = asyncio.create_task(forwarder.run(), name=f"forward {root}")

    def books(self) -> tuple[Flow, ...]:
        return (*self.inbox.books(), *(each.books() for _, each in sorted(self.forwarders.items())))
