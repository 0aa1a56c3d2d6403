"""Which moves pay for themselves: only those, the best first, each weighed after those before it, never too many."""

from __future__ import annotations

import msgspec
import pytest

from batuta.core.decided import Assignment
from batuta.core.optimize import propose
from batuta.core.state import Change
from tests.core.fleets import NOW, application, component, machines, model, obeys, report, settled, state_of


def crowded(*newcomers: str, **more):
    """Four replicas on two nodes, and then more nodes."""
    state = settled(state_of(machines("a", "b"), application(component(count=4, **more))))
    return state.with_changes(machines(*newcomers))


def moves(proposal):
    return [(m.instance, m.node, m.to) for m in proposal.moves]


def test_what_is_well_placed_stays():
    state = settled(state_of(machines("a", "b", "c"), application(component(count=3))))
    assert propose(state, NOW).moves == ()
    assert propose(state, NOW).looked_at == 3


def test_a_crowd_parts_when_there_is_room_elsewhere():
    found = propose(crowded("c", "d"), NOW)
    assert len(found.moves) == 2
    assert {m.to for m in found.moves} == {"c", "d"}, "the second move knows of the first"
    assert {m.node for m in found.moves} == {"a", "b"}
    first = found.moves[0]
    assert first.gain > first.cost > 0
    assert first.parts["apart"] == first.points - sum(v for k, v in first.parts.items() if k != "apart")
    assert found.is_whole


def test_a_move_that_does_not_pay_within_the_horizon_is_not_proposed():
    state = crowded("c")
    assert propose(state, NOW, horizon_ms=60_000).moves == ()
    assert propose(state, NOW, horizon_ms=3_600_000).moves != ()


def test_what_must_never_run_twice_costs_more():
    """It is nowhere while it moves."""
    usual, leased = propose(crowded("c"), NOW), propose(crowded("c", never_twice=True), NOW)
    assert leased.moves[0].cost > 2 * usual.moves[0].cost


def test_an_artifact_on_the_way_is_part_of_the_cost():
    state = settled(state_of(model("1"), machines("a", "b"), application(component(count=4, model="1"))))
    there = state.with_changes(machines("c"))
    digest = there.held["default/app"][0].instance.model.variant.digest
    has_it = there.with_changes([Change("observed", "c", report("c", artifacts=(digest,)))])
    far, near = propose(there, NOW).moves[0], propose(has_it, NOW).moves[0]
    assert (far.fetch_bytes, near.fetch_bytes) == (2**20, 0)
    assert far.cost > near.cost
    assert "artifact" not in near.parts, "that it is there is a cost less and not a gain"


def test_there_is_a_bound_and_it_is_said():
    state = crowded("c", "d")
    few = propose(state, NOW, moves_max=1)
    assert (len(few.moves), few.is_whole) == (1, False)
    assert few.moves == propose(state, NOW).moves[:1]
    unseen = propose(state, NOW, looked_at_max=1)
    assert (unseen.looked_at, unseen.is_whole) == (1, False)


def test_nothing_is_proposed_while_something_is_on_its_way():
    state = crowded("c")
    rows = [Change("observed", n, msgspec.structs.replace(r, instances=())) for n, r in state.observed.items()]
    assert propose(state.with_changes(rows), NOW).moves == ()


@pytest.mark.parametrize("shuffled", [False, True])
def test_equal_states_give_equal_proposals(shuffled):
    state = crowded("c", "d", "e")
    rows = [
        Change(t, k, v) for t in ("desired", "decided", "observed", "sightings") for k, v in getattr(state, t).items()
    ]
    again = state_of(list(reversed(rows)) if shuffled else rows)
    assert propose(again, NOW) == propose(state, NOW)


def test_a_converged_proposal_is_the_end_of_it():
    """Made one after the other, moves come to an end, and none is ever taken back."""
    state, seen = crowded("c", "d", "e"), set()
    for _ in range(10):
        found = propose(state, NOW).moves
        if not found:
            break
        move = found[0]
        assert (move.key, move.to) not in seen
        seen.add((move.key, move.node))
        held = {h.instance.name: h for h in state.held["default/app"]}
        instance = next(h.instance for h in held.values() if h.instance.slot == move.slot)
        rows = []
        for name, gone in ((move.node, True), (move.to, False)):
            assignment = state.assignments.get(name, Assignment(node=name, site="berlin", serial=1))
            kept = tuple(i for i in assignment.instances if i != instance) + (() if gone else (instance,))
            rows.append(Change("decided", f"assignment.{name}", msgspec.structs.replace(assignment, instances=kept)))
        state = obeys(state.with_changes(rows))
    else:
        pytest.fail("moves without end")
