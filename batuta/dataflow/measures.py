"""Counters and latencies of a worker, kept so that they cost nothing per message and tell the last minute.

A latency falls into one of fixed buckets, each a tenth wider than the one before, so a quantile is wrong by a twentieth
at most. Six histograms of ten seconds each make the last minute; the oldest is emptied as time goes on. Pure: `now_ms`
is an argument.
"""

from __future__ import annotations

import math

RATIO = 1.1
SMALLEST_MS = 0.05
LARGEST_MS = 120_000.0
BUCKETS = math.ceil(math.log(LARGEST_MS / SMALLEST_MS, RATIO)) + 1
SPAN_MS = 10_000
SPANS = 6


def bucket_of(latency_ms: float) -> int:
    if latency_ms <= SMALLEST_MS:
        return 0
    return min(math.ceil(math.log(latency_ms / SMALLEST_MS, RATIO)), BUCKETS - 1)


def middle_of(bucket: int) -> float:
    """The latency that stands for a bucket: the geometric middle of its bounds."""
    return SMALLEST_MS * RATIO ** (bucket - 0.5) if bucket else SMALLEST_MS


class LastMinute:
    """Latencies of the last minute."""

    def __init__(self) -> None:
        self._spans: list[list[int]] = [[0] * BUCKETS for _ in range(SPANS)]
        self._span = 0
        """Number of the newest span since time began."""

    def add(self, latency_ms: float, now_ms: int) -> None:
        self._forget(now_ms)
        self._spans[self._span % SPANS][bucket_of(latency_ms)] += 1

    def quantiles(self, wanted: tuple[float, ...], now_ms: int) -> tuple[float | None, ...]:
        """The latency that this share of the messages did not exceed; None when there was none."""
        self._forget(now_ms)
        counts = [sum(column) for column in zip(*self._spans, strict=True)]
        total = sum(counts)
        return tuple(_quantile(counts, total, q) for q in wanted)

    def count(self, now_ms: int) -> int:
        """How many there were."""
        self._forget(now_ms)
        return sum(map(sum, self._spans))

    def _forget(self, now_ms: int) -> None:
        newest = now_ms // SPAN_MS
        # A clock set back keeps what it has; one set far ahead forgets everything once, not once per span.
        for span in range(max(self._span + 1, newest - SPANS + 1), newest + 1):
            self._spans[span % SPANS] = [0] * BUCKETS
        self._span = max(self._span, newest)


def _quantile(counts: list[int], total: int, q: float) -> float | None:
    if not total:
        return None
    rank, seen = max(1, math.ceil(q * total)), 0
    for bucket, count in enumerate(counts):
        seen += count
        if seen >= rank:
            return round(middle_of(bucket), 3)
    raise AssertionError("the ranks of a histogram end with its last bucket")
