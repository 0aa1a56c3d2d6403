"""Laws of a hub that stalls: what it could not hear was not silent, for whatever became of the fleet meanwhile."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from batuta.core import liveness
from tests.laws.test_decide_laws import bounded, played
from tests.laws.test_view_laws import Seen
from tests.laws.worlds import applications, stalls, steps

histories = st.builds(
    lambda first, then: [*(("apply", a) for a in first), ("obey", set()), *then],
    st.lists(applications, min_size=1, max_size=3),
    st.lists(st.one_of(steps, stalls, stalls), min_size=5, max_size=20),
)


@given(histories)
@bounded
def test_whatever_happens_while_a_hub_stalls_the_laws_hold(history):
    played(history)


@given(histories)
@bounded
def test_whatever_is_not_named_after_a_stall_looks_as_it_did(history):
    world = Seen()
    for what, with_ in history:
        world.step(what, with_)


@given(st.lists(applications, min_size=1, max_size=3), st.lists(stalls, min_size=1, max_size=5))
@bounded
def test_stalls_alone_move_nothing(apps, waits):
    world = played([*(("apply", a) for a in apps), ("obey", set())])
    world.settle()
    before = world.state.decided
    for what, ms in waits:
        world.step(what, ms)
    held = {n: a.instances for n, a in world.state.assignments.items()}
    was = {row.node: row.instances for key, row in before.items() if key.startswith("assignment.")}
    assert {n: {(i.name, i.epoch) for i in left} for n, left in was.items()} == {
        n: {(i.name, i.epoch) for i in held.get(n, ())} for n in was
    }


def test_a_hub_that_takes_its_stall_for_silence_is_caught(monkeypatch):
    monkeypatch.setattr(liveness, "heard_at", lambda state, node: state.sightings[node].last_seen)
    world = played([])
    with pytest.raises(AssertionError):
        world.step("stall", 10_000)
