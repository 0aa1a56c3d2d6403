"""Moves that somebody asked for: made like every other, waited for, given up after a while, never against a rule."""

from __future__ import annotations

import pytest

from batuta.core.asking import ask_for
from batuta.core.moves import ASKED_MS
from batuta.core.optimize import propose
from batuta.core.standing import Moving
from batuta.core.state import Change
from tests.core.fleets import (
    NOW,
    application,
    beats,
    codes,
    component,
    decided,
    machines,
    obeys,
    places,
    settled,
    state_of,
)  # fmt: skip


def move(slot="0", node="a", to="b", at=NOW) -> Moving:
    return Moving(
        namespace="default", application="app", component="read", slot=slot, node=node, to=to, by="anna", at=at
    )


def asked(row: Moving) -> Change:
    return Change("decided", row.key, row)


def one_on_a(**more):
    state = settled(state_of(machines("a"), application(component(**more))))
    return state.with_changes(machines("b"))


def test_the_new_one_is_ready_before_the_old_one_stops():
    state, decision = decided(one_on_a().with_changes([asked(move())]))
    assert places(state) == [("read-1-0", "a"), ("read-1-0", "b")]
    assert codes(decision) == ["moving"]
    state = settled(obeys(state))
    assert places(state) == [("read-1-0", "b")]
    assert state.standing == {}


def test_what_must_never_run_twice_is_taken_away_first():
    state, decision = decided(one_on_a(never_twice=True).with_changes([asked(move())]))
    assert places(state) == []
    assert codes(decision) == ["may_be_alive"]
    state = settled(obeys(state))
    assert places(state) == [("read-1-0", "b")]
    assert state.standing == {}


def test_it_goes_where_it_was_asked_to_and_nowhere_else():
    state = one_on_a().with_changes(machines("c", "d"))
    state = settled(state.with_changes([asked(move(to="d"))]))
    assert places(state) == [("read-1-0", "d")]


def test_it_begins_in_the_decision_that_leaves_one_holder():
    """Asked for while a new revision takes over on the same node: `decided` holds it to being idle when done."""
    state = settled(state_of(machines("a"), application(component())))
    state, _ = decided(state.with_changes([application(component(command="other"))]))
    assert places(state) == [("read-1-0", "a"), ("read-2-0", "a")]
    state, _ = decided(state.with_changes([*machines("b"), asked(move())]))
    assert places(state) == [("read-1-0", "a"), ("read-2-0", "a")]
    state, _ = decided(obeys(state))
    assert places(state) == [("read-2-0", "a"), ("read-2-0", "b")]
    assert places(settled(obeys(state))) == [("read-2-0", "b")]


@pytest.mark.parametrize("never_twice", [False, True])
def test_what_does_not_fit_waits_and_is_given_up(never_twice):
    state = settled(state_of(machines("a"), application(component(cpu=1_000, never_twice=never_twice))))
    state = state.with_changes([*machines("b", cpu=500), asked(move())])
    state, decision = decided(state)
    assert places(state) == [("read-1-0", "a")]
    assert codes(decision) == ["move_waits"]
    assert decision.pending == {"default/app"}
    later = NOW + ASKED_MS
    state, decision = decided(beats(state, later - 1), later - 1)
    assert decision.wake_at == later
    state, decision = decided(beats(state, later), later)
    assert state.standing == {}
    assert decision.pending == frozenset()


def test_it_is_made_when_there_is_room_after_all():
    state = settled(state_of(machines("a"), application(component(cpu=1_000))))
    state, _ = decided(state.with_changes([*machines("b", cpu=500), asked(move())]))
    state = settled(state.with_changes(machines("b", cpu=2_000)))
    assert places(state) == [("read-1-0", "b")]


def test_it_is_forgotten_with_what_it_was_about():
    state, _ = decided(one_on_a().with_changes([asked(move()), application(component(count=0))]))
    assert state.standing == {}
    state, _ = decided(one_on_a().with_changes([asked(move(to="nowhere"))]))
    assert state.standing == {}


class TestAsking:
    def test_what_can_be_done(self):
        assert ask_for(one_on_a(), NOW, move()) is None

    @pytest.mark.parametrize(
        ("row", "code"),
        [
            (move(to="a"), "move_unknown"),
            (move(to="x"), "move_unknown"),
            (move(slot="7"), "move_unknown"),
            (move(node="b", to="a"), "move_unknown"),
        ],
    )
    def test_what_is_no_move(self, row, code):
        assert ask_for(one_on_a(), NOW, row).code == code

    def test_what_would_not_fit_says_why(self):
        state = settled(state_of(machines("a"), application(component(cpu=1_000))))
        found = ask_for(state.with_changes(machines("b", cpu=500)), NOW, move())
        assert (found.code, found.subject) == ("cpu_short", "node/b")

    def test_a_rule_is_a_rule(self):
        found = ask_for(one_on_a(where='node.name == "a"'), NOW, move())
        assert found.code == "condition_false"


def test_what_is_proposed_can_be_asked_for_and_comes_to_an_end():
    """Proposals made one after the other leave nothing to propose."""
    state = settled(state_of(machines("a", "b"), application(component(count=4))))
    state = state.with_changes(machines("c", "d", "e"))
    made = 0
    while found := propose(state, NOW).moves:
        rows = [
            Moving(namespace="default", application="app", component=m.component, slot=m.slot,
                   node=m.node, to=m.to, by="anna", at=NOW)
            for m in found
        ]  # fmt: skip
        assert all(ask_for(state, NOW, row) is None for row in rows)
        state = settled(state.with_changes([asked(row) for row in rows]))
        assert state.standing == {}
        made += len(rows)
        assert made <= 4
    assert made >= 2
    assert len({node for _, node in places(state)}) == 4


def test_a_newer_revision_comes_first():
    state = one_on_a().with_changes([asked(move()), application(component(command="other"))])
    state = settled(obeys(state))
    assert places(state) == [("read-2-0", "b")]
