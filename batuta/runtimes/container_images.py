"""The images that instances need: loaded from the node's own verified files, or pulled by digest where that is allowed.

Names and tags say nothing here: an image is used when its digest is the one that was ordered. What this node brought
into the engine is written down, and taken out again when nobody has needed it for a while; what was there before is
somebody else's.
"""

from __future__ import annotations

import asyncio
import os
import platform
import time
from typing import TYPE_CHECKING, Any

import msgspec

from batuta.errors import RuntimeFailure
from batuta.runtimes.container_http import EngineRefused
from batuta.runtimes.container_look import Question, look
from batuta.runtimes.kept import write_whole

if TYPE_CHECKING:
    from collections.abc import Collection
    from pathlib import Path

    from batuta.core.decided import Instance
    from batuta.kinds.container import ContainerUse
    from batuta.runtimes.base import Order
    from batuta.runtimes.container_http import EngineSocket

UNUSED_KEPT_S = 86_400.0
SILENCE_S = 120.0
"""So long a pull may say nothing."""
ARCHITECTURES = {"x86_64": "amd64", "aarch64": "arm64"}
IMAGES_MAX = 4096


class Brought(msgspec.Struct):
    """An image that this node brought into the engine."""

    images: list[str]
    """As orders call it: digests."""
    used_at: float


class Images:
    """What one engine has, as far as it concerns one node agent."""

    def __init__(self, engine: EngineSocket, directory: Path, *, may_pull: bool) -> None:
        self.engine = engine
        self.may_pull = may_pull
        self._book = directory / "images.json"
        self._brought = self._read()
        self._one_at_a_time = asyncio.Lock()

    async def provide(self, order: Order, use: ContainerUse) -> str:
        """The ID by which the engine knows the ordered image. Raises RuntimeFailure with the reason why there is
        none."""
        # Two instances of one image would load it twice.
        async with self._one_at_a_time:
            image = await (self._pulled(use) if use.archive is None else self._loaded(order, use))
            if image in self._brought:
                self._note(image, use.digest)
            return image

    async def _loaded(self, order: Order, use: ContainerUse) -> str:
        assert use.archive is not None, "what has no archive is pulled"
        archive = order.artifacts.get(use.archive.digest)
        if archive is None:
            raise RuntimeFailure("artifact_missing", f"{use.archive.digest[:19]}… was not given to the runtime")
        found = await look(
            Question(
                archive=str(archive),
                digest=use.archive.digest,
                image=use.digest,
                architecture=ARCHITECTURES.get(platform.machine(), platform.machine()),
                bundles=tuple(str(order.artifacts[d]) for d in use.archive.signatures if d in order.artifacts),
                signers=order.instance.signers,
            )
        )
        # Engines with the image store of containerd call an image by its manifest.
        names = [name for name in (found.id, found.manifest) if name]
        if (image := await self._known(names)) is not None:
            return image
        async with self.engine.open("POST", "/images/load", {"quiet": "1"}, upload=archive) as answer:
            await _said(answer.pieces)
        image = await self._known(names)
        if image is None:
            raise RuntimeFailure("digest_mismatch", f"the engine took the archive, and has no image {found.id[:19]}…")
        self._note(image, use.digest)
        return image

    async def _pulled(self, use: ContainerUse) -> str:
        if (image := await self._known([use.image])) is not None:
            return image
        if not self.may_pull:
            raise RuntimeFailure("image_missing", f"{use.name} is not on the node, and it pulls none")
        query = {"fromImage": use.name, "tag": use.digest}
        try:
            async with self.engine.open("POST", "/images/create", query) as answer:
                await _said(answer.pieces)
        except EngineRefused as error:
            raise RuntimeFailure("image_missing", f"{use.name}: {error.message}") from None
        image = await self._known([use.image])
        if image is None:
            raise RuntimeFailure("image_missing", f"the engine pulled {use.name}, and has none of its digest")
        self._note(image, use.digest)
        return image

    async def _known(self, names: list[str]) -> str | None:
        for name in names:
            try:
                found: dict[str, Any] = await self.engine.ask("GET", f"/images/{name}/json")
            except EngineRefused as error:
                if error.status == 404:
                    continue
                raise
            return _with_word(str(found["Id"]))
        return None

    # --- Taking out again ---

    async def collect(self, needed: Collection[Instance], keep_s: float = UNUSED_KEPT_S) -> int:
        """Take out what this node brought in and nobody here has needed for so long; how many went."""
        wanted = {i.container.digest for i in needed if i.container is not None}
        gone, now = 0, time.time()
        async with self._one_at_a_time:
            for image, brought in list(self._brought.items()):
                if wanted.intersection(brought.images):
                    brought.used_at = now
                elif now - brought.used_at >= keep_s and await self._removed(image):
                    del self._brought[image]
                    gone += 1
            self._write()
        return gone

    async def _removed(self, image: str) -> bool:
        try:
            await self.engine.ask("DELETE", f"/images/{image}")
        except EngineRefused as error:
            # 409: somebody runs it, who need not be us. It is asked again the next time.
            return error.status == 404
        return True

    def _note(self, image: str, digest: str) -> None:
        brought = self._brought.setdefault(image, Brought([], 0.0))
        if digest not in brought.images:
            brought.images.append(digest)
        brought.used_at = time.time()
        self._write()

    def _read(self) -> dict[str, Brought]:
        try:
            return msgspec.json.decode(self._book.read_bytes(), type=dict[str, Brought])
        except (OSError, msgspec.MsgspecError):
            return {}  # then those images stay, which costs room and nothing else

    def _write(self) -> None:
        try:
            os.makedirs(self._book.parent, mode=0o700, exist_ok=True)
            kept = dict(list(self._brought.items())[-IMAGES_MAX:])
            write_whole(self._book, msgspec.json.encode(kept).decode())
        except OSError as error:
            raise RuntimeFailure("artifact_unwritable", f"{self._book}: {error.strerror}") from error


async def _said(pieces: Any) -> None:
    """Read an engine's progress to its end. Raises EngineRefused when it complains in the middle, as engines do once
    they have begun to answer."""
    rest = b""
    while True:
        try:
            async with asyncio.timeout(SILENCE_S):
                piece = await anext(pieces, b"")
        except TimeoutError:
            raise EngineRefused(504, f"it has said nothing for {SILENCE_S:g} s") from None
        *lines, rest = (rest + piece).split(b"\n") if piece else (rest, b"")
        for line in lines:
            if b'"error' in line:
                raise EngineRefused(500, _complaint(line))
        if not piece:
            return
        rest = rest[-65_536:]


def _complaint(line: bytes) -> str:
    try:
        said = msgspec.json.decode(line)
    except msgspec.MsgspecError:
        return line[:400].decode("utf-8", "replace")
    detail = said.get("errorDetail") if isinstance(said, dict) else None
    return str(said.get("error") or (detail or {}).get("message", "")) if isinstance(said, dict) else ""


def _with_word(image: str) -> str:
    return image if ":" in image else f"sha256:{image}"
