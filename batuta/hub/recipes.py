"""Recipes: for each artifact the list of its chunks, made once, and chunks read by it.

A recipe is made from bytes that were hashed on the way and are what the artifact's digest says; so is a chunk before it
leaves. What went bad on the hub's disk is set aside when it is found here, and no node is sent it.
"""

from __future__ import annotations

import asyncio
import hashlib
import secrets
from typing import TYPE_CHECKING, Final, NamedTuple

from batuta.errors import ArtifactRefused
from batuta.hub.artifacts import looks_of

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from batuta.hub.artifacts import ArtifactStore

PIECE_BYTES_MAX: Final = 256 * 1024
CHUNKS_MAX: Final = 8
"""In one answer."""
RECORD_BYTES: Final = 40


class Recipe(NamedTuple):
    """What is known of an artifact whose recipe is there."""

    path: Path
    digest: str
    """Of the recipe itself."""
    size_bytes: int
    """Of the artifact."""
    chunks: int


class Recipes:
    """The recipes of one hub. `directory` is theirs alone."""

    def __init__(self, directory: Path, artifacts: ArtifactStore) -> None:
        self._directory = directory
        self._artifacts = artifacts
        self._known: dict[str, Recipe] = {}
        self._making: dict[str, asyncio.Task[Recipe]] = {}
        self._one_at_a_time = asyncio.Lock()

    def open(self) -> None:
        self._directory.mkdir(parents=True, exist_ok=True, mode=0o700)
        for leftover in self._directory.glob("*.new"):
            leftover.unlink(missing_ok=True)

    def prepare(self, digest: str) -> None:
        """Begin to make it: nodes will ask for it soon."""
        if digest not in self._known:
            self._begin(digest)

    async def recipe(self, digest: str) -> Recipe:
        """The recipe, made when it is not there yet. Raises ArtifactRefused."""
        known = self._known.get(digest)
        if known is not None and self._artifacts.path(digest).exists():
            return known
        return await asyncio.shield(self._begin(digest))

    async def close(self) -> None:
        """What is being made is made again another time."""
        for task in list(self._making.values()):
            task.cancel()
        await asyncio.gather(*self._making.values(), return_exceptions=True)

    def _begin(self, digest: str) -> asyncio.Task[Recipe]:
        task = self._making.get(digest)
        if task is None:
            task = self._making[digest] = asyncio.create_task(self._make(digest), name=f"recipe {digest[:19]}")
            task.add_done_callback(lambda done: self._made(digest, done))
        return task

    def _made(self, digest: str, done: asyncio.Task[Recipe]) -> None:
        self._making.pop(digest, None)
        if not done.cancelled() and done.exception() is None:
            self._known[digest] = done.result()

    async def _make(self, digest: str) -> Recipe:
        async with self._one_at_a_time:
            return await asyncio.to_thread(self._in_thread, digest)

    def _in_thread(self, digest: str) -> Recipe:
        source, path = self._artifacts.path(digest), self._directory / digest.removeprefix("sha256:")
        try:
            looks = looks_of(source)
            found = _read(path, source)
        except FileNotFoundError:
            raise ArtifactRefused("artifact_missing", f"the hub does not have {digest}") from None
        if found is not None:
            return found
        from batuta.hub.chunking import write_recipe  # loads NumPy, which a hub has; who only serves needs none

        new = path.with_name(f"{path.name}.{secrets.token_hex(4)}.new")
        try:
            with new.open("xb") as file:
                made, whole = write_recipe(source, file)
            if whole != digest:
                self._artifacts.set_aside(digest, looks)
                raise ArtifactRefused("digest_mismatch", f"the hub's own file is not {digest[:19]}… any more")
            new.replace(path)
        except FileNotFoundError:  # it was found damaged, or removed, while it was cut
            raise ArtifactRefused("artifact_missing", f"the hub does not have {digest}") from None
        except OSError as error:
            raise ArtifactRefused("disk_full", f"the hub cannot write a recipe: {error.strerror}") from error
        finally:
            new.unlink(missing_ok=True)
        return Recipe(path, made, looks.size_bytes, path.stat().st_size // RECORD_BYTES)

    async def piece(self, digest: str, offset: int, length: int) -> tuple[Recipe, bytes]:
        """A part of the recipe itself."""
        known = await self.recipe(digest)
        if offset < 0 or length < 0:
            raise ArtifactRefused("request_malformed", "offset and length are not negative")
        with known.path.open("rb") as file:
            file.seek(offset)
            return known, file.read(min(length, PIECE_BYTES_MAX))

    async def chunks(self, digest: str, wanted: Sequence[int], by: str = "") -> list[bytes]:
        """The bytes of some chunks, as they should be; by this recipe, when the numbers are of a certain one."""
        known = await self.recipe(digest)
        if by and by != known.digest:
            raise ArtifactRefused("recipe_changed", f"the recipe of {digest[:19]}… is another one by now")
        if not 0 < len(wanted) <= CHUNKS_MAX or any(not 0 <= n < known.chunks for n in wanted):
            raise ArtifactRefused("request_malformed", f"ask for 1 to {CHUNKS_MAX} of the {known.chunks} chunks")
        found = await asyncio.to_thread(self._chunks, digest, known, wanted)
        if found is None:
            if await self._artifacts.look_again(digest):
                self.forget(digest)  # the file is as it should be: so it was its recipe that went bad
            raise ArtifactRefused("digest_mismatch", f"the hub's own file is not {digest[:19]}… any more")
        return found

    def _chunks(self, digest: str, known: Recipe, wanted: Sequence[int]) -> list[bytes] | None:
        """None when one of them is not what the recipe says."""
        found: list[bytes] = []
        try:
            with known.path.open("rb") as recipe, self._artifacts.path(digest).open("rb") as file:
                for n in wanted:
                    recipe.seek(max(0, n * RECORD_BYTES - 8))
                    record = recipe.read(RECORD_BYTES + (8 if n else 0))
                    begin = int.from_bytes(record[:8]) if n else 0
                    file.seek(begin)
                    data = file.read(int.from_bytes(record[-8:]) - begin)
                    if hashlib.sha256(data).digest() != record[-RECORD_BYTES:-8]:
                        return None
                    found.append(data)
        except FileNotFoundError:
            self._known.pop(digest, None)
            raise ArtifactRefused("artifact_missing", f"the hub does not have {digest}") from None
        return found

    def forget(self, digest: str) -> None:
        """The artifact is gone."""
        self._known.pop(digest, None)
        (self._directory / digest.removeprefix("sha256:")).unlink(missing_ok=True)

    def collect(self) -> int:
        """Remove recipes of artifacts that are not here; how many went."""
        gone = 0
        for path in self._directory.iterdir():
            digest = f"sha256:{path.name}"
            if path.suffix != ".new" and not self._artifacts.path(digest).exists():
                self.forget(digest)
                gone += 1
        return gone


def _read(path: Path, source: Path) -> Recipe | None:
    """One that was made before; None when there is none, or it does not fit."""
    try:
        sha, last = hashlib.sha256(), b""
        with path.open("rb") as file:
            while block := file.read(RECORD_BYTES * 8192):
                sha.update(block)
                last = block[-8:]
        size, length = source.stat().st_size, path.stat().st_size
    except FileNotFoundError:
        return None
    if length % RECORD_BYTES or int.from_bytes(last) != size:
        return None
    return Recipe(path, f"sha256:{sha.hexdigest()}", size, length // RECORD_BYTES)
