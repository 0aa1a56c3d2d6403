"""Intervals that hold however often one looks."""

from __future__ import annotations

import math
import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from batuta.core.evidence import (
    distance_within,
    latency_at,
    latency_bucket,
    mean_within,
    quantile_within,
    share_within,
)

RUNS, ALPHA = 200, 0.1
ALLOWED = RUNS * ALPHA
"""Runs that may err at some look. With truth inside at each look with probability 0.9 this many is generous; fixed
seeds make it the same every time."""


@given(st.integers(0, 10_000), st.integers(0, 10_000), st.floats(0.0001, 0.5))
def test_a_share_is_within_its_interval_and_less_risk_makes_it_wider(hits: int, misses: int, alpha: float) -> None:
    found = share_within(hits, hits + misses, alpha)
    if hits + misses:
        assert 0 <= found.low <= found.seen <= found.high <= 1
        surer = share_within(hits, hits + misses, alpha / 2)
        assert surer.low <= found.low <= found.high <= surer.high
    else:
        assert (found.low, found.high) == (0, 1)
        assert math.isnan(found.seen)


def test_whoever_looks_at_a_share_after_every_ten_trials_is_rarely_misled() -> None:
    misled = 0
    for seed in range(RUNS):
        chance, hits = random.Random(seed), 0
        for n in range(1, 1001):
            hits += chance.random() < 0.05
            if n % 10 == 0:
                within = share_within(hits, n, ALPHA)
                if not within.low <= 0.05 <= within.high:
                    misled += 1
                    break
    assert misled <= ALLOWED


def test_whoever_looks_at_a_quantile_again_and_again_is_rarely_misled() -> None:
    truth, misled = math.exp(2 + 0.3 * 1.2816), 0  # the ninth decile of a lognormal distribution
    for seed in range(RUNS):
        chance = random.Random(seed)
        counts: dict[int, int] = {}
        for n in range(1, 1001):
            bucket = latency_bucket(chance.lognormvariate(2, 0.3))
            counts[bucket] = counts.get(bucket, 0) + 1
            if n % 50 == 0:
                within = quantile_within(counts, 0.9, ALPHA)
                if not within.low <= truth <= within.high * 1.02:
                    misled += 1
                    break
    assert misled <= ALLOWED


def test_whoever_looks_at_a_mean_again_and_again_is_rarely_misled() -> None:
    misled = 0
    for seed in range(RUNS):
        chance, total, squares = random.Random(seed), 0.0, 0.0
        for n in range(1, 1001):
            x = chance.betavariate(8, 2)
            total, squares = total + x, squares + x * x
            if n % 20 == 0:
                within = mean_within(n, total, squares, ALPHA)
                if not within.low <= 0.8 <= within.high:
                    misled += 1
                    break
    assert misled <= ALLOWED


def test_a_distance_is_told_from_none() -> None:
    chance = random.Random(3)
    same = [[0] * 20 for _ in range(2)]
    for bins in same:
        for _ in range(5000):
            bins[int(chance.betavariate(8, 2) * 20)] += 1
    assert distance_within(*same, 0.01).low == 0
    shifted = [*same[0][6:], *([0] * 6)]
    assert distance_within(same[0], shifted, 0.01).low > 0.3
    with pytest.raises(ValueError, match="20 bins and 3 bins"):
        distance_within(same[0], [1, 2, 3], 0.01)


def test_nothing_seen_is_nothing_known() -> None:
    assert quantile_within({}, 0.99, 0.01)[::2] == (0.0, math.inf)
    assert distance_within([0, 0], [1, 1], 0.01)[::2] == (0.0, 1.0)
    assert mean_within(0, 0.0, 0.0, 0.01)[::2] == (-math.inf, math.inf)


@given(st.floats(0.0001, 1e6))
def test_a_latency_is_in_its_bucket(latency_ms: float) -> None:
    bucket = latency_bucket(latency_ms)
    assert latency_ms <= latency_at(bucket) * (1 + 1e-9)
    assert bucket == 0 or latency_ms > latency_at(bucket - 1) * (1 - 1e-9)
