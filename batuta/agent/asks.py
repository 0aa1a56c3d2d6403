"""What a node asks its hub over the fabric: recipes and chunks of artifacts, and a renewed certificate.

An answer that begins with `{"error": …}` is a no, with its reason; anything that is not understood is one as well.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

import msgspec

from batuta.agent.fetch import Held, Part
from batuta.core.reasons import CATALOGUE, Reason
from batuta.errors import ArtifactRefused
from batuta.fabric import subjects
from batuta.fabric.chunks import ChunksWanted, Head, RecipeWanted, head_of, split

if TYPE_CHECKING:
    from batuta.fabric.base import Fabric

CHUNKS_TIMEOUT_S: Final = 60.0
"""A chunk may take so long on the slowest of links. What a cut swallowed is given up sooner, when the link is back."""
CODES: Final = frozenset({"artifact_missing", "digest_mismatch", "disk_full", "recipe_changed"})
AGAIN_MOST_MS: Final = 60_000
BUSY_MS: Final = 1_000


class HubSource:
    """Artifacts from the hub, chunk by chunk."""

    def __init__(self, fabric: Fabric) -> None:
        self.fabric = fabric

    @property
    def is_connected(self) -> bool:
        return self.fabric.is_connected

    async def recipe(self, digest: str, offset: int, length: int) -> Part:
        head, data = await self._ask("recipe", RecipeWanted(digest, offset, length), digest)
        if head.size < 0 or head.bytes < 0 or not head.recipe:
            raise ArtifactRefused("artifact_missing", "the hub's answer says nothing of a recipe")
        return Part(head.size, head.recipe, head.bytes, bytes(data))

    async def chunks(self, wanted: ChunksWanted) -> list[memoryview[int]]:
        head, data = await self._ask("chunks", wanted, wanted.digest)
        try:
            found = split(head.sizes, data)
        except ValueError as error:
            raise ArtifactRefused("digest_mismatch", f"the answer from the hub: {error}") from error
        if len(found) != len(wanted.chunks):
            raise ArtifactRefused("digest_mismatch", f"{len(found)} of {len(wanted.chunks)} chunks came from the hub")
        return found

    async def _ask(self, verb: str, wanted: RecipeWanted | ChunksWanted, digest: str) -> tuple[Head, memoryview[int]]:
        subject = subjects.ask(self.fabric.name, verb)
        answer = await self.fabric.request(subject, msgspec.json.encode(wanted), CHUNKS_TIMEOUT_S)
        try:
            head, data = head_of(answer)
        except ValueError as error:
            raise ArtifactRefused("artifact_missing", f"the answer from the hub: {error}") from error
        if not head.error:
            return head, data
        if head.until_ms > 0 or head.error == "busy":
            reason = None
            if head.error in CATALOGUE:
                reason = Reason(code=head.error, subject=head.subject[:200], detail=head.message[:300])
            raise Held(reason, min(head.until_ms or BUSY_MS, AGAIN_MOST_MS))
        code = head.error if head.error in CODES else "artifact_missing"
        raise ArtifactRefused(code, f"from the hub: {head.message[:500] or f'it has no {digest}'}")


async def renewed(fabric: Fabric, request: str, addresses: tuple[str, ...]) -> bytes:
    """The hub's answer to a renewal, to be checked by whoever can look into certificates."""
    asked = msgspec.json.encode({"request": request, "addresses": addresses})
    return await fabric.request(subjects.ask(fabric.name, "renew"), asked)
