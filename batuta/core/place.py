"""Place: which node takes a wish. Filters say no, each with its Reason; scorers weigh what is left; names break ties.

Both are rows of a table, asked of all candidates at once. The first filter that says no gives the Reason, so the order
of `FILTERS` is that of the catalogue. Scores are whole numbers from 0 to 100 times a weight, so that the same fleet
always gives the same answer.

Two replicas of a counted component may share a node when they must, and are kept apart when they can; those of a site
may not (`already_here`), nor may two programs that are asked at the same port.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from batuta.core.fleet import FALSE, FAULT
from batuta.core.reasons import Reason

if TYPE_CHECKING:
    from collections.abc import Callable

    from batuta.core.fleet import Bools, Fleet, Ints
    from batuta.core.wish import Wish

MIB = 2**20


class Filter(NamedTuple):
    """One way of saying no."""

    code: str
    mask: Callable[[Wish, Fleet, Ints], Bools]
    """For the given rows: does it let them pass?"""
    detail: Callable[[Wish, Fleet, int], str]
    """The figures of one row that it does not let pass."""


class Scorer(NamedTuple):
    """One thing that makes a node better than another."""

    name: str
    sentence: str
    weight: int
    score: Callable[[Wish, Fleet, Ints], Ints]
    """For the given rows: 0 to 100."""


class Scored(NamedTuple):
    """A node that could take a wish: what each scorer gives it, weighted."""

    total: int
    parts: dict[str, int]


# --- Filters ----------------------------------------------------------------------------------------------------------


def _at_site(wish: Wish, fleet: Fleet, rows: Ints) -> Bools:
    if wish.slot.site is None:
        return np.ones(len(rows), np.bool_)
    found: Bools = fleet.site[rows] == fleet.site_code.get(wish.slot.site, -1)
    return found


def _is_node(wish: Wish, fleet: Fleet, rows: Ints) -> Bools:
    if wish.slot.node is None:
        return np.ones(len(rows), np.bool_)
    found: Bools = rows == fleet.row_of.get(wish.slot.node, -1)
    return found


def _tolerates(wish: Wish, fleet: Fleet, rows: Ints) -> Bools:
    tolerations = wish.ask.component.placement.tolerations
    answer: Bools = fleet.tolerated(tolerations, ("NoSchedule", "NoExecute"))[rows]
    return answer


def _taints(wish: Wish, fleet: Fleet, row: int) -> str:
    minded = fleet.minded(wish.ask.component.placement.tolerations, row)
    return ", ".join(f"{t.key}={t.value}:{t.effect}" if t.value else f"{t.key}:{t.effect}" for t in minded)


def _runs_it(wish: Wish, fleet: Fleet, rows: Ints) -> Bools:
    found = np.zeros(len(rows), np.bool_)
    for runtime in sorted(set(wish.ask.formats)):
        found |= fleet.has_runtime(runtime)[rows]
    return found


def _fault(wish: Wish, fleet: Fleet, row: int) -> str:
    fault = fleet.fault(wish.ask.where or "true", row)
    return fault.message if fault is not None else ""


def _fitting(wish: Wish, fleet: Fleet, rows: Ints) -> Ints:
    """By row: the first variant listed whose runtime is there and whose memory is free; -1 for none."""
    choice = np.full(len(rows), -1, np.int64)
    free = fleet.memory_free[rows]
    for i, (runtime, request) in enumerate(zip(wish.ask.formats, wish.ask.requests, strict=True)):
        fits = (choice < 0) & fleet.has_runtime(runtime)[rows] & (free >= request)
        choice[fits] = i
    return choice


def _not_beside(wish: Wish, _: Fleet, rows: Ints) -> Bools:
    passes = wish.beside(rows) <= 0 if wish.ask.alone else np.ones(len(rows), np.bool_)
    return passes if wish.shun is None else passes & (rows != wish.shun)


def _mib(amount: int) -> str:
    return f"{amount // MIB}Mi"


def _silence(_: Wish, fleet: Fleet, row: int) -> str:
    if not fleet.sighted[row]:
        return "not heard since the hub started"
    ago_s = max(0, fleet.now - int(fleet.heard[row])) // 1000
    return "its link has closed" if fleet.closed[row] else f"last heard {ago_s} s ago"


def _draining(_: Wish, fleet: Fleet, row: int) -> str:
    return "it is drained" if fleet.drained[row] else ""


def _nothing(_: Wish, __: Fleet, ___: int) -> str:
    return ""


FILTERS: tuple[Filter, ...] = (
    Filter("node_offline", lambda _, f, r: f.fresh[r], _silence),
    Filter("node_unschedulable", lambda _, f, r: f.schedulable[r], _draining),
    Filter("node_held", lambda _, f, r: f.held_until[r] <= f.now, _nothing),
    Filter("node_unreported", lambda _, f, r: f.reported[r], _nothing),
    Filter("taint_not_tolerated", _tolerates, _taints),
    Filter("wrong_site", _at_site, lambda w, f, r: f"{f.site_names[f.site[r]]}, not {w.slot.site}"),
    Filter("wrong_node", _is_node, lambda w, _, __: f"for {w.slot.node}"),
    Filter("runtime_missing", _runs_it, lambda w, _, __: ", ".join(sorted(set(w.ask.formats)))),
    Filter(
        "condition_false",
        lambda w, f, r: f.where(w.ask.where)[r] != FALSE,
        lambda w, _, __: w.ask.where or "",
    ),
    Filter("condition_fault", lambda w, f, r: f.where(w.ask.where)[r] != FAULT, _fault),
    Filter(
        "cpu_short",
        lambda w, f, r: f.cpu_free[r] >= w.ask.cpu_millis,
        lambda w, f, r: f"{max(0, int(f.cpu_free[r]))}m free, {w.ask.cpu_millis}m needed",
    ),
    Filter(
        "memory_short",
        lambda w, f, r: f.memory_free[r] >= w.ask.memory_bytes,
        lambda w, f, r: f"{_mib(max(0, int(f.memory_free[r])))} free, {_mib(w.ask.memory_bytes)} needed",
    ),
    Filter(
        "variant_unfit",
        lambda w, f, r: _fitting(w, f, r) >= 0,
        lambda w, f, r: f"{_mib(max(0, int(f.memory_free[r])))} free, the smallest needs {_mib(min(w.ask.requests))}",
    ),
    Filter("already_here", _not_beside, _nothing),
)

# --- Scorers ----------------------------------------------------------------------------------------------------------


def _stays_put(wish: Wish, _: Fleet, rows: Ints) -> Ints:
    return np.where(rows == (-1 if wish.before is None else wish.before), 100, 0)


def _near(wish: Wish, fleet: Fleet, rows: Ints) -> Ints:
    """Being at the publisher's site is most of it: workers there read every neighbour's inbox."""
    near = wish.ask.component.placement.near
    if not near:
        return np.zeros(len(rows), np.int64)
    published = np.where(fleet.present, fleet.published(near, wish.ask.consumer), 0)
    busiest = int(published.max(initial=0))
    if busiest == 0:
        return np.zeros(len(rows), np.int64)
    sites = np.zeros(len(fleet.site_names), np.int64)
    np.add.at(sites, fleet.site, published)
    here: Ints = sites[fleet.site[rows]] * 80 // sites.max() + published[rows] * 20 // busiest
    return here


def _apart(wish: Wish, _: Fleet, rows: Ints) -> Ints:
    return 100 // (1 + np.maximum(wish.beside(rows), 0))


def _spread(wish: Wish, fleet: Fleet, rows: Ints) -> Ints:
    """Only when asked for: `spread: node` counts once more, `spread: site` counts replicas at the site."""
    spread = wish.ask.component.placement.spread
    if spread == "node":
        return _apart(wish, fleet, rows)
    if spread is None:
        return np.zeros(len(rows), np.int64)
    everywhere = np.flatnonzero(fleet.present)
    sites = np.zeros(len(fleet.site_names), np.int64)
    np.add.at(sites, fleet.site[everywhere], np.maximum(wish.beside(everywhere), 0))
    return 100 // (1 + sites[fleet.site[rows]])


def _has_artifact(wish: Wish, fleet: Fleet, rows: Ints) -> Ints:
    if wish.ask.version is None:
        return np.zeros(len(rows), np.int64)
    chosen = _fitting(wish, fleet, rows)
    score = np.zeros(len(rows), np.int64)
    for i, variant in enumerate(wish.ask.version.variants):
        score[(chosen == i) & fleet.has_artifact(variant.digest)[rows]] = 100
    return score


def _room(wish: Wish, fleet: Fleet, rows: Ints) -> Ints:
    """What would be left: the scarcer of the two counts."""
    cpu = (fleet.cpu_free[rows] - wish.ask.cpu_millis) * 100 // np.maximum(fleet.cpu_total[rows], 1)
    memory = (fleet.memory_free[rows] - wish.ask.memory_bytes) * 100 // np.maximum(fleet.memory_total[rows], 1)
    return np.clip(np.minimum(cpu, memory), 0, 100)


SCORERS: tuple[Scorer, ...] = (
    Scorer("stays", "its predecessor is there", 16, _stays_put),
    Scorer("near", "what it reads is published there, or at the same site", 8, _near),
    Scorer("spread", "the places that `spread` names hold few of its replicas", 4, _spread),
    Scorer("apart", "few of its replicas are on the node", 4, _apart),
    Scorer("artifact", "its artifact is there already", 2, _has_artifact),
    Scorer("room", "much would be left free there", 1, _room),
)

# --- Choosing ---------------------------------------------------------------------------------------------------------


class Choice(NamedTuple):
    """The node chosen, as a row, and the variant that fits there."""

    row: int
    variant: int


def choose(wish: Wish, fleet: Fleet) -> Choice | None:
    """The best node for a wish; None when every filter table says no."""
    rows = wish.rows()
    for row in FILTERS:
        if not rows.size:
            return None
        rows = rows[row.mask(wish, fleet, rows)]
    if not rows.size:
        return None
    total = np.zeros(len(rows), np.int64)
    for scorer in SCORERS:
        total += scorer.weight * scorer.score(wish, fleet, rows)
    best = rows[total == total.max()]
    row_chosen = best[np.argmin(fleet.rank[best])]
    return Choice(int(row_chosen), int(_fitting(wish, fleet, np.array([row_chosen]))[0]))


def refusals(wish: Wish, fleet: Fleet) -> dict[str, int]:
    """How many of the nodes in question each filter turned away, in the filters' order."""
    rows = wish.rows()
    counts: dict[str, int] = {}
    for row in FILTERS:
        left = rows[row.mask(wish, fleet, rows)]
        if len(left) < len(rows):
            counts[row.code] = len(rows) - len(left)
        rows = left
    return counts


def explain(wish: Wish, fleet: Fleet, only: Ints | None = None) -> list[tuple[str, Reason | Scored]]:
    """Every node (or only some rows), in order of name: the Reason why not, or what the scorers give it."""
    rows = np.flatnonzero(fleet.present) if only is None else only
    answers: dict[int, Reason | Scored] = {}
    for f in FILTERS:
        passes = f.mask(wish, fleet, rows)
        for row in rows[~passes].tolist():
            answers[row] = Reason(code=f.code, subject=f"node/{fleet.names[row]}", detail=f.detail(wish, fleet, row))
        rows = rows[passes]
    parts = {s.name: (s.weight * s.score(wish, fleet, rows)).tolist() for s in SCORERS}
    for i, row in enumerate(rows.tolist()):
        given = {name: values[i] for name, values in parts.items()}
        answers[row] = Scored(sum(given.values()), given)
    return sorted(((fleet.names[row], answer) for row, answer in answers.items()), key=lambda entry: entry[0])
