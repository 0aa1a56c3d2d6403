"""Tables of rooms: what is kept free between two steps of one change, from whom, and until when."""

from __future__ import annotations

import msgspec

from batuta.core.standing import Awaited, Surge
from batuta.core.state import Change, State
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
    policy,
    settled,
    state_of,
)


def other(*parts, priority=0, name="other") -> Change:
    change = application(*(parts or (component(),)), name=name)
    spec = msgspec.structs.replace(change.value.spec, priority=priority)
    return change._replace(value=msgspec.structs.replace(change.value, spec=spec))


def awaited(state: State) -> list[tuple[str, str]]:
    """(where it was, where room is kept) of every slot that is awaited."""
    rows = (row for row in state.standing.get(APP, {}).values() if isinstance(row, Awaited))
    return [(row.left, row.node) for row in rows]


def surges(state: State) -> list[str]:
    return [row.node for row in state.standing.get(APP, {}).values() if isinstance(row, Surge)]


# --- What must never run twice ----------------------------------------------------------------------------------------


def between(cpu=3_000) -> State:
    """Taken from a, and not yet given to b, the only node with room for it."""
    state = settled(state_of(machines("a"), application(component(never_twice=True, cpu=cpu))))
    state, decision = decided(state.with_changes([*machines("b"), node("a", drain=True)]))
    assert places(state) == []
    assert codes(decision) == ["may_be_alive"]
    assert "room for it is kept on b" in decision.reasons[APP][0].detail
    assert awaited(state) == [("a", "b")]
    return state


def test_nobody_of_its_priority_takes_the_place_of_what_is_between_two_nodes():
    state, decision = decided(between().with_changes([other(component(cpu=2_000))]))
    assert places(state, "default/other") == []
    assert codes(decision, "default/other") == ["nothing_fits"]
    state = settled(obeys(state))
    assert places(state) == [("read-1-0", "b")]
    assert state.standing == {}


def test_who_fits_beside_it_is_not_kept_out():
    state, _ = decided(between().with_changes([other(component(cpu=500))]))
    assert places(state, "default/other") == [("read-1-0", "b")]


def test_room_is_free_again_when_nobody_wants_it_any_more():
    state, _ = decided(between().with_changes([other(component(cpu=2_000))]))
    state, _ = decided(state.with_changes([no_application("app")]))
    assert places(state, "default/other") == [("read-1-0", "b")]
    assert APP not in state.standing


def test_whoever_is_above_takes_it_and_another_place_is_kept():
    state = between().with_changes([*machines("c"), other(component(cpu=2_000, where='node.name == "b"'), priority=5)])
    state, _ = decided(state)
    assert places(state, "default/other") == [("read-1-0", "b")]
    assert awaited(state) == [("a", "c")]
    state = settled(obeys(state))
    assert places(state) == [("read-1-0", "c")]


def test_without_another_place_none_is_kept_and_it_says_so():
    state, decision = decided(between().with_changes([other(component(cpu=2_000), priority=5)]))
    assert places(state, "default/other") == [("read-1-0", "b")]
    assert awaited(state) == [("a", "")]
    assert "room" not in decision.reasons[APP][0].detail
    state, decision = decided(obeys(state))
    assert codes(decision) == ["nothing_fits"]


def test_room_moves_when_its_node_can_take_it_no_more():
    state, _ = decided(between().with_changes([*machines("c"), node("b", unschedulable=True)]))
    assert awaited(state) == [("a", "c")]


def test_two_that_are_between_are_not_kept_the_same_room():
    """Each alone would fit on b: only one of them is taken away, the other stays where it works."""
    part = component(never_twice=True, cpu=1_500, count=2)
    state = settled(state_of(machines("a"), application(part)))
    state = state.with_changes([*machines("b", cpu=2_000), node("a", drain=True)])
    state, decision = decided(state)
    assert places(state) == [("read-1-1", "a")]
    assert codes(decision) == ["may_be_alive", "nothing_fits"]
    state = settled(obeys(state))
    assert places(state) == [("read-1-0", "b"), ("read-1-1", "a")]


def test_a_port_is_kept_too():
    state = settled(state_of(machines("a"), application(component(never_twice=True, port=8080))))
    state, _ = decided(state.with_changes([*machines("b"), node("a", drain=True)]))
    part = component(port=8080, where='node.name == "b"')
    state, _ = decided(state.with_changes([other(part)]))
    assert places(state, "default/other") == []
    state = settled(obeys(state))
    assert places(state) == [("read-1-0", "b")]


def test_another_replica_that_may_not_be_beside_it_does_not_come_there_first():
    """Found by the laws: room for the one on a was kept on c, and the other one, until then nowhere, was given c."""
    part = application(component(never_twice=True, per_site=2))
    state = settled(state_of(machines("a", "c"), policy(applies="true", forbid='node.name == "c"'), part))
    assert places(state) == [("read-1-berlin-0", "a")]
    state, _ = decided(state.with_changes([policy(applies="true", forbid='node.name == "a"')]))
    assert awaited(state) == [("a", "c")]
    assert places(state) == []
    state = settled(obeys(state))
    assert places(state) == [("read-1-berlin-0", "c")]


def test_nothing_is_remembered_of_what_nobody_can_take():
    """Found by the laws: with the last holder of another kind of slot its site was wanted no more."""
    state = settled(state_of(machines("a"), application(component(never_twice=True, per_site=1))))
    state = settled(state.with_changes([application(component(never_twice=True))]), but={"a"})
    state = state.with_changes([policy(applies="true", forbid="node.labels.zone == '1'")])
    state, _ = decided(state.with_changes([application(component(never_twice=True, per_site=1))]))
    assert awaited(state) == []


# --- Changes, one by one ----------------------------------------------------------------------------------------------


def three_with_a_broken_one() -> State:
    """Of three on four nodes, one was replaced and broke after its predecessor had gone. The others wait, with nothing
    on its way."""
    parts = {"count": 3, "cpu": 1_500, "spread": "node"}
    state = settled(state_of(machines("a", "b", "c", "d", cpu=2_000), application(component(**parts))))
    state, _ = decided(state.with_changes([application(component(**parts, command="new"))]))
    state = obeys(state)
    # Ready, and broken before the hub has looked again: the old one went, and the next is not begun.
    first = next(h for h in state.held[APP] if h.instance.revision == 2)
    old = next(h for h in state.held[APP] if h.instance.slot == first.instance.slot and h.instance.revision == 1)
    gone = msgspec.structs.replace(
        state.assignments[old.node], instances=(), serial=state.assignments[old.node].serial + 1
    )
    report = state.observed[first.node]
    broken = tuple(msgspec.structs.replace(i, phase="backoff") for i in report.instances)
    return state.with_changes(
        [
            Change("decided", f"assignment.{old.node}", gone),
            Change("observed", first.node, msgspec.structs.replace(report, instances=broken)),
        ]
    )


def test_room_for_one_more_is_kept_while_the_next_one_waits():
    state, decision = decided(three_with_a_broken_one())
    assert codes(decision) == ["replacing", "replacing"]
    (kept,) = surges(state)
    state, decision = decided(state.with_changes([other(component(cpu=1_500))]))
    assert codes(decision, "default/other") == ["nothing_fits"]
    assert surges(state) == [kept]
    # Once it works again, the change goes on new before old, and in the end the room is free.
    state = settled(obeys(state))
    assert {name for name, _ in places(state)} == {"read-2-0", "read-2-1", "read-2-2"}
    assert surges(state) == []
    assert len(places(state, "default/other")) == 1


def test_whatever_was_lost_may_have_the_room_that_is_kept_for_a_change():
    state = three_with_a_broken_one()
    state = state.with_changes([*machines("e", cpu=2_000), other(component(cpu=1_500, where='node.name != "f"'))])
    state, _ = decided(state)
    (kept,) = surges(state)
    ((_, lost),) = places(state, "default/other")
    (broken,) = (where for name, where in places(state) if name.startswith("read-2-"))
    state = obeys(state, but={broken})
    later = NOW + 20_000
    state, _ = decided(beats(state, later, but={lost}), later)
    assert places(state, "default/other") == [("read-1-0", kept)]
    assert surges(state) == []


def test_a_change_that_is_done_keeps_nothing():
    state = settled(state_of(machines("a", "b"), application(component(count=2))))
    state = settled(state.with_changes([application(component(count=2, command="new"))]))
    assert state.standing == {}
