"""What it costs to bring a model to a site: bytes over its uplink, for the first time, for a fine-tune, and over cuts.

    python benchmarks/delivery.py [--json] [--nodes 10] [--megabytes 100] [--mbit 20] [--latency-ms 40]

Real processes: one hub, and nodes of one site that reach it through one cable of this rate and one-way delay, which all
of them share. Every byte that the cable carries in either direction is counted, orders, heartbeats and TLS included.
`refetched_after_cuts` is what had arrived from the hub and came once more; `sent_twice_over_cuts` counts what was on
its way as well. The baseline is each node fetching the whole file for itself.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import sys
import tempfile
import time
import urllib.request
from pathlib import Path
from typing import NamedTuple

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from batuta.demo.cable import Cable
from batuta.demo.stage import Stage, wait_for
from batuta.fabric import subjects
from batuta.fabric.nats import connect_hub
from batuta.kinds import Application
from batuta.model_push import push

WIDTH = 512
"""Each layer is a square matrix of so many floats: a megabyte."""
TUNED_PART = 0.05
PATIENCE_S = 900.0

APPLICATION = """
apiVersion: batuta.dev/v1
kind: Application
metadata: {{name: reader-{version}}}
spec:
  components:
  - name: read
    model: {{name: layers, version: "{version}"}}
    inputs:  [{{topic: "in/+/x", tensor: x}}]
    outputs: [{{topic: "out-of/{{1}}/y"}}]
    replicas: {{everyNode: true}}
    resources: {{memory: 480Mi}}
"""


class Leg(NamedTuple):
    """One delivery, measured."""

    seconds: float
    wan_bytes: int
    chunk_bytes: int
    """What the hub sent of the file itself."""
    arrived_bytes: int
    """What of that arrived at some node."""
    file_bytes: int


def main() -> int:
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--json", action="store_true", help="print one JSON object as the last line")
    options.add_argument("--nodes", type=int, default=10)
    options.add_argument("--megabytes", type=int, default=100)
    options.add_argument("--mbit", type=float, default=20.0)
    options.add_argument("--latency-ms", type=float, default=40.0)
    options.add_argument("--keep", default="", help="work in this directory and leave it")
    chosen = options.parse_args()
    with tempfile.TemporaryDirectory(prefix="batuta-bench-") as scratch:
        site = Delivery(Path(chosen.keep or scratch), chosen)
        try:
            figures = site.measure()
        finally:
            site.close()
    if chosen.json:
        print(json.dumps(figures))
    return 0


class Delivery:
    """A hub, a cable, and a site at its end."""

    def __init__(self, directory: Path, chosen: argparse.Namespace) -> None:
        self.chosen = chosen
        self.stage = Stage(directory)
        self.names = [f"shop-{n}" for n in range(chosen.nodes)]
        self.rng = np.random.default_rng(7)
        self.layers = self.fresh()
        self.cable: Cable | None = None
        self.versions = 0
        self.died_with = 0
        """What had arrived from the hub at a node that was then killed."""

    # --- Models ---

    def fresh(self) -> np.ndarray:
        count = max(2, self.chosen.megabytes * 1_000_000 // (WIDTH * WIDTH * 4))
        return self.rng.normal(0, WIDTH**-0.5, (count, WIDTH, WIDTH)).astype(np.float32)

    def tuned(self) -> np.ndarray:
        """Some layers were trained on, as fine-tuning with the others frozen does: 5 % of the weights."""
        tuned = self.layers.copy()
        count = max(1, round(len(tuned) * TUNED_PART))
        tuned[self.rng.choice(len(tuned), count, replace=False)] += np.float32(0.001)
        return tuned

    def scattered(self) -> np.ndarray:
        """As many weights, anywhere: the worst case, for hardly a chunk is left alone."""
        scattered = self.layers.copy()
        flat = scattered.reshape(-1)
        flat[self.rng.choice(len(flat), int(len(flat) * TUNED_PART), replace=False)] += np.float32(0.001)
        return scattered

    def push(self, layers: np.ndarray) -> tuple[str, int]:
        """Push a model of these layers as the next version; its digest and size."""
        nodes, weights, value = [], [], "x"
        for n, layer in enumerate(layers):
            weights.append(numpy_helper.from_array(layer, f"w{n}"))
            after = "y" if n == len(layers) - 1 else f"h{n}"
            nodes.append(helper.make_node("MatMul", [value, f"w{n}"], [after]))
            value = after
        ends = [helper.make_tensor_value_info(name, TensorProto.FLOAT, [None, WIDTH]) for name in ("x", "y")]
        graph = helper.make_graph(nodes, "layers", ends[:1], ends[1:], weights)
        self.versions += 1
        path = self.stage.directory / f"layers-{self.versions}.onnx"
        made = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)
        onnx.save(made, str(path))
        size = path.stat().st_size
        digest = push(self.stage.client, path, name="layers", version=str(self.versions)).digest
        path.unlink()
        return digest, size

    # --- Legs ---

    def measure(self) -> dict[str, float]:
        self.stage.start_hub()
        self.cable = Cable(
            self.stage.leaf_address(), bits_per_s=self.chosen.mbit * 1e6, delay_s=self.chosen.latency_ms / 1000
        )
        port = self.cable.start()
        for name in self.names:
            self.stage.start_node(name, "shop", via=port)
        for name in self.names:
            wait_for(name, lambda name=name: self.stage.online(name), 180)  # type: ignore[misc]
        print(f"{len(self.names)} nodes, {self.chosen.mbit:g} Mbit/s, {self.chosen.latency_ms:g} ms one way")
        first = self.leg("a model of its own", self.layers)
        tuned = self.leg("a fine-tune: 5 % of the weights, some layers", self.tuned())
        worst = self.leg("the worst case: 5 % of the weights, anywhere", self.scattered())
        cut = self.leg("three cuts and a kill -9", self.fresh(), misfortunes=True)
        rss = self.stage.rss_mb()
        print(f"  agent {rss['agent']} MB, its broker {rss['broker']} MB, hub {rss['hub']} MB")
        return {
            "wan_bytes_over_file": round(first.wan_bytes / first.file_bytes, 4),
            "finetune_bytes_over_file": round(tuned.wan_bytes / tuned.file_bytes, 4),
            "refetched_after_cuts": round(max(0, cut.arrived_bytes - cut.file_bytes) / cut.file_bytes, 4),
            "sent_twice_over_cuts": round(max(0, cut.chunk_bytes - cut.file_bytes) / cut.file_bytes, 4),
            "scattered_bytes_over_file": round(worst.wan_bytes / worst.file_bytes, 4),
            "wan_bytes_over_file_with_cuts": round(cut.wan_bytes / cut.file_bytes, 4),
            "baseline_bytes_over_file": float(len(self.names)),
            "seconds": round(first.seconds, 1),
            "seconds_at_line_rate": round(first.file_bytes * 8 / (self.chosen.mbit * 1e6), 1),
            "nodes": len(self.names),
            "file_bytes": first.file_bytes,
            "agent_rss_mb_max": rss["agent"],
        }

    def leg(self, what: str, layers: np.ndarray, *, misfortunes: bool = False) -> Leg:
        assert self.cable is not None
        digest, size = self.push(layers)
        before, sent_before, arrived_before = self.cable.bytes_carried, self.sent(), self.arrived()
        self.died_with, began = 0, time.monotonic()
        self.stage.client.apply(APPLICATION.format(version=self.versions))
        if misfortunes:
            self.misfortunes(size, sent_before)
        for name in self.names:
            wait_for(f"the file at {name}", lambda name=name: self.has(name, digest), PATIENCE_S)  # type: ignore[misc]
        seconds, wan = time.monotonic() - began, self.cable.bytes_carried - before
        arrived = self.arrived() + self.died_with - arrived_before
        leg = Leg(seconds, wan, self.sent() - sent_before, arrived, size)
        self.stage.client.delete(Application, f"reader-{self.versions}")
        print(
            f"  {what}: {leg.seconds:.1f} s, {leg.wan_bytes / 1e6:.1f} MB over the cable "
            f"({leg.wan_bytes / size:.3f} of {size / 1e6:.1f} MB); chunks: {leg.chunk_bytes / 1e6:.1f} MB sent, "
            f"{leg.arrived_bytes / 1e6:.1f} MB arrived",
            flush=True,
        )
        return leg

    def misfortunes(self, size: int, sent_before: int) -> None:
        """A short cut, a longer one, one beyond every patience; and a machine that dies between them."""
        assert self.cable is not None
        for part, seconds in ((0.2, 3.0), (0.4, 8.0), (0.6, 25.0)):
            self.sent_reaches(sent_before + size * part)
            self.cable.cut()
            time.sleep(seconds)  # the length of the cut is what is tried
            self.cable.mend()
        self.sent_reaches(sent_before + size * 0.8)
        victim = self.names[-1]
        self.died_with = self.arrived_at(victim)  # it counts anew when it is back
        self.stage.kill_node(victim)
        self.stage.restart_node(victim)

    def sent_reaches(self, size: float) -> None:
        wait_for("the hub to send more", lambda: self.sent() >= size or None, PATIENCE_S)

    def has(self, name: str, digest: str) -> bool | None:
        return (self.stage.directory / name / "node" / "artifacts" / "sha256" / digest[7:]).exists() or None

    def sent(self) -> int:
        """Bytes of chunks that the hub has sent."""
        for line in _metrics(self.stage):
            if line.startswith("batuta_artifact_bytes_sent"):
                return int(float(line.split()[-1]))
        return 0

    def arrived(self) -> int:
        return sum(self.arrived_at(name) for name in self.names)

    def arrived_at(self, name: str) -> int:
        """Bytes of checked chunks that came to a node from the hub, since its agent began."""
        home = self.stage.hub_state / "hub"
        port = json.loads((home / "run.json").read_bytes())["ports"]["client"]
        password = json.loads((home / "secrets.json").read_bytes())["hubPassword"]

        async def ask() -> int:
            fabric = await connect_hub(f"nats://127.0.0.1:{port}", "hub", password)
            try:
                answer = json.loads(await fabric.request(subjects.tell(name, "doctor"), b"", 60))
                return int(answer["artifacts"]["hubBytes"])
            finally:
                await fabric.close()

        return asyncio.run(ask())

    def close(self) -> None:
        self.stage.close()
        if self.cable is not None:
            self.cable.close()


def _metrics(stage: Stage) -> list[str]:
    with urllib.request.urlopen(f"{stage.client.server}/metrics", timeout=30) as answer:
        return answer.read().decode().splitlines()


if __name__ == "__main__":
    sys.exit(main())
