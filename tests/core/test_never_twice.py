"""Tables for what must never run twice: taken away, surely gone, and only then given again; also by halves."""

from __future__ import annotations

import msgspec
import pytest

from batuta.core.decide import decide
from batuta.core.heal import RULES, Case, grace_ms, judge
from batuta.core.observed import InstanceReport
from batuta.core.state import Change, State
from batuta.core.wish import LEASE_MS
from batuta.kinds.node import Taint
from tests.core.fleets import (
    APP,
    NOW,
    application,
    beats,
    codes,
    component,
    decided,
    heard,
    machines,
    model,
    no_application,
    node,
    obeys,
    places,
    settled,
    state_of,
)

AFTER_MS = 2_000
SAFE_MS = AFTER_MS + grace_ms(LEASE_MS)


def one(**more) -> Change:
    return application(component(never_twice=True, after_ms=AFTER_MS, **more))


def fleet(*more: Change) -> State:
    return settled(state_of(machines("a", "b"), *more, one()))


def fence(state: State):
    rows = state.fences.get(APP, {})
    return rows.get("read/0")


def test_a_placement_is_leased_and_remembered():
    state = fleet()
    (held,) = state.held[APP]
    assert held.instance.lease_ms == LEASE_MS
    assert (fence(state).node, fence(state).epoch, fence(state).released_at) == (held.node, 1, None)
    assert fence(state).serial == state.assignments[held.node].serial


def test_a_silent_holder_is_replaced_only_when_its_lease_is_surely_over():
    state = fleet()
    for now, reason in ((NOW + 1_999, []), (NOW + AFTER_MS, ["may_be_alive"]), (NOW + SAFE_MS - 1, ["may_be_alive"])):
        after, decision = decided(beats(state, now, but={"a"}), now)
        assert (after.decided, codes(decision)) == (state.decided, reason)
    assert decision.wake_at == NOW + SAFE_MS
    after, _ = decided(beats(state, NOW + SAFE_MS, but={"a"}), NOW + SAFE_MS)
    assert places(after) == [("read-1-0", "b")]
    assert after.held[APP][0].instance.epoch == 2


def test_a_change_takes_it_away_first_and_gives_it_again_when_its_node_says_so():
    state, decision = decided(fleet().with_changes([one(command="new")]))
    assert (places(state), codes(decision)) == ([], ["may_be_alive"])
    released = fence(state)
    assert released.released_at == NOW
    # The node acts on the new assignment, but something of the old is still stopping.
    stopping = InstanceReport(name="default/app/read-1-0", epoch=1, phase="stopping", since=NOW)
    told = msgspec.structs.replace(state.observed["a"], serial=released.serial, instances=(stopping,))
    state, _ = decided(state.with_changes([Change("observed", "a", told)]))
    assert places(state) == []
    state, _ = decided(obeys(state))
    assert places(state) == [("read-2-0", "a")]
    assert (fence(state).epoch, fence(state).released_at) == (2, None)


def test_a_report_from_before_says_nothing():
    state, _ = decided(fleet().with_changes([one(command="new")]))
    empty = msgspec.structs.replace(state.observed["a"], instances=())  # acts on the serial before
    assert places(decided(state.with_changes([Change("observed", "a", empty)]))[0]) == []


def test_a_released_slot_comes_free_when_the_lease_of_a_silent_node_is_over():
    state, _ = decided(fleet().with_changes([one(command="new")]))
    now = NOW + SAFE_MS
    before, decision = decided(beats(state, now - 1, but={"a"}), now - 1)
    assert (places(before), decision.wake_at) == ([], now)
    assert places(decided(beats(state, now, but={"a"}), now)[0]) == [("read-2-0", "b")]


def test_replicas_are_replaced_one_by_one():
    part = component(never_twice=True, count=3)
    state = settled(state_of(machines("a", "b", "c"), application(part)))
    state, _ = decided(state.with_changes([application(component(never_twice=True, count=3, command="new"))]))
    assert len(places(state)) == 2
    state, _ = decided(obeys(state))
    assert len(places(state)) == 3
    state, decision = decided(obeys(state, ready=False))
    assert sorted(codes(decision)) == ["replacing", "replacing"]
    assert [n for n, _ in places(settled(obeys(state)))] == ["read-2-0", "read-2-1", "read-2-2"]


def test_it_is_not_taken_away_when_there_is_no_place_for_it():
    state = settled(state_of(machines("a"), one()))
    for change in (one(cpu=9_000), node("a", taints=[Taint(key="x", effect="NoExecute")])):
        after, decision = decided(state.with_changes([change]))
        assert (places(after), codes(decision)) == ([("read-1-0", "a")], ["nothing_fits"])


def test_a_taint_moves_it_old_before_new():
    state, decision = decided(fleet().with_changes([node("a", taints=[Taint(key="x", effect="NoExecute")])]))
    assert (places(state), codes(decision)) == ([], ["may_be_alive"])
    assert places(settled(obeys(state))) == [("read-1-0", "b")]


def test_a_removed_node_may_run_on_for_its_lease():
    state, decision = decided(fleet().with_changes([Change("desired", "nodes.a", None)]))
    assert (places(state), codes(decision)) == ([], ["may_be_alive"])
    due = NOW + grace_ms(LEASE_MS)
    state = beats(state, due - 1, but={"a"})
    assert places(decided(state, due - 1)[0]) == []
    assert places(decided(beats(state, due, but={"a"}), due)[0]) == [("read-1-0", "b")]


@pytest.mark.parametrize("day_ms", [86_400_000, -86_400_000])
def test_a_clock_that_was_set_between_two_lives_of_the_hub_neither_ends_nor_prolongs_that(day_ms):
    state, _ = decided(fleet().with_changes([Change("desired", "nodes.a", None)]))
    begun = NOW + day_ms
    due = begun + grace_ms(LEASE_MS)
    state = beats(state.listening_since(begun).with_changes([heard("b", begun, begun)]), due - 1)
    assert places(decided(state, due - 1)[0]) == []
    assert places(decided(beats(state, due), due)[0]) == [("read-1-0", "b")]


def test_what_nobody_wants_leaves_its_fence_until_it_is_gone():
    state, _ = decided(fleet().with_changes([no_application()]))
    assert places(state) == []
    assert fence(state) is not None
    assert APP in state.applications()
    # Declared anew at once, it waits as well.
    again, decision = decided(state.with_changes([one()]))
    assert (places(again), codes(decision)) == ([], ["may_be_alive"])
    state, _ = decided(obeys(state))
    assert fence(state) is None
    assert state.applications() == []


def test_a_model_between_two_holders_has_its_topics_stored():
    state = settled(state_of(machines("a", "b"), model("1", "2"), one(model="1")))
    captures = state.commons["berlin"].captures
    assert captures
    state, _ = decided(state.with_changes([one(model="2")]))
    assert places(state) == []
    assert {c.captures for c in state.commons.values()} == {captures}
    state = settled(state.with_changes([no_application()]))
    assert {c.captures for c in state.commons.values()} == {()}


def test_at_least_once_becomes_never_twice_by_its_node_s_own_word_only():
    state = settled(state_of(machines("a", "b"), application(component(after_ms=AFTER_MS))))
    state = state.with_changes([one()])
    now = NOW + 3_600_000  # it has no lease, so no silence is long enough
    after, decision = decided(beats(state, now, but={"a"}), now)
    assert (places(after), codes(decision)) == ([("read-1-0", "a")], ["may_be_alive", "rollout_waits"])
    assert places(settled(beats(state, NOW))) == [("read-2-0", "a")]


def test_never_twice_becomes_at_least_once():
    state = settled(fleet().with_changes([application(component(after_ms=AFTER_MS))]))
    assert places(state) == [("read-2-0", "a")]
    assert fence(state) is None


# --- By halves: a crash between two rows of a commit ------------------------------------------------------------------


def halves(state: State, now: int = NOW):
    """Every way in which the commit of a decision can be cut short: records first, then assignments."""
    changes = sorted(decide(state, now).changes, key=lambda c: c.key.startswith("assignment."))
    return [state.with_changes(changes[:k]) for k in range(1, len(changes))]


@pytest.mark.parametrize("what", ["given", "taken", "substituted", "deleted"])
def test_a_commit_cut_short_is_finished(what):
    now = NOW + SAFE_MS if what == "substituted" else NOW
    silent = {"a"} if what == "substituted" else set()
    start = {
        "given": state_of(machines("a", "b"), one()),
        "taken": fleet().with_changes([one(command="new")]),
        "substituted": beats(fleet(), now, but=silent),
        "deleted": fleet().with_changes([no_application()]),
    }[what]
    torn = halves(start, now)
    assert torn
    for state in torn:
        done = settled(obeys(state, but=silent), now, but=silent)
        held = (
            [] if what == "deleted" else [{"given": "read-1-0", "taken": "read-2-0", "substituted": "read-1-0"}[what]]
        )
        assert [n for n, _ in places(done)] == held
        assert (fence(done) is None) == (what == "deleted")


def test_an_assignment_that_was_never_written_is_written_again_before_anything_is_given_elsewhere():
    """Its write may still be on the way: only a newer one, answered by the node, proves that it never counted."""
    idle = settled(state_of(machines("a", "b")))
    records = [c for c in decide(idle.with_changes([one()]), NOW).changes if not c.key.startswith("assignment.")]
    state = idle.with_changes([one(), *records])
    assert (fence(state).node, places(state)) == ("a", [])
    assert state.assignments["a"].serial < fence(state).serial
    state, decision = decided(state)
    assert (places(state), codes(decision)) == ([], ["may_be_alive"])
    assert state.assignments["a"].serial >= fence(state).serial
    state, _ = decided(obeys(state))
    assert places(state) == [("read-1-0", "a")]
    assert state.held[APP][0].instance.epoch == 2


# --- The rules --------------------------------------------------------------------------------------------------------

WELL = Case(removed=False, wanted=True, superseded=False, silent_ms=300, late=False, after_ms=10_000, grace_ms=0,
            old=False, forbidden=False)  # fmt: skip
SILENT = {"silent_ms": 10_000, "late": True}


@pytest.mark.parametrize(
    ("case", "verdict"),
    [
        ({}, "keep"),
        ({"removed": True, "wanted": False}, "lost"),
        ({"wanted": False, "old": True}, "stop"),
        ({"superseded": True, **SILENT}, "stop"),
        ({"late": True, "silent_ms": 9_999, "old": True}, "keep"),
        ({**SILENT, "grace_ms": 1}, "wait"),
        ({**SILENT, "old": True}, "lost"),
        ({"old": True, "forbidden": True}, "replace"),
        ({"forbidden": True}, "move"),
    ],
)
def test_the_first_rule_that_holds_gives_the_verdict(case, verdict):
    assert judge(WELL._replace(**case)).verdict == verdict


def test_every_rule_can_be_the_first_and_says_why():
    assert len({rule.sentence for rule in RULES}) == len(RULES)
    assert RULES[-1].holds(WELL)


def test_a_node_that_returns_with_its_lease_over_but_unreported_is_still_waited_for():
    state, _ = decided(fleet().with_changes([one(command="new")]))
    now = NOW + 60_000
    back = beats(state, now).with_changes([heard("a", now, since=now)])
    after, decision = decided(back, now)
    assert (places(after), codes(decision)) == ([], ["may_be_alive"])
    assert places(settled(obeys(after), now)) == [("read-2-0", "a")]
