"""What feature flags cost: how soon a change is seen at nodes, what an answer takes there, what a fleet costs the hub.

    python benchmarks/flags.py [--json] [--changes 40] [--nodes 10000]

The first two on real processes: a hub and two nodes of this machine, asked over HTTP by one connection. A change
counts from the moment at which the hub has confirmed it to its author. The third is processor time of the hub's own
computing, in this process: a fleet of so many nodes at a hundred sites, fifty flags of two rules each, one of which
then changes. The baseline of an answer is one from the same gateway that looks nothing up: its health.
"""

from __future__ import annotations

import argparse
import http.client
import json
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from batuta.core.flag_sheets import sheets_of
from batuta.core.observed import Inventory, Report
from batuta.core.state import Change, State
from batuta.demo.stage import Stage, wait_for
from batuta.kinds.base import Metadata
from batuta.kinds.flag import Flag, FlagRule, FlagSpec
from batuta.kinds.node import Node, NodeSpec
from batuta.kinds.site import Site

ANSWERS = 3_000


def main() -> int:
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--json", action="store_true", help="print one JSON object as the last line")
    options.add_argument("--changes", type=int, default=40)
    options.add_argument("--nodes", type=int, default=10_000)
    chosen = options.parse_args()
    with tempfile.TemporaryDirectory(prefix="batuta-bench-") as directory:
        stage = Stage(Path(directory))
        try:
            figures = on_processes(stage, chosen.changes)
        finally:
            stage.close()
    figures |= of_a_fleet(chosen.nodes)
    for key, value in figures.items():
        print(f"  {key:28} {value}")
    if chosen.json:
        print(json.dumps(figures))
    return 0


def flag(name: str, new: int, where: str = 'site.name == "north"') -> Flag:
    rules = (
        FlagRule(when='"ring" in node.labels && node.labels.ring == "canary"', variant="new"),
        FlagRule(when=where, split={"new": new, "old": 100 - new}),
    )
    return Flag(
        metadata=Metadata(name=name), spec=FlagSpec(variants={"new": True, "old": False}, default="old", rules=rules)
    )


class Asker:
    """One kept connection to a node's gateway."""

    def __init__(self, url: str) -> None:
        self.line = http.client.HTTPConnection(urlsplit(url).netloc, timeout=60)
        self.body = json.dumps({"context": {"targetingKey": "camera-7"}})

    def flag(self, name: str) -> dict[str, Any]:
        self.line.request("POST", f"/flags/default/ofrep/v1/evaluate/flags/{name}", self.body)
        return dict(json.loads(self.line.getresponse().read()))

    def health(self) -> None:
        self.line.request("GET", "/v2/health/live")
        self.line.getresponse().read()


def on_processes(stage: Stage, changes: int) -> dict[str, float]:
    stage.start_hub()
    for name in ("north", "south"):
        stage.start_node(f"{name}-1", name)
    for name in ("north", "south"):
        wait_for(name, lambda name=name: stage.online(f"{name}-1"), 60)  # type: ignore[misc]
    stage.client.apply([flag("overlay", 100)])
    asker = Asker(str(stage.node_status("north-1")["inference"]))
    began = time.perf_counter()
    wait_for("the flag", lambda: asker.flag("overlay").get("value"), 60)
    first_ms = (time.perf_counter() - began) * 1000
    seen_ms = []
    for n in range(changes):
        stage.client.apply([flag("overlay", 100 * (n % 2))])
        began = time.perf_counter()
        while asker.flag("overlay").get("value") is not bool(n % 2):
            if time.perf_counter() - began > 60:
                raise RuntimeError("a change never arrived")
        seen_ms.append((time.perf_counter() - began) * 1000)
    return {
        "first_answer_ms": round(first_ms, 1),
        "change_seen_p50_ms": _quantile(seen_ms, 50),
        "change_seen_max_ms": round(max(seen_ms), 1),
        "answer_p50_ms": _quantile(taken := _each(lambda: asker.flag("overlay")), 50),
        "answer_p99_ms": _quantile(taken, 99),
        "baseline_health_p50_ms": _quantile(_each(asker.health), 50),
        "agent_rss_mb": stage.rss_mb()["agent"],
    }


def of_a_fleet(nodes: int) -> dict[str, float]:
    resources: list[Site | Node | Flag] = [Site(metadata=Metadata(name=f"site-{n}")) for n in range(100)]
    for n in range(nodes):
        labels = {"ring": "canary"} if n % 20 == 0 else {}
        resources.append(
            Node(metadata=Metadata(name=f"node-{n}", labels=labels), spec=NodeSpec(site=f"site-{n % 100}"))
        )
    where = 'site.name in ["site-1", "site-2"] && node.architecture == "arm64"'
    resources += [flag(f"flag-{n}", 20, where) for n in range(50)]
    inventory = Inventory(architecture="arm64")
    rows = [Change("desired", each.ref.key, each) for each in resources]
    rows += [
        Change("observed", f"node-{n}", Report(node=f"node-{n}", boot="b", sequence=1, at=1, inventory=inventory))
        for n in range(nodes)
    ]
    state = State(hub_since=1).with_changes(rows)
    began = time.process_time()
    before = {name: sheets_of(state).told(name).digest for name in state.nodes}
    first_ms = (time.process_time() - began) * 1000
    changed = flag("flag-7", 30, where)
    state.with_changes([Change("desired", changed.ref.key, changed)])  # as the hub does: tried before it is written
    state = state.with_changes([Change("desired", changed.ref.key, changed)])
    began = time.process_time()
    sheets = sheets_of(state)
    after = {name: sheets.told(name).digest for name in state.nodes}
    return {
        "nodes": nodes,
        "fleet_first_cpu_ms": round(first_ms, 1),
        "fleet_change_cpu_ms": round((time.process_time() - began) * 1000, 1),
        "fleet_told": sum(before[name] != after[name] for name in after),
        "sheet_bytes": len(sheets.told("node-1").body),
    }


def _each(call: Any) -> list[float]:
    taken = []
    for _ in range(ANSWERS):
        began = time.perf_counter()
        call()
        taken.append((time.perf_counter() - began) * 1000)
    return taken


def _quantile(values: list[float], percent: int) -> float:
    return round(statistics.quantiles(values, n=100, method="inclusive")[percent - 1], 3)


if __name__ == "__main__":
    raise SystemExit(main())
