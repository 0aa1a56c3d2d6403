"""The stage of a rehearsal: the copy of a live fleet, in which a change is tried and things may fail."""

from __future__ import annotations

from typing import TYPE_CHECKING

import msgspec

from batuta.core.fleet import Fleet
from batuta.core.liveness import HEARSAY_MS, heard_first, is_doubted
from batuta.core.state import Change
from batuta.kinds.base import encode_hook
from batuta.twin.laws import component_of
from batuta.twin.rehearse_books import Books
from batuta.twin.rehearse_fetch import Fetches
from batuta.twin.rehearse_hub import HEARD_FOR_MS, HubCopy
from batuta.twin.rehearse_links import Links
from batuta.twin.rehearse_node import NodeCopy
from batuta.twin.rehearse_pace import Pace
from batuta.twin.rehearse_time import Timeline

if TYPE_CHECKING:
    from collections.abc import Iterator

    from batuta.core.decided import Assignment
    from batuta.core.state import State

HEARSAY_EVERY_MS = 15_000
"""Nodes report at least so often; it matters when their neighbours are cut off."""
BEAT_MS = 1_000
ASKED_FOR_MS = 10_000
"""So long each answer to those who are asked what they hear is played."""


class Stage:
    """Everything of one run: time, links, hub, nodes, books."""

    def __init__(self, state: State, now: int) -> None:
        self.time = Timeline(now)
        self.pace = Pace(state)
        self.links = Links(state, self.time)
        self.fetches = Fetches(self.links, self.time, lambda node: list(self.neighbours(node)))
        fresh = _fresh(state, now)
        heard = [
            Change(
                "sightings",
                name,
                msgspec.structs.replace(sighting, last_seen=now + HEARD_FOR_MS, deaf_ms=state.deaf_ms),
            )
            for name, sighting in state.sightings.items()
            if name in fresh
        ]
        self.state_before = state
        self.books = Books(self, state)
        self.links.on_rates = self.books.moved
        self.hub = HubCopy(self, state.with_changes(heard))
        self.nodes: dict[str, NodeCopy] = {}
        self.silent = frozenset(state.nodes.keys() - fresh)
        self._telling: set[str] = set()
        """Nodes whose reports at rest are played."""
        for name, report in sorted(state.observed.items()):
            if name in state.nodes:
                node = NodeCopy(self, name, state.nodes[name].spec.site, report, linked=name in fresh)
                self.nodes[name] = node
                node.take_over(state.assignments.get(name), _apart_ms(state, name))
        self._by_site: dict[str, list[NodeCopy]] = {}
        for node in self.nodes.values():
            self._by_site.setdefault(node.site, []).append(node)
        for node in self.nodes.values():
            if node.linked:
                assignment = state.assignments.get(node.name)
                if assignment is not None:
                    self.sends_assignment(assignment, is_new=False)
                self.time.after(0, node.work)
        self.hub.plan(0)

    # --- Between hub and nodes ---

    def sends_assignment(self, assignment: Assignment, *, is_new: bool = True) -> None:
        node = self.nodes.get(assignment.node)
        if node is None or not node.linked:
            return  # it reads it when it is back
        if is_new:
            self.links.count_control(node.site, len(msgspec.json.encode(assignment, enc_hook=encode_hook)))
        self.time.after(self.links.latency_ms(node.site), self._arrives, node, assignment)

    def _arrives(self, node: NodeCopy, assignment: Assignment) -> None:
        if node.linked:
            node.hear_assignment(assignment)

    def sends_report(self, node: NodeCopy) -> None:
        report = node.report
        self.links.count_control(node.site, len(msgspec.json.encode(report, enc_hook=encode_hook)))
        self.time.after(self.links.latency_ms(node.site), self._is_heard, node, report)

    def _is_heard(self, node: NodeCopy, report: object) -> None:
        # Reports are state: one that is overtaken by another says nothing that the other does not.
        if report is node.report:
            self.hub.hear_report(node.report)

    # --- Who is there ---

    def heard_less(self, node: NodeCopy) -> None:
        """The link is cut, or the node agent gone."""
        if self.hub.is_alive:
            self.hub.unlinked(node.name)
        for neighbour in self._by_site.get(node.site, ()):
            if neighbour.name not in self._telling:
                self._telling.add(neighbour.name)
                self._tell_again(neighbour)
        self.time.after(BEAT_MS * 5 // 4, self._doubt, node, self.time.now + ASKED_FOR_MS)

    def _doubt(self, node: NodeCopy, until: int) -> None:
        """While somebody is missed who holds something, the eldest of his neighbours tell with every beat whom they
        hear. What they go on telling makes a difference only once it is nearly too late, and is played so often."""
        if node.linked:
            return
        if self.hub.answers and is_doubted(self.hub.state, node.site, self._unheard_ms):
            for name in heard_first(self.hub.state, node.site, self._unheard_ms):
                self.nodes[name].plan_report(0)
        wait_ms = BEAT_MS if self.time.now < until else max(BEAT_MS, (self._patience_ms(node) - BEAT_MS) // 2)
        self.time.after(wait_ms, self._doubt, node, until)

    def _patience_ms(self, node: NodeCopy) -> int:
        """With which of what it holds there is least patience."""
        assignment = self.hub.state.assignments.get(node.name)
        held = [component_of(self.hub.state, i) for i in (assignment.instances if assignment is not None else ())]
        return min((int(c.failover.after_ms) for c in held if c is not None), default=HEARSAY_MS)

    def _unheard_ms(self, name: str) -> int:
        node = self.nodes.get(name)
        return 0 if node is not None and node.linked else HEARD_FOR_MS

    def heard_again(self, node: NodeCopy) -> None:
        """It has its link back: it beats, and reads its assignment."""
        if not self.hub.is_alive:
            return  # a new one hears it by itself
        self.hub.linked(node.name)
        node.plan_work()  # what waits for a lease may begin again
        assignment = self.hub.state.assignments.get(node.name)
        if assignment is not None:
            self.sends_assignment(assignment)

    def neighbours(self, node: NodeCopy) -> Iterator[NodeCopy]:
        """Whose heart this one hears: a cut from the hub is none from the site."""
        return (n for n in self._by_site.get(node.site, ()) if n is not node and n.running)

    def _tell_again(self, node: NodeCopy) -> None:
        """Every node reports now and then without being asked. While somebody of its site is cut off, it matters whom
        it hears; otherwise it is not played."""
        left_ms = HEARSAY_EVERY_MS - (self.time.now - node.reported_at) % HEARSAY_EVERY_MS
        self.time.after(left_ms, self._tells, node)

    def _tells(self, node: NodeCopy) -> None:
        if not any(n.cuts and n.running for n in self._by_site[node.site]):
            self._telling.discard(node.name)
            return
        if self.time.now - node.reported_at >= HEARSAY_EVERY_MS:
            node.plan_report(0)
        self._tell_again(node)

    def kill_hub(self) -> None:
        """Nobody answers any more."""
        for node in self.nodes.values():
            node.lose_contact()
        self.hub.is_alive = False
        for node in self.nodes.values():
            node.plan_lapses()

    def stall_hub(self, for_ms: int) -> None:
        """Its process is held up: it answers nobody and decides nothing until it goes on."""
        for node in self.nodes.values():
            node.lose_contact()
        self.hub.stall()
        for node in self.nodes.values():
            node.plan_lapses()
        self.time.after(for_ms, self._goes_on, for_ms)

    def _goes_on(self, for_ms: int) -> None:
        """What was said meanwhile is answered now."""
        self.hub.go_on(for_ms)
        for node in self.nodes.values():
            if self.hub.answers and node.linked:
                node.plan_work()  # what waits for a lease may begin again

    def restart_hub(self) -> None:
        """A new hub process: it has to hear everybody first."""
        self.hub.start()
        for k, node in enumerate(self.nodes.values()):
            self.time.after(k * 97 % BEAT_MS, self._beats, node)

    def _beats(self, node: NodeCopy) -> None:
        if node.linked:
            self.heard_again(node)


def _fresh(state: State, now: int) -> frozenset[str]:
    """Nodes that are heard at this instant."""
    fleet = Fleet().refresh(state, now)
    return frozenset(name for name, row in fleet.row_of.items() if fleet.fresh[row])


def _apart_ms(state: State, node: str) -> int:
    """How far a node's clock is ahead of the hub's, by its last report and its arrival."""
    sighting, report = state.sightings.get(node), state.observed.get(node)
    if sighting is None or sighting.reported_at is None or report is None:
        return 0
    apart_ms = report.at - sighting.reported_at
    # What a report takes on its way looks like a clock that is behind.
    return apart_ms if abs(apart_ms) > BEAT_MS else 0
