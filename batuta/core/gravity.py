"""Gravity: how far the sites of a tree are from where data comes from, over the links between them.

A link costs its latency and the time that a frame takes over it. Data from one site to another goes up the tree as far
as the first site above both, and down again; sites without a parent meet at the hub. The way of everything that is
published to every site is found in one walk up and one down, however many places publish.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Mapping

    from batuta.kinds.site import Site

FRAME_BITS = 8 * 64 * 1024
"""What is taken for one message: a small picture."""
LATENCY_MS = 20
"""What is taken for a link of which nobody says anything."""
HALF_MS = 20
"""A way so long is worth half as much as none."""
HUB = ""


def link_us(site: Site | None) -> int:
    """How long one frame takes over a site's uplink."""
    uplink = site.spec.uplink if site is not None else None
    latency_ms = LATENCY_MS if uplink is None or uplink.latency_ms is None else int(uplink.latency_ms)
    bandwidth_bps = int(uplink.bandwidth_bps) if uplink is not None and uplink.bandwidth_bps else 0
    return latency_ms * 1000 + (FRAME_BITS * 1_000_000 // bandwidth_bps if bandwidth_bps else 0)


def closeness(sites: Mapping[str, Site | None], published: Mapping[str, int]) -> dict[str, int]:
    """By site: 100 where the data is, 50 where an average message is 20 ms away, and so on."""
    parents = {name: _parent(name, sites) for name in sites}
    order = _from_above(parents)
    weight = {HUB: 0} | {name: published.get(name, 0) for name in order}
    cost = {name: link_us(sites[name]) for name in order}
    below, total = dict(weight), sum(weight.values())
    if total == 0:
        return dict.fromkeys(order, 0)
    way = {HUB: 0}
    for name in reversed(order):
        below[parents[name]] += below[name]
        way[HUB] += cost[name] * below[name]
    found = {}
    for name in order:
        # Going down a link, what comes from below it gets nearer by as much as all else gets farther.
        way[name] = way[parents[name]] + cost[name] * (total - 2 * below[name])
        found[name] = 100 * HALF_MS * 1000 * total // (HALF_MS * 1000 * total + way[name])
    return found


def _parent(name: str, sites: Mapping[str, Site | None]) -> str:
    site = sites[name]
    above = site.spec.parent if site is not None else None
    return above if above is not None and above in sites else HUB


def _from_above(parents: Mapping[str, str]) -> list[str]:
    """Every site after the one above it; those of a ring, which admission refuses, are left out."""
    children: dict[str, list[str]] = {}
    for name, parent in parents.items():
        children.setdefault(parent, []).append(name)
    order: list[str] = []
    todo = [HUB]
    while todo:
        for child in children.get(todo.pop(), []):
            order.append(child)
            todo.append(child)
    return order
