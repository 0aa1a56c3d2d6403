"""A small language for tables of (state, now) → Decision: fleets, applications, and nodes that do as they are told."""

from __future__ import annotations

import msgspec

from batuta.core.decide import Decision, decide
from batuta.core.observed import InstanceReport, Inventory, Report, Sighting
from batuta.core.state import Change, State
from batuta.kinds.application import (
    Application,
    ApplicationSpec,
    Component,
    Failover,
    Input,
    ModelUse,
    Output,
    Placement,
    ProcessUse,
    Replicas,
    Resources,
)
from batuta.kinds.base import Bytes, Metadata, Millicores, Millis
from batuta.kinds.model import Model, ModelSpec, Needs, Variant, Version
from batuta.kinds.node import Node, NodeSpec
from batuta.kinds.policy import Policy, PolicySpec
from batuta.kinds.program import HttpProbe, Probe
from batuta.kinds.site import Site

MIB = 2**20
NOW = 1_700_000_000_000
APP = "default/app"


def site(name: str, **spec) -> Change:
    kind = Site(metadata=Metadata(name=name))
    if spec:
        kind = msgspec.structs.replace(kind, spec=msgspec.structs.replace(kind.spec, **spec))
    return Change("desired", kind.ref.key, kind)


def node(
    name: str, at: str = "berlin", *, labels=None, taints=(), unschedulable=False, born="2026-01-01", **more
) -> Change:
    kind = Node(
        metadata=Metadata(name=name, labels=labels or {}, creation_timestamp=born),
        spec=NodeSpec(site=at, taints=tuple(taints), unschedulable=unschedulable, **more),
    )
    return Change("desired", kind.ref.key, kind)


def report(name: str, *, cpu=4000, memory=1024, runtimes=("process", "onnx"), serial=0, instances=(), **more) -> Report:
    inventory = Inventory(
        architecture="arm64", cpu_millis=Millicores(cpu), memory_bytes=Bytes(memory * MIB), runtimes=tuple(runtimes)
    )
    return Report(
        node=name, boot="1", sequence=1, at=NOW, inventory=inventory, serial=serial, instances=tuple(instances),
        address=f"{name}:7422", **more,
    )  # fmt: skip


def machines(*names: str, at: str = "berlin", **more) -> list[Change]:
    """Nodes of one site, enrolled, reported and heard just now."""
    rows: list[Change] = [site(at)]
    for name in names:
        rows += [node(name, at), Change("observed", name, report(name, **more)), heard(name, NOW)]
    return rows


def heard(name: str, at: int, since: int = NOW - 60_000) -> Change:
    return Change("sightings", name, Sighting(last_seen=at, online_since=since))


def component(name="read", *, count=1, per_site=None, every_node=None, after_ms=10_000, cpu=100, memory=64,
              where=None, near=(), spread=None, tolerations=(), model=None, never_twice=False, command="run",
              port=None) -> Component:  # fmt: skip
    fixed = per_site is not None or every_node
    probe = Probe(http=HttpProbe(port=port)) if port else None
    return Component(
        name=name,
        model=ModelUse(name="digits", version=model) if model else None,
        process=None if model else ProcessUse(command=(command,), ready=probe),
        inputs=(Input(topic="cameras/+/frame"),) if model else (),
        outputs=(Output(topic="meters/{1}/reading"),) if model else (),
        replicas=Replicas(count=None if fixed else count, per_site=per_site, every_node=every_node),
        placement=Placement(where=where, near=tuple(near), spread=spread, tolerations=tuple(tolerations)),
        resources=Resources(cpu_millis=Millicores(cpu), memory_bytes=Bytes(memory * MIB)),
        runs="never-twice" if never_twice else "at-least-once",
        failover=Failover(after_ms=Millis(after_ms)),
    )


def application(*components: Component, name="app") -> Change:
    kind = Application(metadata=Metadata(name=name), spec=ApplicationSpec(components=components or (component(),)))
    return Change("desired", kind.ref.key, kind)


def policy(name="rule", **spec) -> Change:
    kind = Policy(metadata=Metadata(name=name), spec=PolicySpec(**spec))
    return Change("desired", kind.ref.key, kind)


def no_application(name="app") -> Change:
    return Change("desired", f"applications.default.{name}", None)


def model(*versions: str, needs=(64, 32)) -> Change:
    found = tuple(
        Version(
            version=v,
            variants=tuple(
                Variant(
                    name=n, format="onnx", digest=f"sha256:{f'{v}{n}'.encode().hex():0>64}",
                    size_bytes=Bytes(MIB), needs=Needs(memory_bytes=Bytes(m * MIB)),
                )
                for n, m in zip(("fp32", "int8"), needs, strict=True)
            ),
        )
        for v in versions
    )  # fmt: skip
    kind = Model(metadata=Metadata(name="digits"), spec=ModelSpec(versions=found))
    return Change("desired", kind.ref.key, kind)


def state_of(*rows: Change | list[Change], hub_since: int = NOW - 3_600_000) -> State:
    flat = [r for row in rows for r in (row if isinstance(row, list) else [row])]
    return State(hub_since=hub_since).with_changes(flat)


def obeys(state: State, *, but: set[str] = frozenset(), ready: bool = True) -> State:
    """Every node but some runs what it was assigned, and says so; without `ready`, nothing new gets ready."""
    rows = []
    for name, assignment in state.assignments.items():
        before = state.observed.get(name)
        if name in but or before is None:
            continue
        was = {(i.name, i.epoch) for i in before.instances if i.phase == "ready"}
        instances = tuple(
            InstanceReport(
                name=i.name, epoch=i.epoch, since=NOW,
                phase="ready" if ready or (i.name, i.epoch) in was else "starting",
            )
            for i in assignment.instances
        )  # fmt: skip
        after = msgspec.structs.replace(before, serial=assignment.serial, instances=instances)
        rows.append(Change("observed", name, after))
    return state.with_changes(rows)


def beats(state: State, now: int, *, but: set[str] = frozenset()) -> State:
    """Every node but some is heard at `now`."""
    rows = [
        Change("sightings", name, Sighting(last_seen=now, online_since=s.online_since, reported_at=s.reported_at))
        for name, s in state.sightings.items()
        if name not in but
    ]
    return state.with_changes(rows)


def decided(state: State, now: int = NOW) -> tuple[State, Decision]:
    """The state after deciding once; deciding again must find nothing."""
    decision = decide(state, now)
    after = state.with_changes(decision.changes)
    again = decide(after, now)
    assert again.changes == (), f"not idle: {[c.key for c in again.changes]}"
    return after, decision


def settled(state: State, now: int = NOW, *, but: set[str] = frozenset()) -> State:
    """Decide and obey until nothing is left to do."""
    for _ in range(50):
        state, decision = decided(state, now)
        state = obeys(state, but=but)
        if not decision.changes:
            return state
    raise AssertionError("never settles")


def places(state: State, app: str = APP) -> list[tuple[str, str]]:
    """(`component-revision-slot`, node) of all that is held."""
    return sorted((h.instance.name.split("/")[2], h.node) for h in state.held.get(app, ()))


def codes(decision: Decision, app: str = APP) -> list[str]:
    return [r.code for r in decision.reasons.get(app, ())]


def holder(state: State) -> str:
    return places(state)[0][1]
