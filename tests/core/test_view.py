"""Tables for status and why: closed words, figures that match, reasons that say what is so."""

from __future__ import annotations

import msgspec
import pytest

from batuta.core import words
from batuta.core.observed import InstanceReport, Measures
from batuta.core.reasons import Reason
from batuta.core.state import Change, State
from batuta.core.view import status
from batuta.core.why import why
from batuta.kinds import KINDS
from batuta.kinds.base import Metadata, Ref
from batuta.kinds.flag import Flag, FlagSpec
from batuta.kinds.scenario import Group, Scenario, ScenarioSpec
from tests.core.fleets import (
    APP,
    NOW,
    application,
    beats,
    component,
    decided,
    heard,
    machines,
    model,
    no_application,
    node,
    obeys,
    places,
    policy,
    report,
    settled,
    site,
    state_of,
)

THE_APP = Ref("applications", "default", "app")


def node_of(state: State, name: str = "a", now: int = NOW) -> dict:
    return status(state, Ref("nodes", "", name), now)


def app_of(state: State, now: int = NOW) -> dict:
    return status(state, THE_APP, now)


def says(state: State, **fields) -> State:
    return state.with_changes([Change("observed", "a", msgspec.structs.replace(state.observed["a"], **fields))])


def phase(state: State, word: str, reason: Reason | None = None) -> State:
    (instance,) = state.assignments["a"].instances
    said = InstanceReport(name=instance.name, epoch=instance.epoch, phase=word, since=NOW, reason=reason)
    return says(state, instances=(said,), serial=state.assignments["a"].serial)


# --- Words ------------------------------------------------------------------------------------------------------------


def test_every_word_that_is_not_well_has_a_meaning_and_an_exit():
    for row in words.WORDS.values():
        assert row.meaning
        assert row.next_step or row.word in ("ok", "online", "in-sync")
    for group in (words.LINK, words.SYNC, words.HEALTH, words.APPLICATION, words.MODEL):
        assert set(group) <= set(words.WORDS)


@pytest.mark.parametrize(
    ("parts", "word"),
    [
        (["online", "in-sync", "ok"], "ok"),
        (["online", "updating", "ok"], "updating"),
        (["offline", "deferred", "unknown"], "offline"),
        (["online", "in-sync", "degraded"], "degraded"),
        (["unassigned", "unassigned"], "unassigned"),
        ([], "ok"),
    ],
)
def test_a_roll_up_is_the_worst(parts, word):
    assert words.worst(parts) == word


# --- Nodes ------------------------------------------------------------------------------------------------------------


def facets(found: dict) -> tuple[str, str, str, str]:
    return found["state"], found["link"]["word"], found["sync"]["word"], found["health"]["word"]


def test_the_states_of_a_node():
    fresh = settled(state_of(machines("a")))
    assert facets(node_of(fresh)) == ("unassigned", "online", "unassigned", "ok")
    assert facets(node_of(state_of(site("berlin"), node("a")))) == ("never", "never", "unassigned", "unknown")
    told, _ = decided(fresh.with_changes([application()]))
    assert facets(node_of(told)) == ("updating", "online", "updating", "ok")
    away = told.with_changes([heard("a", NOW - 20_000)])
    assert facets(node_of(away)) == ("offline", "offline", "deferred", "unknown")
    assert node_of(away)["since"] == NOW - 20_000
    well = obeys(told)
    assert facets(node_of(well)) == ("ok", "online", "in-sync", "ok")
    assert node_of(well)["instances"] == "1/1"
    assert facets(node_of(well, now=NOW + 4_000)) == ("late", "late", "in-sync", "ok")
    assert facets(node_of(phase(told, "starting"))) == ("updating", "online", "updating", "ok")
    assert facets(node_of(phase(told, "unready"))) == ("degraded", "online", "in-sync", "degraded")
    crashed = Reason(code="exited", subject="instance/read-1-0", detail="exit status 1")
    assert facets(node_of(phase(told, "backoff", crashed))) == ("failing", "online", "in-sync", "failing")
    assert "exit status 1" in node_of(phase(told, "backoff", crashed))["reason"]
    assert facets(node_of(phase(told, "refused", crashed))) == ("failing", "online", "failed", "failing")
    other = says(well, instances=(InstanceReport(name="default/app/x-1-0", epoch=1, phase="ready", since=NOW),))
    assert node_of(other)["sync"]["word"] == "drifted"
    ill = says(well, problems=(Reason(code="disk_full", subject="node/a"),))
    assert facets(node_of(ill)) == ("degraded", "online", "in-sync", "degraded")


def test_what_was_taken_from_a_node_ails_it_no_more_though_its_last_report_tells_of_it():
    state, _ = decided(settled(state_of(machines("a"))).with_changes([application()]))
    failing = phase(state, "backoff", Reason(code="exited", subject="instance/read-1-0", detail="exit status 1"))
    assert node_of(failing)["health"]["word"] == "failing"
    taken, _ = decided(failing.with_changes([no_application()]))
    assert facets(node_of(taken)) == ("updating", "online", "updating", "ok")


def test_the_columns_of_every_kind_are_there():
    rows = (machines("a"), site("berlin"), model("1"), application(component(model="1")), policy(require="true"))
    played = Scenario(metadata=Metadata(name="one"), spec=ScenarioSpec(fleet=(Group(name="n", nodes=1),)))
    flag = Flag(metadata=Metadata(name="one"), spec=FlagSpec(variants={"a": 1}, default="a"))
    declared = (Change("desired", each.ref.key, each) for each in (played, flag))
    state = settled(state_of(*rows, *declared))
    for kind in KINDS:
        refs = [r.ref for r in state.desired.values() if isinstance(r, kind)]
        assert refs
        for _, path in kind.columns:
            head, *rest = path.split(".")
            if head != "status":
                continue
            found = status(state, refs[0], NOW)
            for key in rest:
                assert key in found, f"{kind.__name__}: {path}"
                found = found[key]


def test_status_does_not_change_because_time_passes():
    """Or a watch would never be quiet."""
    state = settled(state_of(machines("a", "b"), model("1"), application(component(model="1"))))
    refs = [r.ref for r in state.desired.values()]
    assert [status(state, r, NOW) for r in refs] == [status(state, r, NOW + 1_000) for r in refs]
    lost = beats(state, NOW + 60_000, but={"a"})
    assert [status(lost, r, NOW + 60_000) for r in refs] == [status(lost, r, NOW + 61_000) for r in refs]


# --- Sites and models -------------------------------------------------------------------------------------------------


def test_a_site_is_as_bad_as_its_worst_node_also_below():
    state = settled(state_of(site("eu"), machines("a", "b"), machines("c", at="lyon"), site("lyon", parent="eu")))
    eu = Ref("sites", "", "eu")
    assert status(state, eu, NOW)["state"] == "unassigned"
    assert (status(state, eu, NOW)["nodes"], status(state, eu, NOW)["online"]) == (1, 1)
    assert status(state.with_changes([heard("c", NOW - 60_000)]), eu, NOW)["state"] == "offline"
    assert status(state_of(site("eu")), eu, NOW)["state"] == "empty"
    ring = state_of(site("eu", parent="de"), site("de", parent="eu"))
    assert status(ring, eu, NOW)["state"] == "empty"


def test_the_states_of_a_model():
    digits = Ref("models", "default", "digits")
    rows = state_of(machines("a"), model("1"))
    assert status(state_of(model()), digits, NOW)["state"] == "empty"
    assert status(rows, digits, NOW)["state"] == "unused"
    told, _ = decided(rows.with_changes([application(component(model="1"))]))
    assert status(told, digits, NOW)["state"] == "waiting"
    found = status(obeys(told), digits, NOW)
    assert (found["state"], found["running"], found["versions"]) == ("ok", 1, "1")


# --- Applications -----------------------------------------------------------------------------------------------------


def app_states() -> list[tuple[str, State, str, str]]:
    base = state_of(machines("a"))
    told, _ = decided(base.with_changes([application()]))
    well = obeys(told)
    crashed = Reason(code="exited", subject="instance/read-1-0")
    new, _ = decided(well.with_changes([application(component(command="new"))]))
    half, _ = decided(base.with_changes([application(component(count=2, cpu=3000))]))
    return [
        ("declared", base.with_changes([application()]), "updating", "0/0"),
        ("starting", told, "waiting", "0/1"),
        ("well", well, "ok", "1/1"),
        ("replacing", new, "updating", "1/1"),
        ("crashing", phase(told, "backoff", crashed), "failing", "0/1"),
        ("exited", phase(told, "refused", crashed), "failing", "0/1"),
        ("half", obeys(half), "degraded", "1/2"),
        ("too big", decided(base.with_changes([application(component(cpu=9000))]))[0], "failing", "0/1"),
        ("no model", decided(base.with_changes([application(component(model="1"))]))[0], "failing", "0/0"),
        ("no fleet", decided(state_of(application(component(per_site=1))))[0], "waiting", "0/0"),
        ("none wanted", settled(base.with_changes([application(component(count=0))])), "unassigned", "0/0"),
        ("silent", well.with_changes([heard("a", NOW - 60_000)]), "unknown", "0/1"),
        ("blip", well.with_changes([heard("a", NOW - 4_000)]), "ok", "1/1"),
    ]


@pytest.mark.parametrize(("state", "word", "ready"), [s[1:] for s in app_states()], ids=[s[0] for s in app_states()])
def test_the_states_of_an_application(state, word, ready):
    found = app_of(state)
    assert (found["state"], found["ready"]) == (word, ready)
    assert found["state"] in words.APPLICATION
    is_ready = ready == "1/1" or word == "unassigned"
    assert {c["type"]: c["status"] for c in found["conditions"]}["Ready"] == str(is_ready)
    if word in ("failing", "degraded"):
        assert found["reason"]
        assert found["next"]


def test_an_application_says_where_each_instance_is_and_what_it_measures():
    state = settled(state_of(machines("a"), model("1"), application(component(model="1"))))
    said = msgspec.structs.replace(state.observed["a"].instances[0], measures=Measures(received=7, answered=7))
    (part,) = app_of(says(state, instances=(said,)))["components"]
    (instance,) = part["instances"]
    assert (part["name"], part["ready"], part["wanted"]) == ("read", 1, 1)
    assert instance["node"] == "a"
    assert instance["name"] == "default/app/read-1-0"
    assert instance["measures"]["received"] == 7
    assert instance["model"] == {"name": "digits", "version": "1", "variant": "fp32"}


def test_asking_for_status_or_why_changes_no_decision():
    state, _ = decided(state_of(machines("a", "b"), application(component(count=9, cpu=1500))))
    before, _ = decided(state)
    for _ in range(3):
        app_of(state)
        why(state, NOW, APP)
    assert decided(state)[0].decided == before.decided


# --- Why --------------------------------------------------------------------------------------------------------------


def test_why_here():
    rows = [*machines("a", "b"), Change("observed", "b", report("b", topics={"cameras/+/frame": 9}))]
    state = settled(state_of(rows, application(component(near=["cameras/+/frame"]))))
    (slot,) = why(state, NOW, APP)
    (holder,) = slot["holders"]
    assert (slot["state"], holder["node"], holder["rule"], holder["ready"]) == ("placed", "b", "all is well", True)
    assert holder["parts"]["near"] == 800
    assert holder["score"] == sum(holder["parts"].values())


def test_why_not_there():
    state = settled(state_of(machines("a"), machines("b", cpu=50), application()))
    (slot,) = why(state, NOW, APP, node="b")
    assert slot["asked"]["reason"]["sentence"] == "node/b: too little processor time is free (50m free, 100m needed)"
    assert why(state, NOW, APP, node="z")[0]["asked"]["reason"]["code"] == "no_node"
    assert why(state, NOW, APP, component="other") == []


def test_why_not_ready_in_the_nodes_own_words():
    state = settled(state_of(machines("a"), application()))
    ill = phase(state, "backoff", Reason(code="digest_mismatch", subject="instance/x", detail="5 bytes from the hub"))
    (holder,) = why(ill, NOW, APP)[0]["holders"]
    assert (holder["verdict"], holder["ready"], holder["reason"]["code"]) == ("keep", False, "digest_mismatch")
    assert holder["reason"]["sentence"].endswith("(5 bytes from the hub)")
    assert holder["reason"]["next"] == "push the artifact again"
    assert "reason" not in why(state, NOW, APP)[0]["holders"][0]


def test_why_nowhere_and_what_came_nearest():
    rows = [*machines("a", memory=100), *machines("b", memory=160), *machines("c", memory=900), node("c", taints=[])]
    off = heard("c", NOW - 60_000)
    state, _ = decided(state_of(rows, off, application(component(memory=256))))
    (slot,) = why(state, NOW, APP)
    assert slot["state"] == "unplaced"
    assert slot["refused"] == {"node_offline": 1, "memory_short": 2}
    assert slot["nearest"]["says"] == "needs 96Mi more on b"
    assert slot["reasons"][0]["code"] == "nothing_fits"


def test_why_a_wait():
    state = settled(state_of(machines("a", "b"), application(component(never_twice=True, after_ms=2_000))))
    state = beats(state, NOW + 5_000, but={"a"})
    (slot,) = why(state, NOW + 5_000, APP)
    assert slot["holders"][0]["verdict"] == "wait"
    (reason,) = slot["reasons"]
    assert (reason["code"], reason["waits"], reason["next"]) == ("may_be_alive", True, "wait for the lease")


def test_why_unresolved_and_unwanted():
    state, _ = decided(state_of(machines("a"), application(component(model="1"))))
    assert [(e["state"], e["reasons"][0]["code"]) for e in why(state, NOW, APP)] == [("unresolved", "model_missing")]
    state, _ = decided(state_of(machines("a"), application(component(per_site=1, where="node.cpu > 99999"))))
    assert [(e["state"], e["reasons"][0]["code"]) for e in why(state, NOW, APP)] == [("unwanted", "nothing_fits")]
    assert places(state) == []
