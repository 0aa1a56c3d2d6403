"""The fleet and the applications of `placement.py`: made up, the same for the same seed.

    python benchmarks/placement_fleet.py        # prints what is in it

Every rule finds a tenth of the nodes unfit, each rule its own tenth. `plain`: alive, schedulable, runs processes, and
has room. `all_rules`: also taints, a device in a condition, a share of an accelerator for every tenth component, the
right model variant for what the node can run and how fast it is there, policies, and data gravity towards the topics
that are published there. Twenty nodes share a site, and a topic is published at about six
sites, as a plant's cameras are. Half of the components are models: what one of them reads, every node of its site is
told to store, so placing one changes the assignments of its neighbours, too, and that is part of what is timed.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from typing import Any

from batuta.core.observed import Accelerator, Inventory, Report, Sighting
from batuta.core.state import Change
from batuta.kinds.application import (
    AcceleratorNeed,
    Application,
    ApplicationSpec,
    Component,
    Input,
    ModelUse,
    Output,
    Placement,
    ProcessUse,
    Replicas,
    Resources,
)
from batuta.kinds.base import BitsPerSecond, Bytes, Metadata, Millicores, Millis
from batuta.kinds.model import Model, ModelSpec, Needs, Variant, Version
from batuta.kinds.node import Node, NodeSpec, Taint
from batuta.kinds.policy import Policy, PolicySpec
from batuta.kinds.site import Site, SiteSpec, Uplink

NOW = 1_700_000_000_000
MIB = 2**20
MODES = ("plain", "all_rules")
APPLICATIONS = 100
INSTANCES = 10_000
SITE_NODES = 20
TOPIC_SITES = 6
TOPICS_MAX = 200
MODELS = 10


PLAIN = ("silent", "cordoned", "process")
BESIDES = ("taint", "camera", "onnx", "architecture", "os", "gpu", "zone")
POLICIES: dict[str, dict[str, Any]] = {
    "stay-in-the-zone": {"require": 'has(node.labels.zone) && node.labels.zone == "a"'},
    "small-things-only-on-large-nodes": {
        "applies": 'component.type == "process" && component.resources.memory < quantity("64Mi")',
        "forbid": 'node.memory < quantity("4Gi")',
    },
    "rather-linux": {"prefer": 'node.os == "linux"'},
}


def fleet_rows(nodes: int, mode: str, seed: int) -> list[Change]:
    """A fleet as a hub finds it: declared, reported and heard a moment ago."""
    draw = random.Random(f"{seed} fleet {nodes}")
    rules = mode == "all_rules"
    sites, topics = max(1, nodes // SITE_NODES), topics_of(nodes)
    rows: list[Change] = [_site(k, draw) for k in range(sites)]
    rows += [_model(k) for k in range(MODELS)]
    rows += [_policy(name, **spec) for name, spec in POLICIES.items() if rules]
    rows.append(
        application(
            "everywhere",
            Component(
                name="watch",
                process=ProcessUse(command=("run",)),
                replicas=Replicas(count=1),
                placement=Placement(near=topics),
            ),
        )
    )  # The topics are watched already: nodes count what they were told to count.
    for k in range(nodes):
        name = f"node-{k:06}"
        unfit = {rule for rule in ("silent", "cordoned", "process") if draw.random() < 0.1}
        if rules:
            unfit |= {
                rule for rule in ("taint", "camera", "onnx", "architecture", "os", "gpu", "zone") if draw.random() < 0.1
            }
        node = Node(
            metadata=Metadata(
                name=name,
                labels={k: v for k, v in (("camera", "1"), ("zone", "a")) if k not in unfit},
                creation_timestamp=f"2026-01-{1 + k % 28:02}",
            ),
            spec=NodeSpec(
                site=f"site-{k % sites:05}",
                unschedulable="cordoned" in unfit,
                taints=(Taint(key="reserved"),) if "taint" in unfit else (),
            ),
        )
        runtimes = tuple(r for r in ("process", "onnx") if r not in unfit)
        inventory = Inventory(
            architecture="amd64" if "architecture" in unfit else "arm64",
            os="old" if "os" in unfit else "linux",
            accelerators=() if "gpu" in unfit else (Accelerator(kind="gpu", memory_bytes=Bytes(64 * 1024 * MIB)),),
            cpu_millis=Millicores(draw.choice((8_000, 16_000, 32_000))),
            memory_bytes=Bytes(draw.choice((8, 16, 32)) * 1024 * MIB),
            disk_bytes=Bytes(draw.choice((32, 64)) * 1024 * MIB),
            runtimes=runtimes,
        )
        published = {topics[k % sites % len(topics)]: draw.randint(1, 1_000)} if rules and draw.random() < 0.2 else {}
        report = Report(
            node=name, boot="1", sequence=1, at=NOW, serial=1, inventory=inventory, topics=published,
            address=f"10.{k >> 16}.{k >> 8 & 255}.{k & 255}:7422",
            artifacts=tuple(_digest(m, "fp32") for m in range(MODELS) if draw.random() < 0.05),
        )  # fmt: skip
        heard = NOW - (60_000 if "silent" in unfit else draw.randint(0, 500))
        rows += [
            Change("desired", node.ref.key, node),
            Change("observed", name, report),
            Change("sightings", name, Sighting(last_seen=heard, online_since=NOW - 86_400_000)),
        ]
    return rows


def topics_of(nodes: int) -> tuple[str, ...]:
    count = min(TOPICS_MAX, max(4, nodes // SITE_NODES // TOPIC_SITES))
    return tuple(f"line-{k}/+/frame" for k in range(count))


def applications(nodes: int, mode: str, seed: int) -> list[Change]:
    """A hundred applications with unlike needs, 5 to 500 instances each, ten thousand in all."""
    draw = random.Random(f"{seed} applications")
    counts = [min(500, max(5, round(draw.lognormvariate(4.2, 0.9)))) for _ in range(APPLICATIONS)]
    while sum(counts) != INSTANCES:
        k = draw.randrange(APPLICATIONS)
        counts[k] = min(500, max(5, counts[k] + (1 if sum(counts) < INSTANCES else -1)))
    return [application(f"app-{k:03}", _component(nodes, mode, count, draw)) for k, count in enumerate(counts)]


def small_application(nodes: int, mode: str, k: int, seed: int) -> Change:
    """One instance alone."""
    return application(f"one-{k:04}", _component(nodes, mode, 1, random.Random(f"{seed} one {k}")))


def _component(nodes: int, mode: str, count: int, draw: random.Random) -> Component:
    topics = topics_of(nodes)
    rules = mode == "all_rules"
    has_share = rules and draw.random() < 0.1
    is_model = rules and draw.random() < 0.5
    placement = Placement()
    if rules:
        conditions = ('"camera" in node.labels', 'node.architecture == "arm64"', 'node.os != "old"')
        placement = Placement(
            where=" && ".join(
                (f'node.memory >= quantity("{draw.randint(1, 6)}Gi")', *draw.sample(conditions, 2))
            ).replace("node.labels.zone ==", 'has(node.labels.zone) && node.labels.zone =='),
            near=tuple(draw.sample(topics, 2)),
            spread=draw.choice((None, "node", "site")),
        )  # fmt: skip
    return Component(
        name="work",
        model=ModelUse(name=f"model-{draw.randrange(MODELS)}", version="1") if is_model else None,
        process=None if is_model else ProcessUse(command=("run", str(count))),
        inputs=(Input(topic=placement.near[0]),) if is_model else (),
        outputs=(Output(topic="answers/{1}/x"),) if is_model else (),
        replicas=Replicas(count=count),
        placement=placement,
        resources=Resources(
            cpu_millis=Millicores(draw.choice((20, 50, 100, 200))),
            memory_bytes=Bytes(draw.choice((16, 32, 64, 128, 200)) * MIB),
            accelerators=(AcceleratorNeed(kind="gpu", memory_bytes=Bytes(64 * MIB)),) if has_share else (),
        ),
    )


def application(name: str, *components: Component) -> Change:
    kind = Application(metadata=Metadata(name=name), spec=ApplicationSpec(components=components))
    return Change("desired", kind.ref.key, kind)


def _site(k: int, draw: random.Random) -> Change:
    uplink = Uplink(
        bandwidth_bps=BitsPerSecond(draw.choice((10, 50, 200)) * 10**6), latency_ms=Millis(draw.choice((5, 20, 60)))
    )
    kind = Site(metadata=Metadata(name=f"site-{k:05}"), spec=SiteSpec(residency="eu", uplink=uplink))
    return Change("desired", kind.ref.key, kind)


def _model(k: int) -> Change:
    variants = tuple(
        Variant(
            name=name, format="onnx", digest=_digest(k, name), size_bytes=Bytes(size * MIB),
            needs=Needs(memory_bytes=Bytes(size * 4 * MIB)), quality={"accuracy": accuracy},
        )
        for name, size, accuracy in (("fp32", 40 + 10 * k, 0.98), ("int8", 10 + 3 * k, 0.96))
    )  # fmt: skip
    kind = Model(
        metadata=Metadata(name=f"model-{k}"), spec=ModelSpec(versions=(Version(version="1", variants=variants),))
    )
    return Change("desired", kind.ref.key, kind)


def _policy(name: str, **spec: Any) -> Change:
    kind = Policy(metadata=Metadata(name=name), spec=PolicySpec(**spec))
    return Change("desired", kind.ref.key, kind)


def _digest(model: int, variant: str) -> str:
    return f"sha256:{f'{model}{variant}'.encode().hex():0>64}"


def main() -> None:
    for mode in MODES:
        wanted: Sequence[Change] = applications(1_000, mode, 1)
        counts = sorted(c.replicas.count or 0 for a in wanted for c in a.value.spec.components)
        print(f"{mode}: {len(counts)} applications, {sum(counts)} instances, {counts[0]} to {counts[-1]} each")


if __name__ == "__main__":
    main()
