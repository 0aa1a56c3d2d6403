"""Tables for what a node must be and what makes it better: each row refuses with its Reason and its figures."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest

from batuta.core.cards import Card, allot
from batuta.core.decide import decide
from batuta.core.load import WHOLE
from batuta.core.observed import Accelerator, InstanceReport, Measures
from batuta.core.state import Change
from batuta.core.why import why
from batuta.kinds.application import AcceleratorNeed, Component, Slo
from batuta.kinds.base import Bytes, Millis
from batuta.kinds.model import Profile
from batuta.kinds.node import Power
from batuta.kinds.site import Uplink
from tests.core.fleets import (
    APP,
    MIB,
    NOW,
    application,
    component,
    heard,
    machines,
    model,
    node,
    obeys,
    places,
    report,
    settled,
    site,
    state_of,
)


def on(*rows) -> list[str]:
    return [name for _, name in places(settled(state_of(*rows)))]


def has(name: str, *, vitals: dict[str, Any] | None = None, **inventory) -> Change:
    """What a node reports: like all others, but for this."""
    told = report(name)
    return Change(
        "observed",
        name,
        msgspec.structs.replace(
            told,
            inventory=msgspec.structs.replace(told.inventory, **inventory),
            vitals=msgspec.structs.replace(told.vitals, **(vitals or {})),
        ),
    )


def needs(part: Component | None = None, *, process: dict[str, Any] | None = None, **resources) -> Component:
    part = part or component()
    changed = msgspec.structs.replace(part, resources=msgspec.structs.replace(part.resources, **resources))
    if process:
        changed = msgspec.structs.replace(changed, process=msgspec.structs.replace(part.process, **process))
    return changed


def lives(*homes: str, part: Component | None = None) -> Component:
    part = part or component()
    return msgspec.structs.replace(part, placement=msgspec.structs.replace(part.placement, residency=homes))


def within(ms: int) -> Component:
    return msgspec.structs.replace(component(model="1"), slo=Slo(p99_ms=Millis(ms)))


def variants(**changes: dict[str, Any]) -> Change:
    """The model `digits`, with other facts for `fp32` or `int8`."""
    change = model("1")
    (version,) = change.value.spec.versions
    each = tuple(msgspec.structs.replace(v, **changes.get(v.name, {})) for v in version.variants)
    spec = msgspec.structs.replace(change.value.spec, versions=(msgspec.structs.replace(version, variants=each),))
    return change._replace(value=msgspec.structs.replace(change.value, spec=spec))


GPU = Accelerator(kind="nvidia", memory_bytes=Bytes(8 * MIB))
BLIND = Accelerator(kind="nvidia")
ONE_GPU = AcceleratorNeed(kind="gpu")
SHARE = AcceleratorNeed(kind="gpu", memory_bytes=Bytes(3 * MIB))
ONLY_ARM = {"architectures": ("arm64",)}


@pytest.mark.parametrize(
    ("rows", "part", "code", "figures"),
    [
        ([has("a", architecture="amd64")], needs(process=ONLY_ARM), "architecture_wrong", "amd64, not arm64"),
        (
            [has("a", architecture="amd64"), variants(fp32=ONLY_ARM, int8={"architectures": ("armv7l",)})],
            component(model="1"), "architecture_wrong", "amd64, not arm64 or armv7l",
        ),
        ([], needs(devices=("/dev/video0",)), "device_missing", "/dev/video0"),
        (
            [has("a", disk_bytes=Bytes(9 * MIB))],
            needs(disk_bytes=Bytes(10 * MIB)), "disk_short", "9Mi free, 10Mi needed",
        ),
        (
            [has("a", disk_bytes=Bytes(99 * MIB), vitals={"disk_free_bytes": Bytes(2 * MIB)})],
            needs(disk_bytes=Bytes(10 * MIB)), "disk_short", "2Mi free, 10Mi needed",
        ),
        (
            [has("a", vitals={"disk_free_bytes": Bytes(0)}), model("1")],
            component(model="1"), "disk_short", "0Mi free, 1Mi needed",
        ),
        ([], needs(accelerators=(ONE_GPU,)), "accelerator_short", "needs 1 gpu; has none"),
        (
            [has("a", accelerators=(GPU,))], needs(accelerators=(AcceleratorNeed(kind="gpu", count=2),)),
            "accelerator_short", "needs 2 gpu; has nvidia (8Mi free)",
        ),
        (
            [has("a", accelerators=(BLIND,))], needs(accelerators=(SHARE,)),
            "accelerator_short", "needs 3Mi of a gpu; has nvidia (memory unknown)",
        ),
        (
            [has("a", accelerators=(Accelerator(kind="hailo"),))], needs(accelerators=(ONE_GPU,)),
            "accelerator_short", "needs 1 gpu; has hailo (memory unknown)",
        ),
        (
            [has("a", opsets={"onnx": 17}), variants(fp32={"opset": 21}, int8={"opset": 18})],
            component(model="1"), "variant_unfit",
            "fp32: operator set 21 is too new for the runtime; int8: operator set 18 is too new for the runtime",
        ),
        (
            [node("a", precisions=("int8",)), variants(fp32={"precision": "fp32"}, int8={"precision": "fp16"})],
            component(model="1"), "variant_unfit",
            "fp32: the hardware does not compute in fp32; int8: the hardware does not compute in fp16",
        ),
        (
            [has("a", precisions=("int8",)), variants(fp32={"precision": "fp32"}, int8={"precision": "fp16"})],
            component(model="1"), "variant_unfit",
            "fp32: the hardware does not compute in fp32; int8: the hardware does not compute in fp16",
        ),
        (
            # What people say comes first.
            [has("a", precisions=("fp32", "fp16")), node("a", precisions=("int8",)),
             variants(fp32={"precision": "fp32"}, int8={"precision": "fp16"})],
            component(model="1"), "variant_unfit",
            "fp32: the hardware does not compute in fp32; int8: the hardware does not compute in fp16",
        ),
        (
            [node("a", hardware="pi"), variants(fp32={"profiles": (Profile(hardware="pi", p99_ms=Millis(80)),)},
                                                int8={"profiles": (Profile(hardware="pi", p99_ms=Millis(60)),)})],
            within(50), "too_slow", "int8 takes 60 ms on pi, 50 ms asked",
        ),
        ([], lives("eu"), "residency_wrong", "data at berlin lives in nowhere in particular, not in eu"),
        (
            [site("berlin", residency="us")],
            lives("eu", "uk"), "residency_wrong", "data at berlin lives in us, not in eu or uk",
        ),
    ],
)  # fmt: skip
def test_who_is_refused_and_why(rows, part, code, figures):
    state = settled(state_of(machines("a"), *rows, application(part)))
    assert places(state) == []
    (slot,) = why(state, NOW, APP)
    assert slot["refused"] == {code: 1}
    assert slot["nearest"]["reason"]["code"] == code
    assert figures in slot["nearest"]["reason"]["sentence"]


@pytest.mark.parametrize(
    ("rows", "part"),
    [
        ([has("b", architecture="arm64"), has("a", architecture="amd64")], needs(process=ONLY_ARM)),
        ([has("b", devices=("/dev/video0",))], needs(devices=("/dev/video0",))),
        ([has("b", disk_bytes=Bytes(10 * MIB))], needs(disk_bytes=Bytes(10 * MIB))),
        ([has("b", accelerators=(GPU,))], needs(accelerators=(ONE_GPU,))),
        ([has("b", accelerators=(GPU,))], needs(accelerators=(SHARE, SHARE))),
        ([has("a", opsets={"onnx": 17}), variants(fp32={"opset": 21}, int8={"opset": 21})], component(model="1")),
        ([site("eu", residency="eu"), site("lyon", parent="eu"), node("b", "lyon")], lives("eu")),
        (
            [
                node("a", hardware="pi"), node("b", hardware="nuc"),
                variants(fp32={"profiles": (Profile(hardware="pi", p99_ms=Millis(80)),)},
                         int8={"profiles": (Profile(hardware="pi", p99_ms=Millis(60)),)}),
            ],
            within(50),
        ),
    ],
)  # fmt: skip
def test_another_node_is_taken(rows, part):
    assert on(machines("a", "b"), *rows, application(part)) == ["b"]


# --- What instances have for themselves -------------------------------------------------------------------------------


def test_ports_are_not_shared_across_applications():
    port = needs(ports=(9000,))
    state = settled(state_of(machines("a", "b"), application(port, name="one"), application(port, name="two")))
    assert sorted(h.node for app in ("default/one", "default/two") for h in state.held[app]) == ["a", "b"]
    third = settled(state.with_changes([application(port, name="three")]))
    assert third.held.get("default/three") is None
    (slot,) = why(third, NOW, "default/three")
    assert slot["refused"] == {"port_claimed": 2}
    assert "9000" in slot["nearest"]["reason"]["sentence"]


def test_ports_of_probes_count():
    rows = (machines("a"), application(component(port=8080), name="one"), application(needs(ports=(8080,)), name="two"))
    state = settled(state_of(*rows))
    assert len([h for held in state.held.values() for h in held]) == 1


def test_who_owns_a_port_is_replaced_in_its_place():
    state = settled(state_of(machines("a"), application(needs(ports=(9000,)))))
    changed = settled(state.with_changes([application(needs(component(command="other"), ports=(9000,)))]))
    assert places(changed) == [("read-2-0", "a")]


def test_devices_are_not_shared():
    cameras = [has(name, devices=("/dev/video0",)) for name in "ab"]
    camera = needs(component(count=3), devices=("/dev/video0",))
    state = settled(state_of(machines("a", "b"), *cameras, application(camera)))
    assert sorted(name for _, name in places(state)) == ["a", "b"]
    assert why(state, NOW, APP)[2]["refused"] == {"already_here": 2}
    other = settled(state.with_changes([application(needs(devices=("/dev/video0",)), name="other")]))
    assert why(other, NOW, "default/other")[0]["refused"] == {"device_claimed": 2}


def test_cards_are_granted_and_told():
    cards = (GPU, Accelerator(kind="gpu", memory_bytes=Bytes(4 * MIB)))
    rows = [has("a", accelerators=cards)]
    state = settled(state_of(machines("a"), *rows, application(needs(component(count=3), accelerators=(SHARE,)))))
    grants = [h.instance.accelerators[0] for h in state.held[APP]]
    assert [(g.kind, g.card) for g in grants] == [("gpu", 1), ("nvidia", 0), ("nvidia", 0)]
    whole = settled(state.with_changes([application(needs(accelerators=(ONE_GPU,)), name="whole")]))
    assert "default/whole" not in whole.held


@pytest.mark.parametrize(
    ("asked", "cards", "claims", "granted"),
    [
        ((ONE_GPU,), [], {}, None),
        ((ONE_GPU,), [Card("gpu", 8), Card("gpu", 4)], {}, [1]),
        ((ONE_GPU,), [Card("gpu", 8), Card("gpu", 4)], {("card", 1, 1): 1}, [0]),
        ((ONE_GPU,), [Card("gpu", 8)], {("card", 0, WHOLE): 1}, None),
        ((AcceleratorNeed(kind="gpu", count=1, memory_bytes=Bytes(6)),), [Card("gpu", 4), Card("gpu", 8)], {}, [1]),
        ((AcceleratorNeed(kind="npu"),), [Card("gpu", 8), Card("coral", 0)], {}, [1]),
        ((AcceleratorNeed(kind="gpu", memory_bytes=Bytes(5)),), [Card("gpu", 8)], {("card", 0, 4): 1}, None),
        ((AcceleratorNeed(kind="gpu", memory_bytes=Bytes(2)),), [Card("gpu", 8)], {("card", 0, 3): 2}, [0]),
        ((AcceleratorNeed(kind="gpu", memory_bytes=Bytes(2)), ONE_GPU), [Card("gpu", 2), Card("gpu", 2)], {}, [0, 1]),
    ],
)  # fmt: skip
def test_which_cards(asked, cards, claims, granted):
    found = allot(asked, cards, claims)
    assert (None if found is None else [g.card for g in found]) == granted


# --- Where data may live ----------------------------------------------------------------------------------------------


def test_what_a_site_above_says_holds_below_it():
    rows = (site("eu", residency="eu"), machines("a", at="lyon"), site("lyon", parent="eu"), machines("b"))
    state = settled(state_of(*rows, application(lives("eu"))))
    assert places(state) == [("read-1-0", "a")]
    # The site above says otherwise: its data moves away, to where it may live now.
    moved = settled(state.with_changes([site("eu", residency="us"), site("berlin", residency="eu")]))
    assert places(moved) == [("read-1-0", "b")]


def test_an_application_says_it_for_all_its_components():
    change = application(component(), lives("us", part=component(name="write")))
    spec = msgspec.structs.replace(change.value.spec, residency=("eu",))
    change = change._replace(value=msgspec.structs.replace(change.value, spec=spec))
    rows = (machines("a", at="lyon"), site("lyon", residency="eu"), machines("b"), site("berlin", residency="us"))
    assert places(settled(state_of(*rows, change))) == [("read-1-0", "a"), ("write-1-0", "b")]


# --- Speed ------------------------------------------------------------------------------------------------------------


def test_what_nodes_measure_counts_before_profiles_and_for_all_alike():
    """The node that runs it answers in 90 ms: too slow for all of its class, whatever the profile says."""
    profiles = {"profiles": (Profile(hardware="pi", p99_ms=Millis(10)),)}
    rows = (
        machines("a", "b"),
        node("a", hardware="pi"),
        node("b", hardware="pi"),
        variants(fp32=profiles, int8=profiles),
    )
    state = settled(state_of(*rows, application(within(50))))
    assert places(state) == [("read-1-0", "a")]
    (held,) = state.held[APP]
    told = InstanceReport(
        name=held.instance.name, epoch=held.instance.epoch, phase="ready", since=NOW,
        measures=Measures(answered=100, latency_p99_ms=90.0),
    )  # fmt: skip
    slow = msgspec.structs.replace(state.observed["a"], instances=(told,))
    state = state.with_changes([Change("observed", "a", slow), application(within(50), name="other")])
    after = settled(state, but={"a"})
    (other,) = after.held["default/other"]
    assert other.instance.model.variant.name == "int8"  # the other variant has not proved to be slow
    assert places(after) == [("read-1-0", "a")]


@pytest.mark.parametrize(
    ("facts", "chosen"),
    [
        ({}, "fp32"),
        ({"fp32": {"quality": {"accuracy": 0.9}}, "int8": {"quality": {"accuracy": 0.95}}}, "int8"),
        ({"fp32": {"quality": {"accuracy": 0.9}}, "int8": {"quality": {"f1": 0.95}}}, "fp32"),
        ({"fp32": {"profiles": (Profile(hardware="pi", p99_ms=Millis(80)),)}}, "int8"),
        ({"fp32": {"needs": {"accelerator": "hailo"}}}, "int8"),
    ],
)
def test_the_best_variant_within_the_goal(facts, chosen):
    for each in facts.values():
        if "needs" in each:
            (needed,) = model("1").value.spec.versions
            each["needs"] = msgspec.structs.replace(needed.variants[0].needs, **each["needs"])
    rows = (machines("a"), node("a", hardware="pi"), variants(**facts), application(within(50)))
    ((held,),) = settled(state_of(*rows)).held.values()
    assert held.instance.model.variant.name == chosen


# --- What makes a node better -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("rows", "part", "preference"),
    [
        ([node("a", power=Power(idle_watts=40, full_watts=90)), node("b", power=Power(idle_watts=2, full_watts=6))],
         component(), "energy"),
        ([site("berlin", carbon_intensity=700), site("lyon", carbon_intensity=40), node("b", "lyon")],
         component(), "carbon"),
        ([site("berlin", uplink=Uplink(metered=True)), site("lyon", uplink=Uplink(latency_ms=Millis(20))),
          node("b", "lyon")], component(), "uplink"),
        ([has("a", vitals={"battery_percent": 20.0})], component(), "headroom"),
        ([has("a", vitals={"temperature_c": 80.0})], component(), "headroom"),
        ([heard("a", NOW, NOW - 1_000), heard("b", NOW, NOW - 3_600_000)], component(), "steady"),
        ([has("a"), Change("observed", "b", msgspec.structs.replace(report("b"), topics={"cameras/+/frame": 5}))],
         component(near=("cameras/+/frame",)), "near"),
        ([variants(int8={"precision": "int8"}, fp32={"precision": "fp32"}), node("a", precisions=("int8",))],
         component(model="1"), "quality"),
        ([variants(fp32={"profiles": (Profile(hardware="pi", p99_ms=Millis(5)),)}), node("b", hardware="pi")],
         within(50), "slo"),
    ],
)  # fmt: skip
def test_the_better_node_is_taken(rows, part, preference):
    state = settled(state_of(machines("a", "b"), *rows, application(part)))
    assert [name for _, name in places(state)] == ["b"]
    (slot,) = why(state, NOW, APP)
    mine, other = slot["holders"][0]["parts"], slot["second"]["parts"]
    assert slot["second"]["node"] == "a"
    assert mine[preference] > other.get(preference, 0)


def test_spread_over_a_label():
    rows = [machines("a", "b", "c")]
    rows += [node(name, labels={"rack": rack}) for name, rack in (("a", "1"), ("b", "1"), ("c", "2"))]
    part = component(count=2)
    spread = msgspec.structs.replace(part, placement=msgspec.structs.replace(part.placement, spread_label="rack"))
    assert sorted(on(*rows, application(spread))) == ["a", "c"]


def test_the_artifact_at_a_neighbour_is_worth_more_than_none():
    has_it = [v.digest for v in model("1").value.spec.versions[0].variants]
    rows = (machines("a"), machines("b", "c", at="lyon"), model("1"))
    rows += (Change("observed", "c", msgspec.structs.replace(report("c", cpu=50), artifacts=tuple(has_it))),)
    assert on(*rows, application(component(model="1"))) == ["b"]


def test_deciding_comes_to_rest_with_everything_at_once():
    rows = (machines("a", "b", "c"), *(has(n, accelerators=(GPU,), disk_bytes=Bytes(99 * MIB)) for n in "abc"))
    part = needs(component(count=5), accelerators=(SHARE,), disk_bytes=Bytes(9 * MIB), ports=(9000,))
    state = obeys(settled(state_of(*rows, application(part))))
    assert decide(state, NOW).changes == ()
    assert sorted(name for _, name in places(state)) == ["a", "b", "c"]
