"""A full fleet, and a hundred instances of a higher priority that arrive: a row of its own in `placement.py`.

    python benchmarks/placement_preempt.py [--nodes 5000] [--seed 1] [--json]

Twenty applications of four priorities below fill every node that takes anything, to the last instance that fits; half
of them are ready everywhere, and at no site may more than one replica of any be missing. Then ten applications of
priority 100 arrive, of ten instances each, one after the other: each instance displaces what does the least harm, and
who gave way stays without a place. Timed is the whole turn of the hub without its wires, as in `placement.py`, and the
turn after it, which tries to place those that gave way.
"""

from __future__ import annotations

import argparse
import gc
import json
import sys
import time
from pathlib import Path
from typing import NamedTuple

sys.path.insert(0, str(Path(__file__).parent))

import msgspec
from placement_fleet import MIB, NOW, application, fleet_rows

from batuta.core.observed import InstanceReport
from batuta.core.standing import Displaced
from batuta.core.state import Change
from batuta.kinds.application import Component, ProcessUse, Replicas, Resources
from batuta.kinds.base import Bytes, Millicores
from batuta.kinds.rolling import Disruption, Rollout

CPU_MILLIS, MEMORY_BYTES = 4_000, 4 * 1024 * MIB
FILLERS, ARRIVING, EACH = 20, 10, 10
HIGH = 100


class Preempted(NamedTuple):
    """What came of it."""

    instances: int
    """That filled the fleet."""
    placed: int
    displaced: int
    displaced_per_placed: float
    harm: int
    """The priorities of those that gave way, summed."""
    without: int
    """Components that lost their last ready replica."""
    ms_per_placement: float
    cpu_ms_per_placement: float
    p99_turn_ms: float


def measure(nodes: int, seed: int) -> Preempted:
    from placement import Hub

    hub = Hub(fleet_rows(nodes, "plain", seed))
    hub.turn(())
    fleet = hub.fleet
    free = fleet.present & fleet.fresh & fleet.schedulable
    with_runtime = [row for row in free.nonzero()[0].tolist() if "process" in fleet.at(row)[1].inventory.runtimes]
    fits = sum(
        min(int(fleet.cpu_free[r]) // CPU_MILLIS, int(fleet.memory_free[r]) // MEMORY_BYTES) for r in with_runtime
    )
    counts = [fits // FILLERS + (k < fits % FILLERS) for k in range(FILLERS)]
    for k, count in enumerate(counts):
        hub.turn((_application(f"below-{k:02}", count, priority=k % 4),))
    hub.turn(_reports(hub))
    hub.turn(())
    before = dict(hub.state.held)
    gc.collect()
    gc.freeze()
    turns: list[float] = []
    began, began_cpu = time.perf_counter(), time.process_time()
    for k in range(ARRIVING):
        turn_began = time.perf_counter()
        hub.turn((_application(f"above-{k:02}", EACH, priority=HIGH),))
        hub.turn(())
        turns.append((time.perf_counter() - turn_began) * 1000)
    spent, spent_cpu = time.perf_counter() - began, time.process_time() - began_cpu
    gc.unfreeze()
    placed = sum(len(rows) for app, rows in hub.state.held.items() if "/above-" in app)
    gone = [row for rows in hub.state.standing.values() for row in rows.values() if isinstance(row, Displaced)]
    for app, rows in before.items():
        lost = len(rows) - len(hub.state.held.get(app, ()))
        assert lost == sum(1 for row in gone if row.app == app), f"{app} lost {lost}, and not by giving way"
    return Preempted(
        instances=sum(counts), placed=placed, displaced=len(gone),
        displaced_per_placed=round(len(gone) / max(1, placed), 3), harm=sum(row.priority for row in gone),
        without=sum(1 for app in before if "/below-" in app and not hub.state.held.get(app)),
        ms_per_placement=round(spent * 1000 / max(1, placed), 3),
        cpu_ms_per_placement=round(spent_cpu * 1000 / max(1, placed), 3),
        p99_turn_ms=round(sorted(turns)[-1], 1),
    )  # fmt: skip


def _application(name: str, count: int, priority: int) -> Change:
    component = Component(
        name="work",
        process=ProcessUse(command=("run",)),
        replicas=Replicas(count=count),
        resources=Resources(cpu_millis=Millicores(CPU_MILLIS), memory_bytes=Bytes(MEMORY_BYTES)),
    )
    change = application(name, component)
    spec = msgspec.structs.replace(
        change.value.spec, priority=priority, rollout=Rollout(disruption=Disruption(per_site=1))
    )
    return change._replace(value=msgspec.structs.replace(change.value, spec=spec))


def _reports(hub: object) -> list[Change]:
    """Every second application is ready wherever it runs; the others have said nothing yet."""
    state = hub.state  # type: ignore[attr-defined]
    found = []
    for node, assignment in state.assignments.items():
        told = tuple(
            InstanceReport(name=i.name, epoch=i.epoch, phase="ready", since=NOW)
            for i in assignment.instances
            if i.application.startswith("below-") and int(i.application[-2:]) % 8 < 4
        )
        report = msgspec.structs.replace(state.observed[node], serial=assignment.serial, instances=told)
        found.append(Change("observed", node, report))
    return found


def show(nodes: int, found: Preempted) -> str:
    return (
        f"{nodes:>8} nodes full with {found.instances} instances: {found.placed} of {ARRIVING * EACH} of priority "
        f"{HIGH} placed, {found.displaced} gave way (priorities {found.harm} in all, {found.without} components left "
        f"without), {found.ms_per_placement} ms each ({found.cpu_ms_per_placement} of CPU), slowest application "
        f"{found.p99_turn_ms} ms"
    )


def main() -> int:
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--nodes", type=int, default=5_000)
    options.add_argument("--seed", type=int, default=1)
    options.add_argument("--json", action="store_true", help="print one JSON object as the last line")
    chosen = options.parse_args()
    found = measure(chosen.nodes, chosen.seed)
    print(show(chosen.nodes, found))
    if chosen.json:
        print(json.dumps(found._asdict()))
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
