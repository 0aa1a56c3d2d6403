"""Quantiles of the last minute, against the truth."""

from __future__ import annotations

import math

from hypothesis import given
from hypothesis import strategies as st

from batuta.dataflow.measures import LARGEST_MS, SMALLEST_MS, LastMinute, bucket_of, middle_of


@given(st.lists(st.floats(SMALLEST_MS, LARGEST_MS), min_size=1, max_size=300), st.sampled_from([0.5, 0.9, 0.99]))
def test_a_quantile_is_wrong_by_a_twentieth_at_most(latencies: list[float], q: float) -> None:
    minute = LastMinute()
    for latency in latencies:
        minute.add(latency, 1_000)
    truth = sorted(latencies)[max(1, math.ceil(q * len(latencies))) - 1]
    (found,) = minute.quantiles((q,), 1_000)
    assert found is not None
    assert abs(found - truth) <= truth * 0.05 + 0.001


def test_only_the_last_minute_counts() -> None:
    minute = LastMinute()
    minute.add(1_000.0, 0)
    minute.add(1.0, 30_000)
    assert (minute.quantiles((0.99,), 30_000)[0] or 0) > 900
    assert (minute.quantiles((0.99,), 61_000)[0] or 0) < 2
    assert minute.quantiles((0.5, 0.99), 10_000_000) == (None, None)


def test_a_clock_set_back_loses_nothing() -> None:
    minute = LastMinute()
    minute.add(5.0, 1_000_000)
    minute.add(5.0, 10)
    assert minute.quantiles((0.5,), 1_000_000)[0] is not None


@given(st.floats(0, 10 * LARGEST_MS))
def test_every_latency_has_a_bucket(latency: float) -> None:
    assert middle_of(bucket_of(latency)) > 0
