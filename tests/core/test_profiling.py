"""Who is asked to measure what, what of the answers is kept, and what placement makes of it."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest

from batuta.core.decide import decide
from batuta.core.decided import ModelOrder
from batuta.core.fleet import fleet_of
from batuta.core.known import KnownProfile
from batuta.core.local import Local
from batuta.core.observed import InstanceReport, Inventory, Profiled, Report, Sighting, Vitals
from batuta.core.profiling import is_all_known, to_ask, to_keep
from batuta.core.proving import Bench, Measured, Proven, measure_key, profiles_of, why_not_measure
from batuta.core.reasons import Reason
from batuta.core.state import Change, State
from batuta.core.touched import touched
from batuta.core.view import status
from batuta.kinds.application import Application, ApplicationSpec, Component, Input, ModelUse, Placement, Replicas, Slo
from batuta.kinds.base import Bytes, Metadata, Millicores, Millis, Ref
from batuta.kinds.model import Model, ModelSpec, Needs, Variant, Version
from batuta.kinds.node import Node, NodeSpec
from batuta.kinds.site import Site, SiteSpec
from tests.core.test_proving import FILE, instance

T = 1_000_000
SMALL = "sha256:" + "e" * 64
BIG = Variant(name="fp32", format="onnx", digest=FILE, size_bytes=Bytes(1000), quality={"accuracy": 0.95})
LITTLE = Variant(name="int8", format="onnx", digest=SMALL, size_bytes=Bytes(300), quality={"accuracy": 0.9})


def report(node: str, hardware: str = "pi-4", **more: Any) -> Report:
    inventory = Inventory(
        cpu_millis=Millicores(4000), memory_bytes=Bytes(4 << 30), runtimes=("onnx",), hardware=hardware,
        architecture="arm64",
    )  # fmt: skip
    return Report(**{"node": node, "boot": "b", "sequence": 1, "at": T, "inventory": inventory, **more})


def world(*reports: Report, variants: tuple[Variant, ...] = (BIG, LITTLE), **component: Any) -> State:
    use = {"replicas": Replicas(count=1), **component}
    read = Component(name="read", model=ModelUse(name="digits", version="1"), inputs=(Input(topic="a/b"),), **use)
    resources = [
        Site(metadata=Metadata(name="home"), spec=SiteSpec()),
        Model(
            metadata=Metadata(name="digits", namespace="default"),
            spec=ModelSpec(versions=(Version(version="1", variants=variants),)),
        ),
        Application(metadata=Metadata(name="reader", namespace="default"), spec=ApplicationSpec(components=(read,))),
        *(Node(metadata=Metadata(name=r.node), spec=NodeSpec(site="home")) for r in reports),
    ]
    state = State(hub_since=T - 60_000).with_changes(
        [
            *(Change("desired", r.ref.key, r) for r in resources),
            *(Change("observed", r.node, r) for r in reports),
            *(Change("sightings", r.node, Sighting(last_seen=T, online_since=T - 60_000)) for r in reports),
        ]
    )
    return settled(state)


def settled(state: State) -> State:
    for _ in range(5):
        decision = decide(state, T)
        if not decision.changes:
            return state
        state = state.with_changes(decision.changes)
    raise AssertionError("it does not come to rest")


def asked(state: State) -> list[tuple[str, str, str]]:
    return [(a.node, a.hardware, a.wanted.model.variant.name) for a in to_ask(state, fleet_of(state, T))]


def known(digest: str = FILE, hardware: str = "pi-4", p99_us: int = 20_000, **more: Any) -> KnownProfile:
    said = {"node": "pi", "at": T, "p50_us": 10, "memory_bytes": Bytes(1), "runtime": "onnxruntime 1", **more}
    return KnownProfile(digest=digest, hardware=hardware, p99_us=p99_us, **said)


def told(digest: str = FILE, at: int = T, runtime: str = "onnxruntime 1") -> Profiled:
    return Profiled(digest=digest, at=at, p50_us=10, p99_us=20_000, memory_bytes=Bytes(1), runtime=runtime)


def with_row(state: State, row: KnownProfile) -> State:
    return state.with_changes([Change("decided", row.key, row)])


# --- Asking -----------------------------------------------------------------------------------------------------------


def test_each_variant_is_asked_once_for_each_class_and_each_node_once_at_a_time() -> None:
    state = world(report("a"), report("b"), report("c", "jetson"))
    assert asked(state) == [("a", "pi-4", "fp32"), ("c", "jetson", "fp32"), ("b", "pi-4", "int8")]


def test_what_is_known_is_not_asked() -> None:
    state = with_row(world(report("a")), known())
    assert asked(state) == [("a", "pi-4", "int8")]
    assert asked(with_row(state, known(SMALL))) == []


def test_all_is_known_when_every_class_was_measured() -> None:
    state = with_row(world(report("a"), report("b", "")), known())
    assert not is_all_known(state)
    assert is_all_known(with_row(state, known(SMALL)))
    assert not is_all_known(with_row(world(report("a"), report("b", "jetson"), variants=(BIG,)), known()))


def test_who_holds_the_file_is_asked_first() -> None:
    assert asked(world(report("a"), report("b", artifacts=(FILE,))))[0] == ("b", "pi-4", "fp32")


@pytest.mark.parametrize(
    "odd",
    [
        {"instances": (InstanceReport(name="default/x/y-1-0", epoch=1, phase="starting", since=0),)},
        {"vitals": Vitals(battery_percent=20.0)}, {"vitals": Vitals(memory_free_bytes=Bytes(1 << 20))},
        {"inventory": Inventory(hardware="pi-4", runtimes=("process",))}, {"inventory": Inventory(runtimes=("onnx",))},
    ],
)  # fmt: skip
def test_who_is_busy_or_cannot_is_not_asked(odd: dict[str, Any]) -> None:
    assert asked(world(report("a", **odd))) == []


def test_where_it_may_not_run_nothing_is_measured() -> None:
    assert asked(world(report("a"), placement=Placement(where='node.name == "b"'))) == []


def test_what_needs_a_card_is_not_asked() -> None:
    card = msgspec.structs.replace(BIG, needs=Needs(accelerator="gpu"))
    assert asked(world(report("a"), variants=(card,))) == []


# --- Keeping ----------------------------------------------------------------------------------------------------------


def test_the_first_answer_of_a_class_is_kept_and_a_newer_runtime_replaces_it() -> None:
    state = world(report("a", profiles=(told(),)), report("b", profiles=(told(at=T + 5),)))
    (change,) = to_keep(state)
    assert isinstance(change.value, KnownProfile)
    assert (change.key, change.value.node) == (f"profile.{'a' * 64}.pi-4", "a")
    state = state.with_changes([change])
    assert to_keep(state) == []
    newer = report("b", profiles=(told(at=T + 9, runtime="onnxruntime 2"),))
    (change,) = to_keep(state.with_changes([Change("observed", "b", newer)]))
    assert change.value.runtime == "onnxruntime 2"
    assert to_keep(state.with_changes([change, Change("observed", "b", newer)])) == []


def test_a_class_that_nobody_names_and_a_file_that_no_model_has_are_not_kept() -> None:
    other = "sha256:" + "f" * 64
    assert to_keep(world(report("a", "", profiles=(told(),)), report("b", profiles=(told(other),)))) == []
    state = with_row(world(report("a")), known(other))
    assert to_keep(state) == [Change("decided", known(other).key, None)]


# --- What comes of it -------------------------------------------------------------------------------------------------


def test_a_measured_profile_feeds_placement() -> None:
    slo = Slo(p99_ms=Millis(5))
    state = with_row(
        with_row(world(report("a"), replicas=Replicas(count=0), slo=slo), known()), known(SMALL, p99_us=900)
    )
    app = state.application("default/reader")
    assert app is not None
    (component,) = app.spec.components
    one = msgspec.structs.replace(component, replicas=Replicas(count=1))
    wanted = msgspec.structs.replace(app, spec=msgspec.structs.replace(app.spec, components=(one,)))
    placed = settled(state.with_changes([Change("desired", wanted.ref.key, wanted)]))
    (held,) = placed.held["default/reader"]
    assert held.instance.model is not None
    assert held.instance.model.variant.name == "int8"


def test_a_new_row_touches_whoever_uses_models() -> None:
    before = world(report("a"))
    assert "application/default/reader" in touched(before, with_row(before, known()), T, T)


def test_the_model_shows_it() -> None:
    state = with_row(world(report("a")), known())
    said = status(state, Ref("models", "default", "digits"), T)
    assert said["profiles"] == [
        {
            "version": "1", "variant": "fp32", "hardware": "pi-4", "p50Us": 10, "p99Us": 20_000, "memory": "1",
            "samples": 0, "runtime": "onnxruntime 1", "at": T, "by": "node/pi",
        }
    ]  # fmt: skip


# --- On the node ------------------------------------------------------------------------------------------------------

MODEL = ModelOrder(name="digits", version="1", variant=BIG)


def test_only_an_idle_machine_measures() -> None:
    calm = Vitals(cpu_percent=10.0, memory_free_bytes=Bytes(1 << 30))
    assert why_not_measure(MODEL, (), calm, 50.0) == ""
    assert why_not_measure(MODEL, (Local(instance=instance(), phase="ready"),), calm, 50.0) == ""
    assert "busy" in why_not_measure(MODEL, (Local(instance=instance(), phase="fetching"),), calm, 50.0)
    assert "10 % busy" in why_not_measure(MODEL, (), calm, 10.0)
    assert "battery" in why_not_measure(MODEL, (), msgspec.structs.replace(calm, battery_percent=30.0), 50.0)
    assert "memory" in why_not_measure(MODEL, (), msgspec.structs.replace(calm, memory_free_bytes=Bytes(9)), 50.0)


def test_what_cannot_be_measured_here_has_no_name() -> None:
    assert measure_key(MODEL, Bench("pi", {"onnx": "onnxruntime 1"})) == f"{FILE} - onnxruntime 1 pi"
    assert measure_key(MODEL, Bench("pi")) == ""


def test_the_newest_figures_are_told_and_none_of_what_answers_wrongly() -> None:
    measured = Measured(p50_us=1, p99_us=2, memory_bytes=Bytes(3), samples=4)
    old = Proven(key="a", digest=FILE, at=1, measured=measured)
    new = Proven(key="b", digest=FILE, at=2, measured=msgspec.structs.replace(measured, p50_us=9), runtime="r")
    wrong = Proven(key="c", digest=SMALL, at=3, reason=Reason(code="golden_mismatch", subject="x"), measured=measured)
    slow = Proven(key="d", digest=SMALL, at=0, reason=Reason(code="too_slow", subject="x"), measured=measured)
    assert [(p.digest, p.p50_us, p.at) for p in profiles_of([old, new, wrong, slow])] == [(FILE, 9, 2), (SMALL, 1, 0)]
