"""What the tests of misfortunes share: a stage with one node, a model and its device, programs, and ways to look."""

from __future__ import annotations

import asyncio
import contextlib
import json
import threading
from typing import TYPE_CHECKING, Any

from batuta.demo.cameras import Session
from batuta.demo.stage import processes_in, wait_for
from batuta.errors import BatutaError
from batuta.fabric.nats import connect_hub
from batuta.model_push import push

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from pathlib import Path

    import psutil

    from batuta.demo.digits import Digits, Image
    from batuta.demo.stage import Stage
    from tests.cli.running import Ran

READER = """\
apiVersion: batuta.dev/v1
kind: Application
metadata: {{name: reader}}
spec:
  components:
  - name: read
    model: {{name: digits, version: "{version}"}}
    inputs:  [{{topic: "cameras/+/frame", tensor: image}}]
    outputs: [{{topic: "meters/{{1}}/reading"}}, {{forward: hub}}]
    replicas: {{count: 1}}
    resources: {{cpu: 100m, memory: 128Mi}}
    failover: {{after: 1h}}
"""

SLEEPER = """\
apiVersion: batuta.dev/v1
kind: Application
metadata: {{name: {name}}}
spec:
  components:
  - name: sleep
    process: {{command: [sleep, "86400"], stopGrace: 1s}}
    replicas: {{count: 1}}
    resources: {{cpu: 10m, memory: 16Mi}}
    runs: {runs}
    failover: {{after: 2s}}
"""


class Device:
    """One MQTT client of one node: shows images and hears what was read."""

    def __init__(self, address: tuple[str, int]) -> None:
        self.readings: list[dict[str, Any]] = []
        self._session = Session("device", [address])
        self._session.subscribe_to = "meters/+/reading"
        self._session.on_message = lambda message: self.readings.append(json.loads(message.payload))

    def __enter__(self) -> Device:
        stop = threading.Event()
        timer = threading.Timer(120, stop.set)
        timer.start()
        try:
            assert self._session.connect(stop), "no node takes this device"
        finally:
            timer.cancel()
        return self

    def __exit__(self, *_: object) -> None:
        self._session.close()

    def show(self, name: str, image: Image) -> None:
        """Publishes one frame; returns when the broker has it."""
        assert self._session.client is not None
        payload = json.dumps({"id": name, "data": image.pixels})
        self._session.client.publish("cameras/device/frame", payload, qos=1).wait_for_publish(60)

    def read(self, name: str, within_s: float) -> dict[str, Any]:
        """What was made of that frame."""
        return wait_for(
            f"a reading of {name}", lambda: next((r for r in self.readings if r["id"] == name), None), within_s
        )


def play(stage: Stage) -> None:
    """A hub and one node."""
    stage.start_hub()
    stage.start_node("pi", "home")
    wait_for("the node", lambda: stage.online("pi"), 120, alive=stage.nodes["pi"].running)


def serve(stage: Stage, digits: Digits) -> str:
    """The first version of the model, running on it; returns its digest."""
    digest = push(stage.client, digits.first, name="digits", version="1", task="classification").digest
    stage.client.apply(READER.format(version="1"))
    wait_for("the model", lambda: ready(stage), 120)
    return digest


def instance(stage: Stage, application: str = "reader", revision: int = 0) -> Mapping[str, Any]:
    """The one instance there is, or the one of that revision."""
    found = [i for i in stage.instances(application) if revision in (0, i["revision"])]
    return found[0] if found else {"phase": "none", "reason": None}


def ready(stage: Stage, application: str = "reader", revision: int = 0) -> bool | None:
    return instance(stage, application, revision)["phase"] == "ready" or None


def problems(stage: Stage) -> dict[str, str]:
    """What the node says is wrong with it: details by code."""
    found: dict[str, str] = {}
    for problem in stage.node_status("pi").get("problems", ()):
        found[problem["code"]] = f"{found.get(problem['code'], '')} {problem.get('detail', '')}".strip()
    return found


def workers(stage: Stage) -> list[psutil.Process]:
    return [p for p in processes_in(stage.directory / "pi") if "batuta.dataflow.worker" in p.cmdline()]


def patiently(ask: Callable[[], Any]) -> Any:
    """For `wait_for`, while a hub or broker is on its way: nobody's answer is no answer yet."""
    with contextlib.suppress(BatutaError, OSError):
        return ask() or None
    return None


def files(directory: Path) -> list[str]:
    return sorted(path.name for path in directory.iterdir())


def sleeping(stage: Stage) -> set[int]:
    return {p.pid for p in processes_in(stage.directory) if "sleep" in p.cmdline()}


def decided(stage: Stage) -> dict[str, tuple[int, bytes | None]]:
    """Every row of what was decided with its revision, as the hub's broker has it; not the count of the hub's lives."""
    home = stage.hub_state / "hub"
    port = json.loads((home / "run.json").read_bytes())["ports"]["client"]
    password = json.loads((home / "secrets.json").read_bytes())["hubPassword"]

    async def read() -> dict[str, tuple[int, bytes | None]]:
        fabric = await connect_hub(f"nats://127.0.0.1:{port}", "hub", password)
        try:
            table = fabric.table("decided")
            entries = [await table.get(key) for key in await table.keys() if key != "hub.epoch"]
        finally:
            await fabric.close()
        return {entry.key: (entry.revision, entry.value) for entry in entries if entry is not None}

    return asyncio.run(read())


def assert_refused(ran: Ran, *words: str) -> None:
    """It ended with 1, in words, with a next step, and nothing else."""
    assert ran.code == 1, ran
    assert ran.out == ""
    assert ran.err.startswith("error: ")
    assert "\n  next: " in ran.err
    assert "Traceback" not in ran.err
    for word in words:
        assert word in ran.err
