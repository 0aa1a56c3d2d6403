"""Moves that policies make unasked: when they look, what they move, that they respect what holds, and that it ends."""

from __future__ import annotations

import msgspec
import pytest

from batuta.core.decide import decide
from batuta.core.fleet import Fleet
from batuta.core.liveness import RECONNECT_MS
from batuta.core.looking import SOON_MS
from batuta.core.standing import Looked, Moved, Moving
from batuta.core.state import Change
from batuta.core.unasked import LEFT_MAX, REMEMBERED_MS
from batuta.kinds.base import Millis
from batuta.kinds.instants import Instant
from batuta.kinds.node import Hold
from batuta.kinds.policy import Hours, Moves
from batuta.kinds.rolling import Disruption, Rollout
from tests.core.fleets import (
    APP,
    NOW,
    application,
    beats,
    component,
    decided,
    machines,
    node,
    obeys,
    places,
    policy,
    settled,
    state_of,
)  # fmt: skip

MINUTE, HOUR, DAY = 60_000, 3_600_000, 86_400_000


def moves(**said) -> Change:
    return policy("tidy", moves=Moves(**said))


def crowded(*newcomers: str, count=4, **more):
    """Replicas on two nodes, and then more nodes."""
    state = settled(state_of(machines("a", "b"), application(component(count=count, **more))))
    return state.with_changes(machines(*newcomers))


def used(state) -> set[str]:
    return {node for _, node in places(state)}


def rows(state, kind) -> list:
    return [row for row in state.decided.values() if isinstance(row, kind)]


def passing(state, until: int, every_ms: int = MINUTE, begin: int = NOW):
    """Time passes: everybody is heard, decisions are made when they are due, and nodes obey."""
    for now in range(begin, until + 1, every_ms):
        state = beats(state, now)
        for _ in range(10):
            decision = decide(state, now)
            state = obeys(state.with_changes(decision.changes))
            if not decision.changes:
                break
        else:
            pytest.fail("never idle")
    return state


def test_without_such_a_policy_nothing_moves():
    state = passing(crowded("c", "d"), NOW + 2 * HOUR)
    assert used(state) == {"a", "b"}
    assert not state.looks


def test_a_policy_moves_what_pays_and_says_so():
    state, decision = decided(crowded("c", "d").with_changes([moves()]))
    begun = rows(state, Moving)
    assert {m.by for m in begun} == {"policy/tidy"}
    assert len(begun) == 2
    assert [r.code for r in decision.reasons[APP]] == ["moving", "moving"]
    assert all("asked by policy/tidy" in r.detail and "apart" in r.detail for r in decision.reasons[APP])
    state = settled(obeys(state))
    assert used(state) == {"a", "b", "c", "d"}
    assert rows(state, Moving) == []
    done = rows(state, Moved)
    assert {row.to for row in done} == {"c", "d"}
    assert all("apart" in row.why for row in done)


def test_the_new_one_is_ready_before_the_old_one_stops():
    state, _ = decided(crowded("c", count=4).with_changes([moves(at_most=1)]))
    assert len(places(state)) == 5


def test_it_looks_again_after_so_long_and_not_before():
    state = settled(crowded("c").with_changes([moves(every_ms=Millis(HOUR))]))
    (row,) = rows(state, Looked)
    assert (row.at, row.next_at, row.is_over) == (NOW, NOW + HOUR, True)
    state = state.with_changes(machines("d", "e"))
    assert used(passing(state, NOW + HOUR - MINUTE)) <= {"a", "b", "c"}
    assert decide(beats(state, NOW), NOW).wake_at is not None
    assert {"d", "e"} & used(passing(state, NOW + HOUR + MINUTE))


def test_it_looks_at_once_when_it_says_something_else():
    state = settled(crowded("c").with_changes([moves(at_most=1, least_gain=1000)]))
    assert used(state) == {"a", "b"}
    assert used(settled(state.with_changes([moves(at_most=1, least_gain=1)]))) == {"a", "b", "c"}


def test_a_gain_that_is_too_small_moves_nothing():
    assert used(settled(crowded("c", "d").with_changes([moves(least_gain=1000)]))) == {"a", "b"}


def test_what_does_not_pay_in_time_does_not_move():
    assert used(settled(crowded("c", "d").with_changes([moves(within_ms=Millis(MINUTE))]))) == {"a", "b"}


def test_so_many_at_a_look_and_no_more():
    state = settled(crowded("c", "d", "e", "f", count=6).with_changes([moves(at_most=1)]))
    assert len(rows(state, Moved)) == 1
    state = passing(state, NOW + HOUR + MINUTE)
    assert len(rows(state, Moved)) == 2


def test_only_within_its_hours():
    """NOW is a Tuesday, 22:13 UTC."""
    night = Hours(opens="0 23 * * *", closes="0 5 * * *")
    state, _ = decided(crowded("c", "d").with_changes([moves(hours=(night,))]))
    assert rows(state, Moving) == []
    (row,) = rows(state, Looked)
    opens = row.next_at
    assert 46 * MINUTE < opens - NOW < 47 * MINUTE
    assert used(passing(state, opens - MINUTE)) == {"a", "b"}
    assert used(passing(beats(state, opens), opens + MINUTE, begin=opens)) == {"a", "b", "c", "d"}


def test_only_what_it_applies_to():
    other = policy("tidy", moves=Moves(), applies='application.name == "other"')
    assert used(settled(crowded("c", "d").with_changes([other]))) == {"a", "b"}
    ours = policy("tidy", moves=Moves(), applies='application.name == "app"')
    assert used(settled(crowded("c", "d").with_changes([ours]))) == {"a", "b", "c", "d"}


def test_what_nobody_can_say_it_applies_to_is_not_moved():
    puzzled = policy("tidy", moves=Moves(), applies='application.labels.tidy == "yes"')
    assert used(settled(crowded("c", "d").with_changes([puzzled]))) == {"a", "b"}


def test_what_is_held_stays():
    held = [node(name, hold=Hold(until=Instant(NOW + DAY))) for name in ("a", "b")]
    assert used(settled(crowded("c", "d").with_changes([*held, moves()]))) == {"a", "b"}


def test_a_hub_that_has_just_begun_hears_everybody_first():
    state = crowded("c", "d").with_changes([moves()]).listening_since(NOW)
    state = beats(state, NOW).with_changes([Change("sightings", n, s) for n, s in crowded("c", "d").sightings.items()])
    assert used(passing(state, NOW + RECONNECT_MS - 1_000, 1_000)) == {"a", "b"}
    assert used(passing(state, NOW + 2 * RECONNECT_MS, RECONNECT_MS)) == {"a", "b", "c", "d"}


@pytest.mark.parametrize(("budget", "may"), [(0, False), (1, True), (None, True)])
def test_a_budget_that_allows_nothing_keeps_what_must_never_run_twice(budget, may):
    part = component(never_twice=True, count=4)
    change = application(part)
    spec = msgspec.structs.replace(change.value.spec, rollout=Rollout(disruption=Disruption(per_site=budget)))
    change = change._replace(value=msgspec.structs.replace(change.value, spec=spec))
    state = settled(state_of(machines("a", "b"), change)).with_changes(machines("c", "d"))
    state = settled(state.with_changes([moves(least_gain=1)]))
    assert (used(state) == {"a", "b", "c", "d"}) is may


def test_a_budget_holds_while_several_move_that_must_never_run_twice():
    """What is taken away and not yet given again is missing."""
    change = application(component(never_twice=True, count=4))
    spec = msgspec.structs.replace(change.value.spec, rollout=Rollout(disruption=Disruption(per_site=1)))
    change = change._replace(value=msgspec.structs.replace(change.value, spec=spec))
    state = settled(state_of(machines("a", "b"), change)).with_changes(machines("c", "d"))
    state, _ = decided(state.with_changes([moves(least_gain=1)]))
    for _ in range(20):
        assert len(places(state)) >= 3
        before = state
        state, _ = decided(obeys(state))
        if state.decided == before.decided:
            break
    assert used(state) == {"a", "b", "c", "d"}


def test_what_was_moved_stays_for_a_while():
    """A place that is better yet does not tempt it before its time."""
    state = settled(crowded("c", count=3, cpu=1_000).with_changes([moves(again_ms=Millis(DAY), least_gain=1)]))
    (first,) = rows(state, Moved)
    state = state.with_changes(machines("z", cpu=64_000, memory=65_536))
    state = passing(state, NOW + 3 * HOUR)
    assert [row for row in rows(state, Moved) if row.slot == first.slot] == [first]


def test_nothing_goes_back_where_it_came_from():
    """Even when it had better: as long as that is remembered."""
    state = settled(crowded("c", count=3).with_changes([moves(again_ms=Millis(HOUR))]))
    (row,) = rows(state, Moved)
    assert row.left[0].node == row.node
    crowd = component(name="crowd", count=6, where=f'node.name == "{row.to}"')
    state = settled(state.with_changes([application(component(count=3), crowd)]))
    at_end = passing(state, NOW + 6 * HOUR, 10 * MINUTE)
    for moved in rows(at_end, Moved):
        assert moved.to not in {left.node for left in moved.left}


def test_it_is_forgotten_at_last():
    state = settled(crowded("c", count=3).with_changes([moves()]))
    assert len(rows(state, Moved)) == 1
    later = NOW + REMEMBERED_MS + HOUR
    state = beats(state, later)
    state, _ = decided(state, later)
    assert rows(state, Moved) == []


def test_it_is_forgotten_with_the_policy():
    state = settled(crowded("c", count=3).with_changes([moves()]))
    state = settled(state.with_changes([Change("desired", "policies.tidy", None)]))
    assert rows(state, Moved) == []
    assert rows(state, Looked) == []


def test_it_is_forgotten_with_what_it_was_about():
    state = settled(crowded("c", count=3).with_changes([moves()]))
    state = settled(state.with_changes([application(component(count=0))]))
    assert rows(state, Moved) == []


def test_a_clock_set_back_does_not_keep_it_from_looking():
    state = settled(crowded("c", count=3).with_changes([moves()]))
    earlier = NOW - 10 * MINUTE
    state, _ = decided(beats(state, earlier), earlier)
    (row,) = rows(state, Looked)
    assert row.at == earlier


def test_a_large_fleet_is_looked_at_in_turns(monkeypatch):
    monkeypatch.setattr("batuta.core.looking.LOOKED_AT_MAX", 2)
    monkeypatch.setattr("batuta.core.looking.LEAST_LOOKED_AT", 2)
    state = crowded("c", "d", "e", count=5).with_changes([moves()])
    state, decision = decided(state)
    (row,) = rows(state, Looked)
    assert (row.looked_at, row.is_over, row.after) == (2, False, (APP, "read", "1"))
    assert decision.wake_at is not None
    assert decision.wake_at <= NOW + SOON_MS
    state = passing(state, NOW + MINUTE, SOON_MS)
    (row,) = rows(state, Looked)
    assert row.is_over
    assert row.after is None
    assert len(used(state)) == 4
    assert used(passing(state, NOW + 2 * HOUR, MINUTE)) == {"a", "b", "c", "d", "e"}


def test_looking_leaves_no_trace_in_the_fleet():
    state = crowded("c", "d").with_changes([moves()])
    fleet = Fleet()
    for kept in (fleet, Fleet()):
        decision = decide(state, NOW, None, kept)
        assert decision.changes == decide(state, NOW, None, Fleet()).changes


def test_however_it_is_tempted_it_comes_to_an_end():
    """A fleet in which every place is soon worse than another: each slot is moved so often and no more."""
    state = settled(crowded("c", "d", "e", "f", count=3).with_changes([moves(again_ms=Millis(MINUTE), least_gain=1)]))
    seen: dict[str, list[str]] = {}
    for hour in range(1, 60):
        now = NOW + hour * HOUR
        # Whatever is used grows busy, so that the others are better off.
        crowd = component(name="crowd", count=hour % 12, where=f'node.name == "{sorted(used(state))[hour % 2]}"')
        state = state.with_changes([application(component(count=3), crowd)])
        state = passing(state, now + MINUTE, MINUTE, begin=now)
        for row in rows(state, Moved):
            if row.component == "read":
                seen[row.slot] = [left.node for left in row.left]
    assert seen
    assert all(len(left) == len(set(left)) <= LEFT_MAX for left in seen.values())
