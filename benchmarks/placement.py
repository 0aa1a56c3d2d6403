"""How fast Batuta places, and how well: 10,000 instances of 100 applications onto 1,000 to 100,000 nodes, on one core.

    python benchmarks/placement.py [--json] [--sizes 1000,5000] [--modes plain,all_rules] [--problems 200]
                                   [--preempt 5000] [--profile FILE]

Applications have unlike needs, 5 to 500 instances each, and arrive one at a time; for each rule a tenth of the nodes is
unfit. What is timed is a whole turn of the hub without its wires: the application is folded into the State, what it
touches is found, `decide` turns the State into a Decision, and the Decision is folded back. Nothing is left for later:
a turn also makes sure that what the turn before it decided came just so, as the hub's loop does.

`p99_ms` is one placement alone: an application of one instance, from its arrival to the State that holds its place, in
the fleet that the ten thousand have filled. `p99_application_ms` is the same for each of the hundred.

Preemption (`benchmarks/placement_preempt.py`) has a row of its own: a hundred instances of a high priority arrive in a
fleet of 5,000 nodes that is full.

Quality (`benchmarks/placement_quality.py`) compares with the optimum that OR-Tools CP-SAT proves; it needs the extra
`batuta[bench]` and is left out, and said so, without it.
"""

from __future__ import annotations

import argparse
import gc
import json
import os
import platform
import random
import resource
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

sys.path.insert(0, str(Path(__file__).parent))

from placement_fleet import MODES, NOW, applications, fleet_rows, small_application

from batuta.core.decide import APPLICATION, decide
from batuta.core.fleet import Fleet
from batuta.core.state import Change, State
from batuta.core.touched import touched

if TYPE_CHECKING:
    from collections.abc import Sequence

SIZES = (1_000, 5_000, 10_000, 100_000)
ALONE = 200
"""How many single placements the latency is taken from."""


class Hub:
    """The hub's loop without its wires: what arrives is folded, and what it touches is decided and folded."""

    def __init__(self, rows: Sequence[Change]) -> None:
        self.fleet = Fleet()
        self.state = State(hub_since=NOW - 3_600_000).with_changes(rows)
        self.before = self.state
        self.own: dict[str, Any] = {}
        self.pending: frozenset[str] = frozenset()
        first = decide(self.state, NOW, None, self.fleet)
        self.state = self.state.with_changes(first.changes)

    def turn(self, arrived: Sequence[Change]) -> None:
        state = self.state.with_changes(arrived)
        subjects = touched(self.before, state, NOW, NOW, self.fleet, self.own) | self.pending
        decision = decide(state, NOW, subjects, self.fleet)
        self.before = state
        self.own = {change.key: change.value for change in decision.changes}
        self.pending = frozenset(APPLICATION + app for app in decision.pending)
        self.state = state.with_changes(decision.changes)

    def placed(self) -> int:
        return sum(len(rows) for rows in self.state.held.values())


class Figures(NamedTuple):
    """What one fleet size in one mode came to."""

    placements_per_s: float
    placements_per_cpu_s: float
    """The same by the processor's clock, for machines on which others are busy, too."""
    p99_ms: float
    p50_ms: float
    p99_application_ms: float
    placed: int
    wanted: int
    rss_mb: float


def measure(nodes: int, mode: str, seed: int) -> Figures:
    hub = Hub(fleet_rows(nodes, mode, seed))
    hub.turn(())
    arriving = applications(nodes, mode, seed)
    alone_later = [small_application(nodes, mode, k, seed) for k in range(ALONE)]
    for change in (*arriving, *alone_later):
        list(change.value.problems())  # Admission has read every condition before anything is decided.
    wanted = sum(c.replicas.count or 0 for a in arriving for c in a.value.spec.components)
    gc.collect()
    gc.freeze()  # As a hub does once it has read its tables: they live as long as it does.
    turns: list[float] = []
    began_cpu = time.process_time()
    there = hub.placed()
    for change in arriving:
        began = time.perf_counter()
        hub.turn((change,))
        turns.append(time.perf_counter() - began)
    began = time.perf_counter()
    hub.turn(())  # Confirms the last one.
    spent = sum(turns) + time.perf_counter() - began
    spent_cpu = time.process_time() - began_cpu
    placed = hub.placed() - there
    alone: list[float] = []
    for change in alone_later:
        began = time.perf_counter()
        hub.turn((change,))
        alone.append(time.perf_counter() - began)
    gc.unfreeze()
    return Figures(
        placements_per_s=round(placed / spent, 1),
        placements_per_cpu_s=round(placed / spent_cpu, 1),
        p99_ms=round(quantile(alone, 0.99) * 1000, 3),
        p50_ms=round(quantile(alone, 0.5) * 1000, 3),
        p99_application_ms=round(quantile(turns, 0.99) * 1000, 3),
        placed=placed,
        wanted=wanted,
        rss_mb=round(resident_mb(), 1),
    )


def quantile(values: Sequence[float], q: float) -> float:
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, int(q * len(ordered)))]


def resident_mb() -> float:
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * resource.getpagesize() / 1e6


def main() -> int:
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--json", action="store_true", help="print one JSON object as the last line")
    options.add_argument("--sizes", default=",".join(map(str, SIZES)), help="numbers of nodes, separated by commas")
    options.add_argument("--modes", default=",".join(MODES), help="plain, all_rules")
    options.add_argument("--problems", type=int, default=200, help="problems to solve exactly; 0 leaves quality out")
    options.add_argument("--preempt", type=int, default=5_000, help="nodes of the full fleet; 0 leaves it out")
    options.add_argument("--seed", type=int, default=1)
    options.add_argument("--profile", metavar="FILE", help="profile the first size and mode instead of timing it")
    chosen = options.parse_args()
    sizes = [int(size) for size in chosen.sizes.split(",") if size]
    modes = [mode for mode in chosen.modes.split(",") if mode]
    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})
    if chosen.profile:
        import cProfile

        cProfile.runctx("measure(sizes[0], modes[0], chosen.seed)", globals(), locals(), chosen.profile)
        return 0
    found: dict[str, dict[str, Figures]] = {}
    print(f"one process on one core ({platform.machine()}, Python {platform.python_version()})")
    print(
        f"{'nodes':>8} {'rules':>10} {'placed':>7} {'per s':>8} {'per CPU s':>9} "
        f"{'p50 ms':>7} {'p99 ms':>7} {'app p99':>8} {'RSS MB':>7}"
    )
    for size in sizes:
        for mode in modes:
            f = found.setdefault(str(size), {})[mode] = measure(size, mode, chosen.seed)
            print(
                f"{size:>8} {mode:>10} {f.placed:>7} {f.placements_per_s:>8.0f} "
                f"{f.placements_per_cpu_s:>9.0f} {f.p50_ms:>7.2f} {f.p99_ms:>7.2f} {f.p99_application_ms:>8.1f} "
                f"{f.rss_mb:>7.0f}" + ("" if f.placed == f.wanted else f"  of {f.wanted}"),
                flush=True,
            )
    figures = {
        field: {size: {mode: getattr(f, field) for mode, f in by_mode.items()} for size, by_mode in found.items()}
        for field in ("placements_per_s", "placements_per_cpu_s", "p99_ms", "p50_ms", "p99_application_ms", "placed")
    }
    preempted = None
    if chosen.preempt:
        import placement_preempt

        preempted = placement_preempt.measure(chosen.preempt, chosen.seed)
        print("preemption: " + placement_preempt.show(chosen.preempt, preempted).strip())
    peak_mb = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e6
    outcome: dict[str, object] = {**figures, "rss_mb": round(peak_mb, 1)}
    print(f"peak resident memory {peak_mb:.0f} MB")
    if preempted is not None:
        outcome["preemption"] = {"nodes": chosen.preempt, **preempted._asdict()}
    if chosen.problems:
        outcome["quality"] = quality(chosen.problems, chosen.seed)
    if chosen.json:
        print(json.dumps(outcome))
    return 0


def quality(problems: int, seed: int) -> dict[str, float] | None:
    try:
        from placement_quality import report
    except ModuleNotFoundError as error:
        print(f"quality is left out: {error.name} is not installed (pip install 'batuta[bench]')")
        return None
    return report(problems, seed)


if __name__ == "__main__":
    random.seed(0)
    raise SystemExit(main())
