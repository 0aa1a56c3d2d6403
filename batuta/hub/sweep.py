"""Sweep: artifacts that nothing declared or released refers to go after a while, and their recipes with them."""

from __future__ import annotations

import asyncio
import logging
import re
from typing import TYPE_CHECKING, Final

import msgspec

from batuta.core.decided import Assignment, Release
from batuta.kinds.base import encode_hook

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from batuta.core.state import State
    from batuta.hub.artifacts import ArtifactStore
    from batuta.hub.recipes import Recipes

log = logging.getLogger(__name__)

EVERY_S: Final = 3_600.0
_DIGEST: Final = re.compile(rb"sha256:[0-9a-f]{64}")


class Sweep:
    """Looks once an hour."""

    def __init__(self, artifacts: ArtifactStore, recipes: Recipes, state: Callable[[], State], keep_s: float) -> None:
        self._artifacts = artifacts
        self._recipes = recipes
        self._state = state
        self._keep_s = keep_s

    async def run(self) -> None:
        while True:
            await asyncio.sleep(EVERY_S)
            try:
                await self.once()
            except Exception:  # nothing is lost by keeping too much, and it is looked at again in an hour
                log.exception("artifacts could not be swept")

    async def once(self) -> list[str]:
        """What went."""
        gone = await asyncio.to_thread(self._artifacts.collect, lambda: referred(self._state()), self._keep_s)
        for digest in gone:
            self._recipes.forget(digest)
            log.info("%s was referred to by nothing, and is gone", digest)
        return gone


def referred(state: State) -> frozenset[str]:
    """Every digest in anything that people declared, or that was decided from it: wherever in it the digest stands."""
    decided: Iterable[object] = (v for v in state.decided.values() if isinstance(v, Release | Assignment))
    found: set[str] = set()
    for value in (*state.desired.values(), *decided):
        found.update(digest.decode() for digest in _DIGEST.findall(msgspec.json.encode(value, enc_hook=encode_hook)))
    return frozenset(found)
