"""Profiling: what nodes found out about variants is kept, and what nobody knows is asked of one that has the time.

What to keep and whom to ask are pure functions (`core.profiling`); this only writes and asks, again and again: a
question that was lost, or refused because the node had no time, is asked anew as long as its answer is missing.
"""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Final

import msgspec

from batuta.core.fleet import Fleet
from batuta.core.profiling import Asked, is_all_known, to_ask, to_keep
from batuta.core.proving import MeasureAnswer
from batuta.errors import BatutaError, FabricUnavailable, Stale
from batuta.fabric import subjects
from batuta.kinds.base import encode_hook

if TYPE_CHECKING:
    from batuta.core.state import State
    from batuta.fabric.base import Fabric
    from batuta.fabric.clock import Clock
    from batuta.hub.counters import Counters
    from batuta.hub.loop import HubLoop
    from batuta.hub.store import Store

LOOK_EVERY_MS: Final = 5_000
ASK_EVERY_MS: Final = 15_000
ASKED_FOR_MS: Final = 900_000
"""So long a node that took it on may take; then somebody is asked again."""
NOT_NOW_MS: Final = 30_000
"""So long a node that was asked is left alone, whatever it said."""
NOBODY_MS: Final = 60_000
"""After so long it is looked again whether somebody can be asked, when nobody could."""
QUESTIONS_MAX: Final = 16
"""In one look."""
ANSWER_S: Final = 5.0

log = logging.getLogger(__name__)


class Profiling:
    """Keeps and asks."""

    def __init__(self, loop: HubLoop, store: Store, fabric: Fabric, clock: Clock, counters: Counters) -> None:
        self._loop = loop
        self._store = store
        self._fabric = fabric
        self._clock = clock
        self._counters = counters
        self._fleet = Fleet()
        self._seen: State | None = None
        self._ask_at = 0
        self._not_before: dict[tuple[str, str], int] = {}
        """By digest and class, or by node: when to ask again."""

    async def run(self) -> None:
        while True:
            await self._clock.sleep_until(self._clock.now() + LOOK_EVERY_MS)
            try:
                await self.look()
            except Exception:  # whatever it was, placing and healing must go on without it
                self._counters.add("profiling_failed")
                log.exception("profiling failed and is begun again")

    async def look(self) -> None:
        state, now = self._loop.state, self._clock.now()
        before, self._seen = self._seen, state
        if before is None or before.observed is not state.observed or before.desired is not state.desired:
            await self._keep(state)
        if now >= self._ask_at and state.releases:
            self._ask_at = now + ASK_EVERY_MS
            if not is_all_known(state) and not await self._ask(state, now):
                self._ask_at = now + NOBODY_MS

    async def _keep(self, state: State) -> None:
        for change in to_keep(state):
            try:
                await self._store.commit(change)
            except (Stale, FabricUnavailable):
                self._counters.add("profiles_unkept")
                await self._reread(change.key)
                self._seen = None
            else:
                self._counters.add("profiles", "kept" if change.value is not None else "dropped")

    async def _reread(self, key: str) -> None:
        try:
            await self._store.reread("decided", key)
        except FabricUnavailable:
            self._counters.add("profiles_unkept")

    async def _ask(self, state: State, now: int) -> bool:
        """False: there is nobody to ask."""
        self._not_before = {key: at for key, at in self._not_before.items() if at > now}
        questions = 0
        found = to_ask(state, self._fleet.refresh(state, now))
        for asked in found:
            about = (asked.wanted.model.variant.digest, asked.hardware)
            if about in self._not_before or (asked.node, "") in self._not_before or questions >= QUESTIONS_MAX:
                continue
            questions += 1
            taken = await self._put(asked)
            self._counters.add("measurements_asked", "taken" if taken else "not_now")
            if taken:
                self._not_before[about] = now + ASKED_FOR_MS
            self._not_before[asked.node, ""] = now + NOT_NOW_MS
        return bool(found)

    async def _put(self, asked: Asked) -> bool:
        question = msgspec.json.encode(asked.wanted, enc_hook=encode_hook)
        try:
            answer = await self._fabric.request(subjects.tell(asked.node, "measure"), question, ANSWER_S)
            return msgspec.json.decode(answer, type=MeasureAnswer).taken
        except (BatutaError, msgspec.DecodeError):
            self._counters.add("measurements_unanswered")
            return False
