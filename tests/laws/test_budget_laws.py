"""Laws of disruption budgets and of the rooms that are kept: whatever is done on purpose, all at once and in any order.

Every step is held to the law of budgets (`twin.budget_law`), to the room that is kept, and to all that `worlds` holds
every step to: idle when done, incremental equals full, nothing before its time.
"""

from __future__ import annotations

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from batuta.core.rooms import Rooms
from batuta.core.standing import Awaited, Surge
from batuta.kinds.node import Taint
from tests.core.fleets import component, node, policy
from tests.laws.test_decide_laws import bounded, played
from tests.laws.worlds import APPS, NODES, SITES, World, _application, names, steps

parts = st.builds(
    component,
    name=st.sampled_from(["x", "y"]),
    count=st.integers(1, 5),
    per_site=st.sampled_from([None, None, 1, 2]),
    every_node=st.sampled_from([None, None, None, True]),
    cpu=st.sampled_from([300, 700, 1_500]),
    after_ms=st.sampled_from([2_000, 10_000]),
    never_twice=st.sampled_from([True, True, False]),
    command=st.sampled_from(["one", "two", "three"]),
    port=st.sampled_from([None, None, None, 8080]),
)
guarded = st.builds(
    _application,
    st.sampled_from(APPS),
    st.lists(parts, min_size=1, max_size=2, unique_by=lambda c: c.name),
    st.sampled_from([0, 0, 0, 10]),
    st.sampled_from([None, 0, 1, 1, 2]),
    st.sampled_from([None, None, 0, 1]),
)
emptied = st.builds(
    node,
    names,
    st.sampled_from(SITES),
    labels=st.sampled_from([{}, {"zone": "1"}, {"zone": "2"}]),
    taints=st.sampled_from([(), (), (Taint(key="t", effect="NoExecute"),)]),
    drain=st.sampled_from([False, True]),
)
rules = st.builds(
    lambda name, where: policy(name, applies="true", forbid=where),
    st.sampled_from(["one", "two"]),
    st.sampled_from([f'node.name == "{name}"' for name in NODES] + ["node.labels.zone == '1'", "false"]),
)
purposes = st.builds(
    lambda first, then: [*(("apply", a) for a in first), ("obey", set()), ("obey", set()), *then],
    st.lists(guarded, min_size=1, max_size=2),
    st.lists(
        st.one_of(
            st.tuples(st.just("apply"), guarded),
            st.tuples(st.just("declare"), emptied),
            st.tuples(st.just("apply"), rules),
            st.tuples(st.just("obey"), st.sets(names, max_size=2)),
            st.tuples(st.just("obey"), st.just(set())),
            steps,
        ),
        min_size=5,
        max_size=25,
    ),
)


@given(purposes)
@bounded
def test_whatever_is_done_on_purpose_the_laws_hold(history):
    played(history)


@given(purposes)
@bounded
def test_what_was_done_on_purpose_comes_to_rest(history):
    """And at rest no room is kept for anybody that has one, nor for changes that are through."""
    world = played(history)
    world.step("govern", None)
    world.settle_for(5_000)
    before = world.rows()
    world.step("wait", 5_000)
    assert world.rows() == before
    for app, rows in world.state.standing.items():
        held = {(h.instance.component, h.instance.slot) for h in world.state.held.get(app, ())}
        for row in rows.values():
            if isinstance(row, Awaited):
                assert (row.component, row.slot) not in held, f"{row} is there and still awaited"
            if isinstance(row, Surge):
                revisions = {
                    h.instance.revision for h in world.state.held[app] if h.instance.component == row.component
                }
                assert len(revisions) > 1, f"{row} is kept for a change that is through"


def _some(budget, **more):
    return ("apply", _application("p", [component(name="x", count=3, never_twice=True, **more)], 0, budget))


def _drains(world: World) -> None:
    for name in sorted({h.node for h in world.state.held["default/p"]}):
        known = world.state.nodes[name]
        spec = msgspec.structs.replace(known.spec, drain=True)
        world.change(node(name, known.spec.site)._replace(value=msgspec.structs.replace(known, spec=spec)))


def test_a_budget_that_is_not_asked_is_caught(monkeypatch):
    world = played([_some(0), ("obey", set()), ("obey", set())])
    monkeypatch.setattr("batuta.core.care.in_the_way", lambda *_: None)
    _drains(world)
    with pytest.raises(AssertionError, match="0 may be missing"):
        world.turn()


def test_room_that_is_not_kept_is_caught(monkeypatch):
    """Somebody else is placed where the successor of what was taken away was to go."""
    world = played([_some(None, cpu=1_500), ("obey", set()), ("obey", set())])
    (first, *_) = sorted({h.node for h in world.state.held["default/p"]})
    known = world.state.nodes[first]
    spec = msgspec.structs.replace(known.spec, drain=True)
    world.change(node(first)._replace(value=msgspec.structs.replace(known, spec=spec)))
    world.turn()
    assert [room.left for room in world.state.rooms.values()] == [first]
    monkeypatch.setattr(Rooms, "_lay", lambda *_: None)
    with pytest.raises(AssertionError, match="taken by"):
        world.step("apply", _application("q", [component(name="x", count=1, cpu=1_500)], 0, None))
