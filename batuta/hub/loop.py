"""The hub's loop: gather changes, fold them into State, decide, commit, sleep until `wake_at` or the next change.

Deciding is incremental: what the changes touch, and what the last decision left open. A slow full pass decides
everything; it is the anti-entropy, and what it finds that the increments missed is a fault, counted and put right.
"""

from __future__ import annotations

import asyncio
import time
from typing import TYPE_CHECKING, Any, Final

from batuta.core.decide import APPLICATION, decide
from batuta.core.decided import Assignment
from batuta.core.fleet import Fleet
from batuta.core.standing import Moved
from batuta.core.state import Change, State
from batuta.core.touched import touched
from batuta.errors import FabricUnavailable, Stale
from batuta.hub.bell import Bell

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Iterable, Mapping

    from batuta.core.decide import Decision
    from batuta.fabric.clock import Clock
    from batuta.hub.counters import Counters
    from batuta.hub.recording import Recording
    from batuta.hub.sightings import Sightings
    from batuta.hub.store import Store

RETRY_MS: Final = 1_000
ROUNDS_MAX: Final = 100
"""A decision that is not idle after so many rounds flaps; the rest waits for the next turn and is counted."""
WRITES_AT_ONCE: Final = 64


class HubLoop:
    """One hub's deciding."""

    def __init__(self, store: Store, clock: Clock, counters: Counters, changed: Bell, *, full_pass_ms: int) -> None:
        self._store = store
        self._clock = clock
        self._counters = counters
        self._full_pass_ms = full_pass_ms
        self._sightings: Sightings | None = None
        self._state = State(hub_since=clock.now())
        self._decided_on = self._state
        """The state as of the last decision, and when that was: what has changed since is what must be decided."""
        self._decided_at = clock.now()
        self._open: frozenset[str] = frozenset()
        """What the last decision left unfinished, as subjects."""
        self._fleet = Fleet()
        self._own: dict[str, Any] = {}
        """What was decided last, by key: where it comes back just so, nobody needs to look again."""
        self._full_at = 0
        self._has_decided_all = False
        self._promised: dict[str, int] = {}
        """Serials of the newest decision, by node, written or not."""
        self._unsure: set[str] = set()
        """Keys of rows whose write was refused or got no answer: what is there is to be read again."""
        self.recording: Recording | None = None
        """Told of everything that is learnt and decided; decides nothing."""
        self.keep: Callable[[Moved], Awaitable[None]] | None = None
        """Told of each move that a policy makes unasked, before it begins."""
        self.changed = changed
        """Rung by whoever has news for this loop."""
        self.turned = Bell()
        """Rung by this loop when it has decided: what can be seen may have changed."""
        self.lag_ms = 0
        """How long the last turn took, from gathering to the last commit."""
        self.unavailable = ""
        """Why the last commit failed, while it fails."""

    @property
    def state(self) -> State:
        """The tables as of now, with everything that was heard folded in."""
        changes = self._store.take()
        if self._sightings is not None:
            for change in changes:
                if change.table == "observed" and change.value is not None:
                    self._sightings.reported(change.key)
            changes += self._sightings.take()
            self._state = self._state.deaf_for(self._sightings.deaf_ms())
        if changes:
            self._state = self._state.with_changes(changes)
            if self.recording is not None:
                self.recording.heard(changes)
        return self._state

    @property
    def known(self) -> State:
        """The tables as of now, where heartbeats do not matter: folding each by itself would copy a table each time."""
        return self.state if self._store.has_news else self._state

    def begin(self, sightings: Sightings) -> None:
        """Start from what the tables say: nothing heard before counts, and nothing new is decided for it."""
        now = self._clock.now()
        self._state = self.state.listening_since(now)
        self._sightings = sightings
        # What an earlier hub left open can only be found by deciding everything once.
        self._decided_on, self._decided_at, self._full_at = self._state, now, now
        if self.recording is not None:
            self.recording.begins(self._state, now)

    def newest_serial(self, node: str) -> int | None:
        """The newest serial of a node's assignment, decided if not yet written; None while nothing was decided yet.

        Once a slot is decided away from a silent node, no answer may renew that node's lease, though the row that tells
        it so is still to be written: the row that gives the slot to another may be written first. What an earlier hub
        left half written is known only when everything was decided once.
        """
        if not self._has_decided_all:
            return None
        assignment = self.known.assignments.get(node)
        return max(assignment.serial if assignment is not None else 0, self._promised.get(node, 0))

    async def run(self) -> None:
        while True:
            heard = self.changed.rings
            wake_at = await self.turn()
            until = self._full_at if wake_at is None else min(wake_at, self._full_at)
            await self.changed.wait(heard, self._clock, until)

    async def turn(self) -> int | None:
        """Decides and commits until nothing is left to do; returns when to look again if nothing happens."""
        began = time.perf_counter()
        try:
            wake_at = await self._turn()
            self.unavailable = ""
        except FabricUnavailable as error:
            self._counters.add("commits_failed", "fabric_unavailable")
            self.unavailable = error.message
            wake_at = self._clock.now() + RETRY_MS
        self.lag_ms = int((time.perf_counter() - began) * 1000)
        self.turned.ring()
        return wake_at

    async def _turn(self) -> int | None:
        for _ in range(ROUNDS_MAX):
            await self._make_sure()
            now = self._clock.now()
            full = now >= self._full_at
            state = self.state
            decision = self._decide(state, now)
            if (full and not decision.changes) or not self._has_decided_all:
                self._full_at = now + self._full_pass_ms
                decision = self._decide_everything(state, now)
            # Nothing is awaited between the deciding and this.
            self._promised = {c.value.node: c.value.serial for c in decision.changes if isinstance(c.value, Assignment)}
            if not decision.changes:
                return decision.wake_at
            decided_on = {c.key: self._store.revision("decided", c.key) for c in decision.changes}
            await self._commit(decision.changes, decided_on)
        self._counters.add("decisions_restless")
        return self._clock.now() + RETRY_MS

    def _decide(self, state: State, now: int) -> Decision:
        subjects = touched(self._decided_on, state, self._decided_at, now, self._fleet, self._own) | self._open
        decision = decide(state, now, subjects, self._fleet)
        self._counters.add("passes", "incremental")
        self._decided_on, self._decided_at = state, now
        self._own = {change.key: change.value for change in decision.changes}
        self._open = frozenset(APPLICATION + app for app in decision.pending)
        if self.recording is not None:
            self.recording.decided(state, now, decision, everything=False)
        return decision

    def _decide_everything(self, state: State, now: int) -> Decision:
        decision = decide(state, now)
        self._counters.add("passes_full")
        self._open = frozenset(APPLICATION + app for app in decision.pending)
        if self.recording is not None:
            self.recording.decided(state, now, decision, everything=True)
        first, self._has_decided_all = not self._has_decided_all, True
        if decision.changes and not first:
            # The law says that this cannot be; if it ever is, it must be seen, and the full pass is right.
            self._counters.add("incremental_differences", by=len(decision.changes))
        return decision

    async def _commit(self, changes: Iterable[Change], decided_on: Mapping[str, int]) -> None:
        """Releases and fences first, then assignments, then what is no longer needed: a crash in between leaves nothing
        that runs without its record. What somebody else wrote since the deciding, such as a pause, is not written over.
        """
        changes = list(changes)
        for change in changes:
            if self.keep is not None and isinstance(change.value, Moved):
                await self.keep(change.value)
        assignments = [c for c in changes if c.key.startswith("assignment.")]
        records = [c for c in changes if not c.key.startswith("assignment.")]
        kept = [c for c in records if c.value is not None]
        dropped = [c for c in records if c.value is None]
        for group in (kept, assignments, dropped):
            for start in range(0, len(group), WRITES_AT_ONCE):
                written = await asyncio.gather(
                    *(self._write(change, decided_on[change.key]) for change in group[start : start + WRITES_AT_ONCE]),
                    return_exceptions=True,
                )
                failures = [w for w in written if isinstance(w, BaseException)]
                if failures and not all(isinstance(f, Stale) for f in failures):
                    raise next(f for f in failures if not isinstance(f, Stale))
                if failures:
                    return  # Somebody else wrote; it is read again, and decided on again.

    async def _make_sure(self) -> None:
        """Reads again what could not be written, by us, by now: to decide as if it were not there after all would be to
        promise too little."""
        for key in sorted(self._unsure):
            await self._store.reread("decided", key)
            self._unsure.discard(key)

    async def _write(self, change: Change, decided_on: int) -> None:
        try:
            await self._store.commit(change, decided_on)
        except (Stale, FabricUnavailable) as error:
            self._unsure.add(change.key)
            if isinstance(error, Stale):
                self._counters.add("commits_failed", "stale")
            raise
        what = "assignment" if isinstance(change.value, Assignment) else change.key.split(".", 1)[0]
        self._counters.add("decisions", what)
