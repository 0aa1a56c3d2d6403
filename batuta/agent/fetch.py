"""Fetch: one file on its way to this node, chunk by chunk, from whoever has it.

What to ask of whom says `core.delivery`; here it is asked, and what comes is checked before it is written. A cut, a
restart or a kill loses what was on its way and nothing that had come. The pace to the hub follows the delay: when
answers take longer than they could, somebody else needs the link, and orders and heartbeats go first.
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Final, NamedTuple, Protocol, TypeVar

import msgspec

from batuta.agent.pace import PAUSE_FIRST_MS, PAUSE_MOST_MS, Pace
from batuta.agent.progress import Progress
from batuta.agent.recipe import found_in
from batuta.core.delivery import HUB, REGION, STALLED_AFTER_MS, Plan, View, brought, plan
from batuta.errors import ArtifactRefused, BatutaError, FabricUnavailable
from batuta.fabric.chunks import Card, ChunksWanted, RecipeWanted, bits

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Sequence
    from pathlib import Path

    from batuta.agent.exchange import Exchange
    from batuta.agent.partial import Partial
    from batuta.agent.recipe import Recipe
    from batuta.agent.region import Region
    from batuta.core.delivery import Ask
    from batuta.core.reasons import Reason

    Bytes = bytes | memoryview[int]

LOOK_EVERY_S: Final = 0.5
PLAN_EVERY_S: Final = 0.005
"""However much happens: cards and answers that come together are looked at together."""
CARD_EVERY_MS: Final = 1_000
CARD_AGAIN_MS: Final = 250
CARD_BYTES_A_MS: Final = 40
"""Cards of large files are said less often."""
LATE_AFTER_S: Final = 5.0
"""After the link is back, what was asked before may still come for so long; longer where answers take longer."""
LATE_UNKNOWN_S: Final = 20.0
TOLD_EVERY_MS: Final = 3_000
RECIPE_PIECE_BYTES: Final = 128 * 1024
RECIPE_BYTES_MAX: Final = 64 * 2**20
SIZE_MOST: Final = 1 << 40
"""Sizes that others declare are bounded."""
T = TypeVar("T")


class Held(BatutaError):
    """The hub has it and does not send it now."""

    def __init__(self, reason: Reason | None, until_ms: int) -> None:
        super().__init__(str(reason or "not yet"))
        self.reason = reason
        self.until_ms = until_ms
        """Ask again after so long."""


class Part(NamedTuple):
    """A part of a recipe, and what it is a recipe of."""

    size_bytes: int
    """Of the artifact."""
    recipe: str
    recipe_bytes: int
    data: bytes


class Source(Protocol):
    """The hub. Raises FabricUnavailable when it cannot be asked, ArtifactRefused when it says no, Held when not yet."""

    @property
    def is_connected(self) -> bool: ...

    async def recipe(self, digest: str, offset: int, length: int) -> Part: ...

    async def chunks(self, wanted: ChunksWanted) -> Sequence[Bytes]: ...


class Run(Protocol):
    """How disk work is done: in a thread, or at once where time is virtual."""

    async def __call__(self, work: Callable[..., T], *arguments: object) -> T: ...


class Fetch:
    """One file under way. `run` returns when all of it is in `partial`."""

    def __init__(
        self, digest: str, *, node: str, source: Source, exchange: Exchange | None, run: Run, told: Callable[[], None],
        region: Region | None = None,
    ) -> None:  # fmt: skip
        self.digest = digest
        self.node = node
        self.source = source
        self.exchange = exchange
        self.region = region
        self.in_thread = run
        self.told = told
        """Called when there is something new to tell people."""
        self.progress: Progress | None = None
        self.partial: Partial | None = None
        self.recipe_from = HUB
        """Who gave the recipe."""
        self.is_recipe_of_region = False
        self.refused = 0
        """Chunks whose bytes were not what the recipe says."""
        self.fetched_bytes = 0
        self.hub_bytes = 0
        """Those of them that came from the hub."""
        self.region_bytes = 0
        """And from the region."""
        self._asked: dict[str, int] = {}
        self._tasks: dict[asyncio.Task[None], str] = {}
        self._wake = asyncio.Event()
        self._failure: Exception | None = None
        self._began = _now()
        self._settled = self._began
        self._pace = Pace()
        self._card_at = self._told_at = -CARD_EVERY_MS
        self._card_has = -1

    def begin(self) -> None:
        """Say that it is wanted, so that all who want it know of each other."""
        if self.exchange is not None:
            self.exchange.begin(self.digest, self._heard)
        if self.region is not None:
            self.region.begin(self.digest, self._wake.set)

    def end(self) -> None:
        for task in self._tasks:
            task.cancel()
        if self.exchange is not None:
            self.exchange.end(self.digest)
        if self.region is not None:
            self.region.end(self.digest)

    def _heard(self, is_new: bool) -> None:
        if is_new:
            self._card_at = -CARD_EVERY_MS * 1_000  # it knows nothing of us yet, and had better before it asks the hub
        self._wake.set()

    def reconnected(self) -> None:
        """The link to the hub is back: what was lost in the gap is asked again soon, not after a minute's silence."""
        before = [task for task, source in self._tasks.items() if source == HUB]
        late_s = max(LATE_AFTER_S, 3 * self._pace.last_ms / 1000) if self._pace.last_ms else LATE_UNKNOWN_S
        asyncio.get_running_loop().call_later(late_s, lambda: [task.cancel() for task in before])
        self._pace.open()
        self._settled = _now()
        self._wake.set()

    # --- The list ---

    async def say_wanted(self) -> None:
        if self.exchange is not None:
            await self.exchange.say(Card(digest=self.digest, wants=True))

    async def fetch_recipe(self, path: Path) -> tuple[int, str]:
        """Bring the recipe into a file; returns the artifact's size and the recipe's digest. From the hub; from a
        neighbour while the hub cannot be asked."""
        pause_ms = PAUSE_FIRST_MS
        while True:
            try:
                return await self._recipe_of(lambda at, most: self.source.recipe(self.digest, at, most), path)
            except Held as held:
                await asyncio.sleep(held.until_ms / 1000)
                continue
            except FabricUnavailable:
                await self.say_wanted()
            if (found := await self._region_recipe(path)) is not None:
                return found
            node = self.exchange.knows_recipe(self.digest) if self.exchange is not None else ""
            if self.exchange is not None and node:
                try:
                    found = await self._recipe_of(self._neighbour_recipe(node), path)
                except (FabricUnavailable, ArtifactRefused):
                    continue  # it is not asked again for a while
                self.recipe_from = node
                return found
            await asyncio.sleep(pause_ms / 1000)
            pause_ms = min(PAUSE_MOST_MS, pause_ms * 2)

    def _neighbour_recipe(self, node: str) -> Callable[[int, int], object]:
        async def ask(offset: int, length: int) -> Part:
            assert self.exchange is not None
            return Part(*await self.exchange.recipe(node, RecipeWanted(self.digest, offset, length)))

        return ask

    async def _region_recipe(self, path: Path) -> tuple[int, str] | None:
        region = self.region
        if region is None:
            return None

        async def ask(offset: int, length: int) -> Part:
            self.recipe_from, part = await region.recipe(RecipeWanted(self.digest, offset, length))
            return part

        try:
            found = await self._recipe_of(ask, path)
        except (FabricUnavailable, ArtifactRefused):
            self.recipe_from = HUB
            return None
        self.is_recipe_of_region = True
        return found

    async def _recipe_of(self, ask: Callable[[int, int], object], path: Path) -> tuple[int, str]:
        first: Part | None = None
        with path.open("wb") as file:
            while first is None or file.tell() < first.recipe_bytes:
                part: Part = await ask(file.tell(), RECIPE_PIECE_BYTES)  # type: ignore[misc]
                first = first or part
                if (
                    part[:3] != first[:3]
                    or not 0 <= part.size_bytes <= SIZE_MOST
                    or not 0 <= part.recipe_bytes <= RECIPE_BYTES_MAX
                    or file.tell() + len(part.data) > part.recipe_bytes
                    or (not part.data and file.tell() < part.recipe_bytes)
                ):
                    raise ArtifactRefused("artifact_missing", "the parts of the recipe do not fit together")
                file.write(part.data)
        return first.size_bytes, first.recipe

    def recipe_lied(self, detail: str) -> ArtifactRefused:
        """The recipe is not one, or not of this file: whoever gave it is not believed."""
        giver = self.region if self.is_recipe_of_region else self.exchange
        if self.recipe_from != HUB and giver is not None:
            giver.lied(self.recipe_from, f"the list of chunks of {self.digest[:19]}…: {detail}")
        return ArtifactRefused("digest_mismatch", f"from {self.recipe_from or 'the hub'}: {detail}")

    # --- The chunks ---

    async def run(self, recipe: Recipe, partial: Partial, others: Sequence[tuple[Path, Path]], has_bytes: int) -> None:
        """Until every chunk is in. `others`: files here that may have some of them."""
        self.partial = partial
        self.progress = Progress(recipe.size_bytes, has_bytes, _now())
        everything = (1 << recipe.total) - 1
        if others and partial.has != everything:
            places = found_in(recipe, everything & ~partial.has, others)
            copied = await self.in_thread(partial.copy, places)
            found_bytes = sum(c.size_bytes for n, c in enumerate(recipe.chunks()) if copied >> n & 1)
            self.progress.found_here(found_bytes, _now())
            partial.has |= copied
        while partial.has != everything:
            self._wake.clear()
            if self._failure is not None:
                raise self._failure
            now = _now()
            found = self._plan(recipe, partial, now)
            for ask in found.asks:
                self._begin(ask, recipe)
            await self._say(recipe, partial, now)
            self._tell(found, now)
            await asyncio.sleep(PLAN_EVERY_S)
            try:
                async with asyncio.timeout(self._pace.wait_s(_now(), LOOK_EVERY_S)):
                    await self._wake.wait()
            except TimeoutError:
                pass

    def _plan(self, recipe: Recipe, partial: Partial, now: int) -> Plan:
        exchange = self.exchange
        peers = exchange.peers(self.digest, recipe.digest) if exchange is not None else []
        together = 1 + sum(1 for peer in peers if peer.wants)
        return plan(
            View(
                node=self.node,
                total=recipe.total,
                has=partial.has,
                asked=self._asked,
                peers=peers,
                began=self._began,
                now=now,
                has_neighbours=exchange is not None and exchange.has_neighbours,
                hub_asks=self._pace.asks(now, together),
                hub_chunks=self._pace.chunks(together),
                patience_ms=max(STALLED_AFTER_MS, 3 * self._pace.last_ms),
                settled=self._settled if self.source.is_connected else now,
                region=self.region.peers(self.digest, recipe.digest) if self.region is not None else (),
                is_region_open=self.region is not None and self.region.is_open(self.digest),
            )
        )

    def _begin(self, ask: Ask, recipe: Recipe) -> None:
        for n in ask.chunks:
            self._asked[ask.source] = self._asked.get(ask.source, 0) | 1 << n
        if ask.source in (HUB, REGION):
            self._pace.asked(_now())
        task = asyncio.create_task(self._ask(ask, recipe))
        self._tasks[task] = ask.source
        task.add_done_callback(lambda done: self._done(done, ask))

    def _done(self, task: asyncio.Task[None], ask: Ask) -> None:
        del self._tasks[task]
        for n in ask.chunks:
            self._asked[ask.source] &= ~(1 << n)
        if not self._asked[ask.source]:
            del self._asked[ask.source]
        if not task.cancelled() and isinstance(error := task.exception(), Exception):
            self._failure = self._failure or error
        self._wake.set()

    async def _ask(self, ask: Ask, recipe: Recipe) -> None:
        wanted, giver = ChunksWanted(self.digest, ask.chunks, recipe.digest), ask.source
        try:
            if ask.source == HUB:
                found = await self._brought(wanted, recipe, self.source.chunks)
            elif ask.source == REGION:
                giver, found = await self._of_region(wanted, recipe)
            else:
                assert self.exchange is not None
                found = await self.exchange.chunks(ask.source, wanted)
        except FabricUnavailable:
            if ask.source == HUB:
                self._pace.failed(_now())
            return
        except Held as held:
            self._pace.closed(_now() + held.until_ms)
            assert self.progress is not None
            self.progress.held = held.reason
            return
        except ArtifactRefused:
            if ask.source == HUB:
                raise
            return
        await self._keep(ask, found, giver)

    async def _of_region(self, wanted: ChunksWanted, recipe: Recipe) -> tuple[str, Sequence[Bytes]]:
        region, giver = self.region, ""
        assert region is not None

        async def ask(some: ChunksWanted) -> Sequence[Bytes]:
            nonlocal giver
            size = some.most or sum(recipe.chunk(n).size_bytes for n in some.chunks)
            giver, found = await region.chunks(some, size)
            return found

        found = await self._brought(wanted, recipe, ask)
        return giver, found

    async def _brought(
        self, wanted: ChunksWanted, recipe: Recipe, ask: Callable[[ChunksWanted], Awaitable[Sequence[Bytes]]]
    ) -> Sequence[Bytes]:
        """Over the uplink. Over a slow link a chunk is asked for in parts, so that nothing waits behind it for long."""
        part = self._pace.part_bytes
        if not part or len(wanted.chunks) > 1:
            asked_at = _now()
            found = await ask(wanted)
            self._pace.answered(_now() - asked_at, sum(map(len, found)))
            return found
        size, data = recipe.chunk(wanted.chunks[0]).size_bytes, bytearray()
        while len(data) < size:
            asked_at = _now()
            (piece,) = await ask(
                msgspec.structs.replace(wanted, begin=len(data), most=min(self._pace.part_bytes or size, size))
            )
            self._pace.answered(_now() - asked_at, len(piece))
            if not piece:
                break  # it is too short, and will be refused
            data += piece
        return [bytes(data)]

    async def _keep(self, ask: Ask, found: Sequence[Bytes], giver: str) -> None:
        partial, progress = self.partial, self.progress
        assert partial is not None
        assert progress is not None
        progress.held = None if ask.source in (HUB, REGION) else progress.held
        for n, data in zip(ask.chunks, found, strict=False):
            if await self.in_thread(partial.put, n, data):
                if not partial.has >> n & 1:
                    progress.add(giver, len(data))
                partial.has |= 1 << n
                self.fetched_bytes += len(data)
                self.hub_bytes += len(data) if ask.source == HUB else 0
                self.region_bytes += len(data) if ask.source == REGION else 0
                continue
            self.refused += 1
            if ask.source == HUB:
                raise ArtifactRefused(
                    "digest_mismatch", f"chunk {n} from the hub is not what the recipe of {self.digest[:19]}… says"
                )
            said = f"chunk {n} of {self.digest[:19]}…"
            if ask.source == REGION:
                assert self.region is not None
                self.region.lied(giver, said)
            else:
                assert self.exchange is not None
                self.exchange.lied(giver, said)
            self.told()
            return

    # --- Telling ---

    async def _say(self, recipe: Recipe, partial: Partial, now: int) -> None:
        if self.exchange is None:
            return
        rest_ms = recipe.total // 3 // CARD_BYTES_A_MS
        every_ms = CARD_AGAIN_MS if partial.has != self._card_has else CARD_EVERY_MS
        if now - self._card_at < every_ms + rest_ms:
            return
        self._card_at, self._card_has = now, partial.has
        has, claims = bits(partial.has, recipe.total), bits(brought(self._asked), recipe.total)
        await self.exchange.say(
            Card(digest=self.digest, recipe=recipe.digest, count=recipe.total, has=has, claims=claims, wants=True)
        )

    def _tell(self, found: Plan, now: int) -> None:
        assert self.progress is not None
        self.progress.awaited = found.awaited
        if not found.held_back and not brought(self._asked):
            self.progress.held = None
        if now - self._told_at >= TOLD_EVERY_MS:
            self._told_at = now
            self.progress.mark(now)
            self.told()


def _now() -> int:
    return int(asyncio.get_running_loop().time() * 1000)
