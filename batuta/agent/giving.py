"""Giving: what this node gives its neighbours of the files it holds, or is collecting.

Only bytes that were verified when they came, and every chunk is looked at once more as it is read: a disk that went bad
is noticed here, and not by whoever asked.
"""

from __future__ import annotations

import asyncio
import hashlib
from typing import TYPE_CHECKING, Final

from batuta.agent.recipe import RECORD, Recipe, check
from batuta.errors import ArtifactRefused
from batuta.fabric.chunks import Card, bits

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from pathlib import Path

    from batuta.agent.artifacts import Artifacts

RECIPE_PIECE_BYTES_MAX: Final = 256 * 1024


class Giving:
    """The side of a node's artifacts that its neighbours see: `exchange.Holdings`."""

    def __init__(self, artifacts: Artifacts) -> None:
        self.artifacts = artifacts
        self._naming: dict[str, asyncio.Task[None]] = {}

    def is_whole(self, digest: str) -> tuple[str, int] | None:
        """The recipe's digest and the number of chunks; None when it is not here, or not yet known to be."""
        artifacts = self.artifacts
        if digest not in artifacts.held or not artifacts.recipe_path(digest).exists():
            return None
        known = artifacts.named.get(digest)
        if known is None and digest not in self._naming:
            # The recipe of a large file takes a while to be looked through: its next asker learns of it.
            task = self._naming[digest] = asyncio.create_task(self._name(digest))
            task.add_done_callback(lambda _: self._naming.pop(digest, None))
        return known

    async def card(self, digest: str) -> Card:
        """For who asks from another site, where cards are not heard."""
        fetch = self.artifacts.under_way.get(digest)
        if fetch is not None and (partial := fetch.partial) is not None:
            total = partial.recipe.total
            return Card(digest, partial.recipe.digest, total, bits(partial.has, total), wants=True)
        if fetch is not None:
            return Card(digest, wants=True)
        if self.is_whole(digest) is None and (naming := self._naming.get(digest)) is not None:
            await asyncio.wait({naming})
        known = self.is_whole(digest)
        return Card(digest) if known is None else Card(digest, known[0], known[1], whole=True)

    async def _name(self, digest: str) -> None:
        artifacts, path = self.artifacts, self.artifacts.recipe_path(digest)
        try:
            named = await artifacts.run(check, path, artifacts.path(digest).stat().st_size)
            artifacts.named[digest] = named, path.stat().st_size // RECORD.size
        except (OSError, ValueError):
            artifacts.forget_recipe(digest)

    async def give(self, digest: str, recipe: str, chunks: Sequence[int]) -> list[bytes]:
        """Chunks of a file that is here, or on its way here; those before the first that is not."""
        artifacts = self.artifacts
        fetch = artifacts.under_way.get(digest)
        if fetch is not None and fetch.partial is not None:
            partial = fetch.partial
            if partial.recipe.digest != recipe:
                return []
            return await artifacts.run(_leading, partial.take, partial.recipe.total, chunks)
        if digest not in artifacts.held or artifacts.named.get(digest, ("", 0))[0] != recipe:
            return []
        read = artifacts.run(_read_chunks, artifacts.recipe_path(digest), artifacts.path(digest), chunks)
        found, is_damaged = await read
        if is_damaged:
            artifacts.doubt(digest)
            await artifacts.verify([digest])
        return found

    async def give_recipe(self, digest: str, offset: int, length: int) -> tuple[int, str, int, bytes]:
        """A part of the recipe of a file that is here, and what it is."""
        artifacts = self.artifacts
        known = artifacts.named.get(digest)
        if known is None or digest not in artifacts.held or offset < 0:
            raise ArtifactRefused("artifact_missing", "not here")
        with artifacts.recipe_path(digest).open("rb") as file:
            file.seek(offset)
            data = file.read(max(0, min(length, RECIPE_PIECE_BYTES_MAX)))
        return artifacts.path(digest).stat().st_size, known[0], known[1] * RECORD.size, data


def _leading(take: Callable[[int], bytes | None], total: int, chunks: Sequence[int]) -> list[bytes]:
    found: list[bytes] = []
    for n in chunks:
        data = take(n) if 0 <= n < total else None
        if data is None:
            break
        found.append(data)
    return found


def _read_chunks(listed: Path, path: Path, chunks: Sequence[int]) -> tuple[list[bytes], bool]:
    """Chunks of a whole file, and whether one of them is not any more what it was."""
    recipe = Recipe(listed)
    found: list[bytes] = []
    try:
        with path.open("rb") as file:
            for n in chunks:
                if not 0 <= n < recipe.total:
                    break
                chunk = recipe.chunk(n)
                file.seek(chunk.begin)
                data = file.read(chunk.size_bytes)
                if hashlib.sha256(data).digest() != chunk.digest:
                    return found, True
                found.append(data)
    finally:
        recipe.close()
    return found, False
