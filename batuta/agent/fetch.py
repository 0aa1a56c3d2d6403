"""Fetch: one file on its way to this node, chunk by chunk, from whoever has it.

What to ask of whom says `core.delivery`; here it is asked, and what comes is checked before it is written. A cut, a
restart or a kill loses what was on its way and nothing that had come. The pace to the hub follows the delay: when
answers take longer than they could, somebody else needs the link, and orders and heartbeats go first.
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Final, NamedTuple, Protocol, TypeVar

from batuta.agent.recipe import found_in
from batuta.core.delivery import CHUNKS_PER_ASK, HUB, STALLED_AFTER_MS, Plan, View, plan
from batuta.core.reasons import Reason
from batuta.errors import ArtifactRefused, BatutaError, FabricUnavailable
from batuta.fabric.chunks import Card, ChunksWanted, bits

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from pathlib import Path

    from batuta.agent.exchange import Exchange
    from batuta.agent.partial import Partial
    from batuta.agent.recipe import Recipe
    from batuta.core.delivery import Ask

LOOK_EVERY_S: Final = 0.5
PLAN_EVERY_S: Final = 0.03
"""However much happens: cards and answers that come together are looked at together."""
CARD_EVERY_MS: Final = 1_000
CARD_AGAIN_MS: Final = 250
CARD_BYTES_A_MS: Final = 40
"""Cards of large files are said less often."""
HUB_ASKS_MOST: Final = 4
SLOWER_BY_MS: Final = 350
"""An answer that takes so much longer than the quickest: then this node asks less."""
GAP_MOST_MS: Final = 10_000
PAUSE_FIRST_MS: Final = 200
PAUSE_MOST_MS: Final = 5_000
LATE_AFTER_S: Final = 5.0
"""After the link is back, what was asked before may still come for so long."""
TOLD_EVERY_MS: Final = 3_000
HERE: Final = "/"
"""The source of what lay in other files here: no node is called so."""
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

    async def recipe(self, digest: str, offset: int, length: int) -> Part: ...

    async def chunks(self, wanted: ChunksWanted) -> Sequence[bytes | memoryview[int]]: ...


class Run(Protocol):
    """How disk work is done: in a thread, or at once where time is virtual."""

    async def __call__(self, work: Callable[..., T], *arguments: object) -> T: ...


class Progress:
    """How far a file is, and where it comes from."""

    def __init__(self, size_bytes: int, has_bytes: int, now: int) -> None:
        self.size_bytes = size_bytes
        self.has_bytes = has_bytes
        self.by_source: dict[str, int] = {}
        """Bytes that came in this run, by source."""
        self.held: Reason | None = None
        """Why the hub does not send it now."""
        self.awaited = 0
        self._marks = [(now, has_bytes)]

    def add(self, source: str, size_bytes: int) -> None:
        self.has_bytes += size_bytes
        self.by_source[source] = self.by_source.get(source, 0) + size_bytes

    def mark(self, now: int) -> None:
        self._marks = [*self._marks[-5:], (now, self.has_bytes)]

    @property
    def text(self) -> str:
        (then, had), (now, has) = self._marks[0], self._marks[-1]
        rate = (has - had) * 1000 // (now - then) if now > then else 0
        words = [f"{_amount(self.has_bytes)} of {_amount(self.size_bytes)}"]
        if rate:
            words.append(f"{_amount(rate)}/s")
        named = sorted(self.by_source.items(), key=lambda pair: -pair[1])
        words += [f"{_amount(size)} {_from(source)}" for source, size in named[:3]]
        if len(named) > 3:
            words.append(f"{_amount(sum(size for _, size in named[3:]))} from {len(named) - 3} more")
        return ", ".join(words)


class Fetch:
    """One file under way. `run` returns when all of it is in `partial`."""

    def __init__(
        self, digest: str, *, node: str, source: Source, exchange: Exchange | None, run: Run, told: Callable[[], None]
    ) -> None:
        self.digest = digest
        self.node = node
        self.source = source
        self.exchange = exchange
        self.in_thread = run
        self.told = told
        """Called when there is something new to tell people."""
        self.progress: Progress | None = None
        self.partial: Partial | None = None
        self.refused = 0
        """Chunks whose bytes were not what the recipe says."""
        self.fetched_bytes = 0
        self._asked: dict[str, int] = {}
        self._tasks: dict[asyncio.Task[None], str] = {}
        self._wake = asyncio.Event()
        self._failure: Exception | None = None
        self._began = _now()
        self._pace = Pace()
        self._card_at = self._told_at = -CARD_EVERY_MS
        self._card_has = -1

    def begin(self) -> None:
        """Say that it is wanted, so that all who want it know of each other."""
        if self.exchange is not None:
            self.exchange.begin(self.digest, self._wake.set)

    def end(self) -> None:
        for task in self._tasks:
            task.cancel()
        if self.exchange is not None:
            self.exchange.end(self.digest)

    def reconnected(self) -> None:
        """The link to the hub is back: what was lost in the gap is asked again soon, not after a minute's silence."""
        before = [task for task, source in self._tasks.items() if source == HUB]
        asyncio.get_running_loop().call_later(LATE_AFTER_S, lambda: [task.cancel() for task in before])
        self._pace.open()
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
            node = self.exchange.knows_recipe(self.digest) if self.exchange is not None else ""
            if self.exchange is not None and node:
                try:
                    return await self._recipe_of(self._neighbour_recipe(node), path)
                except (FabricUnavailable, ArtifactRefused):
                    continue  # it is not asked again for a while
            await asyncio.sleep(pause_ms / 1000)
            pause_ms = min(PAUSE_MOST_MS, pause_ms * 2)

    def _neighbour_recipe(self, node: str) -> Callable[[int, int], object]:
        from batuta.fabric.chunks import RecipeWanted

        async def ask(offset: int, length: int) -> Part:
            assert self.exchange is not None
            return Part(*await self.exchange.recipe(node, RecipeWanted(self.digest, offset, length)))

        return ask

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

    # --- The chunks ---

    async def run(self, recipe: Recipe, partial: Partial, others: Sequence[tuple[Path, Path]], has_bytes: int) -> None:
        """Until every chunk is in. `others`: files here that may have some of them."""
        self.partial = partial
        self.progress = Progress(recipe.size_bytes, has_bytes, _now())
        everything = (1 << recipe.total) - 1
        if others and partial.has != everything:
            places = found_in(recipe, everything & ~partial.has, others)
            copied = await self.in_thread(partial.copy, places)
            self.progress.add(HERE, sum(c.size_bytes for n, c in enumerate(recipe.chunks()) if copied >> n & 1))
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
                hub_asks=self._pace.asks(now),
                hub_chunks=self._pace.chunks,
                patience_ms=max(STALLED_AFTER_MS, 3 * self._pace.last_ms),
            )
        )

    def _begin(self, ask: Ask, recipe: Recipe) -> None:
        for n in ask.chunks:
            self._asked[ask.source] = self._asked.get(ask.source, 0) | 1 << n
        if ask.source == HUB:
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
        wanted = ChunksWanted(self.digest, ask.chunks, recipe.digest)
        asked_at = _now()
        try:
            if ask.source == HUB:
                found = await self.source.chunks(wanted)
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
        if ask.source == HUB:
            self._pace.answered(_now() - asked_at)
        await self._keep(ask, found)

    async def _keep(self, ask: Ask, found: Sequence[bytes | memoryview[int]]) -> None:
        partial, progress = self.partial, self.progress
        assert partial is not None
        assert progress is not None
        progress.held = None if ask.source == HUB else progress.held
        for n, data in zip(ask.chunks, found, strict=False):
            if await self.in_thread(partial.put, n, data):
                if not partial.has >> n & 1:
                    progress.add(ask.source, len(data))
                partial.has |= 1 << n
                self.fetched_bytes += len(data)
                continue
            self.refused += 1
            if ask.source == HUB:
                raise ArtifactRefused(
                    "digest_mismatch", f"chunk {n} from the hub is not what the recipe of {self.digest[:19]}… says"
                )
            assert self.exchange is not None
            self.exchange.lied(ask.source, f"chunk {n} of {self.digest[:19]}…")
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
        has, claims = bits(partial.has, recipe.total), bits(self._asked.get(HUB, 0), recipe.total)
        await self.exchange.say(
            Card(digest=self.digest, recipe=recipe.digest, count=recipe.total, has=has, claims=claims, wants=True)
        )

    def _tell(self, found: Plan, now: int) -> None:
        assert self.progress is not None
        self.progress.awaited = found.awaited
        if not found.held_back and not self._asked.get(HUB):
            self.progress.held = None
        if now - self._told_at >= TOLD_EVERY_MS:
            self._told_at = now
            self.progress.mark(now)
            self.told()


class Pace:
    """How much to ask of the hub: as much as does not make its answers slow."""

    def __init__(self) -> None:
        self.chunks = 1
        self.last_ms = 0
        self._most = 2
        self._quickest_ms: int | None = None
        self._gap_ms = 0
        self._next_at = 0
        self._pause_ms = PAUSE_FIRST_MS

    def asks(self, now: int) -> int:
        """So many questions may be under way now."""
        return self._most if now >= self._next_at else 0

    def wait_s(self, now: int, most_s: float) -> float:
        return min(most_s, max(0.01, (self._next_at - now) / 1000)) if now < self._next_at else most_s

    def asked(self, now: int) -> None:
        self._next_at = max(self._next_at, now + self._gap_ms)

    def answered(self, took_ms: int) -> None:
        self.last_ms = took_ms
        self._pause_ms = PAUSE_FIRST_MS
        quickest = self._quickest_ms = took_ms if self._quickest_ms is None else min(self._quickest_ms, took_ms)
        slower_ms = took_ms - quickest
        if slower_ms <= SLOWER_BY_MS:
            self.chunks = CHUNKS_PER_ASK if took_ms < 2 * SLOWER_BY_MS else self.chunks
            self._gap_ms //= 2
            if not self._gap_ms:
                self._most = min(HUB_ASKS_MOST, self._most + 1)
        elif self._most > 1:
            self._most -= 1
        elif self.chunks > 1:
            self.chunks = 1
        else:
            self._gap_ms = min(GAP_MOST_MS, self._gap_ms + min(slower_ms - SLOWER_BY_MS, 2_000))

    def failed(self, now: int) -> None:
        """Nobody answered: ask again after a while that grows."""
        self._next_at = now + self._pause_ms
        self._pause_ms = min(PAUSE_MOST_MS, self._pause_ms * 2)

    def closed(self, until: int) -> None:
        self._next_at = max(self._next_at, until)

    def open(self) -> None:
        self._next_at, self._pause_ms = 0, PAUSE_FIRST_MS


def _from(source: str) -> str:
    return "from files here" if source == HERE else f"from {source or 'the hub'}"


def _amount(size: int) -> str:
    return f"{size / 1e9:.2f} GB" if size >= 1e9 else f"{size / 1e6:.1f} MB" if size >= 1e5 else f"{size / 1e3:.1f} kB"


def _now() -> int:
    return int(asyncio.get_running_loop().time() * 1000)
