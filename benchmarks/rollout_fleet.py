"""A new model reaches a large fleet in the twin: who refuses it, who is away, when it is through, and what that costs.

    python benchmarks/rollout_fleet.py [--nodes 10000] [--seed 1] [--json]

Plays `examples/scenarios/rollout.yaml` with so many nodes, in one process on one core. All laws are watched at every
decision: budgets, turns, waves, capacity, no move without a cause; and that the fleet finds back and then rests.
"""

from __future__ import annotations

import argparse
import json
import resource
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec

from batuta.kinds import Scenario
from batuta.kinds.manifest import parse
from batuta.twin.compose import compose
from batuta.twin.rules import RULES
from batuta.twin.run import run

if TYPE_CHECKING:
    from batuta.twin import scenario as played
    from batuta.twin.run import Verdict

SCENARIOS = Path(__file__).parents[1] / "examples" / "scenarios"
APP = "default/eyes"
ARRIVES = "it arrives"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--nodes", type=int, default=10_000)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    plan = arriving(options.nodes, options.seed)
    hub_s = 0.0

    def decide(*args: Any) -> Any:
        nonlocal hub_s
        began = time.process_time()
        decision = RULES.decide(*args)
        hub_s += time.process_time() - began
        return decision

    began = time.process_time()
    verdict = run(plan, options.seed, RULES._replace(decide=decide))
    cpu_s = time.process_time() - began
    found = told(plan, verdict) | {
        "cpu_s": round(cpu_s, 1), "hub_cpu_s": round(hub_s, 1),
        "rss_mb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024,
    }  # fmt: skip
    print(", ".join(f"{key} {value}" for key, value in found.items()))
    for broken in verdict.broken[:10]:
        print(broken)
    if options.json:
        print(json.dumps(found))


def arriving(nodes: int, seed: int) -> played.Scenario:
    """The scenario with so many nodes, twenty to a site."""
    (written,) = parse((SCENARIOS / "rollout.yaml").read_bytes(), "rollout")
    assert isinstance(written, Scenario)
    (group,) = written.spec.fleet
    fleet = (msgspec.structs.replace(group, nodes=nodes, sites=max(1, nodes * group.sites // group.nodes)),)
    spec = msgspec.structs.replace(written.spec, fleet=fleet)
    names = {file for ask in spec.asks for file in ask.files}
    files = {name: parse((SCENARIOS / name).read_bytes(), name) for name in names}
    return compose(msgspec.structs.replace(written, spec=spec), seed, files)


def told(plan: played.Scenario, verdict: Verdict) -> dict[str, Any]:
    """What came of it."""
    asked_ms = max(e.at_ms for e in plan.edits)
    looks = [look for look in verdict.looks if look["at_s"] * 1_000 >= asked_ms]
    done_ms = verdict.met.get(ARRIVES)
    while_it_lasts = [look for look in looks if done_ms is None or look["at_s"] * 1_000 <= done_ms]
    away = [1 - look["connected"] / look["nodes"] for look in while_it_lasts]
    last = verdict.looks[-1]
    return {
        "nodes": len(plan.machines),
        "ok": verdict.ok,
        "done_s": None if done_ms is None else (done_ms - asked_ms) // 1_000,
        "away_share": round(sum(away) / len(away), 3),
        "away_least": round(min(away), 3),
        "updated_when_done": while_it_lasts[-1]["updated_of"].get(APP),
        "updated": last["updated_of"].get(APP),
        "of_the_other_classes": sum(m.hardware != "aged" for m in plan.machines),
        "ready_least": min(look["ready"] for look in while_it_lasts),
        "healed_s": None if verdict.healed_ms is None else verdict.healed_ms // 1_000,
        "decisions": verdict.counts["decisions"],
        "broken": len(verdict.broken),
        "trace": verdict.trace,
    }


if __name__ == "__main__":
    main()
