"""When the lines of a crontab come, by the clock of a place."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from zoneinfo import ZoneInfo

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from batuta.kinds import calendar
from batuta.kinds.instants import Instant

YEARS = range(2027, 2033)


def at(text: str) -> int:
    return int(Instant.parse(text))


def text(instant: int | None) -> str | None:
    return None if instant is None else Instant(instant).text()


class TestTurningClocks:
    def test_what_spring_skips_happens_when_it_is_skipped(self) -> None:
        found = calendar.next_after("30 2 * * *", "Europe/Berlin", at("2027-03-27T12:00:00Z"))
        assert text(found) == "2027-03-28T01:00:00Z"
        assert text(calendar.next_after("30 2 * * *", "Europe/Berlin", found)) == "2027-03-29T00:30:00Z"

    def test_what_autumn_repeats_happens_the_first_time(self) -> None:
        found = calendar.next_after("30 2 * * *", "Europe/Berlin", at("2027-10-30T12:00:00Z"))
        assert text(found) == "2027-10-31T00:30:00Z"
        assert text(calendar.next_after("30 2 * * *", "Europe/Berlin", found)) == "2027-11-01T01:30:00Z"
        assert text(calendar.last("30 2 * * *", "Europe/Berlin", at("2027-10-31T01:29:00Z"))) == "2027-10-31T00:30:00Z"

    def test_a_window_lasts_the_hours_of_the_wall(self) -> None:
        """From one to five in the night in which there is no two o'clock are three hours."""
        before = at("2027-03-28T00:00:00Z") - 1
        opens = calendar.opening("0 1 * * *", "0 5 * * *", "Europe/Berlin", before).edge
        shut = calendar.opening("0 1 * * *", "0 5 * * *", "Europe/Berlin", opens)
        assert shut.is_open
        assert (shut.edge - opens) // 3_600_000 == 3

    @pytest.mark.parametrize(
        "zone",
        # All rules have one of these shapes: north, south, half an hour, summer that is winter, to the west, none.
        ["Europe/Berlin", "Australia/Sydney", "Australia/Lord_Howe", "Europe/Dublin", "America/New_York", "Asia/Tokyo",
         "America/St_Johns", "Asia/Kathmandu", "America/Nuuk", "Africa/Cairo"],
    )  # fmt: skip
    def test_walls_show_what_the_tz_database_says(self, zone) -> None:
        try:
            known = ZoneInfo(zone)
        except KeyError:
            pytest.skip("this machine has no tz database")
        clock = calendar.clock_of(zone)
        step, now = timedelta(hours=7, minutes=30), datetime(YEARS[0], 1, 1, tzinfo=UTC)
        while now.year in YEARS:
            shown = now.astimezone(known).replace(tzinfo=UTC)
            assert clock.wall(int(now.timestamp()) * 1000) == int(shown.timestamp()) * 1000, now
            now += step


crons = st.builds(
    " ".join,
    st.tuples(
        st.sampled_from(["0", "30", "*/15", "5-10"]),
        st.sampled_from(["*", "2", "1-3", "8,18", "*/6"]),
        st.sampled_from(["*", "1", "13", "28-31"]),
        st.sampled_from(["*", "mar", "10", "jan-jun"]),
        st.sampled_from(["*", "sun", "mon-fri", "6,7"]),
    ),
)
zones = st.sampled_from(["UTC", "Europe/Berlin", "America/New_York", "Australia/Lord_Howe", "Asia/Kathmandu"])
instants = st.integers(at("2027-01-01T00:00:00Z"), at("2031-01-01T00:00:00Z"))


class TestLines:
    @given(crons, zones, instants)
    @settings(max_examples=150, deadline=None)
    def test_forwards_and_backwards_agree(self, cron, zone, now) -> None:
        following = calendar.next_after(cron, zone, now)
        assert following > now
        assert calendar.last(cron, zone, following) == following
        assert (calendar.last(cron, zone, following - 1) or 0) <= now, "one was passed over"

    @given(crons, crons, zones, instants)
    @settings(max_examples=100, deadline=None)
    def test_nothing_changes_between_two_edges(self, opens, closes, zone, now) -> None:
        here = calendar.opening(opens, closes, zone, now)
        assert here.edge > now
        for later in (here.edge - 1, (now + here.edge) // 2):
            assert calendar.opening(opens, closes, zone, later).is_open == here.is_open

    def test_both_days_named_means_either(self) -> None:
        found = calendar.next_after("0 0 13 * fri", "UTC", at("2027-01-02T00:00:00Z"))
        assert text(found) == "2027-01-08T00:00:00Z"
        assert text(calendar.next_after("0 0 13 * fri", "UTC", at("2027-01-12T00:00:00Z"))) == "2027-01-13T00:00:00Z"

    def test_a_leap_day_is_found(self) -> None:
        assert text(calendar.next_after("0 0 29 2 *", "UTC", at("2028-03-01T00:00:00Z"))) == "2032-02-29T00:00:00Z"


@pytest.mark.parametrize(
    ("line", "says"),
    [
        ("0 8 * *", "there are five"),
        ("60 * * * *", "'60' is no minute: 0 to 59"),
        ("0 8 30 feb *", "never comes"),
        ("0 8 * * mon-", "'mon-' is no day of week"),
        ("0 8 * * fri-mon", "from 5 to 1"),
        ("0 8 * foo *", "'foo' is no month"),
        ("*/0 * * * *", "by 0"),
        ("0 8 ? * *", "'?' is no day of month"),
    ],
)
def test_a_line_that_makes_no_sense_says_why(line, says) -> None:
    assert says in calendar.why_no_cron(line)


def test_zones_are_known_by_name() -> None:
    assert calendar.why_no_zone("Europe/Berlin") is None
    assert calendar.why_no_zone("Europe/Berln") == (
        "there is no time zone 'Europe/Berln'",
        "did you mean 'Europe/Berlin'?",
    )
