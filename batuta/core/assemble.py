"""Assemble: what was drafted becomes Assignments, one row per node, and Commons, one row per site.

Every enrolled node has one, so that a fresh node knows its site and its elders before anything runs there. The serial
rises only when the content differs. What a site shares (peers, captures) is kept in a book from decision to decision,
so that a node is looked at only when something of it changed, or its peers did.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from batuta.core.decided import Assignment, Capture, Commons, Peer, assignment_key, commons_key
from batuta.core.state import Change, apart

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from batuta.core.decided import Instance
    from batuta.core.draft import Draft

PEERS_MAX = 64
ELDERS_MAX = 16


def assemble(draft: Draft, sites: Iterable[str]) -> list[Change]:
    """The rows that change: those of drafted nodes, of every node of these sites, and of the sites."""
    state, fleet = draft.state, draft.fleet
    drafted: dict[str, list[str]] = {site: [] for site in (*draft.watched_sites, *sites)}
    for node in draft.changed_nodes():
        resource = state.nodes.get(node)
        if resource is not None:
            drafted.setdefault(resource.spec.site, []).append(node)
    changes = [Change("decided", assignment_key(node), None) for node in sorted(state.strays)]
    for site in sorted(drafted):
        members = state.nodes_of_site.get(site, ())
        unsettled = fleet.unsettled.pop(site, set())
        book: Book | None = fleet.books.get(site)
        if book is None or (book.members is not members and book.members != members):
            book = fleet.books[site] = Book(site, members)
            due: Iterable[str] = members
        else:
            due = {node for node in (*unsettled, *book.unwritten, *drafted[site]) if node in book.place}
        if book.read(draft, due):
            due = members
        found = book.changes(draft, due)
        book.unwritten = {change.value.node for change in found}
        changes += found + book.shared(draft)
        if not members:
            del fleet.books[site]
    return changes


class Book:
    """What the nodes of one site share, as last read."""

    def __init__(self, site: str, members: tuple[str, ...]) -> None:
        self.site = site
        self.members = members
        self.place = {node: i for i, node in enumerate(members)}
        self.was_read = False
        self.unwritten: set[str] = set()
        """Nodes that were to be given another assignment, until it comes just so: they are looked at again."""
        self.captures: tuple[Capture, ...] = ()
        self.peers: tuple[Peer, ...] = ()
        """Eldest first; one more than any node gets, for it leaves itself out."""
        self._peer_place: dict[str, int] = {}
        self._addresses: dict[str, str] = {}
        self._instances: dict[str, tuple[Instance, ...]] = {}
        self._models: dict[str, dict[str, list[Instance]]] = {}
        """By consumer, then node."""
        self._captured: dict[str, Capture] = {}
        """By consumer: what its instances ask for, sorted when it is read."""
        self._given: dict[str, Assignment] = {}
        """By node: what it was given last, while its peers are the same."""

    def read(self, draft: Draft, due: Iterable[str]) -> bool:
        """Look at nodes again; True when it is news who their peers are."""
        readdressed, stirred = not self.was_read, set[str]()
        is_first, self.was_read = readdressed, True
        for node in due:
            report = draft.state.observed.get(node)
            address = report.address if report is not None else ""
            if self._addresses.get(node, "") != address:
                self._addresses[node] = address
                readdressed = True
            before, after = self._instances.get(node, ()), draft.instances(node)
            if before is not after:
                self._instances[node] = after
                stirred |= self._note(node, before, after)
        peers = self.peers
        if readdressed:
            self._find_peers()
            self._given.clear()
        for consumer in stirred:
            self._capture(consumer)
        fenced = draft.fenced_captures(self.site)
        if stirred or fenced or len(self.captures) != len(self._captured):
            all_of_them = {c.consumer: c for c in reversed(fenced)} | self._captured
            found = tuple(all_of_them[consumer] for consumer in sorted(all_of_them))
            self.captures = self.captures if found == self.captures else found
        return is_first or self.peers != peers

    def gave(self, assignment: Assignment) -> bool:
        """Is it what the node was given last, with its peers still the same?"""
        node = assignment.node
        return assignment is self._given.get(node) and assignment.instances is self._instances.get(node)

    def shared(self, draft: Draft) -> list[Change]:
        """The site's row, if it is to be another."""
        before, watched = draft.state.commons.get(self.site), draft.state.watched
        if not self.members:
            return [] if before is None else [Change("decided", commons_key(self.site), None)]
        site = draft.state.site(self.site)
        port = site.spec.depot.port if site is not None and site.spec.depot is not None else None
        if before is None and not (self.captures or watched or port):
            return []
        shared = (self.captures, watched, port)
        if before is not None and (before.captures, before.watched, before.depot_port) == shared:
            return []
        serial = max(draft.now, before.serial + 1 if before is not None else 0)
        after = Commons(site=self.site, serial=serial, captures=self.captures, watched=watched, depot_port=port)
        return [Change("decided", commons_key(self.site), after)]

    def changes(self, draft: Draft, due: Iterable[str]) -> list[Change]:
        """The assignments of these nodes that are to be others."""
        assignments, reports = draft.state.assignments, draft.state.observed
        found: list[Change] = []
        for node in due:
            before, report, instances = assignments.get(node), reports.get(node), self._instances.get(node, ())
            as_given = before is not None and before is self._given.get(node)
            ahead = before is not None and report is not None and report.serial > before.serial
            if before is not None and not ahead and not draft.is_insisted(node):
                if as_given and before.instances is instances:
                    continue  # Just what it was given: nothing more need be compared.
                if (
                    before.instances == instances
                    and not (before.captures or before.watched)
                    and before.site == self.site
                    and (as_given or before.peers == self._peers_of(node))
                    and (as_given or before.elders == self.members[: min(self.place[node], ELDERS_MAX)])
                ):
                    continue
            peers, elders = (
                (before.peers, before.elders)
                if before is not None and as_given
                else (self._peers_of(node), self.members[: min(self.place[node], ELDERS_MAX)])
            )
            after = self._given[node] = Assignment(
                node=node, site=self.site, serial=draft.serial(node), instances=instances, peers=peers, elders=elders,
            )  # fmt: skip
            draft.settle(node, instances)
            found.append(Change("decided", assignment_key(node), after))
        return found

    def _find_peers(self) -> None:
        found: list[Peer] = []
        for node in self.members:
            if address := self._addresses.get(node):
                found.append(Peer(node=node, address=address))
            if len(found) > PEERS_MAX:
                break
        self.peers = tuple(found)
        self._peer_place = {peer.node: i for i, peer in enumerate(found)}

    def _peers_of(self, node: str) -> tuple[Peer, ...]:
        place = self._peer_place.get(node)
        others = self.peers if place is None else self.peers[:place] + self.peers[place + 1 :]
        return others[:PEERS_MAX]

    def _note(self, node: str, before: Sequence[Instance], after: Sequence[Instance]) -> set[str]:
        """Write down which models run on a node; returns the consumers of which something changed."""
        left, come = apart(before, after)
        stirred = {i.consumer for i in (*left, *come) if i.model is not None}
        for consumer in stirred:
            nodes = self._models.setdefault(consumer, {})
            nodes[node] = [i for i in after if i.model is not None and i.consumer == consumer]
            if not nodes[node]:
                del nodes[node]
            if not nodes:
                del self._models[consumer]
        return stirred

    def _capture(self, consumer: str) -> None:
        """What the site's nodes store for a model, wherever at the site it runs."""
        instances = [i for there in self._models.get(consumer, {}).values() for i in there]
        if not instances:
            self._captured.pop(consumer, None)
            return
        if len({(id(i.inputs), id(i.outputs)) for i in instances}) > 1:
            instances.sort(key=lambda i: (-i.revision, i.name, -i.epoch))
        else:
            del instances[1:]
        topics = dict.fromkeys(topic for i in instances for topic in (x.topic for x in i.inputs))
        if not topics:
            # It answers requests only: nothing is stored for it.
            self._captured.pop(consumer, None)
            return
        self._captured[consumer] = Capture(consumer=consumer, topics=tuple(topics), outputs=instances[0].outputs)
