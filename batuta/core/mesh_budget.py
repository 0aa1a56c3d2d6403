"""Budget: how many requests may be sent more than once.

A retry is good for one caller and bad for all when everything is slow: then each failure makes more load and more
failures. So retries and hedges together are a share of the requests: every request earns a part of a token, every
further attempt costs a whole one, and there are never more than so many saved. A little trickles in with time, so that
a caller who asks once a minute can retry too. Values; `now` is an argument. Counted in thousandths, so that no
rounding ever earns anything.
"""

from __future__ import annotations

from typing import NamedTuple

TOKEN = 1_000
EARNED_BY_A_REQUEST = 200
"""A fifth of a request may be retries."""
TRICKLE_A_SECOND = 2 * TOKEN
MOST = 100 * TOKEN


class Budget(NamedTuple):
    """Thousandths of tokens, as of an instant."""

    saved: int = 10 * TOKEN
    at: int = 0


def requested(budget: Budget, now: int) -> Budget:
    """One more request came in."""
    current = _trickled(budget, now)
    return current._replace(saved=min(MOST, current.saved + EARNED_BY_A_REQUEST))


def spent(budget: Budget, now: int) -> Budget | None:
    """After one more attempt; None when there is nothing left for it."""
    current = _trickled(budget, now)
    return current._replace(saved=current.saved - TOKEN) if current.saved >= TOKEN else None


def _trickled(budget: Budget, now: int) -> Budget:
    passed_ms = max(0, now - budget.at)
    trickled = passed_ms * TRICKLE_A_SECOND // 1_000
    return Budget(min(MOST, budget.saved + trickled), max(now, budget.at))
