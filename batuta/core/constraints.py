"""Constraints: what a node must be for a wish. Ordered rows, each a mask over nodes and the figures of its refusal.

The first row that says no gives the Reason, so the order of `FILTERS` is that of the catalogue of reasons. A row says
what it means in one sentence there, and here how far its answer reaches when an instance of the same component is
placed: whoever places many of them asks again only what can have changed.

Two replicas of a counted component may share a node when they must, and are kept apart when they can; those of a site
may not (`already_here`), nor may two programs that are asked at the same port.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal, NamedTuple

import numpy as np

from batuta.core.fleet import FALSE, FAULT

if TYPE_CHECKING:
    from collections.abc import Callable

    from batuta.core.fleet import Bools, Fleet, Ints
    from batuta.core.preferences import Scorer
    from batuta.core.wish import Ask, Wish

MIB = 2**20

Reach = Literal["fixed", "row", "site", "fleet"]
"""Whose answer can change when an instance of the same component is placed: nobody's, the row's that took it, those of
all rows at its site, or any row's."""


class Filter(NamedTuple):
    """One way of saying no."""

    code: str
    mask: Callable[[Wish, Fleet, Ints], Bools]
    """For the given rows: does it let them pass?"""
    detail: Callable[[Wish, Fleet, int], str]
    """The figures of one row that it does not let pass."""
    reach: Reach | Callable[[Ask], Reach] = "fixed"
    by_slot: bool = False
    """Does the answer depend on the slot, or on who fills it now, and not on the component alone? Then it differs from
    that for a slot which may be anywhere and which nobody fills only at its own rows (as far as it reaches), or says no
    to rows that are not in question for the slot anyhow."""
    if_any: Callable[[Ask], bool] | None = None
    """For which components it says anything at all; for all of them when left out."""


def reach_of(row: Filter | Scorer, ask: Ask) -> Reach:
    return row.reach(ask) if callable(row.reach) else row.reach


def says(row: Filter | Scorer, ask: Ask) -> bool:
    """Can a row of the tables turn a component's instances away, or prefer one place to another?"""
    return row.if_any is None or row.if_any(ask)


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


def fitting(wish: Wish, fleet: Fleet, rows: Ints) -> Ints:
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
    Filter("wrong_site", _at_site, lambda w, f, r: f"{f.site_names[f.site[r]]}, not {w.slot.site}", by_slot=True),
    Filter("wrong_node", _is_node, lambda w, _, __: f"for {w.slot.node}", by_slot=True),
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
        reach="row",
    ),
    Filter(
        "memory_short",
        lambda w, f, r: f.memory_free[r] >= w.ask.memory_bytes,
        lambda w, f, r: f"{_mib(max(0, int(f.memory_free[r])))} free, {_mib(w.ask.memory_bytes)} needed",
        reach="row",
    ),
    Filter(
        "variant_unfit",
        lambda w, f, r: fitting(w, f, r) >= 0,
        lambda w, f, r: f"{_mib(max(0, int(f.memory_free[r])))} free, the smallest needs {_mib(min(w.ask.requests))}",
        reach="row",
    ),
    Filter("already_here", _not_beside, _nothing, reach="row", by_slot=True),
)
