"""Who gives way to whom, at what harm, and what is said of it on both sides."""

from __future__ import annotations

import msgspec
import pytest

from batuta.core.decide import decide
from batuta.core.standing import Displaced
from batuta.core.state import Change
from batuta.core.touched import touched
from batuta.core.why import why
from batuta.kinds.rolling import Disruption, Rollout
from tests.core.fleets import (
    NOW,
    application,
    beats,
    codes,
    component,
    decided,
    heard,
    machines,
    no_application,
    obeys,
    places,
    settled,
    state_of,
)  # fmt: skip


def wants(name, *, priority=0, budget=None, **more) -> Change:
    """An application of one component."""
    change = application(component(**{"cpu": 1_000, **more}), name=name)
    rollout = Rollout(disruption=Disruption(per_site=budget))
    spec = msgspec.structs.replace(change.value.spec, priority=priority, rollout=rollout)
    return change._replace(value=msgspec.structs.replace(change.value, spec=spec))


def at(state, name):
    return places(state, f"default/{name}")


def displaced(state, name):
    return [row for row in state.standing.get(f"default/{name}", {}).values() if isinstance(row, Displaced)]


def full(*applications, nodes=("a", "b"), cpu=2_000):
    """A fleet that has just room for these."""
    return settled(state_of(machines(*nodes, cpu=cpu), list(applications)))


class TestWhoGivesWay:
    def test_a_higher_priority_takes_the_place_of_a_lower_one(self):
        state = full(wants("low", count=4))
        state, decision = decided(state.with_changes([wants("high", priority=10)]))
        assert len(at(state, "high")) == 1
        assert len(at(state, "low")) == 3
        row = displaced(state, "low")[0]
        assert (row.by, row.by_priority, row.priority) == ("default/high/read-1-0", 10, 0)
        assert row.node == at(state, "high")[0][1]
        assert "others_gave_way" in codes(decision, "default/high")
        assert codes(decision, "default/low")[-2:] == ["gave_way", "nothing_fits"]

    @pytest.mark.parametrize("priority", [0, -1])
    def test_nobody_gives_way_to_an_equal_or_a_lower_one(self, priority):
        state = full(wants("low", count=4))
        state, decision = decided(state.with_changes([wants("other", priority=priority)]))
        assert at(state, "other") == []
        assert codes(decision, "default/other") == ["nothing_fits"]
        assert decision.changes[-1].key.startswith("release."), "nothing but the release was written"

    def test_nobody_gives_way_while_there_is_room(self):
        state = full(wants("low", count=3))
        state, _ = decided(state.with_changes([wants("high", priority=10)]))
        assert len(at(state, "low")) == 3
        assert len(at(state, "high")) == 1

    def test_nobody_gives_way_for_nothing(self):
        """All that is lower together would not make room enough."""
        state = full(wants("low", count=4))
        state, decision = decided(state.with_changes([wants("high", priority=10, cpu=2_500)]))
        assert len(at(state, "low")) == 4
        assert codes(decision, "default/high") == ["nothing_fits"]

    def test_room_that_comes_free_in_the_same_decision_is_taken_first(self):
        state = full(wants("low", count=4))
        state, _ = decided(state.with_changes([wants("low", count=3), wants("high", priority=10)]))
        assert displaced(state, "low") == []
        assert len(at(state, "high")) == 1

    def test_who_is_no_more_makes_room_before_anybody_gives_way(self):
        state = full(wants("old", count=2), wants("low", count=2))
        state, _ = decided(state.with_changes([no_application("old"), wants("high", priority=10)]))
        assert len(at(state, "low")) == 2
        assert displaced(state, "low") == []

    def test_what_is_given_in_the_same_decision_gives_way_without_a_trace(self):
        state = full(wants("other", priority=20, count=3))
        state, _ = decided(state.with_changes([wants("a-low"), wants("high", priority=10)]))
        assert at(state, "a-low") == []
        assert displaced(state, "a-low") == []
        assert len(at(state, "high")) == 1


class TestLeastHarm:
    def test_the_lowest_goes_first(self):
        state = full(wants("x", priority=5, count=2), wants("y", priority=1, count=2))
        state, _ = decided(state.with_changes([wants("high", priority=10)]))
        assert len(at(state, "x")) == 2
        assert len(at(state, "y")) == 1

    def test_one_that_has_others_goes_before_the_only_one(self):
        state = full(wants("alone", count=1), wants("many", count=3))
        state, _ = decided(state.with_changes([wants("high", priority=10)]))
        assert len(at(state, "alone")) == 1
        assert len(at(state, "many")) == 2

    def test_one_goes_rather_than_two(self):
        """On one node a large one has to go, on the other two small ones."""
        state = full(wants("large", cpu=2_000), wants("small", cpu=1_000, count=2))
        state, _ = decided(state.with_changes([wants("high", priority=10, cpu=2_000)]))
        assert at(state, "large") == []
        assert len(at(state, "small")) == 2

    def test_what_is_not_ready_goes_before_what_is(self):
        state = full(wants("works", count=2))
        state, _ = decided(state.with_changes([wants("starts", count=2)]))
        state, _ = decided(state.with_changes([wants("high", priority=10)]))
        assert len(at(state, "works")) == 2
        assert len(at(state, "starts")) == 1

    def test_only_as_many_go_as_must(self):
        state = full(wants("low", count=4, cpu=500), nodes=("a",))
        state, _ = decided(state.with_changes([wants("high", priority=10, cpu=1_000)]))
        assert len(at(state, "low")) == 2


class TestBudgets:
    def test_a_budget_of_none_is_kept(self):
        state = full(wants("low", count=4, budget=0))
        state, decision = decided(state.with_changes([wants("high", priority=10)]))
        assert len(at(state, "low")) == 4
        assert codes(decision, "default/high") == ["nothing_fits"]

    def test_so_many_may_be_missing_and_no_more(self):
        state = full(wants("low", count=4, budget=1))
        state, _ = decided(state.with_changes([wants("high", priority=10, count=3)]))
        assert len(at(state, "low")) == 3
        assert len(at(state, "high")) == 1

    def test_what_fails_by_itself_counts(self):
        state = full(wants("low", count=4, budget=1))
        report = state.observed["a"]
        failing = msgspec.structs.replace(report.instances[0], phase="backoff")
        broken = msgspec.structs.replace(report, instances=(failing, *report.instances[1:]))
        state, _ = decided(state.with_changes([Change("observed", "a", broken), wants("high", priority=10, count=2)]))
        assert len(at(state, "high")) == 1, "the one that does not work may go, and with it the budget"
        assert failing.name.split("/")[2] not in [name for name, _ in at(state, "low")]

    def test_together_they_must_be_within_the_budget(self):
        state = full(wants("low", count=4, budget=1))
        state, _ = decided(state.with_changes([wants("high", priority=10, cpu=2_000)]))
        assert at(state, "high") == []


class TestNoCascades:
    def test_who_gave_way_displaces_nobody(self):
        state = full(wants("middle", priority=5, count=2), wants("low", count=2))
        state, _ = decided(state.with_changes([wants("high", priority=10, count=3)]))
        assert len(at(state, "high")) == 3
        assert at(state, "low") == [], "the lowest goes first"
        assert len(at(state, "middle")) == 1
        state = settled(state.with_changes([wants("lower", priority=-5), wants("high", priority=10, count=2)]))
        assert len(at(state, "middle")) == 2, "room that is free is anybody's"

    def test_also_not_later(self):
        """It could run on the other node, if only it might displace what is lower there."""
        here = 'node.name == "a"'
        state = full(wants("middle", priority=5, count=2, where=here), wants("low", count=2))
        state = settled(state.with_changes([wants("middle", priority=5, count=2)]))
        state, decision = decided(state.with_changes([wants("high", priority=10, where=here)]))
        assert len(displaced(state, "middle")) == 1
        assert codes(decision, "default/middle")[-2:] == ["gave_way", "nothing_fits"]
        for later in (NOW + 5_000, NOW + 500_000):
            state, _ = decided(beats(obeys(state), later), later)
            assert len(at(state, "low")) == 2
            assert len(at(state, "middle")) == 1

    def test_raised_since_it_may_ask_anew(self):
        state = full(wants("middle", priority=5, count=2, where='node.name == "a"'), wants("low", count=2))
        state = settled(state.with_changes([wants("high", priority=10, where='node.name == "a"')]))
        assert len(displaced(state, "middle")) == 1
        state = settled(state.with_changes([wants("middle", priority=6, count=2)]))
        assert len(at(state, "middle")) == 2
        assert len(at(state, "low")) == 1

    def test_it_is_forgotten_when_it_is_filled_again(self):
        state = full(wants("low", count=4))
        state = settled(state.with_changes([wants("high", priority=10)]))
        assert len(displaced(state, "low")) == 1
        state = settled(state.with_changes([no_application("high")]))
        assert displaced(state, "low") == []
        assert len(at(state, "low")) == 4

    def test_it_is_forgotten_when_nobody_wants_it(self):
        state = full(wants("low", count=4))
        state = settled(state.with_changes([wants("high", priority=10)]))
        state = settled(state.with_changes([wants("low", count=1)]))
        assert displaced(state, "low") == []
        state = settled(state.with_changes([wants("low", count=4), no_application("low")]))
        assert state.standing == {}


class TestNeverTwice:
    def test_it_gives_way_and_leaves_its_fence(self):
        state = full(wants("low", count=2, never_twice=True), nodes=("a",))
        state, decision = decided(state.with_changes([wants("high", priority=10)]))
        assert len(at(state, "high")) == 1
        row = displaced(state, "low")[0]
        fence = state.fences["default/low"][f"read/{row.slot}"]
        assert fence.released_at == NOW
        assert "may_be_alive" in codes(decision, "default/low")
        state = settled(state.with_changes(machines("b", cpu=2_000)))
        assert len(at(state, "low")) == 2
        assert displaced(state, "low") == []

    def test_it_takes_a_place(self):
        state = full(wants("low", count=4))
        state, _ = decided(state.with_changes([wants("high", priority=10, never_twice=True)]))
        assert len(at(state, "high")) == 1

    def test_given_and_taken_back_leaves_no_fence(self):
        state = full(wants("other", priority=20, count=3))
        state, _ = decided(state.with_changes([wants("a-low", never_twice=True), wants("high", priority=10)]))
        assert at(state, "a-low") == []
        assert "default/a-low" not in state.fences


class TestWhoIsLeftAlone:
    def test_nothing_is_displaced_on_a_node_that_is_silent(self):
        state = full(wants("low", count=4))
        rows = [wants("high", priority=10), heard("a", NOW - 5_000)]
        state, _ = decided(state.with_changes(rows))
        assert [node for _, node in at(state, "high")] == ["b"]

    def test_a_lost_node_takes_from_others_what_it_must(self):
        state = full(wants("high", priority=10, count=2), wants("low", count=2))
        later = NOW + 60_000
        state = beats(state, later, but={"a"})
        state, _ = decided(state, later)
        assert sorted(node for _, node in at(state, "high") if node == "b") == ["b", "b"]
        assert not any(node == "b" for _, node in at(state, "low"))


def test_the_displaced_are_decided_though_nobody_named_them():
    """Only what was touched is asked about; whoever is displaced is part of it."""
    before = full(wants("low", count=4))
    after = before.with_changes([wants("high", priority=10)])
    subjects = touched(before, after, NOW, NOW)
    assert "application/default/low" not in subjects
    one, all_of_it = decide(after, NOW, subjects), decide(after, NOW)
    assert one.changes == all_of_it.changes
    assert one.pending == all_of_it.pending == {"default/high", "default/low"}


def test_why_says_it_on_both_sides():
    state = full(wants("low", count=4))
    state, _ = decided(state.with_changes([wants("high", priority=10)]))
    low = [r for entry in why(state, NOW, "default/low") for r in entry["reasons"] if r["code"] == "gave_way"]
    assert "to default/high/read-1-0 (priority 10 over 0) on" in low[0]["sentence"]
    high = why(state, NOW, "default/high")[0]
    assert high["displaced"][0]["code"] == "others_gave_way"
    assert "default/low read/" in high["displaced"][0]["detail"]
