"""Tables of (state, now) → Decision: releases, slots, placing, replacing, healing, assignments."""

from __future__ import annotations

import msgspec
import pytest

from batuta.core.decide import decide
from batuta.core.observed import Flow, InstanceReport, Sighting
from batuta.core.reasons import CATALOGUE
from batuta.core.state import Change, State
from batuta.kinds.application import Toleration
from batuta.kinds.base import decode_hook, encode_hook
from batuta.kinds.node import Taint
from tests.core.fleets import (
    APP,
    MIB,
    NOW,
    application,
    codes,
    component,
    decided,
    heard,
    holder,
    machines,
    model,
    no_application,
    node,
    obeys,
    places,
    report,
    settled,
    site,
    state_of,
)


def revisions(state: State, app: str = APP) -> list[tuple[int, list[int]]]:
    return [(r.revision, [c.revision for c in r.components]) for r in state.releases.get(app, ())]


# --- Releases ---------------------------------------------------------------------------------------------------------


def test_an_empty_hub_decides_nothing():
    assert decide(State(), NOW) == ((), {}, frozenset(), None)


def test_a_release_is_made_once_and_changes_only_what_changed():
    state = settled(state_of(machines("a", "b"), application(component("x"), component("y"))))
    assert revisions(state) == [(1, [1, 1])]
    state = settled(state.with_changes([application(component("x", command="new"), component("y"))]))
    assert revisions(state) == [(1, [1, 1]), (2, [2, 1])]
    assert [name for name, _ in places(state)] == ["x-2-0", "y-1-0"]


@pytest.mark.parametrize(
    "again", [component(count=2), component(where="node.cpu > 1"), component(after_ms=5_000), component(spread="node")]
)
def test_how_many_and_where_restarts_nothing(again):
    state = settled(state_of(machines("a", "b"), application(component())))
    before = places(state)
    state = settled(state.with_changes([application(again)]))
    assert revisions(state)[-1] == (2, [1])
    assert set(before) <= set(places(state))


def test_a_missing_model_is_a_reason_and_the_previous_release_keeps_running():
    state = settled(state_of(machines("a"), model("1"), application(component(model="1"))))
    state, decision = decided(state.with_changes([application(component(model="2"))]))
    assert codes(decision) == ["version_missing"]
    assert "there is: 1" in decision.reasons[APP][0].detail
    assert places(state) == [("read-1-0", "a")]
    assert decision.pending == {APP}
    state = settled(state.with_changes([model("1", "2")]))
    assert places(state) == [("read-2-0", "a")]
    assert codes(decided(state_of(application(component(model="1"))))[1]) == ["model_missing"]


def test_another_variant_restarts_nothing_but_other_bytes_do():
    rows = (machines("a"), model("1"), application(component(model="1")))
    state = settled(state_of(*rows))
    bigger = model("1").value
    version = bigger.spec.versions[0]
    more = msgspec.structs.replace(version.variants[1], name="int4")
    added = msgspec.structs.replace(version, variants=(*version.variants, more))
    state = settled(
        state.with_changes([Change("desired", bigger.ref.key, msgspec.structs.replace(
            bigger, spec=msgspec.structs.replace(bigger.spec, versions=(added,))))])
    )  # fmt: skip
    assert revisions(state)[-1] == (2, [1])
    assert places(state) == [("read-1-0", "a")]


def test_ten_releases_are_kept():
    state = state_of(machines("a"))
    for k in range(14):
        state = settled(state.with_changes([application(component(command=f"run-{k}"))]))
    assert [r for r, _ in revisions(state)] == list(range(5, 15))


def test_what_nobody_wants_any_more_goes():
    state = settled(state_of(machines("a"), application(component(count=2))))
    state = settled(state.with_changes([no_application()]))
    assert places(state) == []
    assert not state.releases
    assert state.assignments["a"].instances == ()


# --- Slots ------------------------------------------------------------------------------------------------------------


def test_slots_by_count_site_and_node():
    fleet = [*machines("a", "b"), *machines("c", at="lyon"), site("empty")]
    parts = (component("n", count=2), component("s", per_site=1), component("e", every_node=True))
    state = settled(state_of(fleet, application(*parts)))
    assert [name for name, _ in places(state)] == [
        "e-1-a", "e-1-b", "e-1-c", "n-1-0", "n-1-1", "s-1-berlin-0", "s-1-lyon-0",
    ]  # fmt: skip
    assert dict(places(state))["e-1-b"] == "b"
    assert dict(places(state))["s-1-lyon-0"] == "c"


def test_fewer_replicas_are_the_last_ones_less():
    state = settled(state_of(machines("a", "b", "c"), application(component(count=12))))
    state = settled(state.with_changes([application(component(count=10))]))
    assert sorted(int(name.split("-")[2]) for name, _ in places(state)) == list(range(10))


def test_a_condition_says_which_sites_and_nodes_are_meant():
    fleet = [*machines("a", "b"), *machines("c", at="lyon"), node("b", labels={"camera": "1"})]
    where = '"camera" in node.labels'
    parts = (component("s", per_site=1, where=where), component("e", every_node=True, where=where))
    state = settled(state_of(fleet, application(*parts)))
    assert places(state) == [("e-1-b", "b"), ("s-1-berlin-0", "b")]


def test_a_second_replica_of_a_site_never_shares_a_node():
    state, decision = decided(state_of(machines("a"), application(component(per_site=2))))
    assert places(state) == [("read-1-berlin-0", "a")]
    assert codes(decision) == ["nothing_fits"]
    assert decision.reasons[APP][0].detail == "1 already_here"
    state = settled(state.with_changes(machines("b")))
    assert places(state) == [("read-1-berlin-0", "a"), ("read-1-berlin-1", "b")]


def test_nowhere_to_follow_the_fleet_to():
    assert codes(decided(state_of(application(component(per_site=1))))[1]) == ["no_site"]
    assert codes(decided(state_of(application(component(every_node=True))))[1]) == ["no_node"]
    assert codes(decided(state_of(application(component(count=1))))[1]) == ["no_node"]
    where = decided(state_of(machines("a"), application(component(per_site=1, where="node.cpu > 99999"))))[1]
    assert where.reasons[APP][0].detail == "1 condition_false"


# --- Placing: each filter says no with its own Reason -----------------------------------------------------------------

REFUSALS = [
    ("node_offline", [heard("a", NOW - 2_500)], component()),
    ("node_offline", [Change("sightings", "a", None)], component()),
    ("node_offline", [Change("sightings", "a", Sighting(last_seen=NOW, online_since=0, disconnected_at=NOW))],
     component()),
    ("node_unschedulable", [node("a", unschedulable=True)], component()),
    ("node_unreported", [Change("observed", "a", None)], component()),
    ("taint_not_tolerated", [node("a", taints=[Taint(key="gpu")])], component()),
    ("runtime_missing", [Change("observed", "a", report("a", runtimes=["process"]))], component(model="1")),
    ("condition_false", [], component(where='node.os == "plan9"')),
    ("condition_fault", [], component(where="node.labels.camera == 'yes'")),
    ("cpu_short", [], component(cpu=5000)),
    ("memory_short", [], component(memory=2000)),
    ("variant_unfit", [Change("observed", "a", report("a", memory=30))], component(model="1", memory=16)),
]  # fmt: skip


@pytest.mark.parametrize(("code", "rows", "part"), REFUSALS, ids=[f"{c}-{i}" for i, (c, _, _) in enumerate(REFUSALS)])
def test_each_filter_says_no(code, rows, part):
    state, decision = decided(state_of(machines("a"), model("1"), rows, application(part)))
    assert places(state) == []
    assert codes(decision) == ["nothing_fits"]
    assert decision.reasons[APP][0].detail == f"1 {code}"
    assert code in CATALOGUE
    assert decision.pending == {APP}


def test_a_toleration_lets_it_in():
    rows = [*machines("a"), node("a", taints=[Taint(key="gpu", value="t4")])]
    ok = application(component(tolerations=[Toleration(key="gpu")]))
    assert places(settled(state_of(rows, ok))) == [("read-1-0", "a")]
    other = application(component(tolerations=[Toleration(key="gpu", value="a100")]))
    assert places(decided(state_of(rows, other))[0]) == []


@pytest.mark.parametrize(
    ("memory", "variant", "request_mib"), [(100, "fp32", 64), (40, "int8", 32)]
)  # the first listed that fits
def test_the_variant_is_chosen_by_the_node(memory, variant, request_mib):
    rows = [*machines("a"), Change("observed", "a", report("a", memory=memory))]
    state = settled(state_of(rows, model("1"), application(component(model="1", memory=16))))
    instance = state.held[APP][0].instance
    assert (instance.model.variant.name, instance.memory_bytes) == (variant, request_mib * MIB)


def test_replicas_are_kept_apart_and_share_when_they_must():
    state = settled(state_of(machines("a", "b", "c"), application(component(count=3))))
    assert {n for _, n in places(state)} == {"a", "b", "c"}
    state = settled(state_of(machines("a"), application(component(count=3))))
    assert len(places(state)) == 3


def test_spread_over_sites():
    fleet = [*machines("a", "b", "c"), *machines("x", at="lyon", cpu=1000)]
    state = settled(state_of(fleet, application(component(count=2, spread="site"))))
    assert {n for _, n in places(state)} & {"x"}


@pytest.mark.parametrize(
    "said", [{"topics": {"cameras/+/frame": 500}}, {"flows": (Flow(consumer="default_app_read", produced=500),)}]
)
def test_data_gravity_pulls_to_the_publisher(said):
    fleet = [*machines("a", "b"), *machines("c", at="lyon"), Change("observed", "c", report("c", **said))]
    state = settled(state_of(fleet, application(component(near=["cameras/+/frame"]))))
    assert places(state) == [("read-1-0", "c")]
    assert state.commons["berlin"].watched == ("cameras/+/frame",)


def test_the_artifact_that_is_there_already_decides_among_equals():
    digest = model("1").value.spec.versions[0].variants[0].digest
    rows = [*machines("a", "b"), Change("observed", "b", report("b", artifacts=(digest,)))]
    assert places(settled(state_of(rows, model("1"), application(component(model="1"))))) == [("read-1-0", "b")]


def test_names_break_ties_and_room_decides_before():
    assert places(settled(state_of(machines("b", "a"), application()))) == [("read-1-0", "a")]
    rows = [*machines("a", "b"), Change("observed", "a", report("a", cpu=400))]
    assert places(settled(state_of(rows, application()))) == [("read-1-0", "b")]


def test_two_programs_at_one_port_never_share_a_node():
    state, decision = decided(state_of(machines("a"), application(component(count=2, port=8080))))
    assert len(places(state)) == 1
    assert decision.reasons[APP][0].detail == "1 already_here"


def test_room_freed_by_a_later_application_is_used_in_the_same_decision():
    big = application(component(cpu=3500), name="zzz")
    state = settled(state_of(machines("a"), big))
    state, decision = decided(state.with_changes([application(component(cpu=3000))]))
    assert places(state) == []
    assert decision.pending == {APP}
    state, _ = decided(state.with_changes([no_application("zzz")]))
    assert places(state) == [("read-1-0", "a")]


# --- Replacing --------------------------------------------------------------------------------------------------------


def test_new_before_old_on_the_same_node_and_old_goes_when_new_is_ready():
    state = settled(state_of(machines("a", "b"), application(component())))
    (_, home), *_ = places(state)
    state, decision = decided(state.with_changes([application(component(command="new"))]))
    assert places(state) == [("read-1-0", home), ("read-2-0", home)]
    assert codes(decision) == ["replacing"]
    state, decision = decided(obeys(state, ready=False))
    assert places(state) == [("read-1-0", home), ("read-2-0", home)]
    state, _ = decided(obeys(state))
    assert places(state) == [("read-2-0", home)]


def test_one_replica_at_a_time_so_a_bad_version_never_takes_them_all():
    state = settled(state_of(machines("a", "b", "c"), application(component(count=3))))
    state, decision = decided(state.with_changes([application(component(count=3, command="bad"))]))
    for _ in range(5):
        assert sum(name.startswith("read-2") for name, _ in places(state)) == 1
        assert sum(name.startswith("read-1") for name, _ in places(state)) == 3
        state, decision = decided(obeys(state, ready=False))
    assert codes(decision) == ["replacing"] * 3
    # A repaired version replaces the one that never worked first.
    state, _ = decided(state.with_changes([application(component(count=3, command="good"))]))
    assert sorted(n for n, _ in places(state)) == ["read-1-0", "read-1-1", "read-1-2", "read-3-0"]
    assert [name for name, _ in places(settled(obeys(state)))] == ["read-3-0", "read-3-1", "read-3-2"]


def test_where_both_do_not_fit_the_old_one_goes_first():
    state = settled(state_of(machines("a", "b"), application(component(every_node=True, cpu=3000))))
    state, decision = decided(state.with_changes([application(component(every_node=True, cpu=3000, command="new"))]))
    assert codes(decision) == ["making_room", "replacing"]
    assert places(state) == [("read-1-b", "b"), ("read-2-a", "a")]
    assert places(settled(obeys(state))) == [("read-2-a", "a"), ("read-2-b", "b")]


def test_a_program_that_owns_a_port_is_replaced_elsewhere_or_after_the_old_one():
    old, new = component(port=8080), component(port=8080, command="new")
    alone = settled(state_of(machines("a"), application(old)))
    after, decision = decided(alone.with_changes([application(new)]))
    assert (places(after), codes(decision)) == ([("read-2-0", "a")], ["making_room"])
    both = settled(state_of(machines("a", "b"), application(old)))
    after, _ = decided(both.with_changes([application(new)]))
    assert places(after) == [("read-1-0", "a"), ("read-2-0", "b")]


def test_what_fits_nowhere_leaves_the_old_one_running():
    state = settled(state_of(machines("a"), application(component())))
    state, decision = decided(state.with_changes([application(component(cpu=9000))]))
    assert places(state) == [("read-1-0", "a")]
    assert codes(decision) == ["nothing_fits"]


# --- Assignments ------------------------------------------------------------------------------------------------------


def test_every_node_knows_its_site_its_peers_and_its_elders():
    rows = [*machines("a", "b", "c"), node("c", born="2025-01-01"), Change("observed", "b", report("b"))]
    no_address = msgspec.structs.replace(report("a"), address="")
    state, _ = decided(state_of(rows, Change("observed", "a", no_address)))
    assert {n: (a.site, a.serial, [p.node for p in a.peers], a.elders) for n, a in state.assignments.items()} == {
        "a": ("berlin", 1, ["c", "b"], ("c",)),
        "b": ("berlin", 1, ["c"], ("c", "a")),
        "c": ("berlin", 1, ["b"], ()),
    }


def test_all_nodes_of_a_site_store_what_its_models_read():
    state = settled(
        state_of(machines("a", "b"), machines("x", at="lyon"), model("1"), application(component(model="1")))
    )
    home = state.assignments[holder(state)].site
    assert state.commons.keys() == {home}
    (capture,) = state.commons[home].captures
    assert (capture.consumer, capture.topics) == ("default_app_read", ("cameras/+/frame",))


def test_the_serial_rises_only_with_the_content_and_above_what_the_node_follows():
    state = settled(state_of(machines("a"), application()))
    assert state.assignments["a"].serial == 1
    assert decide(state, NOW).changes == ()
    ahead = msgspec.structs.replace(state.observed["a"], serial=41)
    state, _ = decided(state.with_changes([Change("observed", "a", ahead)]))
    assert state.assignments["a"].serial == 42


def test_wake_at_is_when_the_next_node_would_be_missed():
    state = settled(state_of(machines("a", "b"), application()))
    assert decide(state, NOW).wake_at == NOW + 2_000
    assert decide(state_of(machines("a", "b")), NOW).wake_at is None


def test_an_instance_that_was_ready_elsewhere_or_before_does_not_count():
    state = settled(state_of(machines("a", "b"), application()))
    state, _ = decided(state.with_changes([application(component(command="new"))]))
    home = holder(state)
    stale = msgspec.structs.replace(
        state.observed[home],
        instances=(InstanceReport(name="default/app/read-2-0", epoch=1, phase="ready", since=NOW),),
    )
    after, _ = decided(state.with_changes([Change("observed", home, stale)]))
    assert len(places(after)) == 2


def test_what_was_decided_survives_the_wire():
    """Or a restarted hub would make a new release of everything."""
    part = component(model="1", never_twice=True, near=["cameras/+/frame"], where="node.cpu > 1", port=None)
    parts = (part, component("web", port=8080, tolerations=[Toleration(key="x")]))
    state = settled(state_of(machines("a", "b"), model("1"), application(*parts)))
    rows = []
    for table in ("desired", "decided", "observed"):
        for key, value in getattr(state, table).items():
            sent = msgspec.json.encode(value, enc_hook=encode_hook)
            rows.append(Change(table, key, msgspec.json.decode(sent, type=type(value), dec_hook=decode_hook)))
    again = State(hub_since=NOW - 60_000).with_changes(rows)
    again = again.with_changes([heard("a", NOW), heard("b", NOW)])
    assert again.decided == state.decided
    assert decide(again, NOW).changes == ()


def test_a_model_waits_for_the_first_node():
    _, decision = decided(state_of(model("1"), application(component(model="1"))))
    assert codes(decision) == ["no_node"]
