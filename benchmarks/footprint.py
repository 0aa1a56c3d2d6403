"""What Batuta costs in memory when nothing happens: six nodes, one model instance assigned, after a minute.

    python benchmarks/footprint.py [--json] [--seconds 60]

Resident memory (RSS) of real processes, workers counted apart. RSS counts shared pages once per process and so
overstates what six nodes on one machine use; PSS, which divides them, and USS, which leaves them out, are printed too.
The baseline is an idle Python process with asyncio and nats-py imported and nothing else.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import platform
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import psutil

from batuta.demo.digits import prepare
from batuta.demo.play import MANIFEST
from batuta.demo.stage import Stage, processes_in, wait_for
from batuta.model_push import push

NODES = ("pi-1", "pi-2", "pi-3", "pi-4", "pi-5", "pi-6")
BASELINE = "import asyncio, nats, sys; print('ready', flush=True); sys.stdin.read()"


def main() -> int:
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--json", action="store_true", help="print one JSON object as the last line")
    options.add_argument("--seconds", type=float, default=60.0, help="how long to be idle before measuring")
    chosen = options.parse_args()
    with tempfile.TemporaryDirectory(prefix="batuta-bench-") as directory:
        stage = Stage(Path(directory))
        try:
            figures = measure(stage, chosen.seconds)
        finally:
            stage.close()
    print(f"idle for {chosen.seconds:.0f} s, six nodes ({platform.machine()}, Python {platform.python_version()}), MB")
    for key, value in figures.items():
        print(f"  {key:28} {value}")
    if chosen.json:
        print(json.dumps(figures))
    return 0


def measure(stage: Stage, idle_s: float) -> dict[str, float]:
    digits = prepare(stage.directory / "models")
    stage.start_hub()
    for node in NODES:
        stage.start_node(node, "home")
    for node in NODES:
        wait_for(node, lambda node=node: stage.online(node), 40)  # type: ignore[misc]
    push(stage.client, digits.first, name="digits", version="1")
    stage.client.apply(MANIFEST.format(version="1"))
    wait_for("the instance", lambda: _ready(stage), 30)
    time.sleep(idle_s)  # the measurement is of a minute in which nothing happens
    agents, brokers, workers, hub, hub_broker = [], [], [], [], []
    for process in processes_in(stage.directory):
        with contextlib.suppress(psutil.NoSuchProcess):
            at_hub = str(stage.hub_state) in " ".join(process.cmdline()) or process.cwd().startswith(
                str(stage.hub_state)
            )
            broker = "nats-server" in process.name()
            memory = process.memory_full_info()
            where = (hub_broker if broker else hub) if at_hub else brokers if broker else workers
            if process.pid in {a.running.pid for a in stage.nodes.values()}:
                where = agents
            where.append((memory.rss, memory.pss, memory.uss))
    with subprocess.Popen([sys.executable, "-c", BASELINE], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as idle:
        assert idle.stdout is not None
        idle.stdout.readline()
        baseline = psutil.Process(idle.pid).memory_info().rss
        idle.kill()
    return {
        "agent_rss_mb_max": _most(agents, 0),
        "agent_pss_mb_max": _most(agents, 1),
        "broker_rss_mb_max": _most(brokers, 0),
        "broker_pss_mb_max": _most(brokers, 1),
        "broker_uss_mb_max": _most(brokers, 2),
        "worker_rss_mb_max": _most(workers, 0),
        "hub_rss_mb": _mb(sum(rss for rss, *_ in hub)),
        "hub_broker_rss_mb": _mb(sum(rss for rss, *_ in hub_broker)),
        "baseline_python_nats_rss_mb": _mb(baseline),
        "agent_over_baseline": round(max(rss for rss, *_ in agents) / baseline, 2),
    }


def _ready(stage: Stage) -> bool | None:
    return any(i["phase"] == "ready" for i in stage.instances("meter-reader")) or None


def _most(processes: list[tuple[int, int, int]], which: int) -> float:
    """The largest of all: 0 is RSS, 1 PSS, 2 USS."""
    return _mb(max((memory[which] for memory in processes), default=0))


def _mb(size: float) -> float:
    return round(size / 1e6, 1)


if __name__ == "__main__":
    sys.exit(main())
