"""Calls through the mesh while the machine of an instance dies: three real nodes, a steady stream of requests.

    python benchmarks/mesh.py [--seconds 8] [--rate 500] [--json]

Node m1 has no instance; m2 and m3 have one each of a model trained here. A steady stream of calls goes to m1's gateway
(open loop: each call is sent at its time, however slow the others are). After a third of the time m2 loses its power:
node agent, broker and worker are killed at once. Counted are calls that failed, calls that took another attempt, and
how long the p99 of half-second windows stayed above three times what it was (and above 25 ms, the noise of a busy
machine). Then the same with the hub's machine dead: m2 frozen, so that no connection closes (as behind a cut cable); m2
killed; and last the hard case: m3 calls instances on m1 and m2, and m1 dies, to which the others are linked, so that m3
and m2 have to find each other first. Baseline in the same run: the same stream straight to the Unix socket of the
instance on m3, without a gateway.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import shutil
import tempfile
import time
from itertools import pairwise
from pathlib import Path
from typing import Any, NamedTuple

import psutil

from batuta.dataflow.unix import connect_unix
from batuta.demo.digits import prepare
from batuta.demo.stage import Stage, processes_in, wait_for
from batuta.model_push import push

MANIFEST = """\
apiVersion: batuta.dev/v1
kind: Application
metadata: {name: APPLICATION}
spec:
  components:
  - name: read
    model: {name: digits, version: "1"}
    replicas: {count: 2}
    placement: {where: 'node.name != "CALLER"', spread: node}
    resources: {cpu: 200m, memory: 128Mi}
    failover: {after: 60s}
"""
APPLICATIONS = {"leaf-dies": "m1", "root-dies": "m3"}
"""Application, and the node that calls it and has no instance of it."""
NODES = ("m1", "m2", "m3")
WINDOW_S = 0.5
NOISE_MS = 25.0


class Call(NamedTuple):
    at_s: float
    """When it was due, from the begin of the stream."""
    took_ms: float
    status: int
    node: str
    attempts: int
    code: str


class Line:
    """One kept connection."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.reader, self.writer = reader, writer

    async def ask(self, request: bytes) -> tuple[int, dict[str, str]]:
        self.writer.write(request)
        first, *rest = (await self.reader.readuntil(b"\r\n\r\n")).decode().split("\r\n")
        headers = {k.lower(): v.strip() for k, _, v in (line.partition(":") for line in rest if line)}
        await self.reader.readexactly(int(headers["content-length"]))
        return int(first.split()[1]), headers


class Stream:
    """A steady stream of calls."""

    def __init__(self, connect: Any, request: bytes) -> None:
        self.connect = connect
        self.request = request
        self.calls: list[Call] = []
        self.began_s = 0.0
        self._lines: list[Line] = []

    async def run(self, rate: float, seconds: float) -> None:
        self.began_s = time.perf_counter()
        tasks = set()
        for number in range(int(rate * seconds)):
            due_s = number / rate
            await asyncio.sleep(max(0.0, self.began_s + due_s - time.perf_counter()))
            tasks.add(asyncio.create_task(self._call(due_s)))
        await asyncio.wait(tasks)

    async def _call(self, due_s: float) -> None:
        status, headers = 0, {}
        line = self._lines.pop() if self._lines else None
        try:
            line = line or Line(*await self.connect())
            status, headers = await line.ask(self.request)
            self._lines.append(line)
        except (OSError, EOFError) as error:
            headers = {"batuta-error": type(error).__name__}
        took_ms = (time.perf_counter() - self.began_s - due_s) * 1000
        attempts = int(headers.get("batuta-attempts", 1))
        node, code = headers.get("batuta-node", ""), headers.get("batuta-error", "")
        self.calls.append(Call(due_s, took_ms, status, node, attempts, code))


def quantile(values: list[float], q: float) -> float:
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, int(q * len(ordered)))] if ordered else 0.0


def judged(calls: list[Call], killed_s: float) -> dict[str, Any]:
    before = [c.took_ms for c in calls if 1.0 <= c.at_s < killed_s]
    usual_ms = quantile(before, 0.99)
    limit_ms = max(3 * usual_ms, NOISE_MS)
    windows: list[float] = []
    start, last = killed_s, max(c.at_s for c in calls)
    while start < last:
        windows.append(quantile([c.took_ms for c in calls if start <= c.at_s < start + WINDOW_S], 0.99))
        start += WINDOW_S
    # Recovered is what is within the limit, and stays so in the next window.
    steady = next((i for i, (one, other) in enumerate(pairwise(windows)) if max(one, other) <= limit_ms), len(windows))
    failed = [c for c in calls if c.status != 200]
    return {
        "calls": len(calls),
        "failed": len(failed),
        "codes": sorted({c.code for c in failed}),
        "asked_again": sum(c.attempts > 1 for c in calls),
        "p50_ms": round(quantile(before, 0.5), 2),
        "p99_before_ms": round(usual_ms, 2),
        "p99_worst_window_ms": round(max(windows), 2),
        "slowest_ms": round(max(c.took_ms for c in calls), 2),
        "p99_recovered_after_s": steady * WINDOW_S,
        "answered_by": {n: sum(c.node == n for c in calls) for n in NODES},
    }


class Bench:
    def __init__(self, directory: Path, deadline_ms: int = 5_000) -> None:
        self.stage = Stage(directory)
        self.deadline_ms = deadline_ms
        self.directory = directory
        self.ports: dict[str, int] = {}

    def open(self) -> None:
        stage = self.stage
        digits = prepare(self.directory / "models")
        stage.start_hub()
        for name in NODES:
            # One after the other: the first to join is the one that the others link to.
            stage.start_node(name, "yard")
            wait_for(name, lambda name=name: stage.online(name), 60)  # type: ignore[misc]
        push(stage.client, digits.first, name="digits", version="1")
        for application, caller in APPLICATIONS.items():
            stage.client.apply(MANIFEST.replace("APPLICATION", application).replace("CALLER", caller))
        self.ready()
        self.ports = {name: self.port(name) for name in NODES}
        pixels = list(digits.held_out[0].pixels)
        self.body = json.dumps(
            {"inputs": [{"name": "image", "shape": [1, 64], "datatype": "FP32", "data": pixels}]}
        ).encode()

    def ready(self) -> None:
        wait_for("four instances", lambda: self._ready() == 4 or None, 120)

    def _ready(self) -> int:
        return sum(i.get("phase") == "ready" for a in APPLICATIONS for i in self.stage.instances(a))

    def restart(self, name: str) -> None:
        self.stage.restart_node(name)
        wait_for(name, lambda: self.stage.online(name), 60)
        self.ready()

    def port(self, node: str) -> int:
        return int(str(self.stage.node_status(node)["inference"]).rpartition(":")[2])

    def request(self, application: str) -> bytes:
        lines = (
            "POST /v2/models/digits/infer HTTP/1.1",
            "Host: x",
            "Content-Type: application/json",
            f"Batuta-Application: {application}",
            f"Batuta-Deadline-Ms: {self.deadline_ms}",
            f"Content-Length: {len(self.body)}",
        )
        head = "\r\n".join((*lines, "", ""))
        return head.encode() + self.body

    async def known(self, port: int, count: int) -> None:
        """Until the gateway hears so many ready instances."""
        async with asyncio.timeout(60):
            while True:
                line = Line(*await asyncio.open_connection("127.0.0.1", port))
                line.writer.write(b"GET /batuta/mesh HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
                body = (await line.reader.read()).partition(b"\r\n\r\n")[2]
                line.writer.close()
                if sum(row["ready"] for row in json.loads(body)["instances"]) == count:
                    return
                await asyncio.sleep(0.1)

    async def with_a_death(
        self, application: str, victim: str, rate: float, seconds: float, *, frozen: bool = False
    ) -> dict[str, Any]:
        """`frozen`: its processes are stopped instead, so that no connection closes: death by a cut cable."""
        port = self.ports[APPLICATIONS[application]]

        def stream_of() -> Stream:
            return Stream(lambda: asyncio.open_connection("127.0.0.1", port), self.request(application))

        await self.known(port, 4)
        stream = stream_of()
        await stream_of().run(50, 1)  # connections and caches are warm
        killed_s = seconds / 3
        running = asyncio.create_task(stream.run(rate, seconds))
        await asyncio.sleep(killed_s)
        # What is killed is looked up first: on a machine, power fails at once.
        victims = await asyncio.to_thread(processes_in, self.stage.nodes[victim].state)
        at_s = time.perf_counter() - stream.began_s
        for each in victims:
            (each.suspend if frozen else each.kill)()
        await running
        await asyncio.to_thread(self.stage.kill_node, victim)
        return judged(stream.calls, at_s)

    async def direct(self, rate: float, seconds: float) -> dict[str, Any]:
        path, *_ = (self.stage.nodes["m3"].state / "node" / "instances").glob("*/*/*/oip.sock")
        stream = Stream(lambda: asyncio.open_unix_connection(sock=connect_unix(path)), self.request("leaf-dies"))
        await stream.run(rate, seconds)
        took = [c.took_ms for c in stream.calls if c.at_s >= seconds / 4]
        return {"p50_ms": round(quantile(took, 0.5), 2), "p99_ms": round(quantile(took, 0.99), 2)}

    async def capacity(self, connect: Any, lines: int = 8, seconds: float = 3.0) -> dict[str, float]:
        """Closed loop: so many connections, each of which asks again as soon as it is answered."""
        took: list[float] = []
        until = time.perf_counter() + seconds
        request = self.request("leaf-dies")

        async def work() -> None:
            line = Line(*await connect())
            while (began := time.perf_counter()) < until:
                status, _ = await line.ask(request)
                assert status == 200, status
                took.append((time.perf_counter() - began) * 1000)
            line.writer.close()

        await asyncio.gather(*(work() for _ in range(lines)))
        return {"rps": round(len(took) / seconds), "p99_ms": round(quantile(took, 0.99), 2)}

    async def capacities(self) -> dict[str, Any]:
        """Most that one caller gets: straight to an instance, by the gateway beside it, by that of another node."""
        path, *_ = (self.stage.nodes["m3"].state / "node" / "instances").glob("*/*/*/oip.sock")
        found = {"direct": await self.capacity(lambda: asyncio.open_unix_connection(sock=connect_unix(path)))}
        for name, node in (("local", "m3"), ("site", "m1")):
            await self.known(self.ports[node], 4)
            found[name] = await self.capacity(lambda n=node: asyncio.open_connection("127.0.0.1", self.ports[n]))
        return found

    def gateway_rss_mb(self, node: str) -> float:
        for process in processes_in(self.stage.nodes[node].state):
            if "batuta.dataflow.gateway" in process.cmdline():
                return round(process.memory_info().rss / 1e6, 1)
        return 0.0


def run(rate: float, seconds: float) -> dict[str, Any]:
    directory = Path(tempfile.mkdtemp(prefix="batuta-mesh-"))
    bench = Bench(directory)
    try:
        bench.open()
        found: dict[str, Any] = {"rate": rate, "cores": psutil.cpu_count()}
        found["direct"] = asyncio.run(bench.direct(rate, 3))
        found["capacity"] = asyncio.run(bench.capacities())
        found["with_hub"] = asyncio.run(bench.with_a_death("leaf-dies", "m2", rate, seconds))
        found["gateway_rss_mb"] = bench.gateway_rss_mb("m1")
        bench.restart("m2")
        bench.stage.kill_hub()
        found["without_hub_frozen"] = asyncio.run(bench.with_a_death("leaf-dies", "m2", rate, seconds, frozen=True))
        bench.stage.restart_node("m2")
        found["without_hub"] = asyncio.run(bench.with_a_death("leaf-dies", "m2", rate, seconds))
        bench.stage.restart_node("m2")
        found["without_hub_root"] = asyncio.run(bench.with_a_death("root-dies", "m1", rate, seconds))
        return found
    finally:
        bench.stage.close()
        shutil.rmtree(directory, ignore_errors=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rate", type=float, default=500.0)
    parser.add_argument("--seconds", type=float, default=12.0)
    parser.add_argument("--json", action="store_true", help="the last line is one object")
    said = parser.parse_args()
    found = run(said.rate, said.seconds)
    print(json.dumps(found) if said.json else json.dumps(found, indent=2))


if __name__ == "__main__":
    main()
