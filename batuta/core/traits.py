"""Traits: what placement asks of nodes beside room. Each answer is a column, asked again where something changed.

What a node is (its hardware, its site, what data may live there), what instances there have for themselves, how fast
models have proved to be there, and what the policies say of it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from batuta.core.cards import allot, cards_of
from batuta.core.facts import residency
from batuta.core.fleet import FALSE, FAULT, FOREVER, TRUE
from batuta.core.rules import NO_RULING, marks_of, next_hour, node_paths, ruling_of
from batuta.kinds import hours
from batuta.kinds.condition import ConditionFault, compile_condition, evaluate
from batuta.kinds.hardware import is_kind

if TYPE_CHECKING:
    from collections.abc import Callable

    from numpy.typing import NDArray

    from batuta.core.cards import Card
    from batuta.core.decided import Grant
    from batuta.core.fleet import Bools, Fleet, Ints
    from batuta.core.load import Claim
    from batuta.core.observed import Report
    from batuta.core.rules import Rule, Ruling
    from batuta.kinds.application import AcceleratorNeed, Component, Toleration
    from batuta.kinds.node import Node, Taint

UNKNOWN = -1
RULINGS_MAX = 4096
GRANTS_MAX = 4096

# --- What a node is ---------------------------------------------------------------------------------------------------


def trait(fleet: Fleet, name: str, ask: Callable[[Node, Report | None], int], *, vital: bool = False) -> Ints:
    """By row: a number that follows from what a node is and what its site is; with `vital`, also from how it is."""
    versions = fleet.vital_versions() if vital else fleet.machine
    nodes, reports = fleet.nodes_and_reports()
    found: Ints = fleet.column(("trait", name), versions, lambda row: ask(nodes[row], reports[row]), np.int64)
    return found


def holds(fleet: Fleet, key: object, ask: Callable[[Node, Report | None], bool]) -> Bools:
    """By row: something that is so or not, because of what a node is."""
    nodes, reports = fleet.nodes_and_reports()
    found: Bools = fleet.column(("holds", key), fleet.machine, lambda row: ask(nodes[row], reports[row]), np.bool_)
    return found


def hardware(fleet: Fleet) -> tuple[Ints, dict[str, int]]:
    """By row: the code of its class of hardware; and the codes by name. Nobody knows anything of the class ''."""
    codes: dict[str, int] = fleet.kept.setdefault("hardware", {"": 0})

    def ask(node: Node, report: Report | None) -> int:
        name = node.spec.hardware or (report.inventory.hardware if report is not None else "")
        return codes.setdefault(name, len(codes))

    return trait(fleet, "hardware", ask), codes


def has_runtime(fleet: Fleet, name: str) -> Bools:
    return holds(fleet, ("runtime", name), lambda _, report: report is not None and name in report.inventory.runtimes)


def runs_on(fleet: Fleet, architectures: tuple[str, ...]) -> Bools:
    """By row: is its processor one of these? Any is, when none are named."""
    return holds(
        fleet,
        ("architectures", architectures),
        lambda _, report: not architectures or (report is not None and report.inventory.architecture in architectures),
    )


def loads_opset(fleet: Fleet, runtime: str, opset: int) -> Bools:
    """By row: does its runtime know this operator set? One that does not tell may."""
    return holds(
        fleet,
        ("opset", runtime, opset),
        lambda _, report: report is None or report.inventory.opsets.get(runtime, opset) >= opset,
    )


def computes(fleet: Fleet, precision: str) -> Bools:
    """By row: does its hardware compute in this? What people say comes before what a node tells of itself, and what
    nobody says of it does not count against it."""

    def ask(node: Node, report: Report | None) -> bool:
        said = node.spec.precisions or (report.inventory.precisions if report is not None else ())
        return not said or precision in said

    return holds(fleet, ("precision", precision), ask)


def has_card(fleet: Fleet, kind: str) -> Bools:
    """By row: is there an accelerator of this kind?"""
    return holds(
        fleet, ("card", kind), lambda node, report: any(is_kind(card.kind, kind) for card in cards_of(node, report))
    )


def has_device(fleet: Fleet, device: str) -> Bools:
    return holds(fleet, ("device", device), lambda _, report: report is not None and device in report.inventory.devices)


def disk_now(fleet: Fleet) -> Ints:
    """By row: what is really free of its disk."""

    def ask(_: Node, report: Report | None) -> int:
        free = report.vitals.disk_free_bytes if report is not None else None
        return UNKNOWN if free is None else int(free)

    return trait(fleet, "disk", ask, vital=True)


def resides(fleet: Fleet, places: tuple[str, ...]) -> Bools:
    """By row: may data live there that must stay in one of these places? Anywhere, when none are named."""
    return holds(
        fleet, ("resides", places), lambda node, _: not places or residency_at(fleet, node.spec.site) in places
    )


def residency_at(fleet: Fleet, site: str) -> str:
    return residency(site, {s.metadata.name: s for s in fleet.chain(site)})


def minded(fleet: Fleet, tolerations: tuple[Toleration, ...], row: int) -> list[Taint]:
    """The taints of a row that are not tolerated."""
    return [
        taint
        for taint in fleet.taints.get(row, ())
        if not any(t.key == taint.key and t.value in (None, taint.value) for t in tolerations)
    ]


def tolerated(fleet: Fleet, tolerations: tuple[Toleration, ...], effects: tuple[str, ...]) -> Bools:
    """By row: does a component with these tolerations mind none of the taints that have these effects?"""

    def ask(row: int) -> bool:
        return not any(t.effect in effects for t in minded(fleet, tolerations, row))

    found: Bools = fleet.column(("tolerated", tolerations, effects), fleet.machine, ask, np.bool_)
    return found


# --- What instances have for themselves -------------------------------------------------------------------------------


def is_free(fleet: Fleet, claim: Claim) -> Bools:
    """By row: does nobody there have this for itself?"""
    found: Bools = fleet.column(
        ("free", claim), fleet.claimed, lambda row: claim not in fleet.claims.get(row, ()), np.bool_
    )
    return found


def allots(fleet: Fleet, needs: tuple[AcceleratorNeed, ...]) -> Bools:
    """By row: are these accelerators free there?"""
    versions = fleet.machine + fleet.claimed

    def ask(row: int) -> bool:
        return not needs or bool(grants(fleet, needs, row))

    found: Bools = fleet.column(("allots", needs), versions, ask, np.bool_)
    return found


def grants(fleet: Fleet, needs: tuple[AcceleratorNeed, ...], row: int) -> tuple[Grant, ...]:
    """The accelerators that an instance would get there; empty when they do not suffice."""
    known: dict[Any, tuple[Grant, ...]] = fleet.kept.setdefault(("grants", needs), {})
    there, claims = cards(fleet, row), fleet.claims.get(row, {})
    key = (there, frozenset(claims.items()))
    found = known.get(key)
    if found is None:
        if len(known) >= GRANTS_MAX:
            known.clear()
        found = known[key] = allot(needs, there, claims) or ()
    return found


def cards(fleet: Fleet, row: int) -> tuple[Card, ...]:
    known: dict[int, tuple[Any, Any, tuple[Card, ...]]] = fleet.kept.setdefault("cards", {})
    node, report, _ = fleet.at(row)
    found = known.get(row)
    if found is None or found[0] is not node or found[1] is not report:
        found = known[row] = (node, report, cards_of(node, report))
    return found[2]


# --- How fast models are ----------------------------------------------------------------------------------------------


def measured(fleet: Fleet, digest: str) -> Ints:
    """By row: within how many microseconds a variant answers there, ninety-nine times in a hundred."""

    def ask(row: int) -> int:
        _, report, assignment = fleet.at(row)
        if report is None or assignment is None:
            return UNKNOWN
        mine = {(i.name, i.epoch) for i in assignment.instances if digest in i.artifacts}
        told = [i.measures for i in report.instances if (i.name, i.epoch) in mine and i.measures is not None]
        known = [m.latency_p99_ms for m in told if m.latency_p99_ms is not None]
        return round(max(known) * 1000) if known else UNKNOWN

    found: Ints = fleet.column(("measured", digest), fleet.pace, ask, np.int64)
    return found


def p99_us(fleet: Fleet, digest: str, profiles: dict[str, int]) -> Ints:
    """By row: how fast a variant is on such hardware. As nodes measure it there (the median of them), else as its
    profile says, in microseconds."""
    codes, names = hardware(fleet)
    by_class = np.full(len(names), UNKNOWN, np.int64)
    for name, us in profiles.items():
        if name in names:
            by_class[names[name]] = us
    told = measured(fleet, digest)
    rows = np.flatnonzero((told != UNKNOWN) & fleet.present & (codes > 0))
    for code in np.unique(codes[rows]).tolist():
        known = np.sort(told[rows[codes[rows] == code]])
        by_class[code] = known[len(known) // 2]
    # Of what has no class each node can only tell for itself.
    return np.where(codes == 0, told, by_class[codes])


# --- Policies ---------------------------------------------------------------------------------------------------------


def ruling(fleet: Fleet, app: str, component: Component) -> Ruling:
    """What the policies say of a component."""
    policies = fleet.state.policies
    if not policies:
        return NO_RULING
    kept: dict[tuple[str, str], tuple[Any, ...]] = fleet.kept.setdefault("rulings", {})
    asked = (component, fleet.state.application(app), policies)
    known = kept.get((app, component.name))
    if known is None or any(one is not other for one, other in zip(known[:3], asked, strict=True)):
        if len(kept) >= RULINGS_MAX:
            kept.clear()
        known = kept[app, component.name] = (*asked, ruling_of(policies, component, asked[1], app))
    found: Ruling = known[3]
    return found


def answers(fleet: Fleet, rule: Rule) -> NDArray[np.int8]:
    """TRUE, FALSE or FAULT by row: what a rule answers there. Asked once for all nodes that are alike to it, and for
    all components that are; with the hour, again when it may have changed its mind."""
    marks = marks_of(rule.text)
    clock = tuple((zone, hours.around(marks, zone, fleet.now).since) for zone in sorted(fleet.zones)) if marks else ()
    condition = compile_condition(rule.text)

    def ask(row: int) -> int:
        answer = evaluate(condition, _variables(fleet, rule, row))
        return FAULT if isinstance(answer, ConditionFault) else TRUE if answer else FALSE

    return fleet.by_class(("rule", rule.text, rule.key, clock), node_paths(rule.text), ask)


def refused(fleet: Fleet, rule: Rule) -> Bools:
    """By row: does this rule of a policy say no?"""
    said: Bools = answers(fleet, rule) == (TRUE if rule.refuses else FALSE)
    return said


def where_fault(fleet: Fleet, text: str, row: int) -> str:
    """Why a condition cannot be answered for a row; empty where it can."""
    answer = evaluate(compile_condition(text), fleet.variables(row))
    return answer.message if isinstance(answer, ConditionFault) else ""


def fault(fleet: Fleet, rule: Rule, row: int) -> str:
    """Why a rule cannot be answered for a row; empty where it can."""
    answer = evaluate(compile_condition(rule.text), _variables(fleet, rule, row))
    return answer.message if isinstance(answer, ConditionFault) else ""


def wakes_at(fleet: Fleet) -> int | None:
    """The next instant at which a hold ends by itself, or at which a policy may change its mind because of the hour."""
    policies = fleet.state.policies
    hour = next_hour(policies, fleet.zones, fleet.now) if policies else None
    ends = fleet.held_until[fleet.present & (fleet.held_until > fleet.now) & (fleet.held_until < FOREVER)]
    return min((at for at in (hour, int(ends.min()) if ends.size else None) if at is not None), default=None)


def _variables(fleet: Fleet, rule: Rule, row: int) -> dict[str, Any]:
    variables = fleet.variables(row) | rule.facts
    return variables | {"now": hours.face(fleet.now, variables["site"]["timeZone"])}
