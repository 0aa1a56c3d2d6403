"""Gravity: how far the sites of a tree are from where data comes from, over the links between them.

A link costs its latency and the time that a frame takes over it. Data from one site to another goes up the tree as far
as the first site above both, and down again; sites without a parent meet at the hub. The way of everything that is
published to every site is found in one walk up and one down, however many places publish.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from numpy.typing import NDArray

    from batuta.kinds.site import Site

    Ints = NDArray[np.int64]

FRAME_BYTES = 64 * 1024
"""What is taken for one message while nobody tells how large they are: a small picture."""
LINK_US_MAX = 10**9
"""A link that takes longer for one frame is as good as none."""
WEIGHT_MAX = 2**30
"""Bytes are scaled to so much in all, so that no sum is too large for its column."""
LATENCY_MS = 20
"""What is taken for a link of which nobody says anything."""
HALF_MS = 20
"""A way so long is worth half as much as none."""
HUB = ""


def link(site: Site | None) -> tuple[int, int]:
    """A site's uplink: its latency in microseconds, and bits a second; 0 for as many as one likes."""
    uplink = site.spec.uplink if site is not None else None
    latency_ms = LATENCY_MS if uplink is None or uplink.latency_ms is None else int(uplink.latency_ms)
    return latency_ms * 1000, int(uplink.bandwidth_bps) if uplink is not None and uplink.bandwidth_bps else 0


def link_us(site: Site | None, frame_bytes: int = FRAME_BYTES) -> int:
    """How long one frame takes over a site's uplink."""
    latency_us, bandwidth_bps = link(site)
    over_us = frame_bytes * 8_000_000 // bandwidth_bps if bandwidth_bps else 0
    return min(latency_us + over_us, LINK_US_MAX)


def closeness(
    sites: Mapping[str, Site | None], published: Mapping[str, int], frame_bytes: int = FRAME_BYTES
) -> dict[str, int]:
    """By site: 100 where the data is, 50 where an average message is 20 ms away, and so on."""
    parents = {name: _parent(name, sites) for name in sites}
    order = _from_above(parents)
    weight = {HUB: 0} | {name: published.get(name, 0) for name in order}
    cost = {name: link_us(sites[name], frame_bytes) for name in order}
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


class Ways:
    """The links of a site tree as columns, for `closeness` many times over."""

    def __init__(self, sites: Mapping[str, Site | None], names: Sequence[str]) -> None:
        """`names`: the sites that are asked about, in the order of the answers."""
        parents = {name: _parent(name, sites) for name in sites}
        order = _from_above(parents)
        place = {HUB: 0} | {name: i for i, name in enumerate(order, 1)}
        depth = np.zeros(len(place), np.int64)
        self._parent = np.array([0, *(place[parents[name]] for name in order)], np.int64)
        for i in range(1, len(place)):
            depth[i] = depth[self._parent[i]] + 1
        links = [(0, 0), *(link(sites[name]) for name in order)]
        self._latency_us = np.array([latency for latency, _ in links], np.int64)
        self._bandwidth_bps = np.array([bandwidth for _, bandwidth in links], np.int64)
        self._levels = [np.flatnonzero(depth == d) for d in range(1, int(depth.max()) + 1)]
        """Places by how far below the hub, nearest first."""
        self._asked = np.array([place.get(name, -1) for name in names], np.int64)

    def closeness(self, published: Ints, frame_bytes: int = FRAME_BYTES) -> Ints:
        """As above, by the names that were given; 0 for what is in no tree."""
        over = int(published.sum()) // WEIGHT_MAX + 1
        published = published // over if over > 1 else published
        bandwidth = self._bandwidth_bps
        cost = self._latency_us + np.where(bandwidth > 0, frame_bytes * 8_000_000 // np.maximum(bandwidth, 1), 0)
        cost = np.minimum(cost, LINK_US_MAX)
        known = self._asked >= 0
        below = np.zeros(len(self._parent), np.int64)
        below[self._asked[known]] = published[known]
        total = int(below.sum())
        found = np.zeros(len(self._asked), np.int64)
        if total == 0:
            return found
        for level in reversed(self._levels):
            np.add.at(below, self._parent[level], below[level])
        way = np.zeros(len(below), np.int64)
        way[0] = int((cost[1:] * below[1:]).sum())
        for level in self._levels:
            way[level] = way[self._parent[level]] + cost[level] * (total - 2 * below[level])
        close = 100 * HALF_MS * 1000 * total // (HALF_MS * 1000 * total + way)
        found[known] = close[self._asked[known]]
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
