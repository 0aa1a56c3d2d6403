"""A hub of a few lines that cuts files every 64 KiB: nodes do not care where a hub cuts."""

from __future__ import annotations

import hashlib
import struct
from typing import TYPE_CHECKING

from batuta.agent.fetch import Part
from batuta.errors import ArtifactRefused, FabricUnavailable

if TYPE_CHECKING:
    from collections.abc import Callable

    from batuta.fabric.chunks import ChunksWanted

CUT = 64 * 1024


def digest_of(data: bytes) -> str:
    return f"sha256:{hashlib.sha256(data).hexdigest()}"


def recipe_of(data: bytes, cut: int = CUT) -> bytes:
    parts = [(data[at : at + cut], min(at + cut, len(data))) for at in range(0, len(data), cut)]
    return b"".join(struct.pack(">32sQ", hashlib.sha256(part).digest(), end) for part, end in parts)


def chunk_of(data: bytes, n: int, cut: int = CUT) -> bytes:
    return data[n * cut : (n + 1) * cut]


class Shelf:
    """A source with a link that can break after so many questions."""

    is_connected = True

    def __init__(self, *files: bytes) -> None:
        self.files = {digest_of(data): data for data in files}
        self.asked: list[tuple[int, ...]] = []
        """Chunks, question by question."""
        self.breaks_after: int | None = None
        self.spoils: Callable[[int, bytes], bytes] = lambda n, data: data
        """What becomes of a chunk on its way."""

    async def recipe(self, digest: str, offset: int, length: int) -> Part:
        if digest not in self.files:
            raise ArtifactRefused("artifact_missing", "not here")
        data = self.files[digest]
        recipe = recipe_of(data)
        return Part(len(data), digest_of(recipe), len(recipe), recipe[offset : offset + length])

    async def chunks(self, wanted: ChunksWanted) -> list[bytes]:
        if self.breaks_after is not None and len(self.asked) >= self.breaks_after:
            self.breaks_after = None
            raise FabricUnavailable("cut")
        self.asked.append(wanted.chunks)
        data = self.files[wanted.digest]
        found = [self.spoils(n, chunk_of(data, n)) for n in wanted.chunks]
        return [found[0][wanted.begin : wanted.begin + wanted.most]] if wanted.most else found
