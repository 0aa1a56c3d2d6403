"""Shipping: what nodes ask of artifacts, answered fairly. Nodes take turns; nobody's questions fill the hub.

recipe     RecipeWanted -> `{"size", "recipe", "bytes"}` and a part of the recipe
chunks     ChunksWanted -> `{"sizes": […]}` and the bytes of the chunks

Either may be answered by `{"error", …}`: with `untilMs` when it is not for ever, such as while an uplink is closed.
"""

from __future__ import annotations

import asyncio
import logging
from collections import deque
from typing import TYPE_CHECKING, Any, Final

import msgspec

from batuta.errors import ArtifactRefused, BatutaError, FabricUnavailable
from batuta.fabric.chunks import ChunksWanted, RecipeWanted
from batuta.fabric.tasks import end
from batuta.hub.recipes import RECORD_BYTES

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from batuta.core.uplink import Held
    from batuta.fabric.base import Message
    from batuta.hub.counters import Counters
    from batuta.hub.recipes import Recipes
    from batuta.hub.uplinks import Uplinks

log = logging.getLogger(__name__)

AT_ONCE: Final = 4
"""So many answers are on their way at a time."""
WAITING_MOST: Final = 16
"""Questions of one node; a node asks far fewer."""
MAKING_S: Final = 1.0
"""So long a question waits for a recipe that is being made."""
HELD_LEAST_MS: Final = 1_000
HELD_MOST_MS: Final = 30_000
"""A node asks again after so long at the latest: priorities, windows and budgets may have been changed meanwhile."""


class Shipping:
    """Answers questions about artifacts."""

    def __init__(self, recipes: Recipes, uplinks: Uplinks, counters: Counters) -> None:
        self._recipes = recipes
        self._uplinks = uplinks
        self._counters = counters
        self._waiting: dict[str, deque[tuple[str, Message]]] = {}
        """By node; the first node of the list is the next to be answered."""
        self._tasks: set[asyncio.Task[None]] = set()
        self.verbs: dict[str, Callable[[str, bytes], Awaitable[bytes]]] = {
            "recipe": self._recipe,
            "chunks": self._chunks,
        }

    async def take(self, node: str, verb: str, message: Message) -> None:
        """A question, to be answered when it is the node's turn."""
        queue = self._waiting.setdefault(node, deque())
        if len(queue) >= WAITING_MOST:
            self._counters.add("asks_refused", "busy")
            await message.respond(error_line("busy", f"{len(queue)} questions of {node} wait already"))
            return
        queue.append((verb, message))
        self._go_on()

    async def close(self) -> None:
        self._waiting.clear()
        await end(*self._tasks)

    def _go_on(self) -> None:
        while len(self._tasks) < AT_ONCE and self._waiting:
            node, queue = next(iter(self._waiting.items()))
            verb, message = queue.popleft()
            del self._waiting[node]
            if queue:
                self._waiting[node] = queue  # behind all others
            task = asyncio.create_task(self._answer(node, verb, message))
            self._tasks.add(task)
            task.add_done_callback(self._done)

    def _done(self, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        self._go_on()

    async def _answer(self, node: str, verb: str, message: Message) -> None:
        try:
            answer = await self.verbs[verb](node, message.data)
        except BatutaError as error:
            self._counters.add("asks_refused", verb)
            answer = error_line(getattr(error, "code", "failed"), error.message, error.next_step)
        except Exception:  # one question that nobody foresaw must not leave its node without a word
            log.exception("%s of %s could not be answered", verb, node)
            self._counters.add("asks_refused", "failed")
            answer = error_line("failed", "the hub could not answer; see its log")
        try:
            await message.respond(answer)
        except FabricUnavailable:
            self._counters.add("answers_unsent")

    async def _recipe(self, node: str, data: bytes) -> bytes:
        asked = _decoded(data, RecipeWanted)
        try:
            async with asyncio.timeout(MAKING_S):
                recipe, piece = await self._recipes.piece(asked.digest, asked.offset, asked.length)
        except TimeoutError:
            # A large file takes its time, and nobody else's turn.
            return msgspec.json.encode({"error": "preparing", "untilMs": HELD_LEAST_MS}) + b"\n"
        self._uplinks.spend(node, len(piece))
        head = {"size": recipe.size_bytes, "recipe": recipe.digest, "bytes": recipe.chunks * RECORD_BYTES}
        return msgspec.json.encode(head) + b"\n" + piece

    async def _chunks(self, node: str, data: bytes) -> bytes:
        asked = _decoded(data, ChunksWanted)
        if (held := self._uplinks.held(node, asked.digest)) is not None:
            return held_line(held, self._uplinks.now())
        found = await self._recipes.chunks(asked.digest, asked.chunks, asked.recipe)
        if asked.begin or asked.most:
            if len(found) != 1 or asked.begin < 0 or asked.most <= 0:
                raise ArtifactRefused("request_malformed", "a part is of one chunk, from its beginning or later")
            found = [found[0][asked.begin : asked.begin + asked.most]]
        size = sum(map(len, found))
        self._counters.add("artifact_bytes_sent", by=size)
        self._uplinks.spend(node, size)
        return b"".join((msgspec.json.encode({"sizes": [len(chunk) for chunk in found]}), b"\n", *found))


def _decoded(data: bytes, kind: type[Any]) -> Any:
    try:
        return msgspec.json.decode(data, type=kind)
    except msgspec.MsgspecError as error:
        raise ArtifactRefused("request_malformed", str(error)) from None


def held_line(held: Held, now: int) -> bytes:
    """Not now."""
    wait_ms = HELD_MOST_MS if held.until is None else held.until - now
    said = {
        "error": held.reason.code, "message": held.reason.detail, "subject": held.reason.subject,
        "untilMs": max(HELD_LEAST_MS, min(HELD_MOST_MS, wait_ms)),
    }  # fmt: skip
    return msgspec.json.encode(said) + b"\n"


def error_line(code: str, message: str, next_step: str = "") -> bytes:
    """A no, with its reason."""
    said: dict[str, Any] = {"error": code, "message": message}
    if next_step:
        said["nextStep"] = next_step
    return msgspec.json.encode(said) + b"\n"
