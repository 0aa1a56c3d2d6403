"""Tables of (state, now) → Decision: what becomes of instances whose node is silent, gone or forbidden."""

from __future__ import annotations

import msgspec

from batuta.core.liveness import RETURN_MS
from batuta.core.observed import Sighting
from batuta.core.state import Change
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
    holder,
    machines,
    node,
    obeys,
    places,
    report,
    settled,
    state_of,
)

# --- Healing ----------------------------------------------------------------------------------------------------------


def test_a_silent_node_is_waited_for_and_then_substituted():
    state = settled(state_of(machines("a", "b"), application(component(after_ms=10_000))))
    silent = {holder(state)}
    now = NOW + 9_999
    state, decision = decided(beats(state, now, but=silent), now)
    assert places(state) == [("read-1-0", *silent)]
    assert codes(decision) == ["node_silent"]
    assert decision.wake_at == NOW + 10_000
    state, decision = decided(beats(state, now + 1, but=silent), now + 1)
    assert places(state) == [("read-1-0", *({"a", "b"} - silent))]
    assert state.held[APP][0].instance.epoch == 2


def test_a_node_that_comes_back_in_time_keeps_everything():
    state = settled(state_of(machines("a", "b"), application(component(count=4))))
    before = state.decided
    for now in range(NOW, NOW + 9_000, 1_000):
        state, decision = decided(beats(state, now, but={"a"}), now)
        assert decision.changes == ()
    state, decision = decided(beats(state, NOW + 9_500), NOW + 9_500)
    assert (decision.changes, decision.pending) == ((), frozenset())
    assert state.decided == before


def test_a_lost_node_that_nobody_can_replace_keeps_what_it_has():
    state = settled(state_of(machines("a"), machines("b", cpu=50), application(component())))
    assert holder(state) == "a"
    now = NOW + 60_000
    state, decision = decided(beats(state, now, but={"a"}), now)
    assert places(state) == [("read-1-0", "a")]
    assert codes(decision) == ["no_substitute"]
    after, decision = decided(beats(state, now + 1), now + 1)
    assert (places(after), decision.changes) == ([("read-1-0", "a")], ())


def test_a_whole_silent_site_keeps_its_own_and_counted_ones_go_elsewhere():
    fleet = [*machines("a", "b"), *machines("x", at="lyon")]
    part = component("s", per_site=1), component("n", where='site.name == "berlin" || node.cpu > 0')
    rows = state_of(fleet, Change("observed", "x", report("x", cpu=3900)), application(*part))
    state = settled(rows)
    assert dict(places(state))["n-1-0"] in ("a", "b")
    before = dict(places(state))
    now = NOW + 20_000
    state, decision = decided(beats(state, now, but={"a", "b"}), now)
    assert dict(places(state))["n-1-0"] == "x"
    assert dict(places(state))["s-1-berlin-0"] == before["s-1-berlin-0"]
    assert "node_silent" in codes(decision)


def test_a_returning_site_gives_its_slower_nodes_time():
    state = settled(state_of(machines("a", "b"), application(component(per_site=1, after_ms=5_000))))
    slow, fast = holder(state), ({"a", "b"} - {holder(state)}).pop()
    now = NOW + 60_000
    back = state.with_changes([heard(fast, now, since=now)])
    kept, decision = decided(back, now)
    assert (places(kept), codes(decision)) == ([("read-1-berlin-0", slow)], ["node_silent"])
    gone_at = now + RETURN_MS + 5_000
    assert decision.wake_at == gone_at
    almost, _ = decided(kept.with_changes([heard(fast, gone_at - 1, since=now)]), gone_at - 1)
    assert places(almost) == [("read-1-berlin-0", slow)]
    later, _ = decided(kept.with_changes([heard(fast, gone_at, since=now)]), gone_at)
    assert places(later) == [("read-1-berlin-0", fast)]


def test_a_node_that_its_neighbour_hears_is_cut_off_not_dead():
    state = settled(state_of(machines("a", "b"), application(component(after_ms=5_000))))
    cut, other = holder(state), ({"a", "b"} - {holder(state)}).pop()
    now = NOW + 60_000
    hears = msgspec.structs.replace(state.observed[other], hears={cut: 200})
    sighting = Sighting(last_seen=now, online_since=NOW, reported_at=now)
    rows = [Change("observed", other, hears), Change("sightings", other, sighting)]
    kept, decision = decided(state.with_changes(rows), now)
    assert places(kept) == [("read-1-0", cut)]
    assert decision.reasons[APP][0].detail.endswith(f"but {other} hears it: it is cut from the hub, not dead")
    late = now + 5_000 - 200  # nobody has heard it for five seconds
    rows = [Change("sightings", other, msgspec.structs.replace(sighting, last_seen=late))]
    assert decided(kept.with_changes(rows), late - 1)[0].decided == kept.decided
    assert places(decided(kept.with_changes(rows), late)[0]) == [("read-1-0", other)]


def test_a_new_hub_gives_everybody_time_to_find_it():
    state = settled(state_of(machines("a", "b"), application(component(after_ms=2_000))))
    fresh = state.listening_since(NOW + 100_000)
    other = ({"a", "b"} - {holder(state)}).pop()
    for late_ms in (0, 5_000, 11_999):
        now = NOW + 100_000 + late_ms
        assert decided(fresh.with_changes([heard(other, now)]), now)[0].decided == fresh.decided
    now = NOW + 100_000 + 12_000
    assert holder(decided(fresh.with_changes([heard(other, now)]), now)[0]) == other


def test_a_removed_node_is_lost_at_once():
    state = settled(state_of(machines("a", "b"), application(component())))
    gone = holder(state)
    state, _ = decided(state.with_changes([Change("desired", f"nodes.{gone}", None)]))
    assert holder(state) != gone
    assert gone not in state.assignments


def test_taints_and_conditions_move_new_before_old():
    for taints, labels in ([Taint(key="x", effect="NoExecute")], {"ok": "1"}), ([], {}):
        state = state_of(machines("a", "b"), node("a", labels={"ok": "1"}), node("b", labels={"ok": "1"}))
        state = settled(state.with_changes([application(component(where='"ok" in node.labels'))]))
        assert holder(state) == "a"
        state, decision = decided(state.with_changes([node("a", labels=labels, taints=taints)]))
        assert codes(decision) == ["moving"]
        assert places(state) == [("read-1-0", "a"), ("read-1-0", "b")]
        assert places(settled(obeys(state))) == [("read-1-0", "b")]


def test_what_runs_stays_under_a_cordon_and_a_new_taint():
    state = settled(state_of(machines("a", "b"), application(component(per_site=1), component("e", every_node=True))))
    before = state.decided
    rows = [node("a", taints=[Taint(key="x")]), node("b", unschedulable=True)]
    assert decided(state.with_changes(rows))[0].decided == before


def test_a_condition_that_cannot_be_answered_moves_nothing():
    state = state_of(machines("a", "b"), node("a", labels={"zone": "1"}), node("b", labels={"zone": "1"}))
    state = settled(state.with_changes([application(component(where='node.labels.zone == "1"'))]))
    home = holder(state)
    assert decided(state.with_changes([node(home)]))[0].decided == state.decided
