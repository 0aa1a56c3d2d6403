"""How long from `apply` to a healthy new model: 100 swaps on one real node.

    python benchmarks/apply_to_healthy.py [--json] [--swaps 100]

One hub, one node, real processes, a real ONNX model of real digits. Each swap applies the other of two versions and
waits until the API says that the new instance is ready and the old one is gone. The clock starts before the HTTP
request. For comparison the same run measures a baseline without Batuta: starting a Python process that loads the model.
"""

from __future__ import annotations

import argparse
import json
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from batuta.demo.digits import prepare
from batuta.demo.play import MANIFEST
from batuta.demo.stage import Stage, wait_for
from batuta.model_push import push

BASELINE = "import sys, onnxruntime; onnxruntime.InferenceSession(sys.argv[1]); print('ready')"


def main() -> int:
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--json", action="store_true", help="print one JSON object as the last line")
    options.add_argument("--swaps", type=int, default=100)
    chosen = options.parse_args()
    with tempfile.TemporaryDirectory(prefix="batuta-bench-") as directory:
        stage = Stage(Path(directory))
        try:
            figures = measure(stage, chosen.swaps)
        finally:
            stage.close()
    print(f"{chosen.swaps} swaps on one node ({platform.machine()}, Python {platform.python_version()})")
    for key, value in figures.items():
        print(f"  {key:28} {value}")
    if chosen.json:
        print(json.dumps(figures))
    return 0


def measure(stage: Stage, swaps: int) -> dict[str, float | int]:
    digits = prepare(stage.directory / "models")
    stage.start_hub()
    stage.start_node("pi", "home")
    wait_for("the node", lambda: stage.online("pi"), 30)
    for version, path in (("1", digits.first), ("2", digits.second)):
        push(stage.client, path, name="digits", version=version)
    stage.client.apply(MANIFEST.format(version="1"))
    wait_for("the first instance", lambda: _only_ready(stage, 1), 30)
    took_ms = []
    for swap in range(swaps):
        began = time.perf_counter()
        stage.client.apply(MANIFEST.format(version="12"[(swap + 1) % 2]))
        wait_for(f"swap {swap + 1}", lambda revision=swap + 2: _only_ready(stage, revision), 30)  # type: ignore[misc]
        took_ms.append((time.perf_counter() - began) * 1000)
    baseline_ms = []
    for _ in range(5):
        began = time.perf_counter()
        subprocess.run([sys.executable, "-c", BASELINE, str(digits.first)], check=True, capture_output=True)
        baseline_ms.append((time.perf_counter() - began) * 1000)
    took_ms.sort()
    p50 = statistics.median(took_ms)
    return {
        "swaps": swaps,
        "p50_ms": round(p50),
        "p99_ms": round(took_ms[min(len(took_ms) - 1, int(len(took_ms) * 0.99))]),
        "max_ms": round(took_ms[-1]),
        "baseline_process_start_ms": round(statistics.median(baseline_ms)),
        "p50_over_baseline": round(p50 / statistics.median(baseline_ms), 2),
    }


def _only_ready(stage: Stage, revision: int) -> bool | None:
    """The slot is held once, by this revision, ready."""
    instances = stage.instances("meter-reader")
    mine = [i for i in instances if f"/read-{revision}-" in i["name"] and i["phase"] == "ready"]
    return True if len(mine) == len(instances) == 1 else None


if __name__ == "__main__":
    sys.exit(main())
