"""Fleet: every node as one row of number columns, so that a placement asks all of them in one go.

Columns are kept incrementally: `refresh` finds what changed by identity, row by row, and a draft shifts loads as it
places.
What depends on a question (a condition, a set of tolerations, a digest) is a column of its own, made when it is first
asked and afterwards asked again only for the rows whose facts changed.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from batuta.core.liveness import heard_at, missed_ms
from batuta.kinds.base import Ref
from batuta.kinds.condition import ConditionFault, compile_condition, evaluate

if TYPE_CHECKING:
    from collections.abc import Callable

    from numpy.typing import NDArray

    from batuta.core.decided import Assignment
    from batuta.core.observed import Report
    from batuta.core.state import State
    from batuta.kinds.application import Toleration
    from batuta.kinds.node import Node, Taint
    from batuta.kinds.site import Site

    Ints = NDArray[np.int64]
    Bools = NDArray[np.bool_]

COLUMNS_MAX = 1024
"""Questions remembered; the one asked longest ago is forgotten first."""
TRUE, FALSE, FAULT = 1, 0, -1
FOREVER = 2**63 - 1

_BOOLS = ("present", "sighted", "closed", "reported", "schedulable", "drained", "fresh")
_INTS = (
    "heard", "site", "rank", "cpu_total", "cpu_free", "memory_total", "memory_free", "instances",
    "held_until", "machine", "vitals", "stock",
)  # fmt: skip
_VITAL_FIELDS = ("temperature", "battery")


class Fleet:
    """One row per node. Rows of removed nodes are used again; names, not rows, decide ties."""

    present: Bools
    sighted: Bools
    closed: Bools
    reported: Bools
    schedulable: Bools
    drained: Bools
    fresh: Bools
    """Heard of late, its link open: something new may be placed there."""
    heard: Ints
    """From when the hub's own ears count its silence."""
    site: Ints
    """Code of its site, an index into `site_names`."""
    rank: Ints
    """Place among all names, in alphabetical order."""
    cpu_total: Ints
    cpu_free: Ints
    memory_total: Ints
    memory_free: Ints
    instances: Ints
    held_until: Ints
    """The instant at which its owner's hold ends; 0 without one."""
    machine: Ints
    """Counts the changes of what conditions ask of a node, of its site and of its taints."""
    vitals: Ints
    """Counts the changes of its temperature and battery."""
    stock: Ints
    """Counts the changes of its artifacts, topics and flows."""

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
        self._free_rows: list[int] = []
        self._dirty: set[int] = set()
        self._tables: tuple[Any, ...] = (None, None, None, None, None, None)
        self._sites: dict[str, Site | None] = {}
        self._node: list[Node | None] = []
        self._report: list[Report | None] = []
        self._sighting: list[Any] = []
        self._assignment: list[Assignment | None] = []
        self._columns: dict[object, tuple[Any, NDArray[np.int32]]] = {}
        self._variables: dict[int, tuple[int, int, dict[str, Any]]] = {}
        self._grow(64)

    # --- Following the state ---

    def refresh(self, state: State, now: int) -> Fleet:
        """Take over what changed. Costs one identity check a row and table, and work only where something differs."""
        self.now = now
        desired, nodes, observed, sightings, assignments, hub_since = self._tables
        new_rows = False
        if state.nodes is not nodes or (state.desired is not desired and self._sites_changed(state)):
            new_rows = self._follow_nodes(state)
        if new_rows or state.observed is not observed:
            for name, row in self.row_of.items():
                report = state.observed.get(name)
                if report is not self._report[row]:
                    self._take_report(row, report)
        if new_rows or state.sightings is not sightings or state.hub_since != hub_since:
            for name, row in self.row_of.items():
                sighting = state.sightings.get(name)
                if new_rows or sighting is not self._sighting[row] or state.hub_since != hub_since:
                    self._sighting[row] = sighting
                    self.sighted[row] = sighting is not None
                    self.closed[row] = sighting is not None and sighting.disconnected_at is not None
                    self.heard[row] = heard_at(state, name)
        if new_rows or state.assignments is not assignments or self._dirty:
            for name, row in self.row_of.items():
                assignment = state.assignments.get(name)
                if assignment is not self._assignment[row] or row in self._dirty:
                    self._take_assignment(row, assignment)
            self._dirty.clear()
        self._tables = (
            state.desired, state.nodes, state.observed, state.sightings, state.assignments, state.hub_since,
        )  # fmt: skip
        self.missed_ms = missed_ms(state)
        self.fresh = self.present & self.sighted & ~self.closed & (self.heard > now - self.missed_ms)
        return self

    def shift(self, row: int, cpu_millis: int, memory_bytes: int, count: int) -> None:
        """A draft gives (`count` 1) or takes (-1) an instance; the next refresh reads the row's assignment again."""
        self.cpu_free[row] -= cpu_millis * count
        self.memory_free[row] -= memory_bytes * count
        self.instances[row] += count
        self._dirty.add(row)

    def next_silence(self, now: int) -> int | None:
        """The next instant at which a node that holds something will be missed, if it says no more."""
        at = self.heard[self.present & (self.instances > 0)] + self.missed_ms
        at = at[at > now]
        return int(at.min()) if at.size else None

    def next_release(self, now: int) -> int | None:
        """The next instant at which a hold ends by itself."""
        at = self.held_until[self.present & (self.held_until > now) & (self.held_until < FOREVER)]
        return int(at.min()) if at.size else None

    # --- Questions ---

    def where(self, text: str | None) -> NDArray[np.int8]:
        """TRUE, FALSE or FAULT by row: does the condition hold there? Nodes that have not reported are FALSE."""
        if text is None:
            return self.reported.astype(np.int8)
        condition = compile_condition(text)

        def ask(row: int) -> int:
            if not self.reported[row]:
                return FALSE
            answer = evaluate(condition, self.variables(row))
            return FAULT if isinstance(answer, ConditionFault) else TRUE if answer else FALSE

        vital = any(field in text for field in _VITAL_FIELDS)
        versions = self.machine + self.vitals if vital else self.machine
        answer: NDArray[np.int8] = self._column(("where", text), versions, ask, np.int8)
        return answer

    def fault(self, text: str, row: int) -> ConditionFault | None:
        """Why a condition cannot be answered for a row."""
        answer = evaluate(compile_condition(text), self.variables(row))
        return answer if isinstance(answer, ConditionFault) else None

    def tolerated(self, tolerations: tuple[Toleration, ...], effects: tuple[str, ...]) -> Bools:
        """By row: does a component with these tolerations mind none of the taints that have these effects?"""

        def ask(row: int) -> bool:
            return not any(t.effect in effects for t in self.minded(tolerations, row))

        answer: Bools = self._column(("tolerated", tolerations, effects), self.machine, ask, np.bool_)
        return answer

    def minded(self, tolerations: tuple[Toleration, ...], row: int) -> list[Taint]:
        """The taints of a row that are not tolerated."""
        return [
            taint
            for taint in self.taints.get(row, ())
            if not any(t.key == taint.key and t.value in (None, taint.value) for t in tolerations)
        ]

    def has_runtime(self, name: str) -> Bools:
        def ask(row: int) -> bool:
            report = self._report[row]
            return report is not None and name in report.inventory.runtimes

        answer: Bools = self._column(("runtime", name), self.machine, ask, np.bool_)
        return answer

    def has_artifact(self, digest: str) -> Bools:
        def ask(row: int) -> bool:
            report = self._report[row]
            return report is not None and digest in report.artifacts

        answer: Bools = self._column(("artifact", digest), self.stock, ask, np.bool_)
        return answer

    def published(self, patterns: tuple[str, ...], consumer: str) -> Ints:
        """By row: messages first published there that match a pattern, or that the consumer's inbox took in."""

        def ask(row: int) -> int:
            report = self._report[row]
            if report is None:
                return 0
            topics = sum(report.topics.get(pattern, 0) for pattern in patterns)
            return topics + sum(flow.produced for flow in report.flows if flow.consumer == consumer)

        answer: Ints = self._column(("published", patterns, consumer), self.stock, ask, np.int64)
        return answer

    def variables(self, row: int) -> dict[str, Any]:
        """What a condition sees of a row: `node` and `site`. Figures that nobody knows are left out, for has(…)."""
        version = (int(self.machine[row]), int(self.vitals[row]))
        known = self._variables.get(row)
        if known is None or known[:2] != version:
            node, report = self._node[row], self._report[row]
            assert node is not None, "a row without a node was asked"
            known = (*version, {"node": _node_facts(node, report), "site": _site_facts(node, self._sites)})
            self._variables[row] = known
        return known[2]

    def _column(self, key: object, versions: Ints, ask: Callable[[int], Any], dtype: Any) -> Any:
        found = self._columns.pop(key, None)
        if found is None:
            while len(self._columns) >= COLUMNS_MAX:
                del self._columns[next(iter(self._columns))]
            found = (np.zeros(self.capacity, dtype), np.full(self.capacity, -1, np.int32))
        self._columns[key] = found
        values, seen = found
        stale = np.flatnonzero((seen != versions) & self.present)
        for row in stale.tolist():
            values[row] = ask(row)
        seen[stale] = versions[stale]
        return values

    # --- Rows ---

    def _grow(self, capacity: int) -> None:
        old = self.capacity
        for name, dtype in [(n, np.bool_) for n in _BOOLS] + [(n, np.int64) for n in _INTS]:
            column = np.zeros(capacity, dtype)
            if old:
                column[:old] = getattr(self, name)
            setattr(self, name, column)
        more = capacity - old
        self.names += [""] * more
        for rows in (self._node, self._report, self._sighting, self._assignment):
            rows.extend([None] * more)
        self._free_rows = list(range(capacity - 1, old - 1, -1)) + self._free_rows
        self.capacity = capacity
        self._columns.clear()

    def _sites_changed(self, state: State) -> bool:
        return any(state.desired.get(Ref("sites", "", name).key) is not known for name, known in self._sites.items())

    def _follow_nodes(self, state: State) -> bool:
        """Rows for nodes that came, changed or went; True when some are new."""
        for name in self.row_of.keys() - state.nodes.keys():
            self._forget(name)
        moved = {n for n, known in self._sites.items() if state.site(n) is not known}
        came = False
        for name, node in state.nodes.items():
            row = self.row_of.get(name)
            if row is None:
                row, came = self._new_row(name), True
            if self._node[row] is not node or node.spec.site in moved:
                self._take_node(row, node)
        self._sites = {name: state.site(name) for name in self.site_code if name in state.nodes_of_site}
        self._rank()
        return came

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
        self.names[row] = ""
        for column in (self.present, self.sighted, self.closed, self.reported, self.schedulable, self.drained):
            column[row] = False
        loads = (self.cpu_total, self.cpu_free, self.memory_total, self.memory_free, self.instances)
        for numbers in (*loads, self.held_until):
            numbers[row] = 0
        # Versions only ever rise, so that no remembered answer survives the row's next tenant.
        for versions in (self.machine, self.vitals, self.stock):
            versions[row] += 1
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

    def _take_report(self, row: int, report: Report | None) -> None:
        before, self._report[row] = self._report[row], report
        inventory = report.inventory if report is not None else None
        if before is None or report is None or before.inventory != inventory:
            self.reported[row] = report is not None
            cpu, memory = (inventory.cpu_millis, inventory.memory_bytes) if inventory is not None else (0, 0)
            self.cpu_free[row] += int(cpu) - self.cpu_total[row]
            self.memory_free[row] += int(memory) - self.memory_total[row]
            self.cpu_total[row], self.memory_total[row] = int(cpu), int(memory)
            self.machine[row] += 1
        if before is None or report is None or before.vitals != report.vitals:
            self.vitals[row] += 1
        if (
            before is None
            or report is None
            or (before.artifacts, before.topics, before.flows) != (report.artifacts, report.topics, report.flows)
        ):
            self.stock[row] += 1

    def _take_assignment(self, row: int, assignment: Assignment | None) -> None:
        self._assignment[row] = assignment
        held = assignment.instances if assignment is not None else ()
        self.cpu_free[row] = self.cpu_total[row] - sum(i.cpu_millis for i in held)
        self.memory_free[row] = self.memory_total[row] - sum(i.memory_bytes for i in held)
        self.instances[row] = len(held)


def fleet_of(state: State, now: int) -> Fleet:
    """The fleet of a state, kept from one State of its line to the next: for readers that have none of their own."""
    fleet: Fleet = state.memo.setdefault("fleet", Fleet())
    return fleet.refresh(state, now)


def _node_facts(node: Node, report: Report | None) -> dict[str, Any]:
    facts: dict[str, Any] = {
        "name": node.metadata.name, "site": node.spec.site, "labels": dict(node.metadata.labels), "architecture": "",
        "cpu": 0, "memory": 0, "disk": 0, "accelerators": [], "runtimes": [], "os": "", "kernel": "",
    }  # fmt: skip
    if report is not None:
        inventory, vitals = report.inventory, report.vitals
        facts |= {
            "architecture": inventory.architecture, "cpu": int(inventory.cpu_millis),
            "memory": int(inventory.memory_bytes), "disk": int(inventory.disk_bytes),
            "accelerators": [
                {"kind": a.kind, "name": a.name, "memory": int(a.memory_bytes)} for a in inventory.accelerators
            ],
            "runtimes": list(inventory.runtimes), "os": inventory.os, "kernel": inventory.kernel,
        }  # fmt: skip
        if vitals.temperature_c is not None:
            facts["temperature"] = vitals.temperature_c
        if vitals.battery_percent is not None:
            facts["battery"] = vitals.battery_percent
    return facts


def _site_facts(node: Node, sites: dict[str, Site | None]) -> dict[str, Any]:
    site = sites.get(node.spec.site)
    if site is None:
        return {"name": node.spec.site, "parent": "", "residency": "", "labels": {}, "metered": False}
    uplink = site.spec.uplink
    facts: dict[str, Any] = {
        "name": site.metadata.name, "parent": site.spec.parent or "", "residency": site.spec.residency or "",
        "labels": dict(site.metadata.labels), "metered": uplink.metered,
    }  # fmt: skip
    if uplink.bandwidth_bps is not None:
        facts["bandwidth"] = int(uplink.bandwidth_bps)
    if uplink.latency_ms is not None:
        facts["latency"] = int(uplink.latency_ms)
    return facts
