"""The hub's copy: gather, fold, decide, commit, as the real one does. Whom it hears, it hears until further notice."""

from __future__ import annotations

from typing import TYPE_CHECKING

import msgspec

from batuta.core.decide import APPLICATION, decide
from batuta.core.decided import Assignment
from batuta.core.fleet import Fleet
from batuta.core.liveness import HEARTBEAT_MS, missed_ms, sighted
from batuta.core.state import Change
from batuta.core.touched import everything, touched
from batuta.twin.attention import TICK_MS
from batuta.twin.rehearse_pace import HUB_MS

if TYPE_CHECKING:
    from collections.abc import Iterable

    from batuta.core.observed import Report, Sighting
    from batuta.core.reasons import Reason
    from batuta.core.state import State
    from batuta.twin.rehearse_stage import Stage

ROUNDS_MAX = 100
HEARD_FOR_MS = 10**11
"""A node that is linked counts as heard so far ahead: no heartbeat has to be played, and no silence looked for."""


class HubCopy:
    """The deciding process."""

    def __init__(self, stage: Stage, state: State) -> None:
        self.stage, self.time = stage, stage.time
        self.state = state
        self.is_alive = True
        self.stalls = 0
        """So many faults hold its process up at present."""
        self.restless = 0
        """Decisions that did not come to rest."""
        self.reasons: dict[str, tuple[Reason, ...]] = {}
        self._fleet = Fleet()
        self._decided_on, self._decided_at = state, self.time.now
        self._open = everything(state)
        self._inbox: list[Change] = []
        self._planned = False
        self._wake = 0

    # --- Hearing ---

    def hear_report(self, report: Report) -> None:
        """The broker keeps it, also while there is no hub process."""
        self._inbox.append(Change("observed", report.node, report))
        sighting = self._sighting(report.node)
        if sighting is not None:
            heard = msgspec.structs.replace(sighting, reported_at=self.time.now)
            self._inbox.append(Change("sightings", report.node, heard))
        self.plan()

    def hear_edits(self, changes: Iterable[Change]) -> None:
        self._inbox += changes
        self.plan()

    def linked(self, node: str) -> None:
        """It is heard, from now until further notice."""
        beat = sighted(self._sighting(node), self.time.now, missed_ms(self.state), self.state.deaf_ms)
        heard = msgspec.structs.replace(beat, last_seen=self.time.now + HEARD_FOR_MS)
        self._inbox.append(Change("sightings", node, heard))
        self.plan()

    def unlinked(self, node: str) -> None:
        """Its last heartbeat was half a beat ago, as it is on average. Only its silence tells."""
        before = self._sighting(node)
        if before is not None:
            last_seen = min(before.last_seen, self.time.now - HEARTBEAT_MS // 2)
            self._inbox.append(Change("sightings", node, msgspec.structs.replace(before, last_seen=last_seen)))
            self.plan()

    def _sighting(self, node: str) -> Sighting | None:
        for change in reversed(self._inbox):
            if change.table == "sightings" and change.key == node:
                found: Sighting | None = change.value
                return found
        return self.state.sightings.get(node)

    # --- Life and death ---

    @property
    def answers(self) -> bool:
        """Does anybody answer heartbeats?"""
        return self.is_alive and not self.stalls

    def stall(self) -> None:
        self.stalls += 1

    def go_on(self, for_ms: int) -> None:
        """A stall is over: nobody was silent for that."""
        self.stalls -= 1
        if self.answers:
            self.state = self.state.deaf_for(self.state.deaf_ms + max(0, for_ms - TICK_MS))
            self.plan(0)

    def start(self) -> None:
        """Listen anew; whoever is there is heard within a beat."""
        self.is_alive = True
        self.state = self.state.listening_since(self.time.now)
        self._inbox = [c for c in self._inbox if c.table != "sightings"]
        self._open = everything(self.state)
        self.plan()

    # --- Deciding ---

    def plan(self, delay_ms: int = HUB_MS) -> None:
        if not self._planned:
            self._planned = True
            self.time.after(delay_ms, self._turn)

    def _turn(self) -> None:
        self._planned = False
        if not self.answers:
            return
        self.state, self._inbox = self.state.with_changes(self._inbox), []
        wake_at = None
        for _ in range(ROUNDS_MAX):
            now = self.time.now
            subjects = touched(self._decided_on, self.state, self._decided_at, now, self._fleet) | self._open
            decision = decide(self.state, now, subjects, self._fleet)
            self._decided_on, self._decided_at = self.state, now
            self._open = frozenset(APPLICATION + app for app in decision.pending)
            for subject in subjects:
                self.reasons.pop(subject.removeprefix(APPLICATION), None)
            self.reasons.update(decision.reasons)
            wake_at = decision.wake_at
            if not decision.changes:
                break
            self._commit(decision.changes)
        else:
            self.restless += 1
        self.stage.books.decided(frozenset(s.removeprefix(APPLICATION) for s in self._open))
        self._sleep(wake_at)

    def _commit(self, changes: tuple[Change, ...]) -> None:
        before = self.state
        self.state = before.with_changes(changes)
        self.stage.books.wrote(before, changes)
        for change in changes:
            if isinstance(change.value, Assignment):
                self.stage.sends_assignment(change.value)

    def _sleep(self, wake_at: int | None) -> None:
        self._wake += 1
        if wake_at is not None and wake_at < self.time.now + HEARD_FOR_MS // 2:
            self.time.at(max(wake_at, self.time.now + 1), self._woken, self._wake)

    def _woken(self, token: int) -> None:
        if token == self._wake:
            self.plan(0)
