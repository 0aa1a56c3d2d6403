"""Bad releases on real processes: how far each one came, how soon it was stopped, and what it did until then.

    python benchmarks/rollout_faults.py [--nodes 4] [--rate 15] [--only NAME] [--seeds 1000] [--json]

A hub and nodes of this machine, each at a site of its own with a camera that shows handwriting nobody was trained on,
run a classifier trained here. Then new versions are sent out one after the other, in three waves (one node, half, all)
under one and the same set of gates; what runs before is always the release that is trusted by then. Wrong with them:

    broken  its weights were damaged on the way: golden inputs, made by the trainer, say so on the first node
    unsure  it learned nothing, and is not sure of its answers: `confidence.shift`
    sly     its classes are mixed up: as sure as ever, and wrong: `agreement.share`, before it answers anybody
    slow    ten times slower: `latency.p95`
    leak    it keeps what it sees; the hub is killed as soon as it runs: the node must fall back alone
    better  nothing is wrong with it: it has to arrive everywhere

For each: the share of the fleet that ever answered with it, seconds from `apply` to the verdict and until every
node ran the trusted release again, its answers and how many of those were wrong by the labels. Two rates come from
`gates.py`: rollouts played with nothing wrong that were stopped, and bad ones that passed. `swap_lost_requests` counts
requests that failed or were answered twice while the better model was switched in under a steady stream of them.
"""

from __future__ import annotations

import argparse
import asyncio
import itertools
import json
import shutil
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import faulty_models
from mesh import Stream

from batuta.demo.cameras import Camera, Onlooker
from batuta.demo.digits import prepare
from batuta.demo.stage import Stage, wait_for
from batuta.errors import BatutaError
from batuta.model_push import push

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from batuta.demo.digits import Digits

MANIFEST = """\
apiVersion: batuta.dev/v1
kind: Application
metadata: {{name: reader}}
spec:
  components:
  - name: read
    model: {{name: digits, version: "{version}"}}
    inputs:  [{{topic: "cameras/+/frame", tensor: image}}]
    outputs: [{{topic: "meters/{{1}}/reading"}}]
    replicas: {{everyNode: true}}
    resources: {{cpu: 200m, memory: {memory}}}
    failover: {{after: 1h}}
  rollout:
    waves: ["1 node", "50%", "100%"]
    soak: 3s
    leastAnswers: 60
    probation: 10m
{more}    gates:
    - errors.rate < 0.02
    - confidence.shift < 0.4
    - latency.p95 < baseline.latency.p95 * 4.0
"""
SHADOW = """\
    shadow: 5s
"""
AGREE = """\
    - agreement.share > 0.8
"""


class Fault(NamedTuple):
    name: str
    files: Callable[[faulty_models.Files], Path]
    in_shadow: bool = False
    leaks: bool = False
    """And the hub is killed as soon as it runs."""
    ends: str = "undone"


FAULTS = (
    Fault("broken", lambda files: files.broken),
    Fault("unsure", lambda files: files.unsure),
    Fault("sly", lambda files: files.sly, in_shadow=True),
    Fault("slow", lambda files: files.slow),
    Fault("leak", lambda files: files.better, leaks=True),
    Fault("better", lambda files: files.better, ends="done"),
)


class Fleet:
    """A stage with nodes, cameras and onlookers."""

    def __init__(self, directory: Path, nodes: int, rate: float, digits: Digits) -> None:
        self.stage = Stage(directory)
        self.names = tuple(f"n{i + 1}" for i in range(nodes))
        self.rate = rate
        self.images = digits.held_out[faulty_models.GOLDEN_CASES :]
        self.cameras: list[Camera] = []
        self.onlookers: dict[str, Onlooker] = {}
        self._addresses: dict[str, tuple[str, int]] = {}

    def start(self, first: Path) -> None:
        """Until the first release answers everywhere."""
        self.stage.start_hub()
        for name in self.names:
            self.stage.start_node(name, f"site-{name}")
        for name in self.names:
            wait_for(name, lambda name=name: self.stage.online(name), 60)  # type: ignore[misc]
            self._addresses[name] = self.stage.mqtt_of(name)
        push(self.stage.client, first, name="digits", version="first", task="classification")
        self.stage.client.apply(manifest("first"))
        wait_for("the first release", lambda: self.running() == self.all_run(1) or None, 180)

    def show(self) -> None:
        """From now on frames are shown everywhere."""
        for i, name in enumerate(self.names):
            address = [self._addresses[name]]
            images = itertools.cycle(self.images[i * 7 :] + self.images[: i * 7])
            self.cameras.append(Camera(f"{name}-{time.monotonic_ns()}", name, address, images, self.rate))
            self.onlookers[name] = Onlooker(f"{name}-{time.monotonic_ns()}", address)
        for thread in (*self.onlookers.values(), *self.cameras):
            thread.start()

    def hide(self) -> list[tuple[str, bool, str]]:
        """Every answer: the instance, whether it was right, and the frame it was to."""
        for camera in self.cameras:
            camera.finish()
        published = {frame.id: frame.label for camera in self.cameras for frame in camera.published}
        answered = lambda: {r.id for o in self.onlookers.values() for r in o.readings}  # noqa: E731
        wait_for("every frame's answer", lambda: published.keys() <= answered() or None, 120)
        for onlooker in self.onlookers.values():
            onlooker.finish()
        readings = [r for onlooker in self.onlookers.values() for r in onlooker.readings]
        self.cameras, self.onlookers = [], {}
        return [(r.instance, published.get(r.id) == r.label, r.id) for r in readings]

    def all_run(self, revision: int) -> dict[str, set[int]]:
        return {name: {revision} for name in self.names}

    def running(self) -> dict[str, set[int]]:
        """By node: the releases that are ready there, or were when it was last heard."""
        found: dict[str, set[int]] = {name: set() for name in self.names}
        for instance in self.stage.instances("reader"):
            if instance["phase"] in ("ready", "unready"):
                found[str(instance["node"])].add(int(instance["revision"]))
        return found


class Watch(threading.Thread):
    """Looks on while a release arrives: who ever ran it."""

    def __init__(self, fleet: Fleet, revision: int) -> None:
        super().__init__(daemon=True)
        self._fleet, self._revision = fleet, revision
        self.ever: set[str] = set()
        self._enough = threading.Event()

    def run(self) -> None:
        while not self._enough.wait(0.25):
            try:
                running = self._fleet.running()
            except (BatutaError, OSError):
                continue  # the hub was killed; what was answered is looked at afterwards
            self.ever |= {node for node, revisions in running.items() if self._revision in revisions}

    def finish(self) -> None:
        self._enough.set()
        self.join(10)


def manifest(version: str, *, in_shadow: bool = False) -> str:
    more, agree = (SHADOW, AGREE) if in_shadow else ("", "")
    return MANIFEST.format(version=version, memory="192Mi", more=more) + agree


def revision_of(instance: str) -> int:
    """`default/reader/read-3-n1` is of release 3."""
    return int(instance.rpartition("/")[2].split("-")[1])


def status_of(fleet: Fleet) -> Mapping[str, Any]:
    return fleet.stage.client.rollouts.get("reader").status


def play(fleet: Fleet, fault: Fault, files: faulty_models.Files, *, swap_rate: float) -> dict[str, Any]:
    """One release, from its push to its end."""
    stage = fleet.stage
    kept = {"shaping": files.leak} if fault.leaks else {}
    push(
        stage.client, fault.files(files), name="digits", version=fault.name, task="classification",
        golden=files.golden if fault.name == "broken" else b"", **kept,
    )  # fmt: skip
    if not fault.leaks:
        fleet.show()
        time.sleep(10)  # what runs now is measured: gates compare with it
    before = fleet.running()
    trusted = max(max(revisions) for revisions in before.values())
    stream = Requests(fleet, swap_rate) if fault.ends == "done" and swap_rate else None
    if stream is not None:
        stream.start()
    began = time.monotonic()
    stage.client.apply(manifest(fault.name, in_shadow=fault.in_shadow))
    release = wait_for("the new release", lambda: _newer(fleet, trusted), 120)
    watch = Watch(fleet, release)
    watch.start()
    alone_s = _without_hub(fleet, release, trusted) if fault.leaks else None
    status = _verdict_of(fleet)
    verdict_s = time.monotonic() - began
    expected = release if fault.ends == "done" else trusted
    wait_for("its end", lambda: status_of(fleet)["phase"] == fault.ends or None, 120)
    wait_for(
        f"release {expected} everywhere",
        lambda: fleet.running() == fleet.all_run(expected) or None, 120,
    )  # fmt: skip
    over_s = time.monotonic() - began
    watch.finish()
    answers = fleet.hide() if fleet.cameras else []
    of_it = [right for instance, right, _ in answers if revision_of(instance) == release]
    ever = watch.ever | {instance.rpartition("-")[2] for instance, _, _ in answers if revision_of(instance) == release}
    frames = [frame for _, _, frame in answers]
    found = {
        "stopped": fault.ends != "done",
        "phase": status_of(fleet)["phase"],
        "share_of_fleet": round(len(ever) / len(fleet.names), 3),
        "verdict_s": round(verdict_s, 1),
        "over_s": round(over_s, 1),
        "answers": len(of_it),
        "wrong_answers": sum(not right for right in of_it),
        "answered_twice": len(frames) - len(set(frames)),
        "reason": str((status.get("reason") or {}).get("sentence") or status.get("firstError") or ""),
    }
    if alone_s is not None:
        found["fell_back_without_hub_s"] = round(alone_s, 1)
    if stream is not None:
        found["swap"] = stream.finish()
    return found


def _newer(fleet: Fleet, revision: int) -> int | None:
    try:
        newest = int(status_of(fleet)["release"])
    except BatutaError:
        return None  # there was no rollout before the first change
    return newest if newest > revision else None


def _verdict_of(fleet: Fleet) -> Mapping[str, Any]:
    try:
        return wait_for("a verdict", lambda: _verdict(fleet), 300)
    except BatutaError as error:
        raise BatutaError(f"{error}: {json.dumps(dict(status_of(fleet)), default=str)}") from None


def _verdict(fleet: Fleet) -> Mapping[str, Any] | None:
    """From when on nobody else gets it."""
    try:
        status = status_of(fleet)
    except (BatutaError, OSError):
        return None  # the hub is on its way
    assert status["phase"] != "paused", status
    return status if status["phase"] in ("undoing", "undone", "done") else None


def _without_hub(fleet: Fleet, release: int, trusted: int) -> float:
    """Kill the hub as soon as somebody runs it, show frames, and wait until the node itself has gone back: every frame
    is answered, the last of them by the release before. Seconds that took; then the hub is started again."""
    stage = fleet.stage
    victim = wait_for(
        "the first node with it", lambda: next((n for n, r in fleet.running().items() if release in r), None), 120
    )
    wait_for("the old one's end there", lambda: fleet.running()[victim] == {release} or None, 60)
    stage.kill_hub()
    fleet.show()
    began = time.monotonic()

    def fell_back() -> bool | None:
        told = [revision_of(r.instance) for r in list(fleet.onlookers[victim].readings)]
        return (release in told and told[-1] == trusted) or None

    wait_for("the fallback", fell_back, 240)
    took_s = time.monotonic() - began
    stage.start_hub()
    return took_s


class Requests(threading.Thread):
    """A steady stream of requests to one node's gateway."""

    def __init__(self, fleet: Fleet, rate: float) -> None:
        super().__init__(daemon=True)
        self._rate = rate
        port = int(str(fleet.stage.node_status(fleet.names[0])["inference"]).rpartition(":")[2])
        pixels = list(fleet.images[0].pixels)
        body = json.dumps({"inputs": [{"name": "image", "shape": [1, 64], "datatype": "FP32", "data": pixels}]})
        head = "POST /v2/models/digits/infer HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n"
        request = f"{head}Content-Length: {len(body)}\r\n\r\n{body}".encode()
        self._stream = Stream(lambda: asyncio.open_connection("127.0.0.1", port), request)
        self._enough = threading.Event()

    def run(self) -> None:
        async def steadily() -> None:
            while not self._enough.is_set():
                await self._stream.run(self._rate, 1.0)

        asyncio.run(steadily())

    def finish(self) -> dict[str, Any]:
        self._enough.set()
        self.join(60)
        failed = [call for call in self._stream.calls if call.status != 200]
        return {
            "requests": len(self._stream.calls),
            "lost": len(failed),
            "codes": sorted({call.code or str(call.status) for call in failed}),
            "asked_again": sum(call.attempts > 1 for call in self._stream.calls),
        }


def rates(rollouts: int) -> dict[str, float]:
    """What `gates.py` says of so many rollouts of each kind."""
    script = Path(__file__).with_name("gates.py")
    ran = subprocess.run(
        [sys.executable, str(script), "--rollouts", str(rollouts), "--sizes", "1", "--json"],
        check=True, capture_output=True, text=True,
    )  # fmt: skip
    found = json.loads(ran.stdout.splitlines()[-1])
    return {"false_stop_rate": found["false_stop_rate"], "miss_rate": found["miss_rate"]}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--nodes", type=int, default=4)
    parser.add_argument("--rate", type=float, default=15.0, help="frames a second at each node")
    parser.add_argument("--swap-rate", type=float, default=200.0, help="requests a second while a model is switched")
    parser.add_argument("--only", action="append", choices=[f.name for f in FAULTS], help="several times for several")
    parser.add_argument("--seeds", type=int, default=1_000, help="rollouts of each kind for the two rates; 0 for none")
    parser.add_argument("--json", action="store_true", help="the last line is one object")
    said = parser.parse_args()
    directory = Path(tempfile.mkdtemp(prefix="batuta-rollouts-"))
    result: dict[str, Any] = {"nodes": said.nodes, "rate": said.rate, "faults": {}}
    digits = prepare(directory / "digits")
    files = faulty_models.prepare(digits, directory / "models")
    fleet = Fleet(directory / "stage", said.nodes, said.rate, digits)
    try:
        fleet.start(files.first)
        for fault in FAULTS:
            if said.only and fault.name not in said.only:
                continue
            found = play(fleet, fault, files, swap_rate=said.swap_rate)
            print(f"{fault.name}: {json.dumps(found)}", flush=True)
            swap = found.pop("swap", None)
            if swap is not None:
                result["swap"] = swap
                result["swap_lost_requests"] = swap["lost"] + found["answered_twice"]
            result["faults"][fault.name] = found
    finally:
        fleet.stage.close()
        shutil.rmtree(directory, ignore_errors=True)
    if said.seeds:
        result |= rates(said.seeds)
        print(f"false stops {result['false_stop_rate']:.4f}, misses {result['miss_rate']:.4f}")
    if said.json:
        print(json.dumps(result))


if __name__ == "__main__":
    main()
