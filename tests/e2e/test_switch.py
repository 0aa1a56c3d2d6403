"""Switching a model under load: requests and messages at one node, 200 of each a second, while a release takes over.

Where memory allows, the new one is ready before the old one goes. Where it does not, there is a gap, and what is asked
in it waits. Either way nothing is lost and nothing is answered twice.
"""

from __future__ import annotations

import http.client
import json
import threading
import time
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

import msgspec
import paho.mqtt.client as mqtt
import pytest

from batuta.demo.stage import wait_for
from batuta.model_push import push

if TYPE_CHECKING:
    from batuta.demo.digits import Digits
    from batuta.demo.stage import Stage

pytestmark = [pytest.mark.e2e, pytest.mark.slow]

READER = """\
apiVersion: batuta.dev/v1
kind: Application
metadata: {name: reader}
spec:
  components:
  - name: read
    model: {name: digits, version: "VERSION"}
    inputs: [{topic: "cameras/+/frame"}]
    outputs: [{topic: "meters/{1}/reading"}]
    resources: {cpu: 50m, memory: MEMORY}
"""
RATE = 200
CALLERS = 8
SECONDS_MAX = 120.0


class Callers:
    """Programs of the node that ask its gateway, each on a connection of its own, and never a second time."""

    def __init__(self, url: str, digits: Digits) -> None:
        self.answers: list[str] = []
        """The version that answered."""
        self.failures: list[str] = []
        self.slowest_ms = 0.0
        self._place = urlsplit(url)
        inputs = [{"name": "image", "shape": [1, 64], "datatype": "FP32", "data": list(digits.held_out[0].pixels)}]
        self._body = json.dumps({"inputs": inputs}).encode()
        self._enough = threading.Event()
        self._lock = threading.Lock()
        self._threads = [threading.Thread(target=self._ask) for _ in range(CALLERS)]
        for thread in self._threads:
            thread.start()

    def _ask(self) -> None:
        line = http.client.HTTPConnection(self._place.hostname or "", self._place.port, timeout=60)
        headers = {"Content-Type": "application/json"}
        due = time.monotonic()
        while not self._enough.is_set():
            due = max(due + CALLERS / RATE, time.monotonic() - 1)
            begun = time.monotonic()
            try:
                line.request("POST", "/v2/models/digits/infer", self._body, headers)
                response = line.getresponse()
                said = json.loads(response.read())
                found = str(said["model_version"]) if response.status == 200 else ""
                why = f"{response.status} {said}"
            except (OSError, http.client.HTTPException, ValueError) as error:
                found, why = "", repr(error)
                line.close()
            with self._lock:
                self.slowest_ms = max(self.slowest_ms, (time.monotonic() - begun) * 1000)
                self.answers += [found] if found else []
                self.failures += [] if found else [why]
            time.sleep(max(0.0, due - time.monotonic()))
        line.close()

    def stop(self) -> None:
        self._enough.set()
        for thread in self._threads:
            thread.join(90)


class Camera:
    """Publishes with QoS 1, each message under a name of its own, and hears every answer."""

    def __init__(self, place: tuple[str, int], digits: Digits) -> None:
        self.sent = 0
        self.heard: dict[str, list[str]] = {}
        """By message: which versions answered it."""
        self._payload = msgspec.json.encode(digits.held_out[0].pixels)
        self._enough = threading.Event()
        subscribed = threading.Event()
        self._client = mqtt.Client(mqtt.CallbackAPIVersion.VERSION2, protocol=mqtt.MQTTv311)
        self._client.on_message = self._hear
        self._client.on_subscribe = lambda *_: subscribed.set()
        self._client.on_connect = lambda client, *_: client.subscribe("meters/#", qos=0)
        self._client.connect(*place)
        self._client.loop_start()
        assert subscribed.wait(30)
        self._thread = threading.Thread(target=self._publish)
        self._thread.start()

    def _publish(self) -> None:
        due = time.monotonic()
        while not self._enough.is_set():
            due += 1 / RATE
            self._client.publish(f"cameras/c{self.sent}/frame", self._payload, qos=1)
            self.sent += 1
            time.sleep(max(0.0, due - time.monotonic()))

    def _hear(self, _client: Any, _userdata: Any, message: mqtt.MQTTMessage) -> None:
        answer = json.loads(message.payload)
        self.heard.setdefault(message.topic, []).append(str(answer["model"]))

    def stop(self) -> None:
        self._enough.set()
        self._thread.join(30)

    def close(self) -> None:
        self.stop()
        self._client.disconnect()
        self._client.loop_stop()


@pytest.mark.parametrize("memory", ["64Mi", "300Mi"], ids=["room-for-both", "room-for-one"])
def test_a_switch_under_load_loses_nothing_and_answers_nothing_twice(stage: Stage, digits: Digits, memory: str) -> None:
    stage.start_hub()
    stage.start_node("pi", "home")
    wait_for("the node", lambda: stage.online("pi"), 60, alive=stage.nodes["pi"].running)
    for version, file in (("1", digits.first), ("2", digits.second)):
        push(stage.client, file, name="digits", version=version)
    manifest = READER.replace("MEMORY", memory)
    stage.client.apply(manifest.replace("VERSION", "1"))
    wait_for("the first version", lambda: _ready(stage, 1), 90)
    url = str(stage.node_status("pi")["inference"])
    camera = Camera(stage.mqtt_of("pi"), digits)
    callers = Callers(url, digits)
    try:
        wait_for("answers of the first", lambda: (len(callers.answers) > RATE and len(camera.heard) > RATE) or None, 60)
        stage.client.apply(manifest.replace("VERSION", "2"))
        for what, found in (("requests", callers.answers), ("messages", camera.heard)):
            wait_for(f"{what} to be answered by the second", lambda f=found: _by_second(f), SECONDS_MAX)  # type: ignore[misc]
        wait_for("the first to be gone", lambda: (not _there(stage, 1)) or None, SECONDS_MAX)
        at_the_end = len(callers.answers)
        wait_for("more of the second", lambda: len(callers.answers) > at_the_end + RATE or None, SECONDS_MAX)
        callers.stop()
        camera.stop()
        wait_for("every message to be answered", lambda: len(camera.heard) >= camera.sent or None, SECONDS_MAX)
    finally:
        callers.stop()
        camera.close()
    twice = [topic for topic, by in camera.heard.items() if len(by) != 1]
    print(
        f"{memory}: {len(callers.answers)} requests, {len(callers.failures)} lost, "
        f"slowest {callers.slowest_ms:.0f} ms; {camera.sent} messages, {len(twice)} answered twice"
    )
    assert callers.failures == []
    assert twice == []
    assert len(camera.heard) == camera.sent


def _by_second(found: Any) -> bool | None:
    by = found[-1:] if isinstance(found, list) else list(found.values())[-1]
    return any(word in ("2", "digits:2") for word in by) or None


def _ready(stage: Stage, revision: int) -> bool | None:
    return any(i["ready"] for i in stage.instances("reader") if i["revision"] == revision) or None


def _there(stage: Stage, revision: int) -> bool:
    return any(i["revision"] == revision for i in stage.instances("reader"))
