"""Region: files from nodes of other sites, which the hub named and which are nearer than the hub.

While a file is collected, each of these nodes is asked once a second what it has of it, and then for chunks. What comes
is looked at by whoever asked for it, as with neighbours: who sent wrong bytes is counted, said, and not asked for a
while. So the region can only save time. Who is there is remembered, for when the hub is away.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from typing import TYPE_CHECKING, Any, Final

import msgspec

from batuta.agent.exchange import LIED_FOR_MS, SILENT_FOR_MS, TOTAL_MOST
from batuta.agent.fetch import Held, Part
from batuta.agent.tunnelling import Tunnel
from batuta.core.delivery import Peer
from batuta.core.reasons import CATALOGUE, Reason
from batuta.core.region import DepotOf, DepotsAnswer, DepotsWanted, PassageWanted
from batuta.errors import ArtifactRefused, FabricUnavailable
from batuta.fabric import subjects
from batuta.fabric.chunks import Card, ChunksWanted, RecipeWanted, from_bits, head_of, split
from batuta.fabric.tasks import end
from batuta.kinds.base import encode_hook

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from batuta.agent.tunnelling import Credentials, Event
    from batuta.fabric.base import Fabric

log = logging.getLogger(__name__)

LOOK_EVERY_MS: Final = 30_000
CARD_EVERY_S: Final = 1.0
WHOLE_EVERY_S: Final = 5.0
FIRST_WORD_MS: Final = 10_000
"""So long a file that was just begun waits for the region's first word, before it goes to the hub."""
ASK_HUB_S: Final = 5.0
CARD_S: Final = 5.0
CONNECT_S: Final = 15.0
CHUNKS_S: Final = 60.0
"""A chunk may take so long on the slowest of links."""
IDLE_S: Final = 30.0
"""The tunnel is kept so long after the last file."""
DEPOTS_MOST: Final = 4
LACKING_MOST: Final = 5
AGAIN_S: Final = 0.3
UNASKED_MS: Final = 2_000
"""While the hub cannot say whether a ruled link is open, it is not."""
AGAIN_MOST_MS: Final = 60_000


class Line:
    """A connection to one node of the region. Answers come in the order of the questions."""

    def __init__(self, conn: int) -> None:
        self.conn = conn
        self.waiting: list[asyncio.Future[bytes]] = []
        self.connected: asyncio.Future[None] = asyncio.get_running_loop().create_future()

    def close(self, why: str) -> None:
        gone = FabricUnavailable(why or "the connection was closed")
        futures: list[asyncio.Future[Any]] = [self.connected, *self.waiting]
        for future in futures:
            if not future.done():
                future.set_exception(gone)
                future.exception()  # nobody need be there any more to hear of it
        self.waiting.clear()


class Sought(msgspec.Struct):
    """What is known of one file that is being collected here."""

    wake: Callable[[], None]
    again: asyncio.Event
    """Look at once who has what."""
    began: int
    task: asyncio.Task[None] | None = None
    has_word: bool = False
    """Everybody who could be asked has answered once, or not."""
    depots: dict[str, DepotOf] = {}
    cards: dict[str, tuple[Card, Peer]] = {}


class Region:
    """One node's way to its region."""

    def __init__(self, control: Fabric, directory: Path, credentials: Callable[[], Credentials]) -> None:
        self.control = control
        self.credentials = credentials
        self.lies = 0
        """Answers that were not what was asked for."""
        self.unanswered = 0
        """Questions to the region that nobody answered, or that were answered with a no."""
        self._file = directory / "region.json"
        self._sought: dict[str, Sought] = {}
        self._lines: dict[str, Line] = {}
        self._lacking: dict[str, int] = {}
        """By node: how often in a row it did not have what its card said."""
        self._next = 1
        self._shunned: dict[str, tuple[int, Reason | None]] = {}
        self._tunnel = Tunnel(self._heard, self._told)
        self._opening = asyncio.Lock()
        self._idle_since = _now()

    async def run(self) -> None:
        """Close the tunnel when nobody needs it, for ever."""
        try:
            while True:
                await asyncio.sleep(IDLE_S)
                if self._tunnel.is_open and not self._sought and _now() - self._idle_since >= IDLE_S * 1000:
                    await self._close()
        finally:
            await end(*(sought.task for sought in self._sought.values()))
            await self._close()

    def problems(self) -> tuple[Reason, ...]:
        now = _now()
        self._shunned = {node: (until, why) for node, (until, why) in self._shunned.items() if until > now}
        return tuple(why for _, (_, why) in sorted(self._shunned.items()) if why is not None)

    def doctor(self) -> dict[str, Any]:
        return {"lies": self.lies, "unanswered": self.unanswered, "pid": self._tunnel.pid}

    # --- Collecting ---

    def begin(self, digest: str, wake: Callable[[], None]) -> None:
        sought = self._sought[digest] = Sought(wake, asyncio.Event(), _now())
        sought.task = asyncio.create_task(self._seek(digest, sought), name=f"region {digest[:19]}")

    def end(self, digest: str) -> None:
        sought = self._sought.pop(digest, None)
        if sought is not None and sought.task is not None:
            sought.task.cancel()
        self._idle_since = _now()

    def is_open(self, digest: str) -> bool:
        """Whether it is not known yet who has something of this file, and will be in a moment."""
        sought = self._sought.get(digest)
        return sought is not None and not sought.has_word and _now() - sought.began < FIRST_WORD_MS

    def peers(self, digest: str, recipe: str) -> list[Peer]:
        """Nodes that have something of a file by this recipe, or will have, and are worth asking."""
        sought, now = self._sought.get(digest), _now()
        return [
            peer
            for node, (card, peer) in sorted(sought.cards.items() if sought is not None else ())
            if card.recipe in (recipe, "") and self._is_worth(node, now)
        ]

    async def chunks(self, wanted: ChunksWanted, size_bytes: int) -> tuple[str, list[memoryview[int]]]:
        """The first of these chunks, not yet checked, and who gave them. Raises Held, FabricUnavailable or
        ArtifactRefused."""
        sought, first = self._sought.get(wanted.digest), wanted.chunks[0]
        has = {peer.node: peer.has for peer in self.peers(wanted.digest, wanted.recipe)}
        for depot in list(sought.depots.values()) if sought is not None else []:
            if not has.get(depot.node, 0) >> first & 1:
                continue
            if depot.is_metered:
                await self._pass(depot, wanted.digest, size_bytes)
            some = tuple(n for n in wanted.chunks if has[depot.node] >> n & 1)
            if some != wanted.chunks[: len(some)]:
                some = wanted.chunks[:1]
            return depot.node, await self._chunks(depot, msgspec.structs.replace(wanted, chunks=some))
        raise ArtifactRefused("artifact_missing", "no node of the region has it")

    async def recipe(self, wanted: RecipeWanted) -> tuple[str, Part]:
        """A part of the recipe, from any node that has it."""
        sought = self._sought.get(wanted.digest)
        for depot in list(sought.depots.values()) if sought is not None else []:
            assert sought is not None
            card, _ = sought.cards.get(depot.node, (None, None))
            if card is None or not card.whole or not self._is_worth(depot.node, _now()):
                continue
            try:
                head, data = head_of(await self._ask(depot, {"recipe_of": wanted}, CHUNKS_S))
            except ValueError as error:
                self.lied(depot.node, str(error))
                continue
            if head.error or head.size < 0 or head.bytes < 0 or not head.recipe:
                self._lacks(depot.node, wanted.digest)
                continue
            return depot.node, Part(head.size, head.recipe, head.bytes, bytes(data))
        raise FabricUnavailable("no node of the region has the recipe")

    def lied(self, node: str, detail: str) -> None:
        """Its bytes were not what was asked for."""
        self.lies += 1
        reason = Reason(code="neighbour_lied", subject=f"node/{node}", detail=f"of the region: {detail}"[:200])
        self._shun(node, LIED_FOR_MS, reason)

    async def _chunks(self, depot: DepotOf, wanted: ChunksWanted) -> list[memoryview[int]]:
        try:
            head, data = head_of(await self._ask(depot, wanted, CHUNKS_S))
            found = split(head.sizes, data)
        except ValueError as error:
            self.lied(depot.node, str(error))
            raise ArtifactRefused("artifact_missing", f"{depot.node}: {error}") from error
        if head.error or len(found) != len(wanted.chunks):
            self.unanswered += 1
            self._lacks(depot.node, wanted.digest)
            raise ArtifactRefused("artifact_missing", f"{depot.node}: {head.error or 'fewer chunks than asked for'}")
        self._lacking.pop(depot.node, None)
        return found

    def _lacks(self, node: str, digest: str) -> None:
        """It did not have what its card said: it may be putting the file in its place just now, and its next card will
        tell. Only who goes on so is not asked for a while."""
        sought = self._sought.get(digest)
        card, peer = sought.cards.get(node, (None, None)) if sought is not None else (None, None)
        if sought is None or card is None or peer is None or not peer.has:
            return  # several questions were under way, and one of them was heard of before
        times = self._lacking[node] = self._lacking.get(node, 0) + 1
        if times >= LACKING_MOST:
            self._lacking.pop(node)
            self._shun(node, SILENT_FOR_MS)
            return
        sought.cards[node] = card, peer._replace(has=0, wants=True, moved_at=_now())
        asyncio.get_running_loop().call_later(AGAIN_S, sought.again.set)

    async def _pass(self, depot: DepotOf, digest: str, size_bytes: int) -> None:
        """What the links between us let through is the hub's to say, and to count."""
        wanted = PassageWanted(digest=digest, node=depot.node, size_bytes=size_bytes)
        subject = subjects.ask(self.control.name, "passage")
        try:
            head, _ = head_of(await self.control.request(subject, msgspec.json.encode(wanted), CHUNKS_S))
        except FabricUnavailable:
            raise Held(None, UNASKED_MS) from None
        except ValueError as error:
            raise ArtifactRefused("artifact_missing", f"the answer from the hub: {error}") from error
        if not head.error:
            return
        if head.until_ms <= 0:
            self._shun(depot.node, SILENT_FOR_MS)
            raise ArtifactRefused("artifact_missing", f"from the hub: {head.message[:200]}")
        reason = None
        if head.error in CATALOGUE:
            reason = Reason(code=head.error, subject=head.subject[:200], detail=head.message[:300])
        raise Held(reason, min(head.until_ms, AGAIN_MOST_MS))

    # --- Who has what ---

    async def _seek(self, digest: str, sought: Sought) -> None:
        looked_at = None
        while True:
            if looked_at is None or _now() - looked_at >= LOOK_EVERY_MS:
                looked_at = _now()
                sought.depots = {each.node: each for each in await self._depots(digest)}
            due = [each for each in sought.depots.values() if self._is_worth(each.node, _now())]
            await asyncio.gather(*(self._look(each, digest, sought) for each in due))
            sought.has_word = True
            sought.wake()
            is_settled = all(card.whole for card, _ in sought.cards.values())
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(WHOLE_EVERY_S if is_settled else CARD_EVERY_S):
                    await sought.again.wait()
            sought.again.clear()

    async def _depots(self, digest: str) -> tuple[DepotOf, ...]:
        try:
            if not self.control.is_connected:
                raise FabricUnavailable("no link to the hub")
            answer = await self.control.request(
                subjects.ask(self.control.name, "depots"), msgspec.json.encode(DepotsWanted(digest=digest)), ASK_HUB_S
            )
            found = msgspec.json.decode(answer, type=DepotsAnswer)
        except (FabricUnavailable, msgspec.MsgspecError):
            self.unanswered += 1
            return self._remembered()
        depots = found.depots[:DEPOTS_MOST]  # none of a hub of an earlier version, which knows nothing of regions
        if depots:
            try:
                self._file.write_bytes(msgspec.json.encode(depots, enc_hook=encode_hook))
            except OSError as error:
                log.warning("who gives files in the region could not be written down: %s", error)
        return depots

    def _remembered(self) -> tuple[DepotOf, ...]:
        try:
            return msgspec.json.decode(self._file.read_bytes(), type=tuple[DepotOf, ...])[:DEPOTS_MOST]
        except (OSError, msgspec.MsgspecError):  # nothing was ever known: the hub it is, when it is back
            return ()

    async def _look(self, depot: DepotOf, digest: str, sought: Sought) -> None:
        try:
            answer = await self._ask(depot, {"card_of": digest}, CARD_S)
            card = msgspec.json.decode(answer, type=Card)
            if card.digest != digest or not 0 <= card.count <= TOTAL_MOST:
                raise ValueError("the card of another file")
        except FabricUnavailable:
            sought.cards.pop(depot.node, None)
            return
        except (msgspec.MsgspecError, ValueError):
            sought.cards.pop(depot.node, None)
            self._shun(depot.node, SILENT_FOR_MS)
            return
        now, before = _now(), sought.cards.get(depot.node, (None, None))[1]
        has = (1 << card.count) - 1 if card.whole else from_bits(card.has, card.count)
        if before is None or before.has != has:
            sought.wake()
        sought.cards[depot.node] = card, Peer(
            # Who is to have it and has nothing yet is only a moment behind us.
            node=depot.node, has=has, claims=0, wants=card.wants or (depot.is_due and not has),
            since=before.since if before is not None else now, heard_at=now,
            moved_at=now if before is None or before.has != has else before.moved_at,
        )  # fmt: skip

    def _is_worth(self, node: str, now: int) -> bool:
        return self._shunned.get(node, (0, None))[0] <= now

    def _shun(self, node: str, for_ms: int, why: Reason | None = None) -> None:
        until, before = self._shunned.get(node, (0, None))
        self._shunned[node] = (max(until, _now() + for_ms), why or before)

    # --- Asking ---

    async def _ask(self, depot: DepotOf, question: Any, timeout_s: float) -> bytes:
        try:
            line = await self._line(depot)
            answer: asyncio.Future[bytes] = asyncio.get_running_loop().create_future()
            line.waiting.append(answer)
            await self._tunnel.send(line.conn, msgspec.json.encode(question))
            async with asyncio.timeout(timeout_s):
                return await asyncio.shield(answer)
        except (FabricUnavailable, TimeoutError) as error:
            self.unanswered += 1
            self._shun(depot.node, SILENT_FOR_MS)
            await self._hang_up(depot.node)
            raise FabricUnavailable(f"{depot.node}: {error or 'no answer'}") from error

    async def _line(self, depot: DepotOf) -> Line:
        async with self._opening:
            if not self._tunnel.is_open:
                await self._close()
                await self._tunnel.open()
            line = self._lines.get(depot.node)
            if line is None:
                host, _, port = depot.address.rpartition(":")
                line = self._lines[depot.node] = Line(self._next)
                self._next += 1
                await self._tunnel.order(
                    "connect", self.credentials(), conn=line.conn, host=host.strip("[]"), port=_port(port),
                    node=depot.node,
                )  # fmt: skip
        async with asyncio.timeout(CONNECT_S):
            await asyncio.shield(line.connected)
        return line

    async def _hang_up(self, node: str) -> None:
        line = self._lines.pop(node, None)
        if line is None:
            return
        line.close("an answer did not come")
        with contextlib.suppress(FabricUnavailable):  # it has ended, and all connections with it
            await self._tunnel.order("close", conn=line.conn)

    async def _close(self) -> None:
        await self._tunnel.close()
        for line in self._lines.values():
            line.close("the tunnel has ended")
        self._lines.clear()

    def _of(self, conn: int) -> tuple[str, Line] | None:
        return next(((node, line) for node, line in self._lines.items() if line.conn == conn), None)

    def _heard(self, conn: int, data: bytes) -> None:
        found = self._of(conn)
        if found is not None and found[1].waiting:
            answer = found[1].waiting.pop(0)
            if not answer.done():
                answer.set_result(data)

    def _told(self, event: Event) -> None:
        if event.type == "ended":
            for line in self._lines.values():
                line.close("the tunnel has ended")
            self._lines.clear()
        found = self._of(event.conn)
        if found is None:
            return
        node, line = found
        if event.type == "connected" and not line.connected.done():
            line.connected.set_result(None)
        elif event.type == "closed":
            del self._lines[node]
            line.close(event.message)


def _port(text: str) -> int:
    return int(text) if text.isascii() and text.isdigit() and len(text) < 6 else 0


def _now() -> int:
    return int(asyncio.get_running_loop().time() * 1000)
