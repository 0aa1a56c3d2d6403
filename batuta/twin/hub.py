"""The hub actor: gather, fold, decide, commit, wake. The broker (`twin.broker`) keeps its tables, and outlives it.

A hub restart forgets sightings and what was pending; a torn one dies between two rows of a commit.
"""

from __future__ import annotations

import heapq
from typing import TYPE_CHECKING, Any, Final

import msgspec

from batuta.core.decide import APPLICATION
from batuta.core.decided import Assignment
from batuta.core.liveness import every_ms, heard_first, is_doubted, missed_ms, sighted
from batuta.core.observed import Report, Sighting
from batuta.core.rollout import Rollout
from batuta.core.rollout_asks import asked
from batuta.core.state import Change, State
from batuta.core.turns import plan_of
from batuta.twin.attention import Attention
from batuta.twin.chance import Chance
from batuta.twin.world import EPOCH_MS

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from batuta.kinds.scenario import RolloutAsk
    from batuta.twin.broker import Broker
    from batuta.twin.laws import Laws
    from batuta.twin.rules import Rules
    from batuta.twin.world import World

ROUNDS_MAX, CROWD = 20, 1_000
HEARD_ALL_THE_TIME: Final = EPOCH_MS + 10**12


class Hub:
    """One life of the hub process."""

    def __init__(self, world: World, broker: Broker, laws: Laws, rules: Rules, start_again: Callable[[], None]) -> None:
        self.world, self.broker, self.laws, self.rules = world, broker, laws, rules
        self._start_again = start_again
        rows = [
            Change(table, key, row.value)  # type: ignore[arg-type]
            for table, found in broker.store.tables.items()
            for key, row in sorted(found.items())
        ]
        self.state = State().with_changes(rows).listening_since(world.now)
        self.is_alive = True
        self.dies_after_rows: int | None = None
        """A torn commit: the process ends after so many rows of the next one, and is back after a while."""
        self.back_after_ms = 0
        self.pending: frozenset[str] = frozenset()
        self.fleet = rules.fleet()
        self._chance = Chance(world.seed, "hub", str(world.now))
        self.attention = Attention(world, Chance(world.seed, "attention", str(world.now)))
        self._calm_until: dict[str, int] = {}
        """By site: until when nobody there can have missed a heartbeat."""
        self._decided_on, self._decided_at = self.state, world.now
        self._full_at = world.now
        self._has_decided_all = False
        self._inbox: dict[tuple[str, str], Change] = {}
        """What was heard and is not yet folded: the newest of each row."""
        self._asks: list[RolloutAsk] = []
        self._watch: list[tuple[int, str]] = []
        """A heap of whoever is listened for beat by beat, by when it would be missed at the earliest."""
        self._watched: set[str] = set()
        self._watch_token = 0
        self._missed_ms = missed_ms(self.state)
        self.promised: dict[str, int] = {}
        """Serials of the newest decision, by node."""
        self._unwritten: list[Change] = []
        """The rest of the commit that is under way."""
        self._written = self._rounds = 0
        self._decided_for = self.state
        self._gathering, self._gatherings = False, 0
        self._wake_token = 0
        broker.hub = self
        self._turn()

    # --- Hearing ---

    def hear_heartbeat(self, node: str) -> int:
        """Notes that the node lives; answers the newest serial of its assignment, decided if not yet written.

        Once a slot is decided away from a silent node, no answer may renew that node's lease, though the row that tells
        it so is still to be written: the row that gives the slot to another may be written first.
        """
        before = self._newest(self.state.sightings, "sightings", node)
        after = sighted(before, self.world.now, self._missed_ms, self.attention.deaf_ms)
        self._gather(Change("sightings", node, after), before is None or before.online_since != after.online_since)
        self._watch_for(node, self.world.now)
        return self.newest_serial(node)

    def asks(self, node: str) -> bool:
        """Is its report wanted at once? So it is while a neighbour is missed: what it hears tells whether that is cut
        off or dead."""
        site, now = self.broker.nodes[node].plan.site, self.world.now
        if now <= self._calm_until.get(site, 0):
            return False
        longest_ms = max((self._unheard_ms(n) for n in self.state.nodes_of_site.get(site, ())), default=0)
        late_ms = every_ms(self.state) * 5 // 4
        if longest_ms <= late_ms:
            self._calm_until[site] = now + late_ms - longest_ms
            return False
        return is_doubted(self.state, site, self._unheard_ms) and node in heard_first(
            self.state, site, self._unheard_ms
        )

    def _unheard_ms(self, node: str) -> int:
        """One that this hub has not heard yet is not missed."""
        known: Sighting | None = self._newest(self.state.sightings, "sightings", node)
        return 0 if known is None else self.world.now - self._heard_at(known)

    def _heard_at(self, known: Sighting) -> int:
        """From when its silence counts."""
        return known.last_seen + max(0, self.attention.deaf_ms - known.deaf_ms)

    def _watch_for(self, node: str, heard_at: int) -> None:
        """Be there when this one is missed, should it say no more."""
        if node in self._watched:
            return
        self._watched.add(node)
        heapq.heappush(self._watch, (heard_at + self._missed_ms, node))
        if self._watch[0][1] == node:
            self._plan_watch()

    def _plan_watch(self) -> None:
        self._watch_token += 1
        if self._watch:
            self.world.after(self._watch[0][0] - self.world.now, self._look_out, self._watch_token)

    def _look_out(self, token: int) -> None:
        """Is anybody really missed now? Most were heard again meanwhile."""
        if not self.is_alive or token != self._watch_token:
            return
        if self.attention.holds_up(self._look_out, token, timer=True):
            return
        now, missed = self.world.now, False
        while self._watch and self._watch[0][0] <= now:
            _, node = heapq.heappop(self._watch)
            known = self._newest(self.state.sightings, "sightings", node)
            if known is None or node in self.broker.resting:
                self._watched.discard(node)
            elif (due := self._heard_at(known) + self._missed_ms) > now:
                heapq.heappush(self._watch, (due, node))
            else:
                self._watched.discard(node)
                missed = True
        self._plan_watch()
        if missed:
            self._turn()

    def newest_serial(self, node: str) -> int:
        assignment = self.state.assignments.get(node)
        written = 0 if assignment is None else assignment.serial
        return max(written, self.promised.get(node, 0)) if self.world.physics.promises else written

    def heard_of(self, node: str) -> int | None:
        """When this hub last heard a node whose link is open."""
        known: Sighting | None = self._newest(self.state.sightings, "sightings", node)
        return known.last_seen if known is not None and known.disconnected_at is None else None

    def follows(self, node: str, sequence: int) -> bool:
        """Did this hub take its newest report? One from a clock set back it does not, until that one caught up."""
        known: Report | None = self._newest(self.state.observed, "observed", node)
        return known is not None and known.boot == self.broker.nodes[node].boot and known.sequence == sequence

    def correct(self, node: str, last_seen: int, reported_at: int | None) -> None:
        """What came of a rest: it is known now, and is no news."""
        known: Sighting | None = self._newest(self.state.sightings, "sightings", node)
        if known is not None:
            at = known.reported_at if reported_at is None else reported_at
            after = msgspec.structs.replace(known, last_seen=last_seen, reported_at=at)
            self._gather(Change("sightings", node, after), is_news=False)
            self._watch_for(node, last_seen)
            self._calm_until.pop(self.broker.nodes[node].plan.site, None)

    def rests(self, node: str) -> None:
        """Whoever rests is heard all the time, until it is corrected."""
        known: Sighting | None = self._newest(self.state.sightings, "sightings", node)
        if known is not None:
            resting = msgspec.structs.replace(known, last_seen=HEARD_ALL_THE_TIME)
            self._gather(Change("sightings", node, resting), is_news=False)

    def hear_report(self, report: Report) -> None:
        """Folds it unless something newer of the same node is known already."""
        if self.attention.holds_up(self.hear_report, report):
            return
        known = self._newest(self.state.observed, "observed", report.node)
        if known is not None and not _is_news(known, report):
            self.world.count("stale reports")
            return
        self._gather(Change("observed", report.node, report), known is None or _says_more(known, report))
        sighting: Sighting | None = self._newest(self.state.sightings, "sightings", report.node)
        if sighting is not None:
            heard = msgspec.structs.replace(sighting, reported_at=self.world.now)
            self._gather(Change("sightings", report.node, heard), is_news=False)

    def hear_closing(self, node: str) -> None:
        if self.attention.holds_up(self.hear_closing, node):
            return
        sighting: Sighting | None = self._newest(self.state.sightings, "sightings", node)
        if sighting is not None and sighting.disconnected_at is None:
            closed = msgspec.structs.replace(sighting, disconnected_at=self.world.now)
            self._gather(Change("sightings", node, closed))

    def hear_edit(self, key: str, resource: object) -> None:
        if self.attention.holds_up(self.hear_edit, key, resource):
            return
        self._gather(Change("desired", key, resource))

    def hear_ask(self, ask: RolloutAsk) -> None:
        """Done when it decides next: nobody else writes these rows then."""
        if not self.is_alive or self.attention.holds_up(self.hear_ask, ask):
            return
        self._asks.append(ask)
        self._plan_turn()

    def _take_asks(self) -> None:
        """Writes what became of each: the row is on its way before anything is decided by it."""
        asks, self._asks = self._asks, []
        for ask in asks:
            rollout, app = self.state.rollouts.get(ask.application), ask.application
            plan = plan_of(self.state.application(app))
            made = asked(rollout, plan, ask.ask, self.world.now, "somebody") if rollout is not None else None
            if not isinstance(made, Rollout):
                self.world.count("asks refused")
                continue
            change = Change("decided", made.key, made)
            self.broker.store.put(change.table, change.key, change.value)
            self.world.tell(f"hub writes {change.key}: {ask.ask}")
            self.laws.wrote(self.state, change)
            self.state = self.state.with_changes([change])

    def _newest(self, rows: Any, table: str, key: str) -> Any:
        """What is known of a row: what waits in the inbox is newer than what was folded."""
        change = self._inbox.get((table, key))
        return rows.get(key) if change is None else change.value

    def _gather(self, change: Change, is_news: bool = True) -> None:
        """News wakes the loop; a heartbeat as expected does not, for silence is found by its instant."""
        self._inbox[change.table, change.key] = change
        if is_news:
            self._plan_turn()

    def _plan_turn(self) -> None:
        if not self._gathering:
            self._gathering = True
            self.world.after(self.world.physics.gather_ms, self._gathered, self._gatherings)

    def _gathered(self, gathering: int) -> None:
        """What gathered for it may have been taken up by another turn meanwhile."""
        if gathering == self._gatherings and not self.attention.holds_up(self._gathered, gathering, timer=True):
            self._turn()

    def known(self) -> State:
        """The tables with all that was heard folded in."""
        return self.state.with_changes(self._inbox.values()).deaf_for(self.attention.deaf_ms)

    # --- Deciding ---

    def _turn(self) -> None:
        """Decides and commits until nothing is left to do; a commit takes its time, and then comes the next round."""
        if self._gathering and len(self.broker.nodes) > CROWD:
            self._rounds = 0  # Of so many there is always news before a commit is through.
        self._gathering = False
        self._gatherings += 1
        if not self.is_alive or self._unwritten or self.attention.holds_up(self._turn, timer=True):
            return
        decision = self._decide()
        if not decision.changes and self.world.now >= self._full_at:
            self._full_at = self.world.now + self.world.physics.full_pass_ms
            decision = self._decide_all()
        if not decision.changes:
            self._rounds = 0
            self._sleep(decision.wake_at)
            return
        self._rounds += 1
        if self._rounds == ROUNDS_MAX:
            self.laws.breaks("idle_when_done", f"the hub still decides after {ROUNDS_MAX} rounds")
        self.promised = {c.value.node: c.value.serial for c in decision.changes if isinstance(c.value, Assignment)}
        for name in self.promised:
            if name in self.broker.resting:
                self.broker.nodes[name].pulse.wake()
        self._written, self._decided_for = 0, self.state
        self.laws.decided(self.state, decision.changes)
        self._unwritten = self._in_some_order(decision.changes)
        self._write_next()

    def _sleep(self, wake_at: int | None) -> None:
        self._wake_token += 1
        until = self._full_at if wake_at is None else min(wake_at, self._full_at)
        self.world.after(max(1, until - self.world.now), self._wake, self._wake_token)

    def _wake(self, token: int) -> None:
        if token == self._wake_token and not self.attention.holds_up(self._wake, token, timer=True):
            self._turn()

    def _decide(self) -> Any:
        """What changed since the last decision, what it left open, and what the time that passed may change."""
        now = self.world.now
        self.state, self._inbox = self.known(), {}
        self._take_asks()
        self._missed_ms = missed_ms(self.state)
        self.broker.decisions += 1
        since = (self._decided_on, self.state, self._decided_at, now)
        subjects = frozenset(self.rules.touched(*since, self.fleet)) | self.pending
        decision = self.rules.decide(self.state, now, subjects, self.fleet)
        self._decided_on, self._decided_at = self.state, now
        self.pending = frozenset(APPLICATION + app for app in decision.pending)
        if decision.changes and self.laws.samples_idleness():
            after = self.state.with_changes(decision.changes)
            self.laws.decided_twice(self.rules.decide(after, now, subjects).changes)
        return decision

    def _decide_all(self) -> Any:
        """Anti-entropy. The first pass of a hub takes up what an earlier one left; later ones must find nothing."""
        decision = self.rules.decide(self.state, self.world.now, None, self.fleet)
        if decision.changes and self._has_decided_all:
            self.laws.full_pass_found(decision.changes)
        self._has_decided_all = True
        self.pending = frozenset(APPLICATION + app for app in decision.pending)
        return decision

    def _write_next(self) -> None:
        """Rows land one after the other, each seen by everybody at once; a hub may die between any two."""
        if not self.is_alive or self.attention.holds_up(self._write_next, timer=True):
            return
        if self.dies_after_rows is not None and self._written >= self.dies_after_rows:
            self.world.tell(f"hub dies after {self._written} rows, before {len(self._unwritten)}")
            self.kill()
            self.world.after(self.back_after_ms, self._start_again)
            return
        written = [self._unwritten.pop() for _ in range(min(self.world.physics.writes_at_once, len(self._unwritten)))]
        for change in written:
            self.broker.store.put(change.table, change.key, change.value)
            self.broker.writes += 1
            self.world.tell(f"hub writes {change.key}")
            self.laws.wrote(self._decided_for, change)
            if isinstance(change.value, Assignment):
                self.broker.publish_assignment(change.value)
        self._written += len(written)
        self.state = self.state.with_changes(written)
        write_ms = self.world.physics.draw(self.world.physics.write_ms, self._chance)
        self.world.after(write_ms, self._write_next if self._unwritten else self._turn)

    def _in_some_order(self, changes: Sequence[Change]) -> list[Change]:
        """The last to be written comes first. Records go before assignments, those before what is no longer needed;
        within a group as chance has it, as writes land that are under way together."""

        def group(change: Change) -> int:
            return 1 if change.key.startswith("assignment.") else 2 if change.value is None else 0

        ranked = sorted(((group(c), self._chance.bits(), c) for c in changes), key=lambda row: row[:2], reverse=True)
        return [c for _, _, c in ranked]

    def kill(self) -> None:
        self.broker.wake_all()
        self.is_alive = False
        self.attention.drop()
        if self.broker.hub is self:
            self.broker.hub = None


def _is_news(known: Report, report: Report) -> bool:
    if known.boot == report.boot:
        return report.sequence > known.sequence
    return report.at >= known.at


def _says_more(known: Report, report: Report) -> bool:
    """Is there anything in it that somebody decides by? Instants, and who hears whom, only tell how silent one is."""
    return (known.boot, known.serial, known.instances, known.artifacts, known.inventory) != (
        report.boot, report.serial, report.instances, report.artifacts, report.inventory,
    )  # fmt: skip
