"""Tables for policies: what they rule out, when, for whom, and what is said where nobody can tell."""

from __future__ import annotations

import msgspec
import pytest

from batuta.core.decide import decide
from batuta.core.fleet import Fleet
from batuta.core.reasons import CATALOGUE
from batuta.core.state import Change
from batuta.core.view import status
from batuta.core.why import why
from batuta.kinds.base import Ref
from batuta.kinds.hours import around, face
from batuta.kinds.instants import Instant
from tests.core.fleets import (
    APP,
    NOW,
    application,
    beats,
    codes,
    component,
    decided,
    machines,
    node,
    obeys,
    places,
    policy,
    settled,
    site,
    state_of,
)


def on(state) -> list[str]:
    return [name for _, name in places(state)]


def fleet(*labels: str) -> list[Change]:
    """Nodes a, b, …, each with its label `zone`; an empty one has none."""
    rows = machines(*"abcdef"[: len(labels)])
    for name, zone in zip("abcdef", labels, strict=False):
        rows.append(node(name, labels={"zone": zone} if zone else {}))
    return rows


ZONE_1 = 'has(node.labels.zone) && node.labels.zone == "1"'


@pytest.mark.parametrize(
    ("spec", "where"),
    [
        ({"require": ZONE_1}, "b"),
        ({"forbid": f"!({ZONE_1})"}, "b"),
        ({"forbid": ZONE_1}, "a"),
        ({"require": "node.memory > component.resources.memory * 1000"}, None),
        ({"applies": "component.resources.memory > 1", "require": ZONE_1}, "b"),
        ({"applies": 'component.type == "model"', "require": ZONE_1}, "a"),
        ({"applies": 'application.name == "app"', "require": ZONE_1}, "b"),
        ({"applies": '"gold" in application.labels', "require": ZONE_1}, "a"),
        ({"applies": 'node.name == "a"', "require": ZONE_1}, "b"),
        ({"applies": 'site.name == "lyon"', "require": "false"}, "a"),
        ({"prefer": ZONE_1}, "b"),
        ({"prefer": ZONE_1, "weight": 0}, "a"),
        ({"forbid": 'now.time >= "22:00"'}, None),
        ({"forbid": 'now.time >= "22:30"'}, "a"),
        ({"forbid": 'now.weekday == "tuesday"'}, None),
        ({"forbid": 'now.date == "2023-11-14" && now.hour == 22 && now.minute == 13'}, None),
    ],
)
def test_where_it_goes(spec, where):
    state, decision = decided(state_of(fleet("", "1"), policy(**spec), application(component())))
    assert on(state) == ([where] if where else [])
    assert codes(decision) == (["starting"] if where else ["nothing_fits"]) or where


def test_what_runs_moves_new_before_old():
    state = settled(state_of(fleet("", "1"), application(component())))
    assert on(state) == ["a"]
    moving, decision = decided(state.with_changes([policy(require=ZONE_1)]))
    assert sorted(on(moving)) == ["a", "b"]
    assert "moving" in codes(decision)
    assert on(settled(obeys(moving))) == ["b"]


def test_what_runs_stays_where_the_policy_says_so():
    state = settled(state_of(fleet("", "1"), application(component())))
    stays = settled(state.with_changes([policy(require=ZONE_1, existing="stay")]))
    assert on(stays) == ["a"]
    more = settled(stays.with_changes([application(component(count=3))]))
    assert sorted(on(more)) == ["a", "b", "b"]


def test_what_runs_stays_where_nobody_can_tell():
    state = settled(state_of(fleet("2", "1"), application(component())))
    assert on(state) == ["a"]
    puzzled = settled(state.with_changes([node("a"), policy(require='node.labels.zone == "1"')]))
    assert on(puzzled) == ["a"]


def test_a_rule_that_cannot_be_answered_takes_nothing_and_says_so():
    state, decision = decided(state_of(fleet(""), policy(require='node.labels.zone == "1"'), application(component())))
    assert on(state) == []
    (reason,) = decision.reasons[APP]
    assert reason.detail == "1 policy_fault"
    (slot,) = why(state, NOW, APP)
    assert slot["nearest"]["reason"]["code"] == "policy_fault"
    assert "there is no node.labels.zone here" in slot["nearest"]["says"]
    told = status(state, Ref("policies", "", "rule"), NOW)
    assert (told["state"], told["unanswered"]) == ("degraded", 1)
    assert "node.labels.zone" in told["reason"]


def test_whether_it_applies_that_cannot_be_answered_allows_nothing():
    rows = (fleet("1"), policy(applies="component.slo.p99 < 100", require="true"), application(component()))
    state, decision = decided(state_of(*rows))
    assert on(state) == []
    assert decision.reasons[APP][0].detail == "1 policy_fault"
    assert "applies: there is no component.slo" in why(state, NOW, APP)[0]["nearest"]["says"]


def test_a_preference_that_cannot_be_answered_is_said_and_refuses_nobody():
    state = settled(state_of(fleet("", "1"), policy(prefer='node.labels.zone == "1"'), application(component())))
    assert on(state) == ["b"]
    (unanswered,) = why(state, NOW, APP)[0]["unanswered"]
    assert unanswered["code"] == "policy_fault"
    assert "prefer on a" in unanswered["sentence"]


def test_policies_that_contradict_each_other_are_named():
    rows = (fleet("1", "2"), policy("one", require=ZONE_1), policy("two", forbid=ZONE_1), application(component()))
    state, _ = decided(state_of(*rows))
    (slot,) = why(state, NOW, APP)
    assert slot["policies"] == {"one": 1, "two": 1}
    assert slot["contradiction"]["code"] == "policies_contradict"
    assert "one, two: each leaves some of 2 nodes" in slot["contradiction"]["sentence"]


def test_the_message_is_told():
    rows = (fleet("2"), policy(require=ZONE_1, message="only in zone 1"), application(component()))
    state, _ = decided(state_of(*rows))
    assert why(state, NOW, APP)[0]["nearest"]["says"] == "a: rule: only in zone 1"


def test_weights_of_preferences():
    """Staying near what it reads is worth nothing any more, so the roomier node wins."""
    rows = machines("a", "b")
    rows += [Change("observed", "a", msgspec.structs.replace(rows[2].value, topics={"cameras/+/frame": 10}))]
    rows += [Change("observed", "b", msgspec.structs.replace(rows[5].value, artifacts=()))]
    wanted = application(component(near=("cameras/+/frame",)))
    assert on(settled(state_of(rows, wanted))) == ["a"]
    parts = why(settled(state_of(rows, wanted, policy(weights={"near": 0, "room": 7}))), NOW, APP)[0]["holders"][0][
        "parts"
    ]
    assert "near" not in parts
    assert parts["room"] % 7 == 0


# --- The hour ---------------------------------------------------------------------------------------------------------


def test_it_is_decided_again_when_the_hour_comes():
    state = settled(state_of(fleet("", ""), policy(forbid='now.time >= "22:14" && node.name == "a"'), application()))
    assert on(state) == ["a"]
    at = int(Instant.parse("2023-11-14T22:14:00Z"))
    woken = [decide(beats(state, now), now, None, Fleet()).wake_at for now in range(NOW, at, 1_000)]
    assert min(w for w in woken if w is not None) <= at
    assert woken[-1] == at
    before = beats(state, at - 1)
    assert decide(before, at - 1, None, Fleet()).changes == ()
    moved, _ = decided(beats(state, at), at)
    assert sorted(on(moved)) == ["a", "b"]


def test_the_hour_is_that_of_the_site():
    rows = (fleet("", ""), site("kolkata", time_zone="Asia/Kolkata"), node("b", "kolkata"))
    night = policy(forbid='now.time >= "22:00" || now.time < "06:00"')
    for at in ("2023-11-14T22:13:20Z", "2023-11-14T02:13:20Z"):
        now = int(Instant.parse(at))
        state = beats(state_of(*rows, night, application(), hub_since=now - 3_600_000), now)
        decision = decide(state, now)
        held = state.with_changes(decision.changes).held.get(APP, ())
        # At 22:13 in Greenwich it is 03:43 in India; at 02:13 it is 07:43 there.
        assert [h.node for h in held] == ([] if at.endswith("T22:13:20Z") else ["b"])


@pytest.mark.parametrize(
    ("zone", "now", "since", "until"),
    [
        ("UTC", "2026-03-01T12:00:00Z", "2026-03-01T06:00:00Z", "2026-03-01T22:00:00Z"),
        ("UTC", "2026-03-01T22:00:00Z", "2026-03-01T22:00:00Z", "2026-03-02T00:00:00Z"),
        ("Europe/Berlin", "2026-07-01T12:00:00Z", "2026-07-01T04:00:00Z", "2026-07-01T20:00:00Z"),
        # In the night in which the clocks are put forward, what happens at their turning counts.
        ("Europe/Berlin", "2026-03-29T00:30:00Z", "2026-03-28T23:00:00Z", "2026-03-29T01:00:00Z"),
    ],
)
def test_around(zone, now, since, until):
    found = around((360, 1320), zone, int(Instant.parse(now)))
    assert found == (int(Instant.parse(since)), int(Instant.parse(until)))


def test_the_face_of_a_clock():
    assert face(int(Instant.parse("2026-12-31T23:30:00Z")), "Europe/Berlin") == {
        "time": "00:30", "hour": 0, "minute": 30, "weekday": "friday", "date": "2027-01-01",
    }  # fmt: skip


# --- What is told of a policy -----------------------------------------------------------------------------------------


def test_the_status_of_a_policy():
    rows = (fleet("1", "2", "2"), application(component()))
    idle = status(
        state_of(*rows, policy(applies='component.name == "z"', require="true")), Ref("policies", "", "rule"), NOW
    )
    assert (idle["state"], idle["applied"]) == ("idle", 0)
    told = status(state_of(*rows, policy(require=ZONE_1)), Ref("policies", "", "rule"), NOW)
    assert (told["state"], told["applied"], told["refuses"], told["refused"]) == ("ok", 1, 2, "b, c")


def test_every_reason_of_placement_has_a_step():
    for code in ("policy_forbids", "policy_fault", "policies_contradict", "residency_wrong", "too_slow"):
        assert CATALOGUE[code].next_step
