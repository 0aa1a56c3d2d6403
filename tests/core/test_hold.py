"""Held and drained nodes: what stays, what moves, in which order, and what is said."""

from __future__ import annotations

import pytest

from batuta.core.decide import decide
from batuta.core.view import node_status
from batuta.kinds.instants import Instant
from batuta.kinds.node import Hold
from tests.core.fleets import (
    APP,
    NOW,
    application,
    beats,
    codes,
    component,
    decided,
    machines,
    no_application,
    node,
    obeys,
    places,
    settled,
    state_of,
)


def held(state, name="a", until=None):
    return state.with_changes([node(name, hold=Hold(until=None if until is None else Instant(until)))])


@pytest.mark.parametrize("never_twice", [False, True])
@pytest.mark.parametrize(
    "change", [application(component(command="new")), no_application(), application(component(count=0))]
)
def test_nothing_on_a_held_node_is_changed_or_taken_until_it_is_released(change, never_twice):
    first = application(component(never_twice=never_twice))
    if change.value is not None and change.value.spec.components[0].replicas.count:
        change = application(component(command="new", never_twice=never_twice))
    state = held(settled(state_of(machines("a"), first)))
    before = places(state)
    state, decision = decided(state.with_changes([change]))
    assert places(state) == before
    assert "node_held" in codes(decision)
    after = settled(state.with_changes([node("a")]))
    assert places(after) != before


def test_nothing_new_comes_to_a_held_node():
    state, decision = decided(held(state_of(machines("a"), application())))
    assert places(state) == []
    assert [r.detail for r in decision.reasons[APP]] == ["1 node_held"]


def test_a_hold_ends_by_itself_at_its_instant():
    until = NOW + 60_000
    state = held(settled(state_of(machines("a"), application())), until=until)
    state, decision = decided(state.with_changes([application(component(command="new"))]))
    state = beats(obeys(state), until - 1)
    assert places(decided(state, until - 1)[0]) == [("read-1-0", "a")]
    assert decision.wake_at is not None
    assert decision.wake_at <= until
    assert decide(state, until - 1).wake_at == until
    assert places(settled(beats(state, until), until)) == [("read-2-0", "a")]


def test_what_a_held_node_ran_is_healed_when_it_falls_silent():
    state = held(settled(state_of(machines("a", "b"), application(component(after_ms=2_000)))))
    later = NOW + 30_000
    assert places(decided(beats(state, later, but={"a"}), later)[0]) == [("read-1-0", "b")]


def test_a_held_node_says_so_until_it_is_over():
    state = held(settled(state_of(machines("a"), application())), until=NOW + 1)
    status = node_status(state, state.nodes["a"], NOW)
    assert status["sync"]["word"] == "held"
    assert status["sync"]["next"] == "`batuta node release a`"
    assert node_status(state, state.nodes["a"], NOW + 1)["sync"]["word"] == "in-sync"


def test_draining_moves_new_before_old():
    state = settled(state_of(machines("a", "b"), application()))
    assert places(state) == [("read-1-0", "a")]
    state, decision = decided(state.with_changes([node("a", drain=True)]))
    assert places(state) == [("read-1-0", "a"), ("read-1-0", "b")]
    assert codes(decision) == ["moving"]
    assert places(settled(obeys(state))) == [("read-1-0", "b")]


def test_what_can_run_nowhere_else_stays_on_a_drained_node_and_says_why():
    state = settled(state_of(machines("a"), application(component("x"), component("y", every_node=True))))
    state, decision = decided(state.with_changes([node("a", drain=True)]))
    assert [name for name, _ in places(state)] == ["x-1-0", "y-1-a"]
    assert [(r.code, r.subject, r.detail) for r in decision.reasons[APP]] == [
        ("nothing_fits", "component/x/0", "1 node_unschedulable")
    ]


def test_a_held_node_is_not_drained():
    state = settled(state_of(machines("a", "b"), application()))
    state, decision = decided(state.with_changes([node("a", drain=True, hold=Hold())]))
    assert places(state) == [("read-1-0", "a")]
    assert codes(decision) == ["node_held"]
