"""Who of the region gives a file, and what the links between rule: as the hub tells a node that asks."""

from __future__ import annotations

import msgspec

from batuta.core.decide import decide
from batuta.core.decided import Assignment, Instance, ModelOrder, assignment_key
from batuta.core.region import TOLD_MOST, depots, way
from batuta.core.state import Change
from batuta.core.touched import touched
from batuta.kinds.base import Bytes
from batuta.kinds.model import Variant
from batuta.kinds.site import Budget, Depot, Uplink
from tests.core.fleets import NOW, decided, machines, site, state_of

DIGEST = "sha256:" + "1" * 64
OFFERS = Depot(port=7424)


def fleet(*rows):
    """A country with two regions of two shops each; `north` and one shop of it have depots."""
    state = state_of(
        *machines("eu-0", at="eu"), *machines("north-0", "north-1", at="north"), *machines("a-0", at="a"),
        *machines("b-0", at="b"), *machines("c-0", at="c"), site("eu", depot=OFFERS),
        site("north", parent="eu", depot=OFFERS), site("south", parent="eu"), site("a", parent="north"),
        site("b", parent="north", depot=OFFERS), site("c", parent="south"), *rows,
    )  # fmt: skip
    return state.with_changes([gives(state, node) for node in ("eu-0", "north-0", "north-1", "b-0", "c-0")])


def gives(state, node, **more):
    report = msgspec.structs.replace(state.observed[node], depot=f"{node}:7424", **more)
    return Change("observed", node, report)


def told(state, at, now=NOW):
    return [each.node for each in depots(state, at, DIGEST, now)]


def test_the_nearest_come_first_above_then_beside_and_never_the_own_site() -> None:
    state = fleet()
    assert told(state, "a") == ["north-0", "north-1", "eu-0", "b-0"]
    assert told(state, "b") == ["north-0", "north-1", "eu-0"]
    assert told(state, "c") == ["eu-0", "north-0", "north-1"], "a region beside one's own, too, but not its shops"
    assert told(state, "north") == ["eu-0"]
    assert told(state, "eu") == told(state, "nowhere") == []
    assert "c-0" not in told(state, "south"), "a site without a depot gives nothing, whatever its nodes say"


def test_who_holds_it_comes_before_who_does_not_and_who_is_silent_is_not_told() -> None:
    state = fleet()
    state = state.with_changes([gives(state, "north-1", artifacts=(DIGEST,))])
    assert told(state, "a")[:2] == ["north-1", "north-0"]
    # Who is to run it is about to fetch it, and worth waiting for.
    variant = Variant(name="fp32", format="onnx", digest=DIGEST, size_bytes=Bytes(1))
    instance = Instance(
        namespace="default", application="a", component="c", revision=1, slot="0", epoch=1,
        model=ModelOrder(name="m", version="1", variant=variant),
    )  # fmt: skip
    row = Assignment(node="eu-0", site="eu", serial=9, instances=(instance,))
    due = state.with_changes([Change("decided", assignment_key("eu-0"), row)])
    assert [each.is_due for each in depots(due, "north", DIGEST, NOW)] == [True]
    holds = due.with_changes([gives(due, "eu-0", artifacts=(DIGEST,))])
    assert [each.is_due for each in depots(holds, "north", DIGEST, NOW)] == [False]
    silent = msgspec.structs.replace(state.observed["north-1"], depot="")
    assert "north-1" not in told(state.with_changes([Change("observed", "north-1", silent)]), "a")
    assert told(state, "a", now=NOW + 600_000) == []
    more = machines(*(f"north-{n}" for n in range(2, 9)), at="north")
    many = fleet(*more, site("north", parent="eu", depot=OFFERS))
    many = many.with_changes([gives(many, f"north-{n}") for n in range(2, 9)])
    assert len(told(many, "a")) == TOLD_MOST


def test_the_way_is_the_links_below_what_two_sites_have_in_common() -> None:
    state = fleet()
    assert [each.metadata.name for each in way(state, "a", "north")] == ["a"]
    assert [each.metadata.name for each in way(state, "a", "eu")] == ["a", "north"]
    assert [each.metadata.name for each in way(state, "a", "b")] == ["a"]
    assert [each.metadata.name for each in way(state, "c", "north")] == ["c", "south"]
    ruled = Uplink(budget=Budget(per_day=Bytes(10**9)))
    state = fleet(site("north", parent="eu", depot=OFFERS, uplink=ruled))
    metered = {each.node: each.is_metered for each in depots(state, "a", DIGEST, NOW)}
    assert metered == {"north-0": False, "north-1": False, "eu-0": True, "b-0": False}


def test_nodes_of_a_site_with_a_depot_are_told_its_port_and_again_when_it_changes() -> None:
    state, _ = decided(fleet())
    assert {name: row.depot_port for name, row in state.commons.items()} == {"eu": 7424, "north": 7424, "b": 7424}
    for depot, port in ((Depot(port=9000), 9000), (None, None)):
        after = state.with_changes([site("north", parent="eu", depot=depot)])
        subjects = touched(state, after, NOW, NOW)
        (change,) = decide(after, NOW, subjects).changes
        assert (change.key, change.value.depot_port) == ("commons.north", port)
        assert decide(after, NOW).changes == (change,)
        assert change.value.serial > state.commons["north"].serial
