"""Questions that the hub asks nodes, on behalf of people: what did this instance print?

batuta.tell.<node>.log   LogWanted -> LogPiece
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

import msgspec

from batuta.errors import BatutaError, NotFound
from batuta.fabric import subjects
from batuta.fabric.questions import LogPiece, LogWanted

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from batuta.core.state import State
    from batuta.fabric.base import Fabric
    from batuta.fabric.clock import Clock

FOLLOW_EVERY_MS: Final = 500


class Questions:
    """Asks nodes."""

    def __init__(self, fabric: Fabric, clock: Clock) -> None:
        self._fabric = fabric
        self._clock = clock

    async def log_piece(self, node: str, wanted: LogWanted) -> LogPiece:
        answer = await self._fabric.request(subjects.tell(node, "log"), msgspec.json.encode(wanted))
        try:
            piece = msgspec.json.decode(answer, type=LogPiece)
        except msgspec.DecodeError as error:
            raise BatutaError(f"{node} answered in a way that this hub cannot read: {error}") from None
        if piece.error:
            raise NotFound(piece.message or f"{node} has no log of {wanted.instance}")
        return piece

    async def log(self, node: str, instance: str, tail: int, *, follow: bool) -> AsyncIterator[str]:
        """The last lines, then what is printed from now on."""
        piece = await self.log_piece(node, LogWanted(instance=instance, tail=tail))
        yield piece.text
        while follow:
            await self._clock.sleep_until(self._clock.now() + FOLLOW_EVERY_MS)
            piece = await self.log_piece(node, LogWanted(instance=instance, tail=0, offset=piece.offset))
            if piece.text:
                yield piece.text


def instances_of(state: State, app: str, component: str, instance: str) -> list[tuple[str, str]]:
    """Node and name of every instance that is meant, running or only reported; sorted."""
    found = {(held.node, held.instance.name) for held in state.held.get(app, ())}
    for node, report in state.observed.items():
        found |= {(node, said.name) for said in report.instances if said.name.rpartition("/")[0] == app}
    return sorted(
        (node, name)
        for node, name in found
        if (not component or _component(name) == component) and (not instance or instance in (name, name.split("/")[2]))
    )


def _component(name: str) -> str:
    """`read` of `default/meter-reader/read-1-berlin-0`. A component and a slot may hold dashes, a revision is a number:
    the first part that is all digits, and not the first of all, is the revision."""
    parts = name.rpartition("/")[2].split("-")
    at = next((i for i, part in enumerate(parts) if i and part.isdigit()), len(parts))
    return "-".join(parts[:at])
