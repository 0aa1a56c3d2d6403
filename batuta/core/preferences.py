"""Preferences: what makes one node better than another for a wish. Rows that give 0 to 100, times a weight.

Scores are whole numbers, so that the same fleet always gives the same answer. Each row says how far its answer reaches
when an instance of the same component is placed, as the constraints do.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from batuta.core import nature, traits
from batuta.core.constraints import fitting
from batuta.core.fleet import TRUE
from batuta.core.gravity import FRAME_BYTES, Ways

if TYPE_CHECKING:
    from collections.abc import Callable

    from batuta.core.constraints import Reach
    from batuta.core.fleet import Fleet, Ints
    from batuta.core.observed import Report
    from batuta.core.rules import Rule
    from batuta.core.wish import Ask, Wish
    from batuta.kinds.node import Node


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
    """Being at the publisher's site is most of it: workers there read every neighbour's inbox. The rest is how far it
    is from all who publish, over the links of the site tree, and how much is published at the node itself."""
    near = wish.ask.component.placement.near
    if not near:
        return np.zeros(len(rows), np.int64)
    each, frame_bytes = fleet.published(near, wish.ask.consumer)
    published = each * fleet.present
    busiest = int(published.max(initial=0))
    if busiest == 0:
        return np.zeros(len(rows), np.int64)
    sites = _by_site(fleet, published)
    where = fleet.site[rows]
    share, close = sites * 60 // sites.max(), _close(fleet, sites, frame_bytes) * 20 // 100
    found: Ints = (share + close)[where]
    found += published[rows] * 20 // busiest
    return found


def _by_site(fleet: Fleet, amounts: Ints) -> Ints:
    """By code of the site: what its rows have together. Exact: no amount of bytes here is beyond 2**53."""
    return np.bincount(fleet.site, amounts, len(fleet.site_names)).astype(np.int64)


def _close(fleet: Fleet, published: Ints, frame_bytes: int = FRAME_BYTES) -> Ints:
    """By code of the site: how near it is to where things are published, in messages of this size."""
    known: tuple[tuple[int, int], Ways] | None = fleet.kept.get("ways")
    key = (fleet.sites_revision, len(fleet.site_names))
    if known is None or known[0] != key:
        known = fleet.kept["ways"] = (key, Ways(fleet.sites, fleet.site_names))
    return known[1].closeness(published, frame_bytes)


def _talks(wish: Wish, fleet: Fleet, rows: Ints) -> Ints:
    """Being at their site is most of it, as for `near`: topics are a site's own."""
    pulled = np.zeros(fleet.capacity, np.int64)
    for row, messages in wish.ask.pull.items():
        pulled[row] = messages
    sites = _by_site(fleet, pulled)
    where = fleet.site[rows]
    share, close = sites[where] * 60 // sites.max(), _close(fleet, sites)[where] * 20 // 100
    found: Ints = share + close + pulled[rows] * 20 // pulled.max()
    return found


def _apart(wish: Wish, _: Fleet, rows: Ints) -> Ints:
    return 100 // (1 + np.maximum(wish.beside(rows), 0))


def _spread(wish: Wish, fleet: Fleet, rows: Ints) -> Ints:
    """Only when asked for: `spread: node` counts once more, `spread: site` counts replicas at the site, and a label
    those on nodes that have the same value of it."""
    placement = wish.ask.component.placement
    parts = []
    if placement.spread == "node":
        parts.append(_apart(wish, fleet, rows))
    elif placement.spread == "site":
        parts.append(_few(wish, fleet, fleet.site, rows))
    if placement.spread_label is not None:
        domains = _domains(fleet, placement.spread_label)
        # Who has no such label shares no fate by it.
        parts.append(np.where(domains[rows] < 0, _apart(wish, fleet, rows), _few(wish, fleet, domains, rows)))
    return sum(parts, np.zeros(len(rows), np.int64)) // max(1, len(parts))


def _few(wish: Wish, fleet: Fleet, domain: Ints, rows: Ints) -> Ints:
    """How few other replicas are in the same domain."""
    there = np.flatnonzero(wish.ask.here > 0)
    there = there[fleet.present[there] & (domain[there] >= 0)]
    counts = np.zeros(int(domain.max(initial=0)) + 1, np.int64)
    np.add.at(counts, domain[there], np.maximum(wish.beside(there), 0))
    found: Ints = (100 // (1 + counts))[np.maximum(domain[rows], 0)]
    return found


def _domains(fleet: Fleet, label: str) -> Ints:
    """By row: the code of its value of a label; -1 without one."""
    codes: dict[str, int] = fleet.kept.setdefault(("domains", label), {})

    def ask(node: Node, _: Report | None) -> int:
        value = node.metadata.labels.get(label)
        return -1 if value is None else codes.setdefault(value, len(codes))

    return traits.trait(fleet, f"label {label}", ask)


def _spread_reach(ask: Ask) -> Reach:
    placement = ask.component.placement
    return "fleet" if placement.spread_label is not None else "site" if placement.spread == "site" else "row"


def _quality(wish: Wish, fleet: Fleet, rows: Ints) -> Ints:
    """By the place of the variant that fits, among all by quality."""
    worth: Ints | None = wish.ask.known.get("quality")
    if worth is None:
        order = wish.ask.order
        worth = wish.ask.known["quality"] = np.zeros(len(order) + 1, np.int64)
        for place, i in enumerate(order):
            worth[i] = 100 * (len(order) - place) // len(order)
    found: Ints = worth[fitting(wish, fleet, rows)]
    return found


def _proven(wish: Wish, fleet: Fleet, rows: Ints) -> Ints:
    """Known to be fast enough, rather than not known to be too slow."""
    ask = wish.ask
    if ask.version is None or ask.slo_us is None:
        return np.zeros(len(rows), np.int64)
    chosen = fitting(wish, fleet, rows)
    score = np.zeros(len(rows), np.int64)
    for i in ask.order:
        score[(chosen == i) & (ask.p99_us(i)[rows] != traits.UNKNOWN)] = 100
    return score


def _has_artifact(wish: Wish, fleet: Fleet, rows: Ints) -> Ints:
    """All of it where the artifact is; more than half where a neighbour at the site can give it."""
    if wish.ask.version is None:
        return np.zeros(len(rows), np.int64)
    held: Ints | None = wish.ask.known.get("artifacts")
    if held is None:
        variants = wish.ask.version.variants
        held = wish.ask.known["artifacts"] = np.zeros((len(variants) + 1, fleet.capacity), np.int64)
        for i, variant in enumerate(variants):
            there = fleet.has_artifact(variant.digest)
            beside = np.zeros(max(1, len(fleet.site_names)), np.bool_)  # where nobody has a site, all are of none
            beside[fleet.site[there & fleet.fresh]] = True
            held[i] = np.where(there, 100, np.where(beside[fleet.site], 60, 0))
    found: Ints = held[fitting(wish, fleet, rows), rows]  # The last line is for those that fit nothing.
    return found


def _thrifty(wish: Wish, fleet: Fleet, rows: Ints) -> Ints:
    """How little more the machine would draw: its share of what full load adds and, if it had nothing to do, what it
    draws at rest. Five watts are worth 50. Of whom nobody knows, nothing is expected."""
    idle, full = nature.idle_mw(fleet)[rows], nature.full_mw(fleet)[rows]
    more = (full - idle) * wish.ask.cpu_millis // np.maximum(fleet.cpu_total[rows], 1)
    more += np.where(fleet.instances[rows] == 0, idle, 0)
    return np.where(full == traits.UNKNOWN, 0, 500_000 // (5_000 + np.maximum(more, 0)))


def _room(wish: Wish, fleet: Fleet, rows: Ints) -> Ints:
    """What would be left: the scarcer of the two counts."""
    ask = wish.ask
    totals: tuple[Ints, Ints] | None = ask.known.get("totals")
    if totals is None:
        totals = ask.known["totals"] = np.maximum(fleet.cpu_total, 1), np.maximum(fleet.memory_total, 1)
    cpu = (fleet.cpu_free[rows] - ask.cpu_millis) * 100 // totals[0][rows]
    memory = (fleet.memory_free[rows] - ask.memory_bytes) * 100 // totals[1][rows]
    left: Ints = np.minimum(cpu, memory)
    np.minimum(left, 100, out=left)
    return np.maximum(left, 0, out=left)


def _all_of(ask: Callable[[Fleet], Ints]) -> Callable[[Wish, Fleet, Ints], Ints]:
    """For what is the same whatever is wished for."""
    return lambda _, fleet, rows: ask(fleet)[rows]


SCORERS: tuple[Scorer, ...] = (
    Scorer("stays", "its predecessor is there", 16, _stays_put, by_slot=True),
    Scorer(
        "near", "what it reads is published there, at the same site, or not far away", 8, _near,
        if_any=lambda ask: bool(ask.component.placement.near),
    ),
    Scorer(
        "talks", "the components it talks with are there, at the same site, or not far away", 8, _talks,
        if_any=lambda ask: bool(ask.pull),
    ),
    Scorer(
        "spread", "the places that `spread` and `spreadLabel` name hold few of its replicas", 4, _spread, _spread_reach,
        by_slot=True,
        if_any=lambda ask: (ask.component.placement.spread or ask.component.placement.spread_label) is not None,
    ),
    Scorer("apart", "few of its replicas are on the node", 4, _apart, "row", by_slot=True),
    Scorer(
        "quality", "a good variant of its model fits there", 4, _quality, "row",
        if_any=lambda ask: ask.version is not None and len(ask.version.variants) > 1,
    ),
    Scorer(
        "slo", "its model has proved to be fast enough on such hardware", 4, _proven, "row",
        if_any=lambda ask: ask.version is not None and ask.slo_us is not None,
    ),
    Scorer(
        "artifact", "its artifact is there already, or at a neighbour", 2, _has_artifact, "row",
        if_any=lambda ask: ask.version is not None,
    ),
    Scorer(
        "energy", "it would draw little more power", 1, _thrifty, "row",
        if_any=lambda ask: nature.knows_power(ask.fleet),
    ),
    Scorer(
        "carbon", "the power there is clean", 1, _all_of(nature.cleanness),
        if_any=lambda ask: nature.knows_carbon(ask.fleet),
    ),
    Scorer(
        "uplink", "the way to the hub is quick and costs nothing", 1, _all_of(nature.uplink),
        if_any=lambda ask: nature.knows_uplinks(ask.fleet),
    ),
    Scorer(
        "headroom", "its battery is full and it is cool", 2, _all_of(nature.headroom),
        if_any=lambda ask: nature.knows_vitals(ask.fleet),
    ),
    Scorer("steady", "it has been there without a break, and nothing on it had to be started again", 1,
           _all_of(nature.steadiness)),
    Scorer("room", "much would be left free there", 1, _room, "row"),
)  # fmt: skip


def scorers_for(ask: Ask) -> tuple[Scorer, ...]:
    """The rows that weigh for this component, with the weights that hold for it, and what policies prefer."""
    if ask.scorers is None:
        weights = dict(ask.ruling.weights)
        rows = [s._replace(weight=weights.get(s.name, s.weight)) for s in SCORERS]
        preferred = [_preference(rule) for rule in ask.ruling.soft]
        ask.scorers = tuple(s for s in (*rows, *preferred) if s.weight and (s.if_any is None or s.if_any(ask)))
    return ask.scorers


def _preference(rule: Rule) -> Scorer:
    """A policy's `prefer`. Where it cannot be answered it prefers nothing; `why` says where that is."""
    sentence = rule.message or f"the policy prefers {rule.text}"
    return Scorer(
        f"policy {rule.policy}", sentence, rule.weight,
        lambda _, fleet, rows: np.where(traits.answers(fleet, rule)[rows] == TRUE, 100, 0),
    )  # fmt: skip
