"""Cards: which accelerators of a node an instance gets. Whole ones to one instance alone, shares side by side.

The same needs and the same node always give the same cards: of those that fit, the smallest, and of equals the first.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

from batuta.core.decided import Grant
from batuta.core.load import WHOLE
from batuta.kinds.base import Bytes
from batuta.kinds.hardware import is_kind

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from batuta.core.load import Claim
    from batuta.core.observed import Report
    from batuta.kinds.application import AcceleratorNeed
    from batuta.kinds.node import Node


class Card(NamedTuple):
    """One accelerator of a node. Nothing is known of its memory when that is 0."""

    kind: str
    memory_bytes: int


def cards_of(node: Node, report: Report | None) -> tuple[Card, ...]:
    """What people say of a node's accelerators, else what it reports."""
    if node.spec.accelerators:
        return tuple(Card(c.kind, int(c.memory_bytes)) for c in node.spec.accelerators)
    return tuple(Card(a.kind, int(a.memory_bytes)) for a in report.inventory.accelerators) if report else ()


def allot(
    needs: Sequence[AcceleratorNeed], cards: Sequence[Card], claims: Mapping[Claim, int]
) -> tuple[Grant, ...] | None:
    """The cards for these needs beside what is claimed already; None when they do not suffice."""
    free = [card.memory_bytes for card in cards]
    shared, whole = set[int](), set[int]()
    for claim, count in claims.items():
        if claim[0] == "card" and len(claim) == 3 and claim[1] < len(free):
            if claim[2] == WHOLE:
                whole.add(claim[1])
            else:
                shared.add(claim[1])
                free[claim[1]] -= claim[2] * count
    grants: list[Grant] = []
    # Who needs whole ones has the smaller choice, and among equals who needs more.
    in_order = sorted(needs, key=lambda n: (n.is_share, -int(n.memory_bytes or 0), n.kind)) if len(needs) > 1 else needs
    for need in in_order:
        memory, is_share = int(need.memory_bytes or 0), need.is_share
        for _ in range(1 if is_share else need.count or 1):
            best = -1
            for i, card in enumerate(cards):
                if i in whole or free[i] < memory or (i in shared and not is_share):
                    continue
                if (best < 0 or free[i] < free[best]) and is_kind(card.kind, need.kind):
                    best = i
            if best < 0:
                return None
            grants.append(Grant(kind=cards[best].kind, card=best, memory_bytes=Bytes(memory) if is_share else None))
            if is_share:
                shared.add(best)
                free[best] -= memory
            else:
                whole.add(best)
    return tuple(grants)
