"""Evidence: what counts say of the truth behind them, at every moment at once.

A gate is looked at again and again while data comes in. An interval made for one look would sooner or later err by
mere looking, so these are *confidence sequences*: with probability 1 - `alpha` the truth is inside all of them, however
often and whenever one looks. Sources:

- a share: the mixture of binomial likelihoods over Jeffreys' prior (Robbins, "Statistical methods related to the law
  of the iterated logarithm", 1970; Krichevsky and Trofimov, 1981), a martingale by Ville's inequality;
- a quantile: it is at most x where the share of what is at most x is at least q (Howard and Ramdas, "Sequential
  estimation of quantiles with applications to A/B testing and best-arm identification", 2022), so the same interval;
- how far two distributions are apart (Kolmogorov and Smirnov's distance): the uniform band of that paper, theorem 2;
- a mean: the asymptotic sequence of Waudby-Smith, Arbour, Sinha, Kennedy and Ramdas, "Time-uniform central limit theory
  and asymptotic confidence sequences", 2021, equation 8: right as samples grow, so it is not asked before `MEAN_LEAST`.
"""

from __future__ import annotations

import math
from itertools import accumulate
from typing import TYPE_CHECKING, Final, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

LATENCY_RATIO: Final = 1.02
"""Each bucket of latencies is this much wider than the one before: a quantile is told to one part in fifty."""
LATENCY_LEAST_MS: Final = 0.05
LATENCY_MOST_MS: Final = 3_600_000.0
"""What took longer is told as this."""
MEAN_LEAST: Final = 30
_ROUNDS: Final = 60
"""Bisections of [0, 1]: more would be beyond the precision of a float."""


class Interval(NamedTuple):
    """Where the truth is, and the middle of what was seen. Infinite where nothing is known."""

    low: float
    seen: float
    high: float


def share_within(hits: int, of: int, alpha: float) -> Interval:
    """The probability behind `hits` out of `of` trials."""
    if of <= 0:
        return Interval(0.0, math.nan, 1.0)
    seen, likely = hits / of, _likely(hits, of, alpha)
    return Interval(_edge(likely, seen, 0.0), seen, _edge(likely, seen, 1.0))


def latency_bucket(latency_ms: float) -> int:
    """The bucket of a latency: bucket b holds what is above `latency_at(b - 1)` and at most `latency_at(b)`."""
    if latency_ms <= LATENCY_LEAST_MS:
        return 0
    return math.ceil(math.log(min(latency_ms, LATENCY_MOST_MS) / LATENCY_LEAST_MS, LATENCY_RATIO))


def latency_at(bucket: int) -> float:
    """The upper bound of a bucket, in milliseconds."""
    return LATENCY_LEAST_MS * LATENCY_RATIO**bucket if bucket >= 0 else 0.0


def quantile_within(counts: Mapping[int, int], q: float, alpha: float) -> Interval:
    """The latency in milliseconds that a share `q` of all does not exceed; `counts` by bucket."""
    total = sum(counts.values())
    if total <= 0:
        return Interval(0.0, math.nan, math.inf)
    buckets = sorted(counts)
    below = list(accumulate(counts[b] for b in buckets))
    seen = next(b for b, n in zip(buckets, below, strict=True) if n >= q * total)
    # The share of what is at most a bucket grows from bucket to bucket; q leaves its interval below and above.
    low, high = 0.0, math.inf
    for bucket, count in zip(buckets, below, strict=True):
        if _likely(count, total, alpha)(q):
            continue
        if count < q * total:
            low = latency_at(bucket)
        else:
            high = latency_at(bucket)
            break
    return Interval(low, latency_at(seen), high)


def distance_within(one: Sequence[int], other: Sequence[int], alpha: float) -> Interval:
    """Kolmogorov and Smirnov's distance between two distributions, from their counts in the same bins: 0 to 1."""
    if len(one) != len(other):
        raise ValueError(f"{len(one)} bins and {len(other)} bins are not of one kind")
    n, m = sum(one), sum(other)
    if n <= 0 or m <= 0:
        return Interval(0.0, math.nan, 1.0)
    pairs = zip(accumulate(one), accumulate(other), strict=True)
    seen = max(abs(a / n - b / m) for a, b in pairs)
    slack = _band(n, alpha / 2) + _band(m, alpha / 2)
    return Interval(max(0.0, seen - slack), seen, min(1.0, seen + slack))


def mean_within(n: int, total: float, squares: float, alpha: float) -> Interval:
    """The mean behind `n` numbers, from their sum and the sum of their squares."""
    if n < MEAN_LEAST:
        return Interval(-math.inf, total / n if n else math.nan, math.inf)
    mean = total / n
    variance = max(0.0, squares / n - mean * mean)
    # Narrowest around the least number that is asked: rho as the paper's equation 10 advises.
    rho = math.sqrt((-2 * math.log(alpha) + math.log(-2 * math.log(alpha) + 1)) / MEAN_LEAST)
    spread = n * rho * rho + 1
    half = math.sqrt(variance * 2 * spread / (n * n * rho * rho) * math.log(math.sqrt(spread) / alpha))
    return Interval(mean - half, mean, mean + half)


def _band(n: int, alpha: float) -> float:
    """How far any empirical distribution of `n` strays from the true one, for all n at once."""
    return 0.85 * math.sqrt((math.log(math.log(math.e * n)) + 0.8 * math.log(1612 / alpha)) / n)


def _likely(hits: int, of: int, alpha: float) -> Callable[[float], bool]:
    """Is a probability within the interval of `hits` out of `of`?"""
    # It is without where the mixture of likelihoods exceeds its own likelihood 1/alpha times.
    misses = of - hits
    mixture = math.lgamma(hits + 0.5) + math.lgamma(misses + 0.5) - math.lgamma(of + 1) - math.log(math.pi)
    threshold = mixture + math.log(alpha)
    return lambda p: _times_log(hits, p) + _times_log(misses, 1 - p) > threshold


def _times_log(times: int, p: float) -> float:
    if times == 0:
        return 0.0
    return times * math.log(p) if p > 0 else -math.inf


def _edge(is_inside: Callable[[float], bool], inside: float, outside: float) -> float:
    """Where the interval ends between a point within and one that is perhaps not; errs outwards."""
    if is_inside(outside):
        return outside
    for _ in range(_ROUNDS):
        middle = (inside + outside) / 2
        if is_inside(middle):
            inside = middle
        else:
            outside = middle
    return outside
