"""Delivery: which chunk of a file a node asks of whom. Nodes of a site that want the same file divide the labour.

A chunk that a neighbour has is asked of the neighbour. One that nobody at the site has is brought in over the uplink by
exactly one of those who want it: by rendezvous, everybody computes the same one without a word. It takes it from the
region, if a node there has it, else from the hub, unless a node of the region is just fetching it. It says on its card
what it has asked for, so whoever joins later leaves that alone. Who brings nothing in for too long is not waited for:
its share falls to the others, at worst to each of them. So nothing blocks, and in good times every chunk crosses the
uplink once.

Sets of chunks are whole numbers: bit i stands for chunk i.
"""

from __future__ import annotations

import zlib
from functools import lru_cache
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping, Sequence

HUB = ""
"""The last source behind the uplink; every other one but the region is the name of a neighbour."""
REGION = "^"
"""The first source behind the uplink: whichever node of the region has it."""
CHUNKS_PER_ASK = 2
"""At most: an answer stays small, so that orders pass between answers, and a node needs little memory."""
SPANS_MOST = 2048
SPAN_LEAST = 4
"""Labour is divided by spans of so many chunks at least: what one node asks for lies together in the file."""
GATHER_MS = 400
"""So long after a node said that it wants a file, it takes a share: by then all who want it have said so."""
LOST_AFTER_MS = 15_000
"""A neighbour whose card is older is not there. One whose agent restarts is back sooner, with all it had."""
STALLED_AFTER_MS = 10_000
"""A neighbour that got nothing for so long is not waited for, unless the uplink is as slow for us."""


class Peer(NamedTuple):
    """A neighbour, as far as its card tells."""

    node: str
    has: int
    """Verified there."""
    claims: int
    """On their way there, over the uplink."""
    wants: bool
    """It collects the same file, and brings in its share."""
    since: int
    """Instant at which it was first heard to want it."""
    heard_at: int
    moved_at: int
    """Instant at which it last had more than before."""


class View(NamedTuple):
    """All that a node knows when it decides what to ask for."""

    node: str
    total: int
    """Chunks of the whole file."""
    has: int
    asked: Mapping[str, int]
    """By source: what is on its way from there."""
    peers: Sequence[Peer]
    """Those not worth asking are left out."""
    began: int
    """Instant at which this node said that it wants the file."""
    now: int
    has_neighbours: bool = False
    """Somebody else is at the site, whether or not it has said that it wants the file."""
    hub_asks: int = 2
    """So many questions to the hub may be under way; 0 while the uplink is closed to this file."""
    hub_chunks: int = CHUNKS_PER_ASK
    """Chunks in one of them."""
    peer_asks: int = 2
    """So many to neighbours, one to each."""
    patience_ms: int = STALLED_AFTER_MS
    region: Sequence[Peer] = ()
    """Nodes of the region that give files to this site."""
    is_region_open: bool = False
    """Who they are is not known yet, and will be in a moment."""
    settled: int = 0
    """Instant since which the uplink has worked as it does now: before it, nobody could bring anything in."""


class Ask(NamedTuple):
    """Chunks to ask of one source in one question."""

    source: str
    chunks: tuple[int, ...]


class Plan(NamedTuple):
    asks: tuple[Ask, ...]
    awaited: int
    """Chunks that a neighbour or the region is expected to bring in."""
    held_back: int
    """Chunks that nobody here has, while the uplink is closed to them."""


def plan(view: View) -> Plan:
    """What to ask for now, beside what is asked already. Asked again before anything came, it asks for nothing."""
    everything = (1 << view.total) - 1
    missing = everything & ~view.has
    for chunks in view.asked.values():
        missing &= ~chunks
    present = [peer for peer in view.peers if view.now - peer.heard_at <= LOST_AFTER_MS]
    nearby = list(_of_neighbours(view, present, missing))
    for ask in nearby:
        missing &= ~_set(ask.chunks)
    for peer in present:
        missing &= ~peer.has  # it will be this one's turn
    waited = view.now - view.patience_ms
    moving = [p for p in present if p.wants and max(p.moved_at, p.since, view.settled) >= waited]
    alone = missing
    for peer in moving:
        missing &= ~peer.claims
    if not view.hub_asks:
        return Plan(tuple(nearby), 0, missing)
    mine = missing & _mine(view, moving)
    there, coming = _in_region(view, waited)
    parts = [(REGION, mine & there), (HUB, 0 if coming else mine & ~there)]
    asks, under_way = [*nearby], -(-(brought(view.asked)).bit_count() // view.hub_chunks)
    start = _place(view.node, view.total)
    for source, part in parts:
        left = part
        while left and under_way < view.hub_asks:
            chosen = take(left, view.hub_chunks, start)
            asks.append(Ask(source, chosen))
            left &= ~_set(chosen)
            mine &= ~_set(chosen)
            alone &= ~_set(chosen)
            under_way += 1
    return Plan(tuple(asks), alone & ~(mine & there if coming else mine), 0)


def brought(asked: Mapping[str, int]) -> int:
    """What is on its way over the uplink."""
    return asked.get(HUB, 0) | asked.get(REGION, 0)


def _in_region(view: View, waited: int) -> tuple[int, bool]:
    """What the region has, and whether the rest is worth waiting for there."""
    present = [peer for peer in view.region if view.now - peer.heard_at <= LOST_AFTER_MS]
    there = 0
    for peer in present:
        there |= peer.has
    return there, view.is_region_open or any(p.wants and max(p.moved_at, p.since) >= waited for p in present)


def _of_neighbours(view: View, present: Sequence[Peer], missing: int) -> Iterator[Ask]:
    """One question to each, in an order of our own, so that not all ask the same one for the same."""
    room = view.peer_asks - sum(1 for source in view.asked if source not in (HUB, REGION))
    start = _place(view.node, view.total)
    for peer in sorted(present, key=lambda p: (_score(view.node, p.node), p.node)):
        if room <= 0:
            return
        if view.asked.get(peer.node):
            continue
        chosen = take(peer.has & missing, CHUNKS_PER_ASK, start)
        if chosen:
            missing &= ~_set(chosen)
            room -= 1
            yield Ask(peer.node, chosen)


def _mine(view: View, moving: Iterable[Peer]) -> int:
    """The chunks that are ours to bring in. Who has only just come has no share yet, as others do not know it."""
    if view.has_neighbours and view.now - view.began < GATHER_MS:
        return 0
    others = (p.node for p in moving if view.now - p.since >= GATHER_MS)
    return share(view.total, tuple(sorted({view.node, *others})), view.node)


@lru_cache(maxsize=16)
def share(total: int, nodes: tuple[str, ...], node: str) -> int:
    """The chunks that `node` brings in when these nodes want a file of so many. Every chunk is in exactly one share,
    and a node that comes or goes changes only its own."""
    span = max(SPAN_LEAST, -(-total // SPANS_MOST))
    mine, of_span = 0, (1 << span) - 1
    for n in range(-(-total // span)):
        if max(nodes, key=lambda each: (_score(str(n), each), each)) == node:
            mine |= of_span << (n * span)
    return mine & ((1 << total) - 1)


def take(chunks: int, most: int, start: int = 0) -> tuple[int, ...]:
    """The first few of a set from a place on, then from the beginning."""
    found: list[int] = []
    after = chunks >> start << start
    for part in (after, chunks ^ after):
        left = part
        while left and len(found) < most:
            lowest = left & -left
            found.append(lowest.bit_length() - 1)
            left ^= lowest
    return tuple(found)


def _set(chunks: Iterable[int]) -> int:
    made = 0
    for chunk in chunks:
        made |= 1 << chunk
    return made


def _place(node: str, total: int) -> int:
    """Where a node begins to read, each somewhere else: so they soon have something for each other."""
    return zlib.crc32(node.encode()) % total if total else 0


def _score(what: str, node: str) -> int:
    # A checksum alone is linear: nodes of like names would win and lose together.
    mixed = zlib.crc32(f"{what}/{node}".encode()) * 0x9E3779B1 & 0xFFFFFFFF
    return (mixed ^ mixed >> 15) * 0x85EBCA6B & 0xFFFFFFFF
