"""Fleet: every node as one row of number columns, so that a placement asks all of them in one go.

Columns are kept incrementally: `refresh` follows the trail of changes from the State it saw last, or finds them by
identity when there is none, and a draft shifts loads as it places.
What depends on a question (a condition, a set of tolerations, a digest) is a column of its own, made when it is first
asked and afterwards asked again only for the rows whose facts changed.
"""

from __future__ import annotations

from functools import reduce
from typing import TYPE_CHECKING, Any

import numpy as np

from batuta.core.columns import Columns, Marks
from batuta.core.facts import chain, fact_at, node_facts, parts_of, paths_of, produced, seen_by, site_facts
from batuta.core.figures import Figures, troubles
from batuta.core.gravity import FRAME_BYTES
from batuta.core.liveness import heard_at, missed_ms
from batuta.core.load import load_of
from batuta.core.observed import Report
from batuta.core.rules import zones_of
from batuta.core.trail import named
from batuta.kinds.condition import ConditionFault, compile_condition, evaluate

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from numpy.typing import NDArray

    from batuta.core.decided import Assignment, Instance
    from batuta.core.facts import Path
    from batuta.core.load import Claim, Load
    from batuta.core.state import State
    from batuta.core.trail import Keys
    from batuta.kinds.node import Node, Taint
    from batuta.kinds.site import Site

    Ints = NDArray[np.int64]
    Bools = NDArray[np.bool_]

TRUE, FALSE, FAULT = 1, 0, -1
FOREVER = 2**63 - 1

_VITAL_FIELDS = ("temperature", "battery")
_SILENCE = Report(node="", boot="", sequence=0, at=0)


class Fleet(Figures):
    """One row per node. Rows of removed nodes are used again; names, not rows, decide ties."""

    def __init__(self) -> None:
        self.now = 0
        self.missed_ms = 0
        self.capacity = 0
        self.row_of: dict[str, int] = {}
        self.names: list[str] = []
        """By row; empty where there is no node."""
        self.site_names: list[str] = []
        self.site_code: dict[str, int] = {}
        self.taints: dict[int, tuple[Taint, ...]] = {}
        """By row, for the few that have some."""
        self.moves: list[tuple[int, Load, int]] = []
        """What was shifted since the last refresh, in order: the row, the load, and 1 or -1 for given or taken."""
        self.lays = 0
        """Counts the changes of what is free: what was worked out from that holds while this is the same."""
        self.unsettled: dict[str, set[str]] = {}
        """By site: nodes whose assignment, serial or address changed since `core.assemble` looked at them."""
        self.books: dict[str, Any] = {}
        """By site: what that somebody found there; kept here because it goes when the fleet goes."""
        self.claims: dict[int, dict[Claim, int]] = {}
        """By row, for the few that have some: what instances there have for themselves, and how many of them."""
        self.zones: frozenset[str] = frozenset()
        """Time zones of its sites."""
        self.kept: dict[object, Any] = {}
        """What readers work out once and look up again; kept here because it goes when the fleet goes."""
        self._free_rows: list[int] = []
        self._drafted: dict[int, tuple[Instance, ...] | None] = {}
        """Rows whose loads were shifted, and the instances to which that led, where it was said (`settle`)."""
        self._state: State | None = None
        self._artifacts, self._topics, self._flows = Marks(np.bool_), Marks(), Marks()
        """By digest: is it there? By pattern: how much is published there. By consumer: what its inbox took in."""
        self._topic_bytes = Marks()
        """By pattern: what those messages came to."""
        self.sites: dict[str, Site | None] = {}
        """Those of its nodes and all above them; None for what is named and not declared."""
        self.sites_revision = 0
        self._node: list[Node | None] = []
        self._report: list[Report | None] = []
        self._sighting: list[Any] = []
        self._assignment: list[Assignment | None] = []
        self._columns = Columns()
        self._codes: dict[Path, dict[Any, int]] = {}
        self._variables: dict[int, tuple[int, int, dict[str, Any]]] = {}
        self._vital_versions: tuple[int, Ints] = (-1, np.zeros(0, np.int64))
        self._grow(64)

    # --- Following the state ---

    def refresh(self, state: State, now: int) -> Fleet:
        """Take over what changed."""
        self.now = now
        before, self._state = self._state, state
        keys = state.trail.between(before.step, state.step) if before and before.trail is state.trail else None
        is_moved = before is None or (state.hub_since, state.deaf_ms) != (before.hub_since, before.deaf_ms)
        came: set[str] = set()
        if before is None or state.nodes is not before.nodes or state.desired is not before.desired:
            came = self._follow_nodes(state, keys)
        for name in self._names(keys, "observed", before is None or state.observed is not before.observed) | came:
            row, report = self.row_of.get(name), state.observed.get(name)
            if row is not None and report is not self._report[row]:
                self._take_report(row, report)
        heard = None if is_moved else keys
        is_heard = heard is None or before is None or state.sightings is not before.sightings
        for name in self._names(heard, "sightings", is_heard) | came:
            row, sighting = self.row_of.get(name), state.sightings.get(name)
            if row is not None and (name in came or sighting is not self._sighting[row] or is_moved):
                self._sighting[row] = sighting
                self.sighted[row] = sighting is not None
                self.closed[row] = sighting is not None and sighting.disconnected_at is not None
                self.heard[row] = heard_at(state, name)
                self.since[row] = sighting.online_since if sighting is not None else state.hub_since
                self.drops[row] = sighting.drops if sighting is not None else 0
        assigned = self._names(keys, "decided", before is None or state.assignments is not before.assignments)
        for name in assigned | came | {self.names[row] for row in self._drafted}:
            row, assignment = self.row_of.get(name), state.assignments.get(name)
            if row is not None and (assignment is not self._assignment[row] or row in self._drafted):
                self._take_assignment(row, assignment)
        self._drafted.clear()
        self.moves = []
        self.lays += 1
        self.missed_ms = missed_ms(state)
        self.fresh = self.present & self.sighted & ~self.closed & (self.heard > now - self.missed_ms)
        return self

    def _names(self, keys: Keys | None, table: str, changed: bool) -> set[str]:
        """Names of the nodes whose row of a table may have changed."""
        if not changed:
            return set()
        if keys is None:
            return set(self.row_of)
        found = keys.get(table, set())
        return set(named(found, "assignment.")) if table == "decided" else found

    def shift(self, row: int, load: Load, count: int) -> None:
        """A draft gives (`count` 1) or takes (-1) an instance; the next refresh reads the row's assignment again."""
        self.lay(row, load, count)
        self.moves.append((row, load, count))
        self._drafted[row] = None

    def shift_each(self, given: list[tuple[int, Load]]) -> None:
        """The same for many rows to which instances are given, none of them named twice."""
        alike: dict[Load, list[int]] = {}
        for row, load in given:
            alike.setdefault(load, []).append(row)
            self.moves.append((row, load, 1))
            self._drafted[row] = None
        for load, rows in alike.items():
            self.lay(rows[0] if len(rows) == 1 else np.array(rows), load, 1)

    def lay(self, rows: int | Ints, load: Load, count: int) -> None:
        """Add a load to rows, none of them named twice, or take it away. Whoever tries things out puts them back."""
        self.lays += 1
        self.cpu_free[rows] -= load.cpu_millis * count
        self.memory_free[rows] -= load.memory_bytes * count
        self.disk_free[rows] -= load.disk_bytes * count
        self.instances[rows] += count
        for row in np.atleast_1d(rows).tolist() if load.claims else ():
            self._claim(row, load.claims, count)

    def _claim(self, row: int, claims: tuple[Claim, ...], count: int) -> None:
        mine = self.claims.setdefault(row, {})
        for claim in claims:
            left = mine.get(claim, 0) + count
            if left:
                mine[claim] = left
            else:
                mine.pop(claim, None)
        if not mine:
            del self.claims[row]
        self.claimed[row] += 1
        self._columns.revision += 1

    def settle(self, row: int, instances: tuple[Instance, ...]) -> None:
        """All that was shifted at a row came to these instances: if just they are assigned, its loads are right."""
        if row in self._drafted:
            self._drafted[row] = instances

    def next_silence(self, now: int) -> int | None:
        """The next instant at which a node that holds something will be missed, if it says no more."""
        at = self.heard[self.present & (self.instances > 0)] + self.missed_ms
        at = at[at > now]
        return int(at.min()) if at.size else None

    # --- Questions ---

    def where(self, text: str | None) -> NDArray[np.int8]:
        """TRUE, FALSE or FAULT by row: does the condition hold there? Nodes that have not reported are FALSE."""
        if text is None:
            return self.reported.astype(np.int8)
        if len(parts := parts_of(text)) > 1:
            # Many components ask for the same few things, each for others of them together.
            found: NDArray[np.int8] = reduce(np.minimum, map(self.where, parts))
            if found.min() != FAULT:
                return found
        condition, paths = compile_condition(text), paths_of(text)

        def ask(row: int) -> int:
            # What it cannot see need not be made ready for it: that would take longer than to answer.
            answer = evaluate(condition, seen_by(paths, self.variables(row)))
            return FAULT if isinstance(answer, ConditionFault) else TRUE if answer else FALSE

        return self.by_class(("where", text), paths, ask) * self.reported  # FALSE is 0.

    def has_artifact(self, digest: str) -> Bools:
        found: Bools = self._artifacts.column(digest, self.capacity)
        return found

    def published(self, patterns: tuple[str, ...], consumer: str) -> tuple[Ints, int]:
        """By row: the bytes of messages first published there that match a pattern, or that the consumer's inbox took
        in; and how many a message has. Whose size nobody tells counts as one of the others, or as a small picture."""
        told, size, untold = np.zeros((3, self.capacity), np.int64)
        for pattern in patterns:
            messages = self._topics.column(pattern, self.capacity)
            its_bytes = self._topic_bytes.column(pattern, self.capacity)
            is_told = its_bytes > 0
            size += its_bytes
            its_told = messages * is_told
            told += its_told
            untold += messages - its_told
        untold += self._flows.column(consumer, self.capacity)
        known = int(told.sum())
        frame_bytes = max(1, int(size.sum()) // known) if known else FRAME_BYTES
        found: Ints = size + untold * frame_bytes
        return found, frame_bytes

    def silent(self) -> list[str]:
        """Nodes that hold something and that the hub misses."""
        rows = np.flatnonzero(self.present & (self.instances > 0) & (self.heard <= self.now - self.missed_ms))
        return [self.names[row] for row in rows.tolist()]

    def by_class(self, key: object, paths: tuple[Path, ...], ask: Callable[[int], Any]) -> NDArray[np.int8]:
        """By row: a small number that follows from these facts alone; asked once for all that do not differ in them."""
        facts = (self._coded(path) for path in paths)
        found: NDArray[np.int8] = self._columns.asked_by_class(
            key, self.present, self._versions(paths), facts, ask, np.int8
        )
        return found

    def column(self, key: object, versions: Ints, ask: Callable[[int], Any], dtype: Any) -> Any:
        """By row: whatever follows from the facts that these versions count."""
        return self._columns.asked(key, self.present, versions, ask, dtype)

    def at(self, row: int) -> tuple[Node, Report | None, Assignment | None]:
        """What is declared, reported and assigned there."""
        node = self._node[row]
        assert node is not None, "a row without a node was asked"
        return node, self._report[row], self._assignment[row]

    def nodes_and_reports(self) -> tuple[list[Any], list[Report | None]]:
        """By row, for who asks many rows; a row without a node has neither."""
        return self._node, self._report

    def chain(self, site: str) -> list[Site]:
        """A site and those above it, nearest first, as far as they are declared."""
        return [found for name in chain(site, self.sites) if (found := self.sites.get(name)) is not None]

    @property
    def state(self) -> State:
        """The one that it follows."""
        assert self._state is not None, "a fleet that follows no state was asked"
        return self._state

    def variables(self, row: int) -> dict[str, Any]:
        """What a condition sees of a row: `node` and `site`. Figures that nobody knows are left out, for has(…)."""
        version = (int(self.machine[row]), int(self.vitals[row]))
        known = self._variables.get(row)
        if known is None or known[:2] != version:
            node, report = self._node[row], self._report[row]
            assert node is not None, "a row without a node was asked"
            known = (*version, {"node": node_facts(node, report), "site": site_facts(node, self.sites)})
            self._variables[row] = known
        return known[2]

    def _coded(self, path: Path) -> Ints:
        """A fact of every row as a number: the same number, the same value."""
        table = self._codes.setdefault(path, {})
        if len(table) > 2 * self.capacity:
            # Values that nobody has any more: numbered anew.
            table.clear()
            self._columns.forget(("fact", path))

        nodes, reports, found = self._node, self._report, fact_at(path, self.sites)

        def ask(row: int) -> int:
            node = nodes[row]
            assert node is not None, "a row without a node was asked"
            return table.setdefault(found(node, reports[row]), len(table))

        codes: Ints = self.column(("fact", path), self._versions((path,)), ask, np.int64)
        return codes

    def vital_versions(self) -> Ints:
        """Counts the changes of what a node is and how it is."""
        if self._vital_versions[0] != self._columns.revision:
            self._vital_versions = (self._columns.revision, self.machine + self.vitals)
        return self._vital_versions[1]

    def _versions(self, paths: tuple[Path, ...]) -> Ints:
        vital = any(len(path) == 1 or path[1] in _VITAL_FIELDS for path in paths)
        return self.vital_versions() if vital else self.machine

    # --- Rows ---

    def _grow(self, capacity: int) -> None:
        old = self.capacity
        self.widen(capacity)
        more = capacity - old
        self.names += [""] * more
        for rows in (self._node, self._report, self._sighting, self._assignment):
            rows.extend([None] * more)
        self._free_rows = list(range(capacity - 1, old - 1, -1)) + self._free_rows
        self.capacity = capacity
        self._columns.grow(capacity)
        self._columns.revision += 1

    def _follow_nodes(self, state: State, keys: Keys | None) -> set[str]:
        """Rows for nodes that came, changed or went; returns the names of those that came."""
        if keys is None:
            names: set[str] = self.row_of.keys() | state.nodes.keys()
            sites: Iterable[str] = self.sites.keys()
        else:
            desired = keys.get("desired", set())
            names, sites = set(named(desired, "nodes.")), named(desired, "sites.")
        moved = {site for site in sites if site in self.sites and state.site(site) is not self.sites[site]}
        for site in moved:
            self.sites[site] = state.site(site)
        if moved:
            # What a site says holds for those below it, too, unless they say otherwise.
            moved |= {site for site in self.sites if not moved.isdisjoint(chain(site, self.sites))}
            names |= {name for site in moved for name in state.nodes_of_site.get(site, ())}
            for site in list(self.sites):
                self._know_site(state, site)
        came: set[str] = set()
        gone = [name for name in names if name in self.row_of and name not in state.nodes]
        for name in gone:
            self._forget(name)
        for name in names - set(gone):
            node, row = state.nodes.get(name), self.row_of.get(name)
            if node is None:
                continue
            if row is None:
                row = self._new_row(name)
                came.add(name)
            if self._node[row] is not node or node.spec.site in moved:
                if node.spec.site not in self.sites:
                    self._know_site(state, node.spec.site)
                self._take_node(row, node)
        if moved or came or gone:
            self.zones = zones_of(self.sites.values())
            self.sites_revision += 1
        if came or gone:
            self._rank()
        return came

    def _know_site(self, state: State, site: str) -> None:
        """Remember a site and all above it, so that their changes are noticed; also those that are not declared yet."""
        here: str | None = site
        while here is not None:
            found = self.sites.setdefault(here, state.site(here))
            here = found.spec.parent if found is not None and found.spec.parent not in self.sites else None

    def _new_row(self, name: str) -> int:
        if not self._free_rows:
            self._grow(self.capacity * 2)
        row = self._free_rows.pop()
        self.row_of[name] = row
        self.names[row] = name
        self.present[row] = True
        return row

    def _forget(self, name: str) -> None:
        row = self.row_of.pop(name)
        self._take_stock(row, self._report[row], None)
        self.names[row] = ""
        for column in (self.present, self.sighted, self.closed, self.reported, self.schedulable, self.drained):
            column[row] = False
        loads = (self.cpu_total, self.cpu_free, self.memory_total, self.memory_free, self.disk_total, self.disk_free)
        for numbers in (*loads, self.instances, self.since, self.restarts, self.refused, self.drops, self.held_until):
            numbers[row] = 0
        self.claims.pop(row, None)
        # Versions only ever rise, so that no remembered answer survives the row's next tenant.
        for versions in (self.machine, self.vitals, self.stock, self.claimed, self.pace):
            versions[row] += 1
        self._columns.revision += 1
        self._drafted.pop(row, None)
        self.taints.pop(row, None)
        self._variables.pop(row, None)
        for rows in (self._node, self._report, self._sighting, self._assignment):
            rows[row] = None
        self._free_rows.append(row)

    def _rank(self) -> None:
        for place, name in enumerate(sorted(self.row_of)):
            self.rank[self.row_of[name]] = place

    def _take_node(self, row: int, node: Node) -> None:
        self._node[row] = node
        spec = node.spec
        self.schedulable[row] = not (spec.unschedulable or spec.drain)
        self.drained[row] = spec.drain
        self.held_until[row] = 0 if spec.hold is None else FOREVER if spec.hold.until is None else int(spec.hold.until)
        site = node.spec.site
        if site not in self.site_code:
            self.site_code[site] = len(self.site_names)
            self.site_names.append(site)
        self.site[row] = self.site_code[site]
        if node.spec.taints:
            self.taints[row] = node.spec.taints
        else:
            self.taints.pop(row, None)
        self.machine[row] += 1
        self._columns.revision += 1

    def _take_report(self, row: int, report: Report | None) -> None:
        before, self._report[row] = self._report[row], report
        self._columns.revision += 1
        self._take_stock(row, before, report)
        if before is None or report is None or (before.address, before.serial) != (report.address, report.serial):
            self._unsettle(row)
        inventory = report.inventory if report is not None else None
        if before is None or report is None or before.inventory != inventory:
            self.reported[row] = report is not None
            cpu, memory = (inventory.cpu_millis, inventory.memory_bytes) if inventory is not None else (0, 0)
            self.cpu_free[row] += int(cpu) - self.cpu_total[row]
            self.memory_free[row] += int(memory) - self.memory_total[row]
            self.cpu_total[row], self.memory_total[row] = int(cpu), int(memory)
            disk = int(inventory.disk_bytes) if inventory is not None else 0
            self.disk_free[row] += disk - self.disk_total[row]
            self.disk_total[row] = disk
            self.machine[row] += 1
        if before is None or report is None or before.vitals != report.vitals:
            self.vitals[row] += 1
        if before is None or report is None or before.instances != report.instances:
            self.restarts[row], self.refused[row] = troubles(report)
            self.pace[row] += 1
        if (
            before is None
            or report is None
            or (before.artifacts, before.topics, before.topic_bytes, before.flows)
            != (report.artifacts, report.topics, report.topic_bytes, report.flows)
        ):
            self.stock[row] += 1

    def _take_stock(self, row: int, before: Report | None, after: Report | None) -> None:
        was, now = before or _SILENCE, after or _SILENCE
        if was.artifacts != now.artifacts:
            self._artifacts.note(row, dict.fromkeys(was.artifacts, 1), dict.fromkeys(now.artifacts, 1))
        if was.topics != now.topics:
            self._topics.note(row, was.topics, now.topics)
        if was.topic_bytes != now.topic_bytes:
            self._topic_bytes.note(row, was.topic_bytes, now.topic_bytes)
        if was.flows != now.flows:
            self._flows.note(row, produced(was), produced(now))

    def _take_assignment(self, row: int, assignment: Assignment | None) -> None:
        before, self._assignment[row] = self._assignment[row], assignment
        if assignment is not before:
            self._unsettle(row, assignment)
        held = assignment.instances if assignment is not None else ()
        if row not in self._drafted and before is not None and before.instances is held:
            return
        self.pace[row] += 1
        self._columns.revision += 1
        if self._drafted.get(row) is held:
            return
        self.cpu_free[row], self.memory_free[row] = self.cpu_total[row], self.memory_total[row]
        self.disk_free[row], self.instances[row] = self.disk_total[row], 0
        if self.claims.pop(row, None) is not None:
            self.claimed[row] += 1
        for instance in held:
            self.lay(row, load_of(instance), 1)

    def _unsettle(self, row: int, assignment: Assignment | None = None) -> None:
        """Somebody has to look at a node; not at one that was given just this assignment."""
        node = self._node[row]
        if node is not None:
            book = self.books.get(node.spec.site)
            if book is not None and assignment is not None and book.gave(assignment):
                book.unwritten.discard(self.names[row])
                return
            self.unsettled.setdefault(node.spec.site, set()).add(self.names[row])


def fleet_of(state: State, now: int) -> Fleet:
    """The fleet of a state, kept from one State of its line to the next: for readers that have none of their own."""
    fleet: Fleet = state.memo.setdefault("fleet", Fleet())
    return fleet.refresh(state, now)
