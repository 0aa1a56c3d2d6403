"""What a change would move: the same as what comes of it when it is made and every node obeys."""

from __future__ import annotations

import msgspec
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from batuta.core.foresee import Foresight, foresee
from batuta.core.state import Change
from batuta.kinds.base import Millis
from batuta.kinds.rolling import Rollout
from tests.core.fleets import (
    APP,
    NOW,
    application,
    beats,
    component,
    machines,
    model,
    node,
    places,
    settled,
    state_of,
)
from tests.laws.worlds import NODES, components


def told(found: Foresight) -> list[str]:
    return [f"{s.action} {s.was or s.instance} {s.was_on}>{s.node}{' anyway' if s.anyway else ''}" for s in found.steps]


def test_nothing_moves_when_nothing_changes():
    state = settled(state_of(machines("a", "b"), application()))
    assert foresee(state, [application()], NOW) == Foresight(steps=(), reasons={})


def test_one_more_starts_and_one_less_stops_and_nothing_is_kept():
    state = settled(state_of(machines("a", "b"), application()))
    before = places(state)
    assert before == [("read-1-0", "a")]
    assert told(foresee(state, [application(component(count=2))], NOW)) == ["start read-1-1 >b"]
    found = foresee(state, [application(component(count=0))], NOW)
    assert told(found) == ["stop read-1-0 a>"]
    assert found.steps[0].why == "nobody wants it any more"
    assert places(state) == before


def test_all_of_a_replacement_is_seen_though_it_goes_one_by_one():
    state = settled(state_of(machines("a", "b", "c"), application(component(count=3))))
    found = foresee(state, [application(component(count=3, command="new"))], NOW)
    assert [s.action for s in found.steps] == ["replace"] * 3
    assert {s.why for s in found.steps} == {"it is of an older revision"}
    assert {s.instance for s in found.steps} == {"read-2-0", "read-2-1", "read-2-2"}
    assert found.is_whole


def test_a_condition_that_fails_moves_with_its_rule_and_what_fits_nowhere_says_so():
    state = settled(state_of(machines("a", "b"), application()))
    found = foresee(state, [application(component(where="node.name == 'b'"))], NOW)
    assert told(found) == ["move read-1-0 a>b"]
    assert found.steps[0].why == "its node may no longer run it"
    found = foresee(state, [application(component(memory=10**6))], NOW)
    assert [r.code for r in found.reasons[APP]] == ["nothing_fits"]


def test_what_cannot_move_off_a_drained_node_says_why():
    state = settled(state_of(machines("a"), application()))
    found = foresee(state, [node("a", drain=True)], NOW)
    assert found.steps == ()
    assert [r.code for r in found.reasons[APP]] == ["nothing_fits"]
    state = settled(state_of(machines("a", "b"), application()))
    assert told(foresee(state, [node("a", drain=True)], NOW)) == ["move read-1-0 a>b"]


def test_what_comes_anyway_is_not_the_change_s_doing():
    state = state_of(machines("a", "b"), application())
    found = foresee(state, [application(component("other"), name="second")], NOW)
    assert [(s.app, s.anyway) for s in found.steps] == [("default/app", True), ("default/second", False)]


def test_a_silent_node_is_not_made_to_obey():
    state = settled(state_of(machines("a", "b"), application()))
    later = NOW + 3_000
    state = beats(state, later, but={"a"})
    found = foresee(state, [application(component(command="new"))], later)
    assert found.steps == ()
    assert [r.code for r in found.reasons[APP]] == ["node_silent", "rollout_waits"]


@settings(
    max_examples=30, deadline=None, derandomize=True, suppress_health_check=[HealthCheck.too_slow]
)  # fmt: skip
@given(
    st.lists(components, min_size=1, max_size=2, unique_by=lambda c: c.name),
    st.lists(components, min_size=1, max_size=2, unique_by=lambda c: c.name),
)
def test_what_is_foreseen_is_what_comes(first, then):
    """Whatever the change: made for real, with nodes that obey, the same instances are on the same nodes."""
    rows = [*machines(*NODES[:3]), *machines(*NODES[3:], at="lyon"), model("1", "2")]
    state = settled(state_of(rows, application(*first)))
    after = settled(state.with_changes([application(*then)]))
    found = foresee(state, [application(*then)], NOW)
    assert found.is_whole
    held = set(places(state))
    for step in found.steps:
        held -= {(step.was, step.was_on)}
        held |= {(step.instance, step.node)} if step.node else set()
    assert held == set(places(after))


def test_what_comes_in_waves_is_foreseen_as_a_whole():
    def rolled(command: str) -> Change:
        change = application(component(command=command, count=None, every_node=True))
        spec = msgspec.structs.replace(
            change.value.spec, rollout=Rollout(waves=("1 node", "100%"), soak_ms=Millis(5_000))
        )
        return change._replace(value=msgspec.structs.replace(change.value, spec=spec))

    state = settled(state_of(machines("a", "b", "c"), rolled("old")))
    found = foresee(state, [rolled("new")], NOW)
    assert found.is_whole
    assert [(s.action, s.node) for s in found.steps] == [("replace", "a"), ("replace", "b"), ("replace", "c")]
