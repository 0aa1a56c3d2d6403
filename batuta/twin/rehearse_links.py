"""Links of a rehearsal: the uplinks of the sites. Transfers share them evenly, and every byte is counted."""

from __future__ import annotations

from math import sqrt
from typing import TYPE_CHECKING, Final

from batuta.kinds.base import Record

if TYPE_CHECKING:
    from collections.abc import Callable

    from batuta.core.state import State
    from batuta.twin.rehearse_time import Timeline

ASSUMED_BPS: Final = 20_000_000
ASSUMED_LATENCY_MS: Final = 20
"""Of a site whose uplink nobody has described."""
PIECE_FIRST_BYTES: Final = 64 * 1024
PIECE_LARGEST_BYTES: Final = 512 * 1024
"""Nodes fetch piece by piece, each twice as large as the one before up to this, and wait a round trip for each."""
PATH_MAX: Final = 32
RESENT_AFTER_MS: Final = 200
"""TCP sends again what was lost, no sooner than this."""
SEGMENT_BYTES: Final = 1_460
LOST_PERCENT_MAX: Final = 90
"""Where more than that is lost nothing comes through in any time that matters."""


class Uplink(Record):
    """The link of a site to its parent, and what went over it."""

    site: str
    bandwidth_bps: int
    latency_ms: int
    is_assumed: bool = False
    """Nobody has described it."""
    metered: bool = False
    artifact_bytes: int = 0
    control_bytes: int = 0
    """Assignments and reports; heartbeats are not counted."""
    busy_ms: int = 0
    """With at least one artifact on its way."""


class _Link:
    """An uplink while it is used."""

    def __init__(self, site: str, bandwidth_bps: int | None, latency_ms: int | None, *, metered: bool) -> None:
        self.site = site
        self.bandwidth_bps = bandwidth_bps or ASSUMED_BPS
        self.latency_ms = ASSUMED_LATENCY_MS if latency_ms is None else latency_ms
        self.is_assumed = bandwidth_bps is None or latency_ms is None
        self.metered = metered
        self.flows = 0
        self.artifact_bytes = 0.0
        self.control_bytes = 0
        self.busy_ms = 0


class Flow:
    """An artifact on its way."""

    __slots__ = ("bytes_left", "path", "paused", "rate", "rtt_ms", "then")

    def __init__(self, path: tuple[_Link, ...], size_bytes: int, rtt_ms: int, then: Callable[[], None]) -> None:
        self.path = path
        self.bytes_left = float(size_bytes)
        self.rtt_ms = rtt_ms
        """All its round trips together."""
        self.then = then
        self.rate = 0.0
        """Bytes a millisecond."""
        self.paused = False


class Links:
    """All uplinks, by site."""

    def __init__(self, state: State, time: Timeline) -> None:
        self._time = time
        self._parents: dict[str, str | None] = {}
        self._links: dict[str, _Link] = {}
        for site in sorted({*state.nodes_of_site, *(s.metadata.name for s in state.sites())}):
            self._add(state, site)
        self._flows: list[Flow] = []
        self._settled_at = time.now
        self._token = 0
        self.extra_ms: dict[str, int] = {}
        """By site: what a fault adds to its latency."""
        self.lost_percent: dict[str, int] = {}
        """By site: how much of what is sent is lost."""
        self.on_rates: Callable[[float], None] = lambda _: None
        """Told the sum of all rates, in bits a second, whenever it changes."""

    def _add(self, state: State, name: str) -> None:
        if name in self._links:
            return
        site = state.site(name)
        uplink = site.spec.uplink if site is not None else None
        bandwidth = uplink.bandwidth_bps if uplink is not None else None
        latency = uplink.latency_ms if uplink is not None else None
        metered = uplink is not None and uplink.metered
        self._links[name] = _Link(
            name, None if bandwidth is None else int(bandwidth), None if latency is None else int(latency),
            metered=metered,
        )  # fmt: skip
        self._parents[name] = site.spec.parent if site is not None else None
        if (parent := self._parents[name]) is not None:
            self._add(state, parent)

    def _path(self, site: str) -> tuple[_Link, ...]:
        """From the site up to the hub, which is at the root."""
        path: list[_Link] = []
        here: str | None = site
        while here is not None and here in self._links and len(path) < PATH_MAX:
            path.append(self._links[here])
            here = self._parents.get(here)
        return tuple(path)

    def latency_ms(self, site: str) -> int:
        """One way between a node of the site and the hub. A parent that nobody described adds nothing of its own."""
        first, *others = self._path(site) or (_Link(site, None, None, metered=False),)
        return (
            first.latency_ms
            + sum(link.latency_ms for link in others if not link.is_assumed)
            + self.extra_ms.get(site, 0)
            + self._resent_ms(site)
        )

    def lose(self, site: str, percent: int) -> None:
        """From now on so much of what is sent over a site's uplink is lost."""
        self._settle()
        self.lost_percent[site] = min(percent, LOST_PERCENT_MAX)
        self._share()

    def _resent_ms(self, site: str) -> int:
        """How much later a message comes on average, because some are sent again and again."""
        lost = self.lost_percent.get(site, 0)
        return RESENT_AFTER_MS * lost // (100 - lost)

    def _most(self, flow: Flow) -> float:
        """How fast one connection can be where some of what it sends is lost: by the rule of Mathis, Semke, Mahdavi and
        Ott (1997), bytes a millisecond."""
        site = flow.path[0].site if flow.path else ""
        lost = self.lost_percent.get(site, 0) / 100
        if not lost:
            return float("inf")
        rtt_ms = max(1, 2 * (sum(link.latency_ms for link in flow.path) + self.extra_ms.get(site, 0)))
        return SEGMENT_BYTES * 1.22 / (rtt_ms * sqrt(lost))

    def count_control(self, site: str, size_bytes: int) -> None:
        for link in self._path(site):
            link.control_bytes += size_bytes

    def count_recipe(self, site: str, size_bytes: int) -> None:
        for link in self._path(site):
            link.artifact_bytes += size_bytes

    # --- Artifacts ---

    def fetch(self, site: str, size_bytes: int, then: Callable[[], None]) -> Flow:
        """Bytes from the hub to a site; `then` when the last has come."""
        path = tuple(link for k, link in enumerate(self._path(site)) if k == 0 or not link.is_assumed)
        flow = Flow(path, size_bytes, _pieces(size_bytes) * 2 * self.latency_ms(site), then)
        self._settle()
        self._flows.append(flow)
        self._share()
        return flow

    def pause(self, flow: Flow, *, paused: bool) -> None:
        """A cut: nothing comes; what has come is kept."""
        self._settle()
        flow.paused = paused
        self._share()

    def cancel(self, flow: Flow) -> None:
        if flow in self._flows:
            self._settle()
            self._flows.remove(flow)
            self._share()

    def used(self) -> tuple[Uplink, ...]:
        """What went over every link by now."""
        self._settle()
        return tuple(
            Uplink(
                site=link.site, bandwidth_bps=link.bandwidth_bps, latency_ms=link.latency_ms,
                is_assumed=link.is_assumed, metered=link.metered, artifact_bytes=round(link.artifact_bytes),
                control_bytes=link.control_bytes, busy_ms=link.busy_ms,
            )
            for _, link in sorted(self._links.items())
        )  # fmt: skip

    def _settle(self) -> None:
        """Moves what was moved since the last look."""
        passed_ms = self._time.now - self._settled_at
        self._settled_at = self._time.now
        if not passed_ms:
            return
        busy: dict[str, _Link] = {}
        for flow in self._flows:
            moved = min(flow.bytes_left, flow.rate * passed_ms)
            flow.bytes_left -= moved
            for link in flow.path:
                link.artifact_bytes += moved
                if flow.rate:
                    busy[link.site] = link
        for link in busy.values():
            link.busy_ms += passed_ms

    def _share(self) -> None:
        """Everybody on a link gets as much of it; the narrowest link of a path decides."""
        moving = [flow for flow in self._flows if not flow.paused]
        for link in self._links.values():
            link.flows = 0
        for flow in moving:
            for link in flow.path:
                link.flows += 1
        for flow in self._flows:
            flow.rate = 0.0
        for flow in moving:
            shares = (link.bandwidth_bps / 8_000 / link.flows for link in flow.path)
            flow.rate = min(self._most(flow), min(shares, default=float(ASSUMED_BPS)))
        self.on_rates(sum(flow.rate for flow in moving) * 8_000)
        self._token += 1
        soonest = min((flow.bytes_left / flow.rate for flow in moving if flow.rate), default=None)
        if soonest is not None:
            self._time.after(int(soonest) + (soonest > int(soonest)), self._arrive, self._token)

    def _arrive(self, token: int) -> None:
        if token != self._token:
            return
        self._settle()
        done = [flow for flow in self._flows if flow.bytes_left < 0.5 and not flow.paused]
        self._flows = [flow for flow in self._flows if flow not in done]
        self._share()
        for flow in done:
            self._time.after(flow.rtt_ms, flow.then)


def _pieces(size_bytes: int) -> int:
    """How many round trips a fetch takes."""
    count, size, left = 0, PIECE_FIRST_BYTES, size_bytes
    while left > 0 or not count:
        left -= size
        size = min(size * 2, PIECE_LARGEST_BYTES)
        count += 1
    return count
