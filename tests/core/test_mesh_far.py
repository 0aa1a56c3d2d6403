"""Who serves elsewhere, as the hub tells: nearest first, only what is ready, and of every version by its alias too."""

from __future__ import annotations

import msgspec

from batuta.core.mesh_far import TOLD_MOST, FarWanted, elsewhere, namespaces_of, serving, version_meant
from batuta.core.state import Change
from tests.core.fleets import NOW, application, component, machines, model, node, settled, site, state_of

DIGITS = FarWanted(namespace="default", model="digits")


def fleet(*rows, per_site=1):
    """Two sites of one region, one of another, one of none; a model at each."""
    read = component(per_site=per_site, model="1")
    return settled(
        state_of(
            *machines("b1", at="berlin"), *machines("h1", at="hamburg"), *machines("p1", at="paris"),
            *machines("x1", at="nowhere"), site("de", parent="eu"), site("eu"), site("fr", parent="eu"),
            site("berlin", parent="de"), site("hamburg", parent="de"), site("paris", parent="fr"),
            model("1", "2"), application(read), *rows,
        )
    )  # fmt: skip


def told(state, asker="b1", wanted=DIGITS, now=NOW):
    return [(each.node, each.nearness) for each in elsewhere(state, asker, serving(state, wanted, now))]


def test_the_nearest_come_first_and_the_own_site_is_left_to_its_cards() -> None:
    state = fleet()
    assert told(state) == [("h1", "region"), ("p1", "region"), ("x1", "hub")]
    assert told(state, "x1") != []
    assert {nearness for _, nearness in told(state, "x1")} == {"hub"}
    assert told(state, "nobody") == []


def test_only_what_is_ready_and_online_is_told() -> None:
    state = fleet()
    report = state.observed["h1"]
    unready = msgspec.structs.replace(report, instances=tuple(
        msgspec.structs.replace(each, phase="unready") for each in report.instances
    ))  # fmt: skip
    assert "h1" not in dict(told(state.with_changes([Change("observed", "h1", unready)])))
    assert told(state, now=NOW + 600_000) == []


def test_versions_aliases_and_applications_are_told_apart() -> None:
    named = model("1", "2").value
    spec = msgspec.structs.replace(named.spec, aliases={"champion": "1", "challenger": "2"})
    state = fleet(Change("desired", named.ref.key, msgspec.structs.replace(named, spec=spec)))
    for version, count in (("1", 3), ("champion", 3), ("2", 0), ("challenger", 0), ("nothing", 0)):
        assert len(told(state, wanted=msgspec.structs.replace(DIGITS, version=version))) == count
        meant = {"champion": "1", "challenger": "2"}.get(version, version)
        assert version_meant(state, msgspec.structs.replace(DIGITS, version=version)) == meant
    assert told(state, wanted=msgspec.structs.replace(DIGITS, application="other")) == []
    assert told(state, wanted=msgspec.structs.replace(DIGITS, application="app")) != []
    assert told(state, wanted=FarWanted(namespace="team", model="digits")) == []


def test_namespaces_are_those_of_what_a_node_runs_and_lists_are_bounded() -> None:
    state = fleet(*(row for i in range(12) for row in machines(f"f{i}", at=f"site-{i}")))
    assert namespaces_of(state, "b1") == ("default",)
    assert namespaces_of(state, "nobody") == ()
    assert namespaces_of(state_of(*machines("b1"), node("b2")), "b2") == ()
    assert len(told(state)) == TOLD_MOST
    # Everybody has another order among equals: not all run to the same few.
    firsts = {tuple(told(state, f"f{i}")) for i in range(12)}
    assert len(firsts) > 6
