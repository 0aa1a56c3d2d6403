"""Fetches of a rehearsal: each artifact comes to a site once over its uplink, and from there to whoever wants it.

Nodes ask their neighbours first, and those that want the same divide the labour (`core.delivery`): so what several
fetch at once is one transfer over the uplink, and what a neighbour has costs the uplink nothing but the recipe.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from batuta.core.delivery import GATHER_MS

if TYPE_CHECKING:
    from collections.abc import Callable

    from batuta.twin.rehearse_links import Flow, Links
    from batuta.twin.rehearse_node import NodeCopy
    from batuta.twin.rehearse_time import Timeline

SITE_BPS: Final = 200_000_000
"""How fast a file comes from a neighbour; nobody describes the networks of sites."""
RECIPE_PER_MILLION: Final = 600
"""Each node reads the list of chunks, over the uplink: forty bytes for one of 64 KiB."""


class Fetch:
    """One node's wish for an artifact."""

    __slots__ = ("arrived", "began", "digests", "gone", "node", "paused", "size_bytes", "slow")

    def __init__(self, node: NodeCopy, digests: frozenset[str], size_bytes: int, arrived: Callable[[], None]) -> None:
        self.node, self.digests, self.size_bytes, self.arrived = node, digests, size_bytes, arrived
        self.slow = node.slow
        self.began = node.time.now
        self.paused = not node.linked
        self.gone = False
        """Nobody wants it any more."""


class _Shared:
    """One transfer to a site, for all there who want it."""

    def __init__(self) -> None:
        self.wishes: list[Fetch] = []
        self.flow: Flow | None = None


class Fetches:
    """All of one rehearsal."""

    def __init__(self, links: Links, time: Timeline, beside: Callable[[NodeCopy], list[NodeCopy]]) -> None:
        self._links, self._time = links, time
        self._beside = beside
        """The nodes that a node reaches at its site."""
        self._shared: dict[tuple[str, frozenset[str]], _Shared] = {}

    def fetch(self, node: NodeCopy, digests: tuple[str, ...], size_bytes: int, arrived: Callable[[], None]) -> Fetch:
        """Bring these to a node; `arrived` when the last byte has come."""
        wish = Fetch(node, frozenset(digests), size_bytes, arrived)
        self._time.after(0, self._say, wish)
        return wish

    def _say(self, wish: Fetch) -> None:
        """Whoever has neighbours hears first which of them want the same."""
        self._time.after(GATHER_MS if wish.size_bytes and self._beside(wish.node) else 0, self._begin, wish)

    def _begin(self, wish: Fetch) -> None:
        if wish.gone:
            return
        node = wish.node
        self._links.count_recipe(node.site, wish.size_bytes * RECIPE_PER_MILLION // 1_000_000)
        if wish.size_bytes and any(wish.digests <= other.held for other in self._beside(node)):
            self._time.after(wish.slow * wish.size_bytes * 8_000 // SITE_BPS, self._arrive, wish)
            return
        key = (node.site, wish.digests)
        shared = self._shared.get(key)
        if shared is None:
            shared = self._shared[key] = _Shared()
            shared.flow = self._links.fetch(node.site, wish.size_bytes, lambda: self._came(key, shared))
        shared.wishes.append(wish)
        self._settle(shared)

    def pause(self, wish: Fetch, *, paused: bool) -> None:
        """The node's link to the hub is cut, or back. Its neighbours' links may bring the file in all the same."""
        wish.paused = paused
        shared = self._shared.get((wish.node.site, wish.digests))
        if shared is not None and wish in shared.wishes:
            self._settle(shared)

    def cancel(self, wish: Fetch) -> None:
        wish.gone = True
        key = (wish.node.site, wish.digests)
        shared = self._shared.get(key)
        if shared is None or wish not in shared.wishes:
            return
        shared.wishes.remove(wish)
        if shared.wishes:
            self._settle(shared)
        elif shared.flow is not None:
            self._links.cancel(shared.flow)
            del self._shared[key]

    def _settle(self, shared: _Shared) -> None:
        if shared.flow is not None:
            self._links.pause(shared.flow, paused=all(wish.paused for wish in shared.wishes))

    def _came(self, key: tuple[str, frozenset[str]], shared: _Shared) -> None:
        """The last chunk is at the site."""
        if self._shared.get(key) is shared:
            del self._shared[key]
        for wish in shared.wishes:
            # A slow disk is written for longer than the link takes.
            self._time.after((wish.slow - 1) * (self._time.now - wish.began), self._arrive, wish)

    @staticmethod
    def _arrive(wish: Fetch) -> None:
        if not wish.gone:
            wish.arrived()
