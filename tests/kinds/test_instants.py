"""Instants are those of the standard library, which the kinds may not ask."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta, timezone

import pytest
from hypothesis import given
from hypothesis import strategies as st

from batuta.kinds.instants import Instant


@given(
    st.datetimes(datetime(1971, 1, 1), datetime(9998, 12, 31)).map(  # noqa: DTZ001 -- it wants naive bounds
        lambda d: d.replace(microsecond=d.microsecond // 1000 * 1000)
    ),
    st.integers(-23 * 60, 23 * 60),
)
def test_every_instant_reads_as_the_standard_library_says_and_comes_back(at, offset):
    zoned = at.replace(tzinfo=timezone(timedelta(minutes=offset)))
    found = Instant.parse(zoned.isoformat(timespec="milliseconds"))
    since = zoned - datetime(1970, 1, 1, tzinfo=UTC)
    assert int(found) == since // timedelta(milliseconds=1)
    assert Instant.parse(found.text()) == found


@pytest.mark.parametrize(
    "wrong",
    ["", "tomorrow", "2026-12-24", "2026-12-24T18:00", "2026-02-29T00:00:00Z", "2026-13-01T00:00:00Z",
     "2026-12-24T24:00:00Z", "1969-12-31T23:59:59Z", "2026-12-24T18:00:00", 5, None, True],
)  # fmt: skip
def test_what_is_no_instant_is_refused(wrong):
    with pytest.raises(ValueError, match=r"instant|1970|zone"):
        Instant.parse(wrong)
