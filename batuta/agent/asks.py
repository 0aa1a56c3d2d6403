"""What a node asks its hub over the fabric: pieces of artifacts, and a renewed certificate.

An answer that begins with `{"error": …}` is a no, with its reason; anything that is not understood is one as well.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

import msgspec

from batuta.agent.artifacts import Piece
from batuta.errors import ArtifactRefused
from batuta.fabric import subjects

if TYPE_CHECKING:
    from batuta.fabric.base import Fabric

PIECE_TIMEOUT_S: Final = 20.0
HEAD_BYTES_MAX: Final = 4096
CODES: Final = frozenset({"artifact_missing", "digest_mismatch", "disk_full"})


class _Head(msgspec.Struct, frozen=True):
    """The line before the bytes."""

    size: int = -1
    error: str = ""
    message: str = ""


class HubSource:
    """Artifacts from the hub, piece by piece."""

    def __init__(self, fabric: Fabric) -> None:
        self.fabric = fabric

    async def piece(self, digest: str, offset: int, length: int) -> Piece:
        wanted = msgspec.json.encode({"digest": digest, "offset": offset, "length": length})
        answer = await self.fabric.request(subjects.ask(self.fabric.name, "artifact"), wanted, PIECE_TIMEOUT_S)
        line, _, data = answer.partition(b"\n")
        try:
            head = msgspec.json.decode(line[:HEAD_BYTES_MAX], type=_Head)
        except msgspec.MsgspecError as error:
            raise ArtifactRefused("artifact_missing", f"the hub's answer cannot be read: {error}") from error
        if head.error or head.size < 0:
            code = head.error if head.error in CODES else "artifact_missing"
            raise ArtifactRefused(code, head.message[:500] or f"the hub has no {digest}")
        return Piece(data, head.size)


async def renewed(fabric: Fabric, request: str, addresses: tuple[str, ...]) -> bytes:
    """The hub's answer to a renewal, to be checked by whoever can look into certificates."""
    asked = msgspec.json.encode({"request": request, "addresses": addresses})
    return await fabric.request(subjects.ask(fabric.name, "renew"), asked)
