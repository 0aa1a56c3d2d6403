"""Gravity: how many messages of the watched patterns, and how many bytes, were first published at this node's broker.

Placement puts components near what they read, so it must know where that is published. Only what our own broker took
from a device counts: it says such messages once more below `$MQTT.msgs`, which no link carries. Frames are large and
the agent is small, so it listens one second in ten and multiplies: an estimate, which is all that placement asks for.
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Final

from batuta.errors import FabricUnavailable
from batuta.fabric import subjects
from batuta.kinds.topics import why_not_input

if TYPE_CHECKING:
    from batuta.fabric.base import Fabric, Handler, Message, Subscription

LISTEN_S: Final = 1.0
EVERY_S: Final = 10.0
TIMES: Final = round(EVERY_S / LISTEN_S)
MOST: Final = 256


class Gravity:
    """Counts by pattern, from the start of this agent."""

    def __init__(self, site: Fabric) -> None:
        self.site = site
        self.watched: tuple[str, ...] = ()
        self.counts: dict[str, int] = {}
        self.bytes: dict[str, int] = {}

    def follow(self, watched: tuple[str, ...]) -> None:
        """From now on these patterns; counts of others are forgotten."""
        self.watched = tuple(topic for topic in watched if why_not_input(topic) is None)[:MOST]
        self.counts = {topic: self.counts.get(topic, 0) for topic in self.watched}
        self.bytes = {topic: self.bytes.get(topic, 0) for topic in self.watched}

    def topics(self) -> dict[str, int]:
        """Those of which anything was heard."""
        return {topic: count for topic, count in self.counts.items() if count}

    def topic_bytes(self) -> dict[str, int]:
        """What these came to."""
        return {topic: count for topic, count in self.bytes.items() if count}

    async def run(self) -> None:
        while True:
            if self.watched:
                await self._listen(self.watched)
            await asyncio.sleep(EVERY_S - LISTEN_S)

    async def _listen(self, watched: tuple[str, ...]) -> None:
        subscriptions: list[Subscription] = []
        try:
            for topic in watched:
                for subject in subjects.subjects_of_topic_filter(topic):
                    heard = self._counting(topic)
                    subscriptions.append(await self.site.subscribe(subjects.kept(subject), heard))
            await asyncio.sleep(LISTEN_S)
        finally:
            for subscription in subscriptions:
                try:
                    await subscription.close()
                except FabricUnavailable:
                    continue

    def _counting(self, topic: str) -> Handler:
        async def heard(message: Message) -> None:
            if topic in self.counts:
                self.counts[topic] += TIMES
                self.bytes[topic] += TIMES * len(message.data)

        return heard
