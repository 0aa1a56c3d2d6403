"""What a trial costs those who are answered: one worker asked alone, with a new release in its shadow, with a split.

    python benchmarks/beside.py [--json] [--seconds 4] [--rounds 2]

Two loads, the same for all. *Steady*: 200 requests a second, one row each, sent on time whatever comes back, of a model
that computes for about two milliseconds: as a device that measures would ask. *Full*: four connections, each asking
again as soon as it is answered, of a classifier that takes microseconds: there is never a moment to spare, and what the
handing over costs is all that there is to see. In shadow everything is handed over and compared, until there is no time
for it; `dropped` is the share for which there was none. Rounds alternate; each figure is the median of its rounds.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import onnx
import onnx.helper as oh
from onnx import numpy_helper

from batuta.core.decided import Beside, Instance, ModelOrder
from batuta.core.worker import PULSE_FILE, Pulse
from batuta.fabric.broker import Broker, NodeBroker, free_port, node_config
from batuta.kinds.application import Serve
from batuta.kinds.base import Bytes, decode_hook
from batuta.kinds.model import Variant
from batuta.runtimes.base import Order
from batuta.runtimes.model import ModelRuntime

LOAD = Path(__file__).with_name("load.py")
RATE = 200
WAYS: dict[str, Beside | None] = {
    "alone": None,
    "shadow": Beside(mode="shadow"),
    "split": Beside(mode="split", share=0.5),
}
SIZES = {"steady": 3072, "full": 128}
"""Of the two hidden layers."""


def main() -> int:
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--json", action="store_true", help="print one JSON object as the last line")
    options.add_argument("--seconds", type=float, default=4.0, help="how long each load lasts")
    options.add_argument("--rounds", type=int, default=2)
    chosen = options.parse_args()
    with tempfile.TemporaryDirectory(prefix="batuta-bench-") as directory:
        figures = asyncio.run(measured(Path(directory), chosen.seconds, chosen.rounds))
    print(f"one row of 64 numbers, {os.cpu_count()} processors, Python {sys.version.split()[0]}")
    for key, value in figures.items():
        print(f"  {key:28} {value}")
    if chosen.json:
        print(json.dumps(figures))
    return 0


async def measured(directory: Path, seconds: float, rounds: int) -> dict[str, Any]:
    port = free_port("127.0.0.1")
    broker = Broker(directory / "broker", tied=True)
    await broker.start(
        node_config(
            NodeBroker(
                node="na", store=directory / "store", client_port=port, mqtt_port=free_port("127.0.0.1"),
                agent_password="a", site_password="s",
            )
        )
    )  # fmt: skip
    secret = directory / "site.json"
    secret.write_bytes(msgspec.json.encode({"user": "site", "password": "s"}))
    reach = {"url": f"nats://127.0.0.1:{port}", "credentials": str(secret), "node": "na"}
    runtime = ModelRuntime()
    figures: dict[str, Any] = {}
    try:
        for load, size in SIZES.items():
            model = made(directory / f"{load}.onnx", size)
            figures |= await of_load(load, runtime, directory / load, model, reach, seconds, rounds)
    finally:
        await runtime.close()
        await broker.stop()
    return figures


async def of_load(
    load: str, runtime: ModelRuntime, directory: Path, model: Path, reach: dict[str, str], seconds: float, rounds: int
) -> dict[str, Any]:
    port = free_port("127.0.0.1")
    old = order(directory, model, reach, 1, None, port)
    await ready(runtime, old)
    found: dict[str, list[dict[str, Any]]] = {way: [] for way in WAYS}
    seen = pulse(old)
    for _ in range(rounds):
        for way, beside in WAYS.items():
            new = order(directory, model, reach, 2, beside, None) if beside is not None else None
            if new is not None:
                await ready(runtime, new)
                # It looks for company once a second.
                await asyncio.sleep(2.0)
            await asked(load, port, 0.5)
            figures = await asked(load, port, seconds)
            if new is not None:
                await asyncio.sleep(1.5)
                before, seen = seen.measures.handover, pulse(old)
                books = seen.measures.handover
                assert books is not None
                shown = books.shown - (before.shown if before else 0)
                dropped = books.dropped - (before.dropped if before else 0)
                taken = books.answered - (before.answered if before else 0)
                late = (
                    books.late
                    + books.failed
                    + books.lost
                    - sum((before.late, before.failed, before.lost) if before else ())
                )
                figures["dropped"] = round(dropped / max(1, shown + dropped), 3)
                figures["late"] = round(late / max(1, taken + late), 3)
                await runtime.stop(new.instance.name, 5_000)
            found[way].append(figures)
    await runtime.stop(old.instance.name, 5_000)
    said: dict[str, Any] = {}
    for way, rows in found.items():
        for name in rows[0]:
            if (way, name) not in (("shadow", "late"), ("split", "dropped")):
                said[f"{load}_{way}_{name}"] = round(statistics.median(row[name] for row in rows), 3)
    return said


async def asked(load: str, port: int, seconds: float) -> dict[str, Any]:
    if load == "steady":
        return await steady(port, seconds)
    words = [sys.executable, str(LOAD), f"127.0.0.1:{port}", "4", str(seconds)]
    done = await asyncio.to_thread(subprocess.run, words, input=request("x"), capture_output=True, check=True)
    said = json.loads(done.stdout)
    assert not said["wrong"], said
    return {name: said[name] for name in ("rps", "p50_ms", "p99_ms")}


async def steady(port: int, seconds: float) -> dict[str, Any]:
    """Each request goes out at its time, on a connection that is free, and is counted from that time."""
    free: asyncio.Queue[tuple[asyncio.StreamReader, asyncio.StreamWriter]] = asyncio.Queue()
    for _ in range(32):
        free.put_nowait(await asyncio.open_connection("127.0.0.1", port))
    latencies: list[float] = []

    async def one(due: float, number: int) -> None:
        reader, writer = await free.get()
        writer.write(request(f"k{number}"))
        head = await reader.readuntil(b"\r\n\r\n")
        assert head.startswith(b"HTTP/1.1 200"), head
        size = next(int(line[15:]) for line in head.split(b"\r\n") if line.lower().startswith(b"content-length:"))
        await reader.readexactly(size)
        latencies.append(time.perf_counter() - due)
        free.put_nowait((reader, writer))

    begun = time.perf_counter()
    async with asyncio.TaskGroup() as group:
        for i in range(int(seconds * RATE)):
            due = begun + i / RATE
            await asyncio.sleep(max(0.0, due - time.perf_counter()))
            group.create_task(one(due, i))
    while not free.empty():
        free.get_nowait()[1].close()
    latencies.sort()
    n = len(latencies)
    return {"p50_ms": round(latencies[n // 2] * 1000, 3), "p99_ms": round(latencies[int(n * 0.99)] * 1000, 3)}


ROW = np.random.default_rng(0).random((1, 64), np.float32).ravel().tolist()


def request(key: str) -> bytes:
    tensor = {"name": "x", "shape": [1, 64], "datatype": "FP32", "data": ROW}
    body = json.dumps({"id": key, "inputs": [tensor]}).encode()
    return b"POST /v2/models/m/infer HTTP/1.1\r\nHost: x\r\nContent-Length: %d\r\n\r\n" % len(body) + body


def made(path: Path, size: int) -> Path:
    """A classifier of ten classes that knows nothing."""
    random = np.random.default_rng(0)
    shapes = {"a": (64, size), "b": (size, size), "c": (size, 10)}
    weights = [numpy_helper.from_array((random.random(s, np.float32) - 0.5) / s[0], n) for n, s in shapes.items()]
    nodes = [
        oh.make_node("MatMul", ["x", "a"], ["h"]), oh.make_node("Relu", ["h"], ["i"]),
        oh.make_node("MatMul", ["i", "b"], ["j"]), oh.make_node("Relu", ["j"], ["k"]),
        oh.make_node("MatMul", ["k", "c"], ["l"]), oh.make_node("Softmax", ["l"], ["y"]),
    ]  # fmt: skip
    ends = [oh.make_tensor_value_info(n, onnx.TensorProto.FLOAT, [None, s]) for n, s in (("x", 64), ("y", 10))]
    graph = oh.make_graph(nodes, "g", ends[:1], ends[1:], weights)
    onnx.save(oh.make_model(graph, opset_imports=[oh.make_opsetid("", 17)], ir_version=9), path)
    return path


def order(
    directory: Path, model: Path, reach: dict[str, str], revision: int, beside: Beside | None, port: int | None
) -> Order:
    digest = "sha256:" + "1" * 64
    variant = Variant(name="fp32", format="onnx", digest=digest, size_bytes=Bytes(1))
    made = Instance(
        namespace="default", application="bench", component="read", revision=revision, slot="0", epoch=revision,
        model=ModelOrder(name="m", version=str(revision), variant=variant), beside=beside,
        serve=Serve(port=port) if port is not None else None,
    )  # fmt: skip
    return Order(made, directory / "default" / "bench" / f"read-{revision}-0", {digest: model}, reach, ("na",))


def pulse(order: Order) -> Pulse:
    return msgspec.json.decode((order.directory / PULSE_FILE).read_bytes(), type=Pulse, dec_hook=decode_hook)


async def ready(runtime: ModelRuntime, order: Order) -> None:
    await runtime.start(order)
    async with asyncio.timeout(120):
        while True:
            if (await runtime.inspect(order.instance.name)).state == "ready":
                return
            await asyncio.sleep(0.1)


if __name__ == "__main__":
    sys.exit(main())
