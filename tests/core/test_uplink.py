"""Uplink: what may go over a site's link, by the hour, the day's bytes and what it is for."""

from __future__ import annotations

import pytest

from batuta.core.uplink import class_of, day_of, held, links
from batuta.kinds.base import Bytes, Metadata
from batuta.kinds.instants import DAY_MS
from batuta.kinds.site import Budget, Site, SiteSpec, Uplink, UplinkWindow

NOON = 20_000 * DAY_MS + DAY_MS // 2
HOUR = 3_600_000
NIGHTS = (UplinkWindow(opens="0 22 * * *", closes="0 6 * * *"),)


def site(name: str = "berlin", parent: str | None = None, zone: str | None = None, **uplink: object) -> Site:
    spec = SiteSpec(parent=parent, uplink=Uplink(**uplink), time_zone=zone)  # type: ignore[arg-type]
    return Site(metadata=Metadata(name=name), spec=spec)


def test_a_link_of_which_nothing_was_said_takes_everything() -> None:
    assert all(held([site()], {"berlin": 10**15}, what, NOON) is None for what in ("critical", "normal", "bulk"))
    assert held([], {}, "bulk", NOON) is None


@pytest.mark.parametrize("what", ["normal", "bulk"])
def test_outside_its_windows_a_link_takes_only_what_is_critical(what: str) -> None:
    berlin = site(windows=NIGHTS)
    waiting = held([berlin], {}, what, NOON)  # type: ignore[arg-type]
    assert waiting is not None
    assert (waiting.reason.code, waiting.reason.subject) == ("window_closed", "site/berlin")
    assert waiting.reason.detail == "0 22 * * * to 0 6 * * *, UTC"
    assert waiting.until == NOON + 10 * HOUR
    assert held([berlin], {}, what, waiting.until) is None  # type: ignore[arg-type]
    assert held([berlin], {}, "critical", NOON) is None


def test_windows_are_by_the_clock_of_the_site() -> None:
    waiting = held([site(windows=NIGHTS, zone="Asia/Kolkata")], {}, "normal", NOON)
    assert waiting is not None
    assert waiting.until == NOON + 4 * HOUR + HOUR // 2


def test_spent_is_spent_until_midnight_and_half_of_it_is_kept_from_what_can_wait() -> None:
    berlin = site(budget=Budget(per_day=Bytes(1000)), zone="Europe/Berlin")
    assert held([berlin], {"berlin": 499}, "bulk", NOON) is None
    assert held([berlin], {"berlin": 999}, "normal", NOON) is None
    late = held([berlin], {"berlin": 500}, "bulk", NOON)
    assert late is not None
    assert late.reason.code == "budget_spent"
    assert late.reason.detail == "500 of 500 bytes today"
    full = held([berlin], {"berlin": 1000}, "normal", NOON)
    assert full is not None
    assert full.until is not None
    assert day_of(berlin, full.until) == day_of(berlin, NOON) + 1
    assert day_of(berlin, full.until - 1) == day_of(berlin, NOON)
    assert held([berlin], {"berlin": 10**9}, "critical", NOON) is None


def test_on_a_link_that_is_paid_for_what_can_wait_waits_for_a_window() -> None:
    paid = held([site(metered=True)], {}, "bulk", NOON)
    assert paid is not None
    assert (paid.reason.code, paid.until) == ("uplink_metered", None)
    assert held([site(metered=True)], {}, "normal", NOON) is None
    assert held([site(metered=True, windows=NIGHTS)], {}, "bulk", NOON + 11 * HOUR) is None


def test_every_link_on_the_way_counts() -> None:
    sites = {s.metadata.name: s for s in (site("eu", windows=NIGHTS), site("berlin", parent="eu"))}
    way = links("berlin", sites.get)
    assert [s.metadata.name for s in way] == ["berlin", "eu"]
    waiting = held(way, {}, "normal", NOON)
    assert waiting is not None
    assert waiting.reason.subject == "site/eu"
    assert links("nowhere", sites.get) == ()
    sites["eu"] = site("eu", parent="berlin")
    assert len(links("berlin", sites.get)) == 32, "a circle has an end"


@pytest.mark.parametrize(("priority", "what"), [(-1, "bulk"), (0, "normal"), (99, "normal"), (100, "critical")])
def test_the_priority_of_the_application_is_the_class_of_its_artifacts(priority: int, what: str) -> None:
    assert class_of(priority) == what
