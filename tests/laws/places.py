"""Worlds in which placement has much to mind: policies, hours, homes of data, ports, devices, accelerators, disks.

A history follows from one number, so that what failed once is replayed for ever after (`tests/seeds/placement.txt`).
"""

from __future__ import annotations

import random
from typing import Any

import msgspec

from batuta.core.cards import cards_of
from batuta.core.decided import Instance
from batuta.core.facts import node_facts, residency, site_facts
from batuta.core.load import WHOLE, load_of
from batuta.core.observed import Accelerator, InstanceReport, Measures
from batuta.core.rules import ruling_of
from batuta.core.state import Change, State
from batuta.kinds import hours
from batuta.kinds.application import AcceleratorNeed, Slo
from batuta.kinds.base import Bytes, Millis
from batuta.kinds.condition import compile_condition, evaluate
from batuta.kinds.model import Model, Profile
from batuta.kinds.node import Card, Power
from batuta.kinds.site import Uplink
from tests.core.fleets import MIB, application, component, model, node, policy, site
from tests.laws.worlds import NODES, World

SITES = ("berlin", "lyon", "roof")
HOMES = ((), (), (), (), (), ("eu",), ("eu",), ("us",), ("eu", "us"))
POLICIES = (
    {"require": "node.memory >= component.resources.memory * 2"},
    {"require": 'node.labels.zone == "1"'},
    {"forbid": 'has(node.labels.zone) && node.labels.zone == "2"', "existing": "stay"},
    {"applies": 'component.runs == "never-twice"', "forbid": "site.metered"},
    {"applies": "component.slo.p99 < 100", "require": "node.cpu > 1000"},
    {"forbid": 'now.time >= "22:14" && now.time < "22:15"'},
    {"applies": 'application.name == "p"', "require": "now.hour < 22 || now.minute % 2 == 0"},
    {"applies": 'site.name == "lyon"', "forbid": "node.cpu > 1000"},
    {"require": 'component.name == "x"'},
    {"forbid": 'component.name == "x"'},
    {"prefer": 'node.labels.zone == "1"', "weight": 20, "weights": {"near": 0, "energy": 9}},
)


class Places(World):
    """What a World is, with all that at once, and what must hold of it."""

    def __init__(self) -> None:
        super().__init__()
        self.change(
            site("eu", residency="eu"), site("berlin", parent="eu", uplink=Uplink(latency_ms=Millis(20))),
            site("roof", parent="berlin", residency="us", uplink=Uplink(metered=True), time_zone="Asia/Kolkata"),
        )  # fmt: skip
        self.turn()

    def _site(self, change: Change) -> None:
        self.change(change)

    def _models(self, change: Change) -> None:
        self.change(change)

    def _policy(self, change: Change) -> None:
        self.change(change)

    def _unpolicy(self, name: str) -> None:
        if f"policies.{name}" in self.state.desired:
            self.change(Change("desired", f"policies.{name}", None))

    def _fit(self, with_: tuple[str, dict[str, Any], dict[str, Any]]) -> None:
        """A machine is fitted with other things."""
        name, inventory, vitals = with_
        known = self.state.observed.get(name)
        if known is not None and name not in self.cut:
            after = msgspec.structs.replace(
                known,
                inventory=msgspec.structs.replace(known.inventory, **inventory),
                vitals=msgspec.structs.replace(known.vitals, **vitals),
            )
            self.change(Change("observed", name, after))

    def _measure(self, with_: tuple[str, float]) -> None:
        """All models of a node say how fast they are."""
        name, p99_ms = with_
        known = self.state.observed.get(name)
        if known is not None and name not in self.cut:
            told = tuple(
                InstanceReport(
                    name=i.name, epoch=i.epoch, phase=i.phase, since=i.since, starts=i.starts,
                    measures=Measures(answered=100, latency_p99_ms=p99_ms),
                )
                for i in known.instances
            )  # fmt: skip
            self.change(Change("observed", name, msgspec.structs.replace(known, instances=told)))

    # --- What must hold ---

    def turn(self, *, full: bool = False) -> Any:
        before = self.state
        decision = super().turn(full=full)
        for name, assignment in self.state.assignments.items():
            known = before.assignments.get(name)
            new = [i for i in assignment.instances if known is None or i not in known.instances]
            if new and name in self.state.nodes:
                self._what_is_shared_suffices(name, assignment.instances, new)
                for instance in new:
                    self._it_may_be_there(name, instance)
        return decision

    def _what_is_shared_suffices(self, name: str, instances: tuple[Instance, ...], new: list[Instance]) -> None:
        """What comes finds enough. What was there before may have lost some: a machine can be fitted with less."""
        known, resource = self.state.observed[name], self.state.nodes[name]
        if any(i.disk_bytes for i in new):
            assert sum(i.disk_bytes or 0 for i in instances) <= known.inventory.disk_bytes
        given = {g.card for i in new for g in i.accelerators}
        taken: dict[Any, int] = {}
        cards = cards_of(resource, known)
        for instance in instances:
            for claim in load_of(instance).claims:
                if claim[0] != "card":
                    assert claim not in taken, f"{claim} is taken twice on {name}"
                    taken[claim] = 1
            for grant in instance.accelerators:
                card = ("card", grant.card)
                if grant.memory_bytes is None:
                    assert card not in taken, f"card {grant.card} of {name} is not for one alone"
                    taken[card] = WHOLE
                else:
                    assert taken.get(card, 0) != WHOLE, f"card {grant.card} of {name} is for one alone"
                    taken[card] = taken.get(card, 0) + int(grant.memory_bytes)
                    if grant.card in given:
                        assert taken[card] <= cards[grant.card].memory_bytes

    def _it_may_be_there(self, name: str, instance: Instance) -> None:
        resource, known = self.state.nodes[name], self.state.observed[name]
        application = self.state.application(instance.app)
        assert application is not None
        part = next(c for c in application.spec.components if c.name == instance.component)
        homes = part.placement.residency or application.spec.residency
        sites = {s.metadata.name: s for s in self.state.sites()}
        assert not homes or residency(resource.spec.site, sites) in homes, "its data must not go there"
        facts = {"node": node_facts(resource, known), "site": site_facts(resource, sites)}
        facts["now"] = hours.face(self.now, facts["site"]["timeZone"])
        for rule in ruling_of(self.state.policies, part, application, instance.app).hard:
            assert not rule.fault, f"{rule.policy} cannot be asked, and {instance.name} was placed"
            answer = evaluate(compile_condition(rule.text), facts | rule.facts)
            assert answer is (not rule.refuses), f"{rule.policy} says {answer} of {instance.name} on {name}"
        process = part.process
        if process is not None and process.architectures:
            assert known.inventory.architecture in process.architectures
        assert set(part.resources.devices) <= set(known.inventory.devices)


def history(seed: int) -> list[tuple[str, Any]]:
    """Something of everything, in an order that follows from the seed."""
    draw = random.Random(seed)
    steps: list[tuple[str, Any]] = [("fit", (name, *_fittings(draw))) for name in NODES[:4]]
    steps += [("apply", _application(draw)) for _ in range(draw.randint(1, 3))]
    steps += [("policy", _WITH["policy"](draw)) for _ in range(draw.randint(0, 2))] + [("obey", set())]
    kinds = (
        "apply", "apply", "policy", "policy", "unpolicy", "fit", "site", "declare", "measure", "models", "obey", "obey",
        "wait", "wait", "cut", "mend", "crash", "fail", "remove", "delete", "hub",
    )  # fmt: skip
    for _ in range(draw.randint(5, 22)):
        kind = draw.choice(kinds)
        steps.append((kind, _WITH[kind](draw)))
    return steps


def _application(draw: random.Random) -> Change:
    parts = []
    for name in draw.sample(["x", "y"], draw.randint(1, 2)):
        how = draw.choice(
            [{"count": draw.randint(0, 4)}] * 3 + [{"per_site": draw.randint(1, 2)}, {"every_node": True}]
        )
        part = component(
            name=name, **how, cpu=draw.choice([100, 700]), memory=draw.choice([16, 64, 250]),
            model=draw.choice([None, None, "1", "2"]), never_twice=draw.random() < 0.3,
            spread=draw.choice([None, "node", "site"]), port=draw.choice([None, None, 8080]),
            near=draw.choice([(), ("cameras/+/frame",)]), command=draw.choice(["one", "two"]),
            where=draw.choice([None, None, "node.disk > 5"]), after_ms=draw.choice([2_000, 10_000]),
        )  # fmt: skip
        placement = msgspec.structs.replace(
            part.placement, residency=draw.choice(HOMES), spread_label=draw.choice([None, None, "zone"])
        )
        resources = msgspec.structs.replace(
            part.resources,
            disk_bytes=Bytes(draw.choice([0, 0, 0, 0, 5, 60]) * MIB),
            ports=draw.choice([(), (), (9000,), (9000, 9001)]),
            devices=draw.choice([(), (), (), (), (), ("/dev/video0",)]),
            accelerators=draw.choice(
                [(), (), (), (), (AcceleratorNeed(kind="gpu"),),
                 (AcceleratorNeed(kind="gpu", memory_bytes=Bytes(3 * MIB)),),
                 (AcceleratorNeed(kind="npu", count=2), AcceleratorNeed(kind="gpu", memory_bytes=Bytes(MIB)))]
            ),
        )  # fmt: skip
        changed: dict[str, Any] = {"placement": placement, "resources": resources}
        if part.process is not None:
            some = draw.choice([(), (), ("arm64",), ("amd64",)])
            changed["process"] = msgspec.structs.replace(part.process, architectures=some)
        else:
            changed["slo"] = draw.choice([None, Slo(p99_ms=Millis(50)), Slo(p99_ms=Millis(200))])
        parts.append(msgspec.structs.replace(part, **changed))
    change = application(*parts, name=draw.choice("pqr"))
    spec = msgspec.structs.replace(change.value.spec, residency=draw.choice(HOMES))
    return change._replace(value=msgspec.structs.replace(change.value, spec=spec))


def _fittings(draw: random.Random) -> tuple[dict[str, Any], dict[str, Any]]:
    cards = draw.choice([(), ("nvidia",), ("nvidia", "hailo", "hailo"), ("gpu", "gpu"), ("gpu", "gpu")])
    inventory = {
        "architecture": draw.choice(["arm64", "arm64", "amd64"]),
        "disk_bytes": Bytes(draw.choice([0, 100, 100, 100]) * MIB),
        "devices": draw.choice([(), ("/dev/video0",), ("/dev/video0",)]),
        "accelerators": tuple(Accelerator(kind=kind, memory_bytes=Bytes(8 * MIB)) for kind in cards),
        "hardware": draw.choice(["", "pi", "nuc"]),
        "opsets": draw.choice([{}, {"onnx": 17}]),
    }
    vitals = {
        "temperature_c": draw.choice([None, 40.0, 80.0]),
        "battery_percent": draw.choice([None, 20.0]),
        "disk_free_bytes": draw.choice([None, None, None, Bytes(0), Bytes(50 * MIB)]),
    }
    return inventory, vitals


def _declaration(draw: random.Random) -> Change:
    return node(
        draw.choice(NODES), draw.choice(SITES),
        labels=draw.choice([{}, {"zone": "1"}, {"zone": "2"}]),
        power=draw.choice([None, Power(idle_watts=2.0, full_watts=9.0), Power(idle_watts=20.0, full_watts=90.0)]),
        hardware=draw.choice([None, "pi"]),
        accelerators=draw.choice([(), (Card(kind="jetson", memory_bytes=Bytes(4 * MIB)),)]),
        drain=draw.random() < 0.1,
    )  # fmt: skip


def _models(draw: random.Random) -> Change:
    change = model("1", "2")
    kind: Model = change.value
    versions = []
    for version in kind.spec.versions:
        variants = []
        for variant in version.variants:
            profiles = draw.choice([(), (Profile(hardware="pi", p99_ms=Millis(80)),)])
            opset, accuracy = draw.choice([None, 15, 21]), draw.choice([{}, {"accuracy": draw.random()}])
            variants.append(msgspec.structs.replace(variant, profiles=profiles, opset=opset, quality=accuracy))
        versions.append(msgspec.structs.replace(version, variants=tuple(variants)))
    spec = msgspec.structs.replace(kind.spec, versions=tuple(versions))
    return change._replace(value=msgspec.structs.replace(kind, spec=spec))


def _site(draw: random.Random) -> Change:
    name = draw.choice(("eu", *SITES))
    return site(
        name, residency=draw.choice([None, "eu", "us"]), time_zone=draw.choice([None, "Asia/Kolkata", "UTC"]),
        parent=None if name == "eu" else draw.choice([None, "eu"]), carbon_intensity=draw.choice([None, 40, 700]),
        uplink=draw.choice([Uplink(), Uplink(metered=True), Uplink(latency_ms=Millis(200))]),
    )  # fmt: skip


_WITH: dict[str, Any] = {
    "apply": _application,
    "policy": lambda draw: policy(draw.choice(["one", "two", "three"]), **draw.choice(POLICIES)),
    "unpolicy": lambda draw: draw.choice(["one", "two", "three"]),
    "fit": lambda draw: (draw.choice(NODES), *_fittings(draw)),
    "site": _site,
    "declare": _declaration,
    "measure": lambda draw: (draw.choice(NODES), draw.choice([10.0, 90.0, 500.0])),
    "models": _models,
    "obey": lambda draw: set(draw.sample(NODES, draw.randint(0, 2))),
    "wait": lambda draw: draw.choice([100, 1_000, 2_500, 6_000, 13_000, 30_000, 61_000]),
    "cut": lambda draw: draw.choice(NODES),
    "mend": lambda draw: draw.choice(NODES),
    "crash": lambda draw: draw.choice(NODES),
    "fail": lambda draw: draw.choice(NODES),
    "remove": lambda draw: draw.choice(NODES),
    "delete": lambda draw: draw.choice("pqr"),
    "hub": lambda _: None,
}


def state_with(steps: list[tuple[str, Any]]) -> State:
    world = Places()
    for what, with_ in steps:
        world.step(what, with_)
    return world.state
