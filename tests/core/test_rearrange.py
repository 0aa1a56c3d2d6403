"""Rearranging: of what one decision places, the choosier finds its place, and what runs already is left where it is."""

from __future__ import annotations

from batuta.core.decide import decide
from batuta.core.fleet import Fleet
from tests.core.fleets import (
    APP,
    NOW,
    Change,
    application,
    codes,
    component,
    decided,
    heard,
    node,
    places,
    report,
    settled,
    site,
    state_of,
)

CAMERA = '"camera" in node.labels'


def two_nodes(*, cpu_a=500, cpu_b=500) -> list[Change]:
    """`a` has a camera and `b` has none."""
    rows = [site("berlin")]
    for name, labels, cpu in (("a", {"camera": "1"}, cpu_a), ("b", {}, cpu_b)):
        rows += [node(name, labels=labels), Change("observed", name, report(name, cpu=cpu)), heard(name, NOW)]
    return rows


def test_who_could_be_anywhere_makes_room_for_who_cannot():
    easy = application(component(cpu=400), name="easy")
    choosy = application(component(cpu=400, where=CAMERA), name="later")
    alone, _ = decided(state_of(two_nodes(), easy))
    assert [at for _, at in places(alone, "default/easy")] == ["a"], "names break ties"
    state, decision = decided(state_of(two_nodes(), easy, choosy))
    assert [at for _, at in places(state, "default/easy")] == ["b"]
    assert [at for _, at in places(state, "default/later")] == ["a"]
    assert not decision.reasons


def test_what_runs_already_is_not_moved():
    easy = application(component(cpu=400), name="easy")
    state = settled(state_of(two_nodes(), easy))
    after, decision = decided(state.with_changes([application(component(cpu=400, where=CAMERA), name="later")]))
    assert places(after, "default/easy") == places(state, "default/easy")
    assert codes(decision, "default/later") == ["nothing_fits"]


def test_nobody_is_sent_to_where_it_does_not_fit():
    easy = application(component(cpu=400), name="easy")
    choosy = application(component(cpu=400, where=CAMERA), name="later")
    state, decision = decided(state_of(two_nodes(cpu_b=300), easy, choosy))
    assert [at for _, at in places(state, "default/easy")] == ["a"]
    assert codes(decision, "default/later") == ["nothing_fits"]


def test_part_of_it_decides_as_all_of_it():
    """Both are new: whichever way the decision is asked for, it is the same."""
    rows = [application(component(cpu=400), name="easy"), application(component(cpu=400, where=CAMERA), name="later")]
    before = decided(state_of(two_nodes(), application(component(cpu=10), name="app")))[0]
    state = before.with_changes(rows)
    subjects = {"application/default/easy", "application/default/later"}
    assert decide(state, NOW, subjects, Fleet()).changes == decide(state, NOW, None, Fleet()).changes
    assert places(before, APP)
