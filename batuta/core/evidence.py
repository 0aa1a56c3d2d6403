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
from bisect import bisect_left
from itertools import accumulate
from typing import TYPE_CHECKING, Final, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

LATENCY_RATIO: Final = 1.02
"""Each bucket of latencies is this much wider than the one before: a quantile is told to one part in fifty."""
LATENCY_LEAST_MS: Final = 0.05
LATENCY_MOST_MS: Final = 3_600_000.0
"""What took longer is told as this."""
MEAN_LEAST: Final = 30
_STEPS: Final = 100
_NEAR: Final = 1e-10
"""Of a probability's logarithm: nearer need no edge be known."""


class Interval(NamedTuple):
    """Where the truth is, and the middle of what was seen. Infinite where nothing is known."""

    low: float
    seen: float
    high: float


def share_within(hits: int, of: int, alpha: float) -> Interval:
    """The probability behind `hits` out of `of` trials."""
    if of <= 0:
        return Interval(0.0, math.nan, 1.0)
    threshold = _threshold(hits, of - hits, alpha)
    low, high = _low_edge(hits, of - hits, threshold), 1 - _low_edge(of - hits, hits, threshold)
    seen = hits / of
    return Interval(min(low, seen), seen, max(high, seen))


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
    too_low = bisect_left(below, True, key=lambda n: n >= q * total or _may_be(q, n, total - n, alpha))
    too_high = bisect_left(below, True, key=lambda n: n >= q * total and not _may_be(q, n, total - n, alpha))
    # Nothing was seen between a bucket and the one below it that was seen: the quantile is above all of that.
    low = latency_at(buckets[too_low] - 1) if too_low or not _may_be(q, 0, total, alpha) else 0.0
    high = latency_at(buckets[too_high]) if too_high < len(buckets) else math.inf
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


def _threshold(hits: int, misses: int, alpha: float) -> float:
    """A probability is without where the mixture of likelihoods exceeds its own log likelihood by 1/alpha."""
    mixture = math.lgamma(hits + 0.5) + math.lgamma(misses + 0.5) - math.lgamma(hits + misses + 1) - math.log(math.pi)
    return mixture + math.log(alpha)


def _may_be(p: float, hits: int, misses: int, alpha: float) -> bool:
    """Is a probability, neither 0 nor 1, within the interval?"""
    return hits * math.log(p) + misses * math.log1p(-p) > _threshold(hits, misses, alpha)


def _low_edge(hits: int, misses: int, threshold: float) -> float:
    """Where the log likelihood reaches the threshold, below what was seen; errs outwards."""
    if not hits:
        return 0.0
    # Newton's method on the logarithm u of the probability. The log likelihood is concave in u and no more than
    # hits * u, so it begins without, comes nearer with every step, and never gets in.
    u = threshold / hits
    for _ in range(_STEPS):
        p = math.exp(u)
        slope = hits - misses * p / (1 - p)
        step = (threshold - hits * u - misses * math.log1p(-p)) / slope if slope > 0 else 0.0
        u += step
        if step < _NEAR:
            break
    return math.exp(u)
