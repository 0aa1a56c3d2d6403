"""Deadline: how long there is, how long to wait for one instance before another is asked too. Pure.

A deadline is an instant of the caller's own clock; what travels is what is left of it, so clocks need not agree. It is
never extended, and what cannot be met is not sent: an answer that nobody waits for is work stolen from the others.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from batuta.core.serving import Class

DEFAULT_MS = 30_000
LONGEST_MS = 600_000
HEDGE_LEAST_MS = 5
PATIENCE_LEAST_MS = 100
PATIENCE_UNKNOWN_MS = 1_000
"""How long to wait for an instance of which nothing is known yet."""


class Past(NamedTuple):
    """What a model's answers took so far, where it is known; milliseconds."""

    fastest_ms: float | None = None
    p50_ms: float | None = None
    p95_ms: float | None = None
    p99_ms: float | None = None


def begins(asked_ms: int | None, now: int) -> int:
    """The instant of a request's deadline: so many milliseconds from now, or the default; never beyond the longest."""
    return now + min(LONGEST_MS, DEFAULT_MS if asked_ms is None else max(0, asked_ms))


def left_ms(deadline: int, now: int) -> int:
    """What is told to whoever is asked next: never more than there is."""
    return max(0, deadline - now)


def can_be_met(deadline: int, now: int, past: Past) -> bool:
    """False when it is over, or when it would take an answer faster than any that was ever seen."""
    left = left_ms(deadline, now)
    return left > 0 and (past.fastest_ms is None or left >= math.floor(past.fastest_ms))


def patience_ms(urgency: Class, past: Past) -> int:
    """How long to wait for one instance before a second one is asked as well.

    For `critical` that is a hedge: after the time in which 95 of 100 answers came. For the others it is the suspicion
    that no answer will come: four times what 99 of 100 answers took.
    """
    if urgency == "critical" and past.p95_ms is not None:
        return max(HEDGE_LEAST_MS, math.ceil(past.p95_ms))
    if past.p99_ms is not None:
        return max(PATIENCE_LEAST_MS, math.ceil(4 * past.p99_ms))
    if past.p50_ms is not None:
        return max(PATIENCE_UNKNOWN_MS, math.ceil(8 * past.p50_ms))
    return PATIENCE_UNKNOWN_MS
