"""Leases: how a node knows by itself that it may no longer run what must never run twice.

Every heartbeat that the hub answers, naming no newer assignment than the node follows, renews the lease of all such
instances. It counts from the instant at which the node *sent* it; the hub counts from the instant at which it arrived,
which is later, and waits longer than the lease. So the node has stopped before the hub places a substitute, provided
that `now` and `contact_at` come from one clock that does not step while the node agent runs, and that the instance
does not outlive the node agent that counts for it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from batuta.core.decided import Instance

LAPSED_GRACE_MS = 1_000
"""How politely an instance is stopped whose lease is over: the hub counts on it being gone."""
DEFAULT_GRACE_MS = 10_000


def holds_lease(instance: Instance, now: int, contact_at: int | None) -> bool:
    """May it run at this instant? Always, unless it must never run twice and the hub has been silent too long."""
    if instance.lease_ms is None:
        return True
    return contact_at is not None and 0 <= now - contact_at <= instance.lease_ms


def contacted(contact_at: int | None, sent_at: int, now: int, *, missed: bool = False) -> int | None:
    """The hub contact after an answer to the heartbeat sent at `sent_at`. Answers may be late, doubled, disordered.

    `missed`: the answer names a newer assignment than the node follows. Such an answer renews nothing: the hub may have
    given to others what the older assignment still holds.
    """
    known = contact_at if contact_at is not None and contact_at <= now else None
    if sent_at > now or missed:
        return known
    return sent_at if known is None else max(known, sent_at)


def grace_ms(instance: Instance, now: int, contact_at: int | None) -> int:
    """How long an instance that is being stopped may take to end by itself: as asked, never far beyond its lease."""
    program = instance.program
    asked = int(program.stop_grace_ms) if program is not None else DEFAULT_GRACE_MS
    if instance.lease_ms is None:
        return asked
    left_ms = contact_at + instance.lease_ms - now if contact_at is not None and contact_at <= now else 0
    return min(asked, max(0, left_ms) + LAPSED_GRACE_MS)
