"""Compose: the scenario that people wrote becomes the one that is played. What they left to chance is drawn here.

Everything follows from the document, the files it names (read by whoever calls) and the seed.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import msgspec

from batuta.core.liveness import HEARTBEAT_MS
from batuta.kinds import KINDS, Site
from batuta.kinds.application import Application, ApplicationSpec, Replicas
from batuta.kinds.base import DEFAULT_NAMESPACE, Metadata, Ref
from batuta.kinds.manifest import from_document
from batuta.kinds.scenario import FAULTS, Hardware, sites_of
from batuta.kinds.site import SiteSpec
from batuta.twin.chance import Chance
from batuta.twin.physics import Physics
from batuta.twin.scenario import Edit, Fault, Machine, Scenario

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from batuta.kinds import AnyResource
    from batuta.kinds import scenario as kind
    from batuta.twin.physics import Range
    from batuta.twin.scenario import FaultKind

USUAL_LATENCY_MS, USUAL_BANDWIDTH_BPS = 20, 20_000_000
LOOKS = 200
ROWS_AT_ONCE = 64
"""So many rows of a commit are under way together, as in a real hub."""
FULL_PASS_MS = 60_000
GATHER_MS, LONGEST_GATHER_MS = 200, 2_000

_KINDS: dict[str, FaultKind] = {
    "crash": "node_crash", "agentCrash": "agent_crash", "exit": "exit", "partition": "partition",
    "flapping": "flapping", "reconnectStorm": "reconnect_storm", "loss": "loss", "duplication": "duplication",
    "reordering": "reordering", "delay": "delay", "skew": "clock_jump", "fullDisk": "disk_full",
    "slowDisk": "disk_slow", "hubRestart": "hub_restart", "hubTorn": "hub_torn",
    "hubStall": "hub_stall",
}  # fmt: skip


def compose(written: kind.Scenario, seed: int, files: Mapping[str, Sequence[AnyResource]] | None = None) -> Scenario:
    """The played form of a scenario. `files`: what is in each file that it names."""
    spec = written.spec
    machines = tuple(machine for group in spec.fleet for machine in _machines(group, seed))
    nodes = len(machines)
    sites = tuple(site for group in spec.fleet for site in _sites(group))
    edits = [*_asked(spec, files or {}), *(edit for load in spec.load for edit in _loaded(load, seed))]
    faults = tuple(fault for i, said in enumerate(spec.faults) for fault in _faults(said, i, machines, seed))
    slowest = max(m.latency_ms[1] if m.latency_ms else 0 for m in machines)
    every_ms = HEARTBEAT_MS if nodes <= 1_000 else HEARTBEAT_MS * nodes // 1_000
    return Scenario(
        name=written.metadata.name,
        machines=machines,
        sites=sites,
        edits=tuple(sorted(edits, key=lambda edit: edit.at_ms)),
        faults=tuple(sorted(faults, key=lambda f: (f.at_ms, f.kind, f.target))),
        expected=spec.expectations,
        truths=spec.truths,
        look_ms=int(spec.look_ms or max(1_000, spec.duration_ms // LOOKS)),
        duration_ms=int(spec.duration_ms),
        settle_ms=int(spec.settle_ms),
        physics=Physics(
            latency_ms=(USUAL_LATENCY_MS, max(USUAL_LATENCY_MS, slowest)),
            writes_at_once=ROWS_AT_ONCE,
            # A decision about a large fleet takes its time, and news gathers meanwhile.
            gather_ms=min(LONGEST_GATHER_MS, max(GATHER_MS, nodes // 5)),
            # A full pass of a large fleet takes its time, and is asked for less often.
            full_pass_ms=FULL_PASS_MS * max(1, every_ms // HEARTBEAT_MS),
        ),
    )


# --- Fleet ------------------------------------------------------------------------------------------------------------


def _machines(group: kind.Group, seed: int) -> Iterator[Machine]:
    chance = Chance(seed, "fleet", group.name)
    sites = sites_of(group)
    sorts = group.hardware or (Hardware(),)
    weights = [h.weight for h in sorts]
    latency = _span(group)
    for k in range(group.nodes):
        # Sorts in exact proportion rather than drawn: a mix of 3 to 1 is one in every fleet, however small.
        turn, hardware = k % sum(weights), sorts[0]
        for sort in sorts:
            hardware = sort
            if turn < sort.weight:
                break
            turn -= sort.weight
        yield Machine(
            name=f"{group.name}-{k}",
            site=sites[k % len(sites)],
            cpu_millis=int(hardware.cpu_millis),
            memory_bytes=int(hardware.memory_bytes),
            disk_bytes=int(hardware.disk_bytes),
            architecture=hardware.architecture,
            runtimes=hardware.runtimes,
            accelerators=hardware.accelerators,
            labels=group.labels,
            hardware=hardware.name or "",
            drift_ppm=chance.between(-group.drift_ppm, group.drift_ppm),
            clock_ahead_ms=chance.between(-group.ahead_ms, group.ahead_ms),
            latency_ms=latency,
            bandwidth_bps=int(group.uplink.bandwidth_bps or USUAL_BANDWIDTH_BPS),
        )


def _span(group: kind.Group) -> Range:
    """Its latency, give or take a quarter."""
    latency_ms = int(USUAL_LATENCY_MS if group.uplink.latency_ms is None else group.uplink.latency_ms)
    return (latency_ms - latency_ms // 4, latency_ms + latency_ms // 4 + 1)


def _sites(group: kind.Group) -> Iterator[Site]:
    spec = SiteSpec(residency=group.residency, uplink=group.uplink)
    for name in sites_of(group):
        yield Site(metadata=Metadata(name=name), spec=spec)


# --- What people do ---------------------------------------------------------------------------------------------------


def _asked(spec: kind.ScenarioSpec, files: Mapping[str, Sequence[AnyResource]]) -> Iterator[Edit]:
    for ask in spec.asks:
        at_ms = int(ask.at_ms)
        for document in ask.apply:
            yield Edit(at_ms=at_ms, apply=from_document(document))
        for file in ask.files:
            for resource in files[file]:
                yield Edit(at_ms=at_ms, apply=resource)
        for word in ask.delete:
            plural, *parts = word.split("/")
            namespaced = any(k.plural == plural and k.namespaced for k in KINDS)
            namespace = (parts[0] if len(parts) == 2 else DEFAULT_NAMESPACE) if namespaced else ""
            yield Edit(at_ms=at_ms, delete=Ref(plural, namespace, parts[-1]))
        for asked in ask.rollouts:
            app = asked.application if "/" in asked.application else f"{DEFAULT_NAMESPACE}/{asked.application}"
            yield Edit(at_ms=at_ms, rollout=msgspec.structs.replace(asked, application=app))


def _loaded(load: kind.Load, seed: int) -> Iterator[Edit]:
    chance = Chance(seed, "load", load.name)
    for k in range(load.applications):
        component = load.component
        if load.instances is not None:
            count = chance.between(load.instances.least, load.instances.most)
            component = msgspec.structs.replace(component, replicas=Replicas(count=count))
        application = Application(
            metadata=Metadata(name=f"{load.name}-{k}"), spec=ApplicationSpec(components=(component,))
        )
        yield Edit(at_ms=int(load.at_ms + k * load.every_ms), apply=application)


# --- What goes wrong --------------------------------------------------------------------------------------------------


def _faults(said: kind.Fault, place: int, machines: Sequence[Machine], seed: int) -> Iterator[Fault]:
    """One for every node that it befalls, each at an instant of its own when there is a span to draw from."""
    chance = Chance(seed, "fault", str(place), said.fault)
    until_ms = int(said.at_ms if said.until_ms is None else said.until_ms)
    targets = _befallen(said, machines, chance) if FAULTS[said.fault].whom else [""] * said.repeat
    for target in targets:
        yield Fault(
            kind=_KINDS[said.fault],
            at_ms=chance.between(int(said.at_ms), until_ms),
            for_ms=int(said.for_ms),
            target=target,
            amount=_amount(said, chance),
        )


def _befallen(said: kind.Fault, machines: Sequence[Machine], chance: Chance) -> list[str]:
    named = [
        m.name
        for m in machines
        if m.name in said.node or any(m.site == s or m.site.startswith(f"{s}-site-") for s in said.site)
    ]
    among = named if said.node or said.site else [m.name for m in machines]
    if said.nodes is None:
        return among
    if not said.nodes.endswith("%"):
        return chance.sample(among, int(said.nodes))
    permille = round(float(said.nodes[:-1]) * 10)
    return chance.sample(among, max(1, len(among) * permille // 1000))


def _amount(said: kind.Fault, chance: Chance) -> int:
    """How strong it is, in the unit of the played fault."""
    if said.fault == "skew":
        most = int(said.by_ms or 0)
        return chance.between(-most, most)
    if said.fault == "hubTorn":
        return chance.between(0, 4)
    if said.percent is not None:
        return said.percent * 10
    return int(said.by_ms or said.period_ms or said.times or 0)
