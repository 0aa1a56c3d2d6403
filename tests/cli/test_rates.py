"""Rates from two samples: by the node's own clock, and unknown rather than wrong."""

from __future__ import annotations

import pytest

from batuta.cli.rates import Counted, Rates, Sample, rates, total

READ = {"name": "default/app/read-1-0", "epoch": 1, "starts": 1}
KEY = ("default/app/read-1-0", 1, 1)


def at(ms, received=0, answered=0, errors=0, *, heard=True, key=KEY) -> Sample:
    counters = {"received": received, "answered": answered, "errors": errors}
    return Sample({}, (READ,), {key: Counted(ms, counters, heard)})


@pytest.mark.parametrize(
    ("before", "after", "expected"),
    [
        (at(1_000, 10, 10), at(3_000, 30, 20, 1), Rates(10.0, 5.0, 0.5)),
        (at(1_000, 10), at(1_000, 10), Rates(0.0, 0.0, 0.0)),
        (None, at(1_000, 10), Rates()),
        (at(1_000, 10, key=("default/app/read-1-0", 1, 0)), at(2_000, 1), Rates()),
        (at(1_000, 10), at(2_000, 4), Rates(None, 0.0, 0.0)),
        (at(2_000), at(1_000), Rates()),
        (at(1_000, 10), at(2_000, 20, heard=False), Rates()),
    ],
    ids=["grown", "no new report", "first sample", "started anew", "counter fell", "clock set back", "silent"],
)
def test_a_rate_is_what_was_counted_between_two_reports(before, after, expected):
    assert rates(before, after, READ) == expected


def test_together_what_is_known_counts():
    assert total([Rates(1.0, None, 0.0), Rates(2.0, None, None)]) == Rates(3.0, None, 0.0)
    assert total([]) == Rates()
