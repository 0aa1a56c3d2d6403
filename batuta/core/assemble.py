"""Assemble: what was drafted becomes Assignments, one row per node, with what its site shares.

Every enrolled node has one, so that a fresh node knows its site and its elders before anything runs there. The serial
rises only when the content differs.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import msgspec

from batuta.core.decided import Assignment, Capture, Peer, assignment_key
from batuta.core.state import Change

if TYPE_CHECKING:
    from collections.abc import Iterable

    from batuta.core.decided import Instance
    from batuta.core.draft import Draft

PEERS_MAX = 64
ELDERS_MAX = 16


def assemble(draft: Draft, sites: Iterable[str]) -> list[Change]:
    """The assignments that change: those of drafted nodes, and of every node of these sites."""
    state = draft.state
    whole = set(sites)
    drafted: dict[str, list[str]] = {site: [] for site in draft.watched_sites}
    for node in draft.changed_nodes():
        resource = state.nodes.get(node)
        if resource is not None:
            drafted.setdefault(resource.spec.site, []).append(node)
    changes = [
        Change("decided", assignment_key(node), None) for node in sorted(state.assignments.keys() - state.nodes.keys())
    ]
    for site in sorted(whole | drafted.keys()):
        members = state.nodes_of_site.get(site, ())
        captures = _captures(draft, site, members)
        peers = _peers(draft, members)
        those: Iterable[str] = members if site in whole else drafted[site]
        if site not in whole and any(_captured(draft, node) != captures for node in (*those, *members[:1])):
            # What one node stores, all of its site store: an answer may come from any of them.
            those = members
        place = {node: i for i, node in enumerate(members)}
        for node in those:
            changes += _assignment(draft, node, site, peers, members[: place[node]][:ELDERS_MAX], captures)
    return changes


def _assignment(  # noqa: PLR0917
    draft: Draft, node: str, site: str, peers: list[Peer], elders: tuple[str, ...], captures: tuple[Capture, ...]
) -> list[Change]:
    state = draft.state
    before, report = state.assignments.get(node), state.observed.get(node)
    after = Assignment(
        node=node, site=site, serial=before.serial if before is not None else 0,
        instances=draft.instances(node), peers=tuple(p for p in peers if p.node != node)[:PEERS_MAX], elders=elders,
        captures=captures, watched=state.watched,
    )  # fmt: skip
    ahead = before is not None and report is not None and report.serial > before.serial
    if after == before and not ahead and not draft.is_insisted(node):
        return []
    after = msgspec.structs.replace(after, serial=draft.serial(node))
    return [Change("decided", assignment_key(node), after)]


def _captured(draft: Draft, node: str) -> tuple[Capture, ...] | None:
    before = draft.state.assignments.get(node)
    return before.captures if before is not None else None


def _peers(draft: Draft, members: tuple[str, ...]) -> list[Peer]:
    """Eldest first; one more than any node gets, for it leaves itself out."""
    found: list[Peer] = []
    for node in members:
        report = draft.state.observed.get(node)
        if report is not None and report.address:
            found.append(Peer(node=node, address=report.address))
        if len(found) > PEERS_MAX:
            break
    return found


def _captures(draft: Draft, site: str, members: tuple[str, ...]) -> tuple[Capture, ...]:
    """What the site's nodes store for its models. A slot between two holders (a fence) still has its topics stored."""
    newest: dict[str, list[Instance]] = {}
    for node in members:
        for instance in draft.instances(node):
            if instance.model is not None:
                newest.setdefault(instance.consumer, []).append(instance)
    captures: dict[str, Capture] = {}
    for consumer, instances in newest.items():
        instances.sort(key=lambda i: (-i.revision, i.name, -i.epoch))
        topics = dict.fromkeys(topic for i in instances for topic in (x.topic for x in i.inputs))
        captures[consumer] = Capture(consumer=consumer, topics=tuple(topics), outputs=instances[0].outputs)
    for capture in draft.fenced_captures(site):
        captures.setdefault(capture.consumer, capture)
    return tuple(captures[consumer] for consumer in sorted(captures))
