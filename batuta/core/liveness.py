"""Liveness: how a node's link is, and how long it has really been silent. Ordered rules; the first that holds wins.

A node is never declared lost for what the hub itself missed. Its silence counts from the latest of
  - the last heartbeat, or, while this hub has not heard it yet, a grace after the hub began to listen;
  - the return of its site: when all of a site was cut off, the slower nodes get a few seconds more to find back;
  - the last instant at which a neighbour heard it: then it is cut from the hub, not dead.
Time in which the hub could not listen, because it was busy or had lost its broker, is no part of anybody's silence.
And it counts only as far as a neighbour's last heartbeat: when a site is cut off, its nodes fall silent one after the
other within a beat, and whoever had beaten last must not look like the only survivor.
So one number, `silent_ms`, decides about failover, and one word, `link`, tells people.
"""

from __future__ import annotations

from itertools import islice
from typing import TYPE_CHECKING, Literal, NamedTuple

from batuta.core.observed import Sighting

if TYPE_CHECKING:
    from collections.abc import Callable

    from batuta.core.state import State

Link = Literal["online", "late", "offline", "never"]

HEARTBEAT_MS = 1_000
HEARTBEATS_A_SECOND_MAX = 1_000
"""One hub hears no more; nodes of a larger fleet beat more slowly, and every patience below grows with it."""
MISSED_MS = 2_000
"""Two heartbeats missed: presence is broken, nothing new is placed there, and no failover is quicker than this."""
LATE_MS = 3_000
OFFLINE_MS = 10_000
RECONNECT_MS = 10_000
"""After its start a hub waits so long for nodes it has not heard yet: they have to find it first."""
RETURN_MS = 5_000
"""After a site's first node was heard again, the others have so long before their silence begins to count."""
HEARSAY_MS = 20_000
"""Nodes report every fifteen seconds at least; what one says of another is news for so long."""
WITNESSES = 3
"""So many neighbours of a silent node are asked for a report at once, with every heartbeat of theirs."""


def every_ms(state: State) -> int:
    """How often each node of this fleet beats."""
    return max(HEARTBEAT_MS, HEARTBEAT_MS * len(state.nodes) // HEARTBEATS_A_SECOND_MAX)


def missed_ms(state: State) -> int:
    return MISSED_MS * every_ms(state) // HEARTBEAT_MS


class Hearing(NamedTuple):
    """What the rules of the link ask."""

    reported: bool
    sighted: bool
    closed: bool
    silent_ms: int
    """As if hearts beat every second."""


class LinkRule(NamedTuple):
    word: Link
    sentence: str
    holds: Callable[[Hearing], bool]


LINK_RULES: tuple[LinkRule, ...] = (
    LinkRule("never", "it has not been heard since it was enrolled", lambda h: not h.sighted and not h.reported),
    LinkRule("offline", "it has been silent for ten seconds", lambda h: h.silent_ms >= OFFLINE_MS),
    LinkRule("late", "it has been silent for three seconds", lambda h: h.silent_ms >= LATE_MS),
    LinkRule("late", "its link has closed", lambda h: h.closed),
    LinkRule("late", "the hub has just started and waits to hear it", lambda h: not h.sighted),
    LinkRule("online", "it was heard within three seconds", lambda _: True),
)


def link_rule(state: State, node: str, now: int) -> LinkRule:
    """The rule that says how a node's link is."""
    sighting = state.sightings.get(node)
    hearing = Hearing(
        reported=node in state.observed,
        sighted=sighting is not None,
        closed=sighting is not None and sighting.disconnected_at is not None,
        silent_ms=(now - heard_at(state, node)) * HEARTBEAT_MS // every_ms(state),
    )
    return next(rule for rule in LINK_RULES if rule.holds(hearing))


def link(state: State, node: str, now: int) -> Link:
    return link_rule(state, node, now).word


def heard_at(state: State, node: str) -> int:
    """From when the hub's own ears count a node's silence."""
    sighting = state.sightings.get(node)
    if sighting is None:
        return state.hub_since + RECONNECT_MS + state.deaf_ms
    return max(sighting.last_seen, state.hub_since) + max(0, state.deaf_ms - sighting.deaf_ms)


def silent_ms(state: State, node: str, now: int) -> int:
    """How long a node has been silent, by everybody's ears; zero or less for one that is there."""
    return now - Ears(state, now).silent_since(node)


class Neighbour(NamedTuple):
    """Who heard a node last, and when, on the hub's clock."""

    name: str
    at: int


class Ears:
    """Everybody's ears at one instant. What is asked of a site is found once."""

    def __init__(self, state: State, now: int) -> None:
        self.state = state
        self.now = now
        self._missed_ms = missed_ms(state)
        self._returned: dict[str, int] = {}
        self._neighbours: dict[str, dict[str, Neighbour]] = {}
        self._witnesses: dict[str, list[tuple[int, str]]] = {}

    def silent_since(self, node: str) -> int:
        """From when a node's silence counts. What the hub itself heard of late needs no second opinion."""
        since = heard_at(self.state, node)
        resource = self.state.nodes.get(node)
        if resource is None or self.now - since < self._missed_ms:
            return since
        neighbour = self.neighbour(node)
        returned = self._site_returned(resource.spec.site)
        if since < returned:  # It has not been heard since its site came back.
            since = returned + RETURN_MS
        since = max(since, neighbour.at) if neighbour else since
        return since + self._unwitnessed_ms(node, resource.spec.site)

    def neighbour(self, node: str) -> Neighbour | None:
        """Who at the site heard this node after the hub did."""
        resource = self.state.nodes.get(node)
        if resource is None:
            return None
        site = resource.spec.site
        if site not in self._neighbours:
            self._neighbours[site] = self._listen(site)
        found = self._neighbours[site].get(node)
        return found if found is not None and found.at > heard_at(self.state, node) else None

    def cut_off(self, node: str) -> Neighbour | None:
        """Who goes on hearing a node that the hub does not: it is cut from the hub, not dead. A last word that reached
        a neighbour and not the hub says nothing of the kind, nor does what was heard long ago."""
        found = self.neighbour(node)
        if found is None or self.now - found.at >= HEARSAY_MS:
            return None
        return found if found.at - heard_at(self.state, node) >= self._missed_ms else None

    def _site_returned(self, site: str) -> int:
        """Since when somebody at the site has been there without a break; long ago when nobody is."""
        if site not in self._returned:
            present = [
                sighting.online_since
                for name in self.state.nodes_of_site.get(site, ())
                if (sighting := self.state.sightings.get(name)) is not None
                and sighting.disconnected_at is None
                and self.now - heard_at(self.state, name) < self._missed_ms
            ]
            self._returned[site] = min(present, default=0)
        return self._returned[site]

    def _unwitnessed_ms(self, node: str, site: str) -> int:
        """How long ago somebody else at the site was last heard: for so long nobody can say that only `node` is silent.

        Zero when nobody else is there: then the site is lost as a whole, and its silence is what it is.
        """
        if site not in self._witnesses:
            seen = [
                (heard_at(self.state, name), name)
                for name in self.state.nodes_of_site.get(site, ())
                if (sighting := self.state.sightings.get(name)) is not None and sighting.disconnected_at is None
            ]
            self._witnesses[site] = sorted(seen)[-2:]
        heard = max((at for at, name in self._witnesses[site] if name != node), default=0)
        return max(0, self.now - heard) if self.now - heard < self._missed_ms else 0

    def _listen(self, site: str) -> dict[str, Neighbour]:
        heard: dict[str, Neighbour] = {}
        for name in self.state.nodes_of_site.get(site, ()):
            sighting, report = self.state.sightings.get(name), self.state.observed.get(name)
            if sighting is None or sighting.reported_at is None or report is None:
                continue
            for other, ago_ms in report.hears.items():
                at = min(self.now, sighting.reported_at - max(0, ago_ms))
                if other != name and (other not in heard or at > heard[other].at):
                    heard[other] = Neighbour(name, at)
        return heard


def witnesses(state: State, unheard_ms: Callable[[str], int]) -> frozenset[str]:
    """Nodes whose report is wanted now: the eldest that are heard at each site where a node that holds something has
    missed a heartbeat. `unheard_ms`: for how long the hub has not heard a node. So whether a node is cut from the hub
    or dead is known before its failover is due, and nobody says what he hears more often than anybody asks."""
    late_ms = every_ms(state) * 5 // 4
    doubted = {
        a.site
        for a in state.assignments.values()
        if a.instances and a.node in state.nodes and unheard_ms(a.node) > late_ms
    }
    return frozenset(name for site in doubted for name in heard_first(state, site, unheard_ms))


def is_doubted(state: State, site: str, unheard_ms: Callable[[str], int]) -> bool:
    """Has a node of this site that holds something missed a heartbeat?"""
    late_ms = every_ms(state) * 5 // 4
    late = (state.assignments.get(n) for n in state.nodes_of_site.get(site, ()) if unheard_ms(n) > late_ms)
    return any(a is not None and a.instances for a in late)


def heard_first(state: State, site: str, unheard_ms: Callable[[str], int]) -> tuple[str, ...]:
    """The eldest nodes of a site that are heard: those who are asked for what they hear."""
    gone_ms = missed_ms(state)
    return tuple(islice((n for n in state.nodes_of_site.get(site, ()) if unheard_ms(n) < gone_ms), WITNESSES))


def sighted(before: Sighting | None, now: int, gap_ms: int = MISSED_MS, deaf_ms: int = 0, flags: str = "") -> Sighting:
    """The Sighting after a heartbeat: a gap (`missed_ms` of the fleet) begins a new presence. `deaf_ms`: for how long
    the hub could not listen since it began. `flags`: the digest of those that the node has."""
    if before is None:
        return Sighting(last_seen=now, online_since=now, deaf_ms=deaf_ms, flags=flags)
    since, drops = before.online_since, before.drops
    if before.disconnected_at is not None or now - before.last_seen - (deaf_ms - before.deaf_ms) >= gap_ms:
        since, drops = now, recent_drops(before, now) + 1
    return Sighting(
        last_seen=now, online_since=since, drops=drops, reported_at=before.reported_at, deaf_ms=deaf_ms, flags=flags
    )


def recent_drops(sighting: Sighting, now: int) -> int:
    """How often a node's presence broke of late."""
    return sighting.drops >> min(63, max(0, now - sighting.online_since) // 3_600_000)
