"""Artifacts: a cache of files named by their SHA-256, filled chunk by chunk from neighbours and from the hub.

A file gets its name only after its bytes were hashed, so what has a name was right once. Whether it still is: the
whole file is hashed again on its first use after the machine booted, and whenever its size, inode or modification
time differ from the list; in between the list is believed. So a restart of the agent costs nothing, and a card that
went bad while the power was off is found before a model runs from it. A damaged file is set aside and fetched again.

Beside each file lies its recipe, the list of its chunks: what a new file shares with it is copied and not fetched.

Room: what the ledger needs is never removed; the rest goes, oldest use first, when a new file would not fit the budget.
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import os
import re
import time
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Final, NamedTuple, TypeVar

import msgspec

from batuta.agent.fetch import Fetch
from batuta.agent.giving import Giving
from batuta.agent.ledger import FULL
from batuta.agent.partial import Partial, recipe_named
from batuta.agent.recipe import Recipe, check
from batuta.core.reasons import Reason
from batuta.errors import ArtifactRefused
from batuta.fabric.chunks import Card

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping
    from pathlib import Path

    from batuta.agent.exchange import Exchange
    from batuta.agent.fetch import Source
    from batuta.agent.region import Region

DIGEST: Final = re.compile(r"^sha256:[0-9a-f]{64}$")
SPARE_BYTES: Final = 16 * 2**20
"""Left free on the disk, for the ledger and for logs."""
READ_BYTES: Final = 1 << 18
THREADS: Final = 2
T = TypeVar("T")


class Known(NamedTuple):
    """What a file was like when it was last hashed, and during which run of the machine."""

    size_bytes: int
    inode: int
    mtime_ns: int
    machine_boot: str


class Artifacts:
    """The files of one node."""

    def __init__(
        self, directory: Path, source: Source, *, node: str, machine_boot: str, budget_bytes: int, apart: bool = True,
        exchange: Exchange | None = None, region: Region | None = None,
    ) -> None:  # fmt: skip
        self.source = source
        self.exchange = exchange
        self.region = region
        self.node = node
        self.machine_boot = machine_boot
        self.budget_bytes = budget_bytes
        self.apart = apart
        """Hash in a thread. In virtual time there are no threads."""
        self.files = directory / "sha256"
        self.partial = directory / "partial"
        self.corrupt = directory / "corrupt"
        self.recipes = directory / "recipes"
        self.list = directory / "list.json"
        self.refused = 0
        """Files whose bytes were not what their digest says: from the hub, or on this disk."""
        self.fetched_bytes = 0
        self._hub_bytes = self._region_bytes = 0
        self.problem: Reason | None = None
        """The newest damage found on this disk, until the file is whole again."""
        self._known: dict[str, Known] = {}
        self._verified: set[str] = set()
        self._fetches: dict[str, asyncio.Lock] = {}
        self.under_way: dict[str, Fetch] = {}
        self.named: dict[str, tuple[str, int]] = {}
        """By file: the digest of its recipe, and how many chunks it has. Known once it was asked for."""
        self._threads: ThreadPoolExecutor | None = None
        self.on_progress: Callable[[], None] = lambda: None
        """Called when there is something new to tell of a fetch."""
        if exchange is not None:
            exchange.holdings = Giving(self)

    def open(self) -> None:
        for directory in (self.files, self.partial, self.corrupt, self.recipes):
            directory.mkdir(parents=True, exist_ok=True, mode=0o700)
        try:
            self._known = msgspec.json.decode(self.list.read_bytes(), type=dict[str, Known])
        except (OSError, msgspec.MsgspecError):  # the list only saves time: without it every file is hashed
            self._known = {}
        for path in self.files.iterdir():
            digest = f"sha256:{path.name}"
            if DIGEST.match(digest) and self._known.get(digest) == self._looks(path):
                self._verified.add(digest)

    @property
    def held(self) -> frozenset[str]:
        """Digests whose files are here and verified."""
        return frozenset(self._verified)

    def path(self, digest: str) -> Path:
        _check(digest)
        return self.files / digest.removeprefix("sha256:")

    def recipe_path(self, digest: str) -> Path:
        _check(digest)
        return self.recipes / digest.removeprefix("sha256:")

    async def verify(self, digests: Iterable[str]) -> None:
        """Look at files that are here but not yet vouched for in this boot, so that `held` says all there is."""
        for digest in digests:
            if DIGEST.match(digest) and digest not in self._verified and self.path(digest).exists():
                await self._still_whole(digest)

    async def fetch(self, digest: str, needed: Callable[[], frozenset[str]] = frozenset) -> Path:
        """The verified file, from here or from the source. Two who want the same file share one fetch."""
        path = self.path(digest)
        async with self._fetches.setdefault(digest, asyncio.Lock()):
            if await self._still_whole(digest):
                return path
            try:
                await self._download(digest, path, needed)
            except OSError as error:
                self._forget_partial(digest)  # it takes the room that is missing
                code = "disk_full" if error.errno in FULL else "artifact_unwritable"
                raise ArtifactRefused(code, f"{digest[:19]}…: {error.strerror}") from error
        return path

    def reconnected(self) -> None:
        """The hub can be asked again."""
        for fetch in self.under_way.values():
            fetch.reconnected()

    def reason(self, digests: Iterable[str]) -> tuple[str, str] | None:
        """Code and detail of what is to be told while these files are fetched; None when none of them is."""
        fetches = [self.under_way[digest] for digest in digests if digest in self.under_way]
        under_way = [fetch.progress for fetch in fetches if fetch.progress is not None]
        held = [progress.held for progress in under_way if progress.held is not None]
        text = "; ".join(progress.told for progress in under_way)
        if held:
            return held[0].code, f"{held[0].detail}; {text}" if held[0].detail else text
        return ("fetching", text) if under_way else None

    @property
    def problems(self) -> tuple[Reason, ...]:
        """What is to be told of this disk, and of neighbours."""
        own = (self.problem,) if self.problem is not None else ()
        return (
            *own,
            *(self.exchange.problems() if self.exchange is not None else ()),
            *(self.region.problems() if self.region is not None else ()),
        )

    def books(self) -> dict[str, int]:
        """Files or chunks that were refused, and the bytes of chunks that came, also of what is under way."""
        under_way = self.under_way.values()
        return {
            "refused": self.refused + sum(fetch.refused for fetch in under_way),
            "fetchedBytes": self.fetched_bytes + sum(fetch.fetched_bytes for fetch in under_way),
            "hubBytes": self._hub_bytes + sum(fetch.hub_bytes for fetch in under_way),
            "regionBytes": self._region_bytes + sum(fetch.region_bytes for fetch in under_way),
        }

    # --- Fetching ---

    async def run(self, work: Callable[..., T], *arguments: object) -> T:
        """Disk work, in threads of our own: few, because each takes memory for itself."""
        if not self.apart:
            return work(*arguments)
        if self._threads is None:
            self._threads = ThreadPoolExecutor(THREADS, "artifacts")
        return await asyncio.get_running_loop().run_in_executor(self._threads, work, *arguments)

    async def _still_whole(self, digest: str) -> bool:
        path = self.path(digest)
        if not path.exists():
            self._verified.discard(digest)
            return False
        if digest in self._verified and self._known.get(digest) == self._looks(path):
            # Disks are often mounted without access times; this one says when the file was last of use.
            os.utime(path, ns=(time.time_ns(), path.stat().st_mtime_ns))
            return True
        self._verified.discard(digest)
        looks = self._looks(path)
        if await self.run(_hash_of, path) == digest.removeprefix("sha256:"):
            self._keep(digest, looks)
            return True
        self.refused += 1
        self.problem = Reason(
            code="digest_mismatch", subject=f"node/{self.node}", detail=f"{digest[:19]}… is damaged on this disk"
        )
        path.replace(self.corrupt / path.name)
        self._known.pop(digest, None)
        return False

    async def _download(self, digest: str, path: Path, needed: Callable[[], frozenset[str]]) -> None:
        fetch = Fetch(
            digest, node=self.node, source=self.source, exchange=self.exchange, run=self.run, told=self.on_progress,
            region=self.region,
        )  # fmt: skip
        self.under_way[digest] = fetch
        fetch.begin()
        try:
            self._make_room(digest, 1, 0, needed())  # for its recipe, before anything is asked
            await fetch.say_wanted()
            recipe = await self._recipe(fetch, digest)
            try:
                await self._assemble(fetch, recipe, path, needed)
            finally:
                recipe.close()
        finally:
            fetch.end()
            del self.under_way[digest]
            self.refused += fetch.refused
            self.fetched_bytes += fetch.fetched_bytes
            self._hub_bytes += fetch.hub_bytes
            self._region_bytes += fetch.region_bytes
            self.on_progress()
        if self.exchange is not None and (known := self.named.get(digest)) is not None:
            await self.exchange.say(Card(digest=digest, recipe=known[0], count=known[1], whole=True))

    async def _recipe(self, fetch: Fetch, digest: str) -> Recipe:
        """The recipe: that of an earlier run which began the file by it, else the hub's, else a neighbour's."""
        path = self.recipe_path(digest)
        begun_by = recipe_named(self.partial / path.name)
        if begun_by and path.exists():
            with contextlib.suppress(ValueError):
                if await self.run(check, path, Recipe.size_in(path)) == begun_by:
                    return Recipe(path, begun_by)
        new = path.with_suffix(".new")
        try:
            size, named = await fetch.fetch_recipe(new)
            try:
                found = await self.run(check, new, size)
            except ValueError as error:
                raise fetch.recipe_lied(f"no list of chunks: {error}") from error
            if found != named:
                raise fetch.recipe_lied(f"the list of chunks is not {named[:19]}…")
            new.replace(path)
        finally:
            new.unlink(missing_ok=True)
        return Recipe(path, named)

    async def _assemble(self, fetch: Fetch, recipe: Recipe, path: Path, needed: Callable[[], frozenset[str]]) -> None:
        digest, size = fetch.digest, recipe.size_bytes
        at = self.partial / path.name
        self._make_room(digest, size, at.stat().st_blocks * 512 if at.exists() else 0, needed())
        partial = Partial(at, recipe)
        others = [
            (self.recipes / known.name, known)
            for known in (self.path(d) for d in sorted(self._verified))
            if (self.recipes / known.name).exists()
        ]
        if (damaged := self.corrupt / path.name).exists():
            others.append((self.recipe_path(digest), damaged))  # most of it is good, and each chunk is looked at
        try:
            has_bytes = await self.run(partial.open)
            await fetch.run(recipe, partial, others, has_bytes)
            await self.run(partial.flush)
        except ArtifactRefused as error:
            if error.code in ("digest_mismatch", "recipe_changed"):
                self.forget_recipe(digest)
            raise
        finally:
            partial.close()
        if await self.run(_hash_of, at) != path.name:
            self.refused += 1
            self._forget_partial(digest)
            self.forget_recipe(digest)
            raise fetch.recipe_lied(f"{size} bytes that are not {digest[:19]}…")
        at.chmod(0o400)
        at.replace(path)
        partial.journal.unlink(missing_ok=True)
        self.named[digest] = recipe.digest, recipe.total
        self._keep(digest, self._looks(path))

    def _make_room(self, digest: str, size: int, have: int, needed: frozenset[str]) -> None:
        present = {d: s for d, s in self._sizes().items() if d != digest}
        used = sum(present.values())
        for old in sorted(present, key=lambda d: self.path(d).stat().st_atime_ns):
            if used + size <= self.budget_bytes:
                break
            if old not in needed:
                used -= present[old]
                self.remove(old)
        if used + size > self.budget_bytes:
            raise ArtifactRefused(
                "disk_full",
                f"{size} bytes do not fit: of {self.budget_bytes} allowed, {used} are in use by what runs here",
            )
        free = os.statvfs(self.files)
        if free.f_bavail * free.f_frsize + have < size + SPARE_BYTES:
            raise ArtifactRefused(
                "disk_full", f"{size} bytes needed, {free.f_bavail * free.f_frsize} free, {SPARE_BYTES} kept spare"
            )

    def collect(self, needed: frozenset[str], keep_s: float = 86_400.0) -> int:
        """Remove what nobody needs and nobody used for `keep_s`; how many went."""
        gone, oldest = 0, time.time() - keep_s
        for digest in self._sizes():
            if digest not in needed and self.path(digest).stat().st_atime < oldest:
                self.remove(digest)
                gone += 1
        for leftover in (*self.partial.iterdir(), *self.corrupt.iterdir(), *self.recipes.iterdir()):
            digest = f"sha256:{leftover.name.partition('.')[0]}"
            kept = leftover.parent == self.recipes and (self.files / leftover.name).exists()
            if not kept and digest not in needed and leftover.stat().st_mtime < oldest:
                leftover.unlink(missing_ok=True)
                gone += 1
        return gone

    def remove(self, digest: str) -> None:
        self.path(digest).unlink(missing_ok=True)
        self.forget_recipe(digest)
        self._verified.discard(digest)
        self._known.pop(digest, None)
        self._write_list()

    def _sizes(self) -> Mapping[str, int]:
        return {
            f"sha256:{path.name}": path.stat().st_size
            for path in sorted(self.files.iterdir())
            if DIGEST.match(f"sha256:{path.name}")
        }

    def _keep(self, digest: str, looks: Known) -> None:
        self._known[digest] = looks
        self._verified.add(digest)
        self._write_list()
        if self.problem is not None and digest[:19] in self.problem.detail:
            self.problem = None

    def _looks(self, path: Path) -> Known:
        stat = path.stat()
        return Known(stat.st_size, stat.st_ino, stat.st_mtime_ns, self.machine_boot)

    def _write_list(self) -> None:
        # Not flushed: losing the list costs hashing, nothing else. No room for it is no reason to fail either.
        new = self.list.with_suffix(".new")
        try:
            new.write_bytes(msgspec.json.encode(self._known))
            new.replace(self.list)
        except OSError:
            new.unlink(missing_ok=True)

    def _forget_partial(self, digest: str) -> None:
        for name in (digest.removeprefix("sha256:"), f"{digest.removeprefix('sha256:')}.have"):
            with contextlib.suppress(OSError):
                (self.partial / name).unlink()

    def doubt(self, digest: str) -> None:
        """A part of a file was not what it should be: it is looked at before its next use."""
        self._verified.discard(digest)
        self._known.pop(digest, None)

    def forget_recipe(self, digest: str) -> None:
        self.named.pop(digest, None)
        with contextlib.suppress(OSError):
            self.recipe_path(digest).unlink()


def _check(digest: str) -> None:
    if not DIGEST.match(digest):
        raise ArtifactRefused("artifact_missing", f"{digest[:80]!r} is not a digest")


def _hash_of(path: Path) -> str:
    sha = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(READ_BYTES):
            sha.update(block)
    return sha.hexdigest()
