"""Exchange: files between the nodes of a site, chunk by chunk, without the hub.

Who collects a file says on its card what it has and what it has asked of the hub, once a second and when that changes.
Who holds the file whole answers such a card with its own. Chunks are then asked for, node by node. A node gives only
what it holds verified, and looks at it once more; who asks looks at it as well: wrong bytes are refused, counted and
said, and who sent them is not asked again for a while. Nor is who does not answer.
"""

from __future__ import annotations

import asyncio
import contextlib
from typing import TYPE_CHECKING, Final, Protocol

import msgspec

from batuta.core.delivery import LOST_AFTER_MS, Peer
from batuta.core.reasons import Reason
from batuta.errors import ArtifactRefused, FabricUnavailable
from batuta.fabric import subjects
from batuta.fabric.chunks import CARD_BYTES_MAX, Card, ChunksWanted, RecipeWanted, from_bits, head_of, line, split

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from batuta.fabric.base import Fabric, Message, Subscription

ASK_TIMEOUT_S: Final = 10.0
SILENT_FOR_MS: Final = 30_000
"""Who did not answer is not asked for so long."""
LACKING_FOR_MS: Final = 3_000
"""Nor who did not have what its card said, or had no time."""
LIED_FOR_MS: Final = 600_000
CHUNKS_MOST: Final = 8
"""In one answer to a neighbour."""
TOTAL_MOST: Final = 1 << 20
PEERS_MOST: Final = 64
WHOLE_EVERY_MS: Final = 1_000


class Holdings(Protocol):
    """What this node can give. Each answer was looked at when it was read."""

    def is_whole(self, digest: str) -> tuple[str, int] | None:
        """The recipe's digest and the number of chunks of a file that is here whole; None when it is not."""
        ...

    async def give(self, digest: str, recipe: str, chunks: Sequence[int]) -> list[bytes]:
        """Chunks; fewer than asked for where some are not here."""
        ...

    async def give_recipe(self, digest: str, offset: int, length: int) -> tuple[int, str, int, bytes]:
        """Size of the file, digest and size of its recipe, and a part of that. Raises ArtifactRefused."""
        ...

    async def card(self, digest: str) -> Card:
        """What is here of a file, and whether more is on its way."""
        ...


class Exchange:
    """One node's side of it."""

    def __init__(self, site: Fabric, node: str, hears: Callable[[], object]) -> None:
        self.site = site
        self.node = node
        self.hears = hears
        """Truthy when somebody else of the site is heard."""
        self.holdings: Holdings | None = None
        self.given_bytes = 0
        self.lies = 0
        """Answers of neighbours that were not what was asked for."""
        self.unread = 0
        """Cards and questions that could not be read."""
        self._peers: dict[str, dict[str, tuple[Card, Peer]]] = {}
        """By file, then node: of files that are being collected here."""
        self._wakes: dict[str, Callable[[bool], None]] = {}
        self._shunned: dict[str, tuple[int, Reason | None]] = {}
        """By node: until when, and why if it matters to people."""
        self._said_whole: dict[str, int] = {}
        self._subscriptions: list[Subscription] = []

    @property
    def has_neighbours(self) -> bool:
        return bool(self.hears())

    async def run(self) -> None:
        """Hear and answer, until cancelled."""
        if not self._subscriptions:
            self._subscriptions.append(await self.site.subscribe(subjects.ALL_FILES, self._hear))
            self._subscriptions.append(await self.site.subscribe(subjects.chunks(self.node), self._answer))
        await asyncio.Event().wait()

    def problems(self) -> tuple[Reason, ...]:
        """Neighbours that are not asked because of what they sent."""
        now = _now()
        self._shunned = {node: (until, why) for node, (until, why) in self._shunned.items() if until > now}
        return tuple(why for _, (_, why) in sorted(self._shunned.items()) if why is not None)

    # --- Collecting ---

    def begin(self, digest: str, wake: Callable[[bool], None]) -> None:
        """From now on cards about this file are kept, and each is news: True when it is the first of its node."""
        self._peers[digest], self._wakes[digest] = {}, wake

    def end(self, digest: str) -> None:
        self._peers.pop(digest, None)
        self._wakes.pop(digest, None)

    def peers(self, digest: str, recipe: str) -> list[Peer]:
        """Neighbours that have something of a file by this recipe, and are worth asking."""
        now = _now()
        return [
            peer
            for node, (card, peer) in sorted(self._peers.get(digest, {}).items())
            if card.recipe in (recipe, "") and self._shunned.get(node, (0, None))[0] <= now
        ]

    def knows_recipe(self, digest: str) -> str:
        """A neighbour that has the recipe of a file; empty when there is none."""
        now = _now()
        for node, (card, peer) in sorted(self._peers.get(digest, {}).items()):
            if card.recipe and now - peer.heard_at <= LOST_AFTER_MS and self._shunned.get(node, (0, None))[0] <= now:
                return node
        return ""

    async def say(self, card: Card) -> None:
        # While our own broker is away nothing is said: the next card is due soon, and nothing depends on this one.
        with contextlib.suppress(FabricUnavailable):
            await self.site.publish(subjects.files(self.node), msgspec.json.encode(card))

    async def chunks(self, node: str, wanted: ChunksWanted) -> list[memoryview[int]]:
        """Chunks of a neighbour, not yet checked. Raises FabricUnavailable or ArtifactRefused; it is shunned then."""
        try:
            answer = await self.site.request(subjects.chunks(node), msgspec.json.encode(wanted), ASK_TIMEOUT_S)
            head, data = head_of(answer)
            found = split(head.sizes, data)
        except FabricUnavailable:
            self._shun(node, SILENT_FOR_MS)
            raise
        except ValueError as error:
            self.lied(node, str(error))
            raise ArtifactRefused("artifact_missing", f"{node}: {error}") from error
        if head.error or len(found) > len(wanted.chunks):
            self._shun(node, LACKING_FOR_MS)
            raise ArtifactRefused("artifact_missing", f"{node}: {head.error}")
        if len(found) < len(wanted.chunks):
            self._shun(node, LACKING_FOR_MS)
        return found

    async def recipe(self, node: str, wanted: RecipeWanted) -> tuple[int, str, int, bytes]:
        """A part of the recipe that a neighbour has, and what it says of the whole."""
        try:
            answer = await self.site.request(
                subjects.chunks(node), msgspec.json.encode({"recipe_of": wanted}), ASK_TIMEOUT_S
            )
            head, data = head_of(answer)
        except FabricUnavailable:
            self._shun(node, SILENT_FOR_MS)
            raise
        except ValueError as error:
            self.lied(node, str(error))
            raise ArtifactRefused("artifact_missing", f"{node}: {error}") from error
        if head.error or head.size < 0 or head.bytes < 0 or not head.recipe:
            self._shun(node, LACKING_FOR_MS)
            raise ArtifactRefused("artifact_missing", f"{node}: {head.error}")
        return head.size, head.recipe, head.bytes, bytes(data)

    def lied(self, node: str, detail: str) -> None:
        """Its bytes were not what was asked for."""
        self.lies += 1
        self._shun(node, LIED_FOR_MS, Reason(code="neighbour_lied", subject=f"node/{node}", detail=detail[:200]))

    def _shun(self, node: str, for_ms: int, why: Reason | None = None) -> None:
        until, before = self._shunned.get(node, (0, None))
        self._shunned[node] = (max(until, _now() + for_ms), why or before)

    # --- Hearing ---

    async def _hear(self, message: Message) -> None:
        node = message.subject.rpartition(".")[2]
        if node == self.node:
            return
        try:
            if len(message.data) > CARD_BYTES_MAX:
                raise ValueError("a card of too many bytes")
            card = msgspec.json.decode(message.data, type=Card)
            if not 0 <= card.count <= TOTAL_MOST:
                raise ValueError("a card of too many chunks")
        except (msgspec.MsgspecError, ValueError):
            self.unread += 1
            return
        if card.digest in self._wakes:
            self._note(node, card)
        elif card.wants and self.holdings is not None and (whole := self.holdings.is_whole(card.digest)) is not None:
            now = _now()
            if now - self._said_whole.get(card.digest, -WHOLE_EVERY_MS) >= WHOLE_EVERY_MS:
                self._said_whole = {d: at for d, at in self._said_whole.items() if now - at < WHOLE_EVERY_MS}
                self._said_whole[card.digest] = now
                await self.say(Card(digest=card.digest, recipe=whole[0], count=whole[1], whole=True))

    def _note(self, node: str, card: Card) -> None:
        known, now = self._peers[card.digest], _now()
        before = known[node][1] if node in known else None
        if before is None and len(known) >= PEERS_MOST:
            return
        has = (1 << card.count) - 1 if card.whole else from_bits(card.has, card.count)
        known[node] = card, Peer(
            node=node, has=has, claims=from_bits(card.claims, card.count), wants=card.wants,
            since=before.since if before is not None and before.wants else now, heard_at=now,
            moved_at=now if before is None or has != before.has else before.moved_at,
        )  # fmt: skip
        self._wakes[card.digest](before is None)

    async def _answer(self, message: Message) -> None:
        answer = await self.answer_to(message.data)
        with contextlib.suppress(FabricUnavailable):  # whoever asked asks somebody else
            await message.respond(answer)

    async def answer_to(self, data: bytes) -> bytes:
        """A question of a neighbour, or of a node of the region."""
        try:
            asked = msgspec.json.decode(data, type=_Asked)
        except msgspec.MsgspecError as error:
            self.unread += 1
            return line({"error": "request_malformed", "message": str(error)[:200]})
        if self.holdings is None:
            return line({"error": "artifact_missing"})
        try:
            if asked.recipe_of is not None:
                wanted = asked.recipe_of
                size, recipe, length, piece = await self.holdings.give_recipe(
                    wanted.digest, wanted.offset, wanted.length
                )
                self.given_bytes += len(piece)
                return line({"size": size, "recipe": recipe, "bytes": length}) + piece
            if asked.card_of:
                return msgspec.json.encode(await self.holdings.card(asked.card_of))
            found = await self.holdings.give(asked.digest, asked.recipe, asked.chunks[:CHUNKS_MOST])
            if asked.most and len(found) == 1:
                found = [found[0][max(0, asked.begin) : max(0, asked.begin) + asked.most]]
        except ArtifactRefused as error:
            return line({"error": error.code, "message": error.message})
        except OSError as error:
            return line({"error": "artifact_missing", "message": str(error.strerror)})
        if not found:
            return line({"error": "artifact_missing"})
        self.given_bytes += sum(map(len, found))
        return b"".join((line({"sizes": [len(chunk) for chunk in found]}), *found))


class _Asked(msgspec.Struct, frozen=True):
    """One of the three questions: ChunksWanted, a recipe, a card."""

    digest: str = ""
    chunks: tuple[int, ...] = ()
    recipe: str = ""
    begin: int = 0
    most: int = 0
    recipe_of: RecipeWanted | None = None
    card_of: str = ""


def _now() -> int:
    """Milliseconds of the running loop: virtual where time is."""
    return int(asyncio.get_running_loop().time() * 1000)
