"""Preferences: what makes one node better than another for a wish. Rows that give 0 to 100, times a weight.

Scores are whole numbers, so that the same fleet always gives the same answer. Each row says how far its answer reaches
when an instance of the same component is placed, as the constraints do.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from batuta.core.constraints import fitting

if TYPE_CHECKING:
    from collections.abc import Callable

    from batuta.core.constraints import Reach
    from batuta.core.fleet import Fleet, Ints
    from batuta.core.wish import Ask, Wish


class Scorer(NamedTuple):
    """One thing that makes a node better than another."""

    name: str
    sentence: str
    weight: int
    score: Callable[[Wish, Fleet, Ints], Ints]
    """For the given rows: 0 to 100."""
    reach: Reach | Callable[[Ask], Reach] = "fixed"
    by_slot: bool = False
    """Does the answer depend on the slot, or on who fills it now, and not on the component alone? (As in `Filter`.)"""
    if_any: Callable[[Ask], bool] | None = None
    """For which components it says anything at all: all others get 0 everywhere."""


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
    there = np.flatnonzero((wish.ask.here > 0) & fleet.present)
    sites = np.zeros(len(fleet.site_names), np.int64)
    np.add.at(sites, fleet.site[there], np.maximum(wish.beside(there), 0))
    return 100 // (1 + sites[fleet.site[rows]])


def _spread_reach(ask: Ask) -> Reach:
    return "site" if ask.component.placement.spread == "site" else "row"


def _has_artifact(wish: Wish, fleet: Fleet, rows: Ints) -> Ints:
    if wish.ask.version is None:
        return np.zeros(len(rows), np.int64)
    chosen = fitting(wish, fleet, rows)
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
    Scorer("stays", "its predecessor is there", 16, _stays_put, by_slot=True),
    Scorer(
        "near",
        "what it reads is published there, or at the same site",
        8,
        _near,
        if_any=lambda ask: bool(ask.component.placement.near),
    ),
    Scorer(
        "spread",
        "the places that `spread` names hold few of its replicas",
        4,
        _spread,
        _spread_reach,
        by_slot=True,
        if_any=lambda ask: ask.component.placement.spread is not None,
    ),
    Scorer("apart", "few of its replicas are on the node", 4, _apart, "row", by_slot=True),
    Scorer(
        "artifact", "its artifact is there already", 2, _has_artifact, "row", if_any=lambda ask: ask.version is not None
    ),
    Scorer("room", "much would be left free there", 1, _room, "row"),
)


def scorers_for(_: Ask) -> tuple[Scorer, ...]:
    """The rows that weigh for this component, with the weights that hold for it."""
    return SCORERS
