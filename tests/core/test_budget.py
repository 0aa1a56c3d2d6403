"""Tables of disruption budgets: asked before something that works is stopped, and what they never keep waiting."""

from __future__ import annotations

import msgspec
import pytest

from batuta.core.standing import Moving
from batuta.core.state import Change, State
from batuta.core.view import status
from batuta.core.why import why
from batuta.kinds.node import Taint
from batuta.kinds.rolling import Disruption, Rollout
from tests.core.fleets import (
    APP,
    NOW,
    application,
    beats,
    codes,
    component,
    decided,
    machines,
    node,
    obeys,
    places,
    policy,
    settled,
    site,
    state_of,
)


def limited(*components, per_site=None, name="app", priority=0, **per_domain) -> Change:
    change = application(*components, name=name)
    disruption = Disruption(per_site=per_site, per_domain=per_domain)
    spec = msgspec.structs.replace(change.value.spec, rollout=Rollout(disruption=disruption), priority=priority)
    return change._replace(value=msgspec.structs.replace(change.value, spec=spec))


def drained(*names: str, at="berlin", **more) -> list[Change]:
    return [node(name, at, drain=True, **more) for name in names]


def working(state: State) -> int:
    """How many are ready, by what their nodes say."""
    ready = {(n, i.name, i.epoch) for n, r in state.observed.items() for i in r.instances if i.phase == "ready"}
    return sum((h.node, h.instance.name, h.instance.epoch) in ready for h in state.held.get(APP, ()))


def details(decision, code="disruption_budget") -> list[str]:
    return [r.detail for r in decision.reasons.get(APP, ()) if r.code == code]


def least_working(state: State) -> tuple[State, int]:
    """Decide and obey until nothing is left to do; how many worked at the worst instant."""
    least = 99
    for _ in range(60):
        state, decision = decided(state)
        least = min(least, working(state))
        state = obeys(state)
        if not decision.changes:
            return state, least
    raise AssertionError("never settles")


@pytest.mark.parametrize(("budget", "at_worst"), [(None, 0), (1, 2), (2, 1)])
def test_a_drain_moves_no_more_at_once_than_may_be_missing(budget, at_worst):
    state = settled(state_of(machines("a"), limited(component(never_twice=True, count=3), per_site=budget)))
    state, least = least_working(state.with_changes([*machines("b"), *drained("a")]))
    assert {where for _, where in places(state)} == {"b"}
    assert least == at_worst
    assert state.standing == {}


def test_what_waits_says_who_is_in_the_way():
    state = settled(state_of(machines("a"), limited(component(never_twice=True, count=3), per_site=1)))
    _, decision = decided(state.with_changes([*machines("b"), *drained("a")]))
    assert codes(decision) == ["may_be_alive", "disruption_budget", "disruption_budget"]
    assert details(decision) == ["a: 1 may be missing at berlin, and read/0 is"] * 2


def test_a_budget_of_none_waits_for_ever_and_names_the_way_out():
    state = settled(state_of(machines("a"), limited(component(never_twice=True), per_site=0)))
    state, decision = decided(state.with_changes([*machines("b"), *drained("a")]))
    assert places(state) == [("read-1-0", "a")]
    assert details(decision) == ["a: none may be missing at berlin"]
    (reason,) = decision.reasons[APP]
    assert reason.is_waiting
    assert "rollout.disruption" in reason.next_step
    state, _ = least_working(state.with_changes([limited(component(never_twice=True), per_site=1)]))
    assert places(state) == [("read-1-0", "b")]


def test_new_before_old_takes_nothing_away_and_asks_nobody():
    state = settled(state_of(machines("a"), limited(component(count=3), per_site=0)))
    state, least = least_working(state.with_changes([*machines("b"), *drained("a")]))
    assert {where for _, where in places(state)} == {"b"}
    assert least == 3


def test_why_tells_what_a_drain_waits_for():
    state = settled(state_of(machines("a"), limited(component(never_twice=True, count=2), per_site=1)))
    state, _ = decided(state.with_changes([*machines("b"), *drained("a")]))
    (entry,) = [e for e in why(state, NOW, APP) if e["slot"] == "1"]
    assert [r["code"] for r in entry["reasons"]] == ["disruption_budget"]
    assert "read/0" in entry["reasons"][0]["sentence"]


def test_a_drained_node_tells_what_it_waits_for():
    state = settled(state_of(machines("a"), limited(component(never_twice=True, count=2), per_site=1)))
    state, _ = decided(state.with_changes([*machines("b"), *drained("a")]))
    a = state.nodes["a"]
    drain = status(state, a.ref, NOW)["drain"]
    assert (drain["left"], drain["stays"]) == (1, 0)
    (waits,) = drain["waits"]
    assert (waits["instance"], waits["code"]) == ("default/app/read-1-1", "disruption_budget")
    assert "read/0 is" in waits["detail"]
    state = settled(obeys(state))
    assert status(state, a.ref, NOW)["drain"] == {"left": 0, "stays": 0, "waits": []}
    assert "drain" not in status(state, state.nodes["b"].ref, NOW)


def test_a_change_that_does_not_fit_beside_the_old_one_waits_for_what_is_broken():
    """Both do not fit, so the old one would stop first; but another is missing by itself."""
    part = component(per_site=2, cpu=3_000)
    state = settled(state_of(machines("a", "b"), limited(part, per_site=1)))
    a, b = (state.observed[n] for n in "ab")
    broken = msgspec.structs.replace(b, instances=(msgspec.structs.replace(b.instances[0], phase="backoff"),))
    state = state.with_changes([Change("observed", "b", broken)])
    new = limited(component(per_site=2, cpu=3_000, command="new"), per_site=1)
    state, _ = decided(state.with_changes([new]))
    # The broken one costs nothing: it is replaced at once, and the one that works waits until it is ready.
    on_b = [name for name, where in places(state) if where == "b"]
    assert on_b[0].startswith("read-2-")
    assert [i.name for i in state.assignments["a"].instances] == [i.name for i in a.instances]
    state = settled(obeys(state))
    assert all(name.startswith("read-2-") for name, _ in places(state))


def test_what_fails_by_itself_counts():
    state = settled(state_of(machines("a", "b"), limited(component(never_twice=True, per_site=2), per_site=1)))
    state = state.with_changes(machines("c"))
    b = state.observed["b"]
    broken = msgspec.structs.replace(b, instances=(msgspec.structs.replace(b.instances[0], phase="unready"),))
    state, decision = decided(state.with_changes([*drained("a"), Change("observed", "b", broken)]))
    assert "a" in {where for _, where in places(state)}
    assert len(details(decision)) == 1
    state, _ = decided(state.with_changes([Change("observed", "b", b)]))
    assert "a" not in {where for _, where in places(state)}


def test_a_node_that_is_not_heard_counts_as_missing():
    state = settled(state_of(machines("a", "b"), limited(component(never_twice=True, per_site=2), per_site=1)))
    state = state.with_changes([*machines("c"), *drained("a")])
    later = NOW + 3_000
    _, decision = decided(beats(state, later, but={"b"}), later)
    assert len(details(decision)) == 1


def test_healing_is_never_kept_waiting():
    state = settled(state_of(machines("a", "b", "c"), limited(component(count=3, spread="node"), per_site=0)))
    later = NOW + 15_000
    state, _ = decided(beats(state, later, but={"a", "b"}), later)
    assert {where for _, where in places(state)} == {"c"}


def test_a_policy_that_turns_does_not_move_all_at_once():
    state = settled(state_of(machines("a"), limited(component(never_twice=True, count=3), per_site=1)))
    rule = policy(applies="true", forbid='node.name == "a"')
    state, least = least_working(state.with_changes([*machines("b"), rule]))
    assert {where for _, where in places(state)} == {"b"}
    assert least == 2


def test_nor_does_a_taint_or_a_home_of_data_that_changes():
    for change in ([node("a", taints=[Taint(key="t", effect="NoExecute")])], [site("berlin", residency="us")]):
        part = component(never_twice=True, count=3)
        part = msgspec.structs.replace(part, placement=msgspec.structs.replace(part.placement, residency=("eu",)))
        fleet = [*machines("a"), site("berlin", residency="eu")]
        state = settled(state_of(fleet, limited(part, per_site=1)))
        more = [*machines("b", at="lyon"), site("lyon", residency="eu")]
        state, least = least_working(state.with_changes([*more, *change]))
        assert {where for _, where in places(state)} == {"b"}
        assert least == 2


def test_a_rack_is_a_domain_of_its_own():
    """Three may be missing at the site, but of each rack one."""
    rows = [*machines("a", "b", "c", "d")]
    rows += [node(n, labels={"rack": rack}) for n, rack in zip("abcd", "1122", strict=True)]
    part = component(never_twice=True, per_site=4)
    state = settled(state_of(rows, limited(part, per_site=3, rack=1)))
    assert {where for _, where in places(state)} == set("abcd")
    racks = {n: {"rack": rack} for n, rack in zip("abcd", "1122", strict=True)}
    spare = [*machines("e", "f", "g", "h")]
    drain = [row for n in "abcd" for row in drained(n, labels=racks[n])]
    state, decision = decided(state.with_changes([*spare, *drain]))
    left = {where for _, where in places(state)}
    assert len(left & {"a", "b"}) == len(left & {"c", "d"}) == 1
    assert sorted(d.split(": ")[1] for d in details(decision)) == [
        "1 may be missing at rack 1, and read/berlin-0 is",
        "1 may be missing at rack 2, and read/berlin-2 is",
    ]
    state, least = least_working(obeys(state))
    assert least == 2
    assert {where for _, where in places(state)} == set("efgh")


def test_a_node_without_the_label_is_in_no_domain():
    state = settled(state_of(machines("a"), limited(component(never_twice=True, count=3), rack=0)))
    state, least = least_working(state.with_changes([*machines("b"), *drained("a")]))
    assert least == 0
    assert {where for _, where in places(state)} == {"b"}


def test_what_goes_to_another_site_is_missing_where_it_was_until_it_is_ready():
    state = settled(state_of(machines("a"), limited(component(never_twice=True, count=2), per_site=1)))
    state = state.with_changes([*machines("b", at="lyon"), *drained("a")])
    state, _ = decided(state)
    state, _ = decided(obeys(state))
    # Given at lyon and not yet ready there: the second one of berlin waits.
    assert places(state) == [("read-1-0", "b"), ("read-1-1", "a")]
    state = settled(obeys(state))
    assert {where for _, where in places(state)} == {"b"}


def test_a_move_that_was_asked_for_says_whose_budget_it_waits_for():
    state = settled(state_of(machines("a"), limited(component(never_twice=True, count=2), per_site=1)))
    rows = [
        Moving(namespace="default", application="app", component="read", slot=s, node="a", to="b", by="anna", at=NOW)
        for s in "01"
    ]
    state = state.with_changes([*machines("b"), *(Change("decided", row.key, row) for row in rows)])
    _, decision = decided(state)
    (waits,) = details(decision, "move_waits")
    assert "read/0 is" in waits


def test_machines_that_are_away_keep_nobody_waiting_for_what_runs_on_every_machine():
    part = component(never_twice=True, every_node=True, after_ms=60_000)
    state = settled(state_of(machines("a", "b", "c"), limited(part, per_site=1)))
    later = NOW + 5_000
    state = beats(state, later, but={"c"})
    new = component(never_twice=True, every_node=True, after_ms=60_000, command="new")
    state, decision = decided(state.with_changes([limited(new, per_site=1)]), later)
    assert len([1 for name, _ in places(state) if name.startswith("read-1-")]) == 2
    assert "disruption_budget" not in codes(decision)


def test_who_waits_for_a_budget_looks_again_when_room_comes_free_meanwhile():
    """Found by the twin: one below takes itself away in the same decision, and then the new one fits beside the old."""
    above, below = component(cpu=1_500), component(cpu=1_500, never_twice=True)
    start = [limited(above, per_site=0, priority=10), limited(below, name="below")]
    state = settled(state_of(machines("a", cpu=3_500), *start))
    new = [
        limited(component(cpu=1_500, command="new"), per_site=0, priority=10),
        limited(component(cpu=1_500, never_twice=True, command="new"), name="below"),
    ]
    state, _ = decided(state.with_changes(new))
    assert [name for name, _ in places(state)] == ["read-1-0", "read-2-0"]
