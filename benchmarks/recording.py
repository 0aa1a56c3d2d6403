"""What recording costs a hub: the same life of the same fleet, decided with the recording on and off, in turns.

    python benchmarks/recording.py --nodes 1000 --rounds 60

Every node reports in every round, a tenth of them with an instance that went away and came back, so that the hub
decides again. Printed: how long a round takes from the reports to the last commit, and how many bytes are recorded.
"""

from __future__ import annotations

import argparse
import asyncio
import resource
import statistics
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec

from batuta.config import HubConfig
from batuta.core.observed import InstanceReport, Inventory, Report
from batuta.fabric.clock import SystemClock
from batuta.fabric.memory import MemoryBroker
from batuta.fabric.subjects import report_key
from batuta.hub.hub import Hub
from batuta.kinds import manifest
from batuta.kinds.base import Bytes, Metadata, Millicores, encode_hook
from batuta.kinds.node import Node, NodeSpec
from batuta.kinds.site import Site

if TYPE_CHECKING:
    from batuta.core.state import State

APP = """
apiVersion: batuta.dev/v1
kind: Application
metadata: {name: app-NUMBER}
spec:
  components:
  - {name: run, process: {command: [sleep, "1000"]}, replicas: {count: 10}, resources: {cpu: 10m, memory: 8Mi}}
"""


def report(state: State, node: str, sequence: int, away: bool) -> bytes:
    """What a node says that runs what it was told; one instance of it is not ready when `away`."""
    assignment = state.assignments.get(node)
    said = [
        InstanceReport(name=i.name, epoch=i.epoch, phase="unready" if away and not k else "ready", since=sequence)
        for k, i in enumerate(assignment.instances if assignment is not None else ())
    ]
    inventory = Inventory(
        architecture="arm64", cpu_millis=Millicores(4000), memory_bytes=Bytes(2**32), runtimes=("process",)
    )
    serial = assignment.serial if assignment is not None else 0
    told = Report(
        node=node, boot="b", sequence=sequence, at=sequence, serial=serial, inventory=inventory, instances=tuple(said)
    )
    return msgspec.json.encode(told, enc_hook=encode_hook)


async def lived(directory: Path, nodes: int, rounds: int, bytes_max: int) -> tuple[list[float], int, float]:
    """Milliseconds of every round, bytes recorded, and the processor seconds of it all."""
    broker = MemoryBroker()
    fabric = broker.connect("hub")
    config = HubConfig(state=str(directory), recording_bytes_max=bytes_max, full_pass_ms=3_600_000)
    hub = Hub(config, fabric, SystemClock())
    await hub.start()
    names = [f"n-{k}" for k in range(nodes)]
    await hub.declarations.apply([Site(metadata=Metadata(name=f"s-{k}")) for k in range(10)])
    await hub.declarations.apply([Node(metadata=Metadata(name=n), spec=NodeSpec(site=f"s-{n[-1]}")) for n in names])
    table = fabric.table("observed")
    took: list[float] = []
    for n in range(rounds):
        for k, name in enumerate(names):
            hub.sightings.heard(name)
            await table.put(report_key(name), report(hub.loop.state, name, n + 1, away=(k + n) % 10 == 0))
        if n == 1:
            apps = "---".join(APP.replace("NUMBER", str(k)) for k in range(nodes // 5))
            await hub.declarations.apply(manifest.parse(apps))
        began = time.perf_counter()
        await hub.loop.turn()
        took.append((time.perf_counter() - began) * 1000)
        await asyncio.sleep(0)
    await hub.recording.flush()
    size = sum(file.stat().st_size for file in hub.recording.files())
    gaps = hub.counters["recording_gaps"]
    assert not gaps, f"{gaps} gaps"
    await hub.stop()
    await fabric.close()
    used = resource.getrusage(resource.RUSAGE_SELF)
    return took[3:], size, used.ru_utime + used.ru_stime


def main() -> None:
    asked = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    asked.add_argument("--nodes", type=int, default=1000)
    asked.add_argument("--rounds", type=int, default=60)
    asked.add_argument("--times", type=int, default=3)
    wanted = asked.parse_args()
    found: dict[str, list[float]] = {"off": [], "on": []}
    spent = {"off": 0.0, "on": 0.0}
    size, before = 0, 0.0
    for _ in range(wanted.times):
        for word, bytes_max in (("off", 0), ("on", 64 * 2**20)):
            with tempfile.TemporaryDirectory() as directory:
                took, recorded, used = asyncio.run(lived(Path(directory), wanted.nodes, wanted.rounds, bytes_max))
            found[word] += took
            spent[word] += used - before
            size, before = max(size, recorded), used
    for word, took in found.items():
        median, p99 = statistics.median(took), statistics.quantiles(took, n=100)[98]
        print(f"recording {word:3}: a round takes {median:.1f} ms (p99 {p99:.1f}), {spent[word]:.1f} s of CPU in all")
    print(f"{size / 1024:.0f} KiB recorded for {wanted.rounds} rounds of {wanted.nodes} reports")


if __name__ == "__main__":
    main()
