"""Sketch: a scenario drawn from a seed: eight nodes at a few sites, some applications, edits, a mix of faults."""

from __future__ import annotations

from typing import TYPE_CHECKING

import msgspec

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
from batuta.kinds.autoscale import Autoscale, Window
from batuta.kinds.base import Bytes, Metadata, Millicores, Millis, Ref
from batuta.kinds.model import Model, ModelSpec, Needs, Variant, Version
from batuta.kinds.policy import Moves, Policy, PolicySpec
from batuta.kinds.rolling import Disruption, Rollout
from batuta.twin.chance import Chance
from batuta.twin.scenario import Demand, Edit, Machine, Scenario
from batuta.twin.sketch_rollouts import arriving

if TYPE_CHECKING:
    from batuta.twin.scenario import FaultKind

MIB = 2**20
MODEL = "digits"
VERSIONS = ("1", "2", "3")
SIGNED = VERSIONS[:2]
"""The last version nobody has signed."""
KEY = "-----BEGIN PUBLIC KEY-----\nMFkwEwYHKoZIzj0CAQYIKoZIzj0DAQcDQgAE\n-----END PUBLIC KEY-----\n"

# How many an hour, over the whole fleet; a sketch scales each by its own mood.
USUAL_RATES: dict[FaultKind, int] = {
    "node_crash": 30,
    "agent_crash": 40,
    "partition": 50,
    "site_partition": 20,
    "loss": 40,
    "duplication": 30,
    "reordering": 30,
    "delay": 30,
    "clock_jump": 30,
    "hub_restart": 15,
    "hub_torn": 15,
    "hub_stall": 15,
    "exit": 50,
    "flapping": 15,
    "reconnect_storm": 6,
    "disk_full": 20,
    "disk_slow": 20,
}


def sketch(seed: int, *, nodes: int = 8, duration_ms: int = 300_000, rollouts: bool = False) -> Scenario:
    """Another scenario for every seed, the same for the same; with `rollouts`, releases arrive in waves."""
    chance = Chance(seed, "sketch")
    sites = ("berlin", "lyon", "oslo")[: chance.between(1, 3)]
    machines = tuple(
        Machine(
            name=f"node-{k}",
            site=sites[k % len(sites)],
            cpu_millis=chance.pick((1_000, 2_000, 4_000)),
            memory_bytes=chance.pick((512, 1024, 2048)) * MIB,
            runtimes=("process", "onnx") if chance.happens(800) else ("process",),
            drift_ppm=chance.between(-50_000, 50_000) if chance.happens(300) else chance.between(-100, 100),
            clock_ahead_ms=chance.between(-30_000, 30_000) if chance.happens(300) else 0,
        )
        for k in range(nodes)
    )
    edits = [Edit(at_ms=0, apply=_model())]
    for k in range(chance.between(2, 5)):
        edits += _application_life(f"app-{k}", chance, duration_ms)
    edits += _policies(chance, duration_ms)
    demands = {
        f"default/{edit.apply.metadata.name}/{component.name}": Demand(least=0, most=chance.between(1, 5))
        for edit in edits
        if isinstance(edit.apply, Application)
        for component in edit.apply.spec.components
        if component.replicas.autoscale is not None and component.replicas.autoscale.load is not None
    }
    rates: dict[FaultKind, int] = {
        kind: usual * chance.pick((1, 1, 2, 4)) for kind, usual in USUAL_RATES.items() if chance.happens(700)
    }
    lost = tuple(m.name for m in machines if chance.happens(60))
    scenario = Scenario(
        name=f"sketch-{seed}",
        machines=machines,
        edits=tuple(sorted(edits, key=lambda e: e.at_ms)),
        rates=rates,
        demands=demands,
        duration_ms=duration_ms,
        lost=lost,
    )
    return arriving(scenario, seed, MODEL, VERSIONS) if rollouts else scenario


def _model() -> Model:
    variants = (
        Variant(name="fp32", format="onnx", digest=f"sha256:{'%064x'}", size_bytes=Bytes(4 * MIB)),
        Variant(name="int8", format="onnx", digest=f"sha256:{'%064x'}", size_bytes=Bytes(MIB)),
    )
    versions = []
    for v, word in enumerate(VERSIONS):
        found = tuple(
            Variant(
                name=variant.name,
                format=variant.format,
                digest=variant.digest % (10 * v + k + 1),
                size_bytes=variant.size_bytes,
                signatures=(f"sha256:{'%064x' % (900 + v)}",) if word in SIGNED else (),
                needs=Needs(memory_bytes=Bytes((128, 64)[k] * MIB)),
            )
            for k, variant in enumerate(variants)
        )
        versions.append(Version(version=word, variants=found))
    return Model(metadata=Metadata(name=MODEL), spec=ModelSpec(versions=tuple(versions)))


def _application_life(name: str, chance: Chance, duration_ms: int) -> list[Edit]:
    """It is applied early, changed a few times, now and then deleted, and perhaps declared anew."""
    components = tuple(_component(f"part-{k}", chance) for k in range(chance.between(1, 2)))
    mood = ApplicationSpec(
        components=components,
        priority=chance.pick((0, 0, 0, -10, 10, 100)),
        rollout=Rollout(disruption=Disruption(per_site=chance.pick((None, None, None, 0, 1, 2)))),
    )
    edits = [Edit(at_ms=chance.between(0, 10_000), apply=_application(name, mood))]
    for _ in range(chance.between(0, 3)):
        mood = msgspec.structs.replace(mood, components=tuple(_changed(part, chance) for part in mood.components))
        if chance.happens(200):
            mood = msgspec.structs.replace(mood, priority=chance.pick((0, 10)))
        edits.append(Edit(at_ms=chance.between(15_000, duration_ms - 5_000), apply=_application(name, mood)))
    edits.sort(key=lambda e: e.at_ms)
    if chance.happens(150):
        edits.append(Edit(at_ms=duration_ms - 4_000, delete=_application(name, mood).ref))
        if chance.happens(400):
            edits.append(Edit(at_ms=duration_ms - 4_000 + chance.between(1, 3_000), apply=edits[0].apply))
    return edits


def _application(name: str, spec: ApplicationSpec) -> Application:
    return Application(metadata=Metadata(name=name), spec=spec)


def _policies(chance: Chance, duration_ms: int) -> list[Edit]:
    """Somebody must have signed what models run, from some time on; and things are moved to where they are better off,
    until it is time to come to rest."""
    edits: list[Edit] = []
    if chance.happens(250):
        signed = PolicySpec(require_signer=(KEY,), applies=chance.pick((None, 'application.name == "app-0"')))
        edits.append(_policy("signed", signed, chance.between(0, duration_ms // 2)))
        if chance.happens(400):
            edits.append(Edit(at_ms=chance.between(duration_ms // 2, duration_ms - 5_000), delete=SIGNED_POLICY))
    if chance.happens(300):
        moves = Moves(
            every_ms=Millis(chance.pick((20_000, 60_000))),
            at_most=chance.between(1, 5),
            least_gain=chance.pick((1, 10)),
            again_ms=Millis(chance.pick((30_000, 120_000))),
        )
        edits.append(_policy("tidy", PolicySpec(moves=moves), chance.between(0, duration_ms // 2)))
        edits.append(Edit(at_ms=duration_ms - 3_000, delete=TIDY_POLICY))
    return edits


def _policy(name: str, spec: PolicySpec, at_ms: int) -> Edit:
    return Edit(at_ms=at_ms, apply=Policy(metadata=Metadata(name=name), spec=spec))


SIGNED_POLICY, TIDY_POLICY = Ref("policies", "", "signed"), Ref("policies", "", "tidy")


def _autoscale(chance: Chance) -> Replicas:
    """By the load, by the hour, or by both. Runs begin at 22:13:20, and windows have closed when they end."""
    window = Window(
        opens=f"{chance.between(14, 15)} 22 * * *", closes="16 22 * * *",
        min=chance.pick((None, 2, 3)), max=chance.pick((4, 5)),
    )  # fmt: skip
    load = chance.pick((None, "latency.p99 / 50.0", "latency.p99 / 50.0"))
    return Replicas(
        autoscale=Autoscale(
            min=chance.between(0, 1),
            max=chance.between(3, 5),
            windows=(window,) if load is None or chance.happens(400) else (),
            load=load,
            up_after_ms=Millis(chance.pick((1_000, 10_000))),
            down_after_ms=Millis(chance.pick((5_000, 30_000))),
        )
    )


def _component(name: str, chance: Chance) -> Component:
    is_model = chance.happens(400)
    replicas = chance.pick(
        (
            Replicas(count=1),
            Replicas(count=chance.between(1, 5)),
            Replicas(count=chance.between(1, 5)),
            Replicas(per_site=chance.between(1, 2)),
            Replicas(every_node=True),
            _autoscale(chance),
        )
    )
    return Component(
        name=name,
        model=ModelUse(name=MODEL, version="1") if is_model else None,
        process=None
        if is_model
        else ProcessUse(command=("run", "1"), stop_grace_ms=Millis(chance.pick((1_000, 10_000)))),
        inputs=(Input(topic=f"{name}/+/frame"),) if is_model else (),
        outputs=(Output(topic=f"{name}/{{1}}/answer"),) if is_model else (),
        replicas=replicas,
        placement=Placement(spread=chance.pick((None, "node", "site"))),
        resources=Resources(
            cpu_millis=Millicores(chance.pick((100, 200, 500))),
            memory_bytes=Bytes(chance.pick((32, 64, 200)) * MIB),
        ),
        runs="never-twice" if chance.happens(400) else "at-least-once",
        failover=Failover(after_ms=Millis(chance.pick((2_000, 5_000, 10_000)))),
    )


def _changed(component: Component, chance: Chance) -> Component:
    """Another version, another size, or another number of replicas."""
    what = chance.between(0, 2)
    fields = {name: getattr(component, name) for name in component.__struct_fields__}
    if what == 0 and component.model is not None:
        fields["model"] = ModelUse(name=MODEL, version=chance.pick(VERSIONS))
    elif what == 0 and component.process is not None:
        fields["process"] = ProcessUse(command=("run", str(chance.between(2, 9))))
    elif what == 1:
        fields["resources"] = Resources(
            cpu_millis=Millicores(chance.pick((100, 300))), memory_bytes=Bytes(chance.pick((48, 96)) * MIB)
        )
    elif component.replicas.count is not None:
        fields["replicas"] = Replicas(count=chance.between(0, 6))
    return Component(**fields)
