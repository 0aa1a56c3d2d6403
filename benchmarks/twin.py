"""The twin at size: a large fleet for an hour, and a reconnect storm of all its links. One process, one core.

`--nodes` and `--storm` choose other sizes; `--json` prints one object as the last line.
"""

from __future__ import annotations

import argparse
import json
import resource
import time
from pathlib import Path

import msgspec

from batuta.kinds import Scenario
from batuta.kinds.manifest import parse
from batuta.twin.compose import compose
from batuta.twin.rules import RULES
from batuta.twin.run import run

SCENARIOS = Path(__file__).parents[1] / "examples" / "scenarios"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--nodes", type=int, default=10_000, help="of the large fleet; five instances each")
    parser.add_argument("--storm", type=int, default=100_000, help="nodes of the storm")
    parser.add_argument("--twice", action="store_true", help="play each twice and compare the traces")
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    found = {}
    for name, nodes in (("large", options.nodes), ("storm", options.storm)):
        if nodes:
            found[name] = measure(name, nodes, twice=options.twice)
            told = ", ".join(f"{key} {value}" for key, value in found[name].items())
            print(f"{name}: {told}", flush=True)
    if options.json:
        print(json.dumps(found))


def measure(name: str, nodes: int, *, twice: bool) -> dict[str, object]:
    """One scenario of the examples with another number of nodes, played."""
    (written,) = parse((SCENARIOS / f"{name}.yaml").read_bytes(), name)
    assert isinstance(written, Scenario)
    plan = compose(sized(written, nodes), 1)
    hub_s = 0.0

    def decide(*args: object) -> object:
        nonlocal hub_s
        began = time.process_time()
        decision = RULES.decide(*args)
        hub_s += time.process_time() - began
        return decision

    began = time.process_time()
    verdict = run(plan, 1, RULES._replace(decide=decide))
    cpu_s = time.process_time() - began
    if twice and run(plan, 1).trace != verdict.trace:
        raise SystemExit(f"{name}: the same seed gave another trace")
    counts = verdict.counts
    return {
        "nodes": nodes, "instances": verdict.looks[-1]["ready"], "virtual_s": plan.duration_ms // 1000,
        "cpu_s": round(cpu_s, 1), "hub_cpu_s": round(hub_s, 1), "ok": verdict.ok, "events": counts["events"],
        "messages": counts["messages"], "bytes": counts["bytes up"] + counts["bytes down"],
        "dead_verdicts": counts["dead verdicts"], "false_dead_verdicts": counts["false dead verdicts"],
        "trace": verdict.trace, "rss_mb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024,
    }  # fmt: skip


def sized(written: Scenario, nodes: int) -> Scenario:
    """The same with so many nodes, and with sites and applications in proportion. What is expected stays, in shares."""
    spec, (group,) = written.spec, written.spec.fleet
    if nodes == group.nodes:
        return written
    fleet = (msgspec.structs.replace(group, nodes=nodes, sites=max(1, nodes * group.sites // group.nodes)),)
    load = tuple(
        msgspec.structs.replace(each, applications=max(1, each.applications * nodes // group.nodes))
        for each in spec.load
    )
    expectations = tuple(e for e in spec.expectations if "000" not in str(e) and "49500" not in str(e))
    changed = msgspec.structs.replace(spec, fleet=fleet, load=load, expectations=expectations)
    return msgspec.structs.replace(written, spec=changed)


if __name__ == "__main__":
    main()
