"""Posting: answers handed to the stores that keep them, and the word that they are kept.

Nothing here waits while answers are handed over, so those of a whole batch leave in one write. The client's own way of
doing this pauses at each of them, which costs a write and a wake-up of the broker for every message.
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

import msgspec

if TYPE_CHECKING:
    from collections.abc import Mapping

    from nats.aio.client import Client
    from nats.aio.msg import Msg

PENDING_MAX = 65_536


class NotKept(Exception):
    """The store refused, or nobody keeps that subject."""


class _Error(msgspec.Struct):
    description: str = ""
    code: int = 0


class Word(msgspec.Struct):
    """What a store says."""

    duplicate: bool = False
    """It had one of this name already."""
    error: _Error | None = None


class Posting:
    """One client's way to all stores of the site."""

    def __init__(self, client: Client) -> None:
        self._client = client
        self._inbox = client.new_inbox()
        self._waiting: dict[str, asyncio.Future[Word]] = {}
        self._count = 0
        self._decoder = msgspec.json.Decoder(Word)
        self._loop = asyncio.get_running_loop()

    async def begin(self) -> None:
        await self._client.subscribe(
            f"{self._inbox}.*", cb=self._hear, pending_msgs_limit=PENDING_MAX, pending_bytes_limit=0
        )

    async def post(self, subject: str, data: bytes, headers: Mapping[str, str]) -> asyncio.Future[Word]:
        """The future has the store's word, or NotKept. Whoever does not wait any longer cancels it."""
        self._count += 1
        number = str(self._count)
        found: asyncio.Future[Word] = self._loop.create_future()
        self._waiting[number] = found
        found.add_done_callback(lambda _: self._waiting.pop(number, None))
        try:
            await self._client.publish(subject, data, f"{self._inbox}.{number}", dict(headers))
        except BaseException:
            found.cancel()
            raise
        return found

    async def _hear(self, message: Msg) -> None:
        found = self._waiting.get(message.subject.rpartition(".")[2])
        if found is None or found.done():
            return
        if (message.headers or {}).get("Status") == "503":
            found.set_exception(NotKept("nobody keeps it"))
            return
        try:
            word = self._decoder.decode(message.data)
        except (msgspec.MsgspecError, UnicodeDecodeError) as error:
            found.set_exception(NotKept(f"an answer that is none: {error}"))
            return
        if word.error is not None:
            found.set_exception(NotKept(f"{word.error.description} ({word.error.code})"))
        else:
            found.set_result(word)
