"""Cameras and onlookers: real MQTT clients at QoS 1, each at whichever node of its site answers.

A camera shows held-out images one after the other. A frame counts as published when the broker has acknowledged it;
until then the camera keeps it, and offers it to the next node when its own is gone. That is all a camera must do.
"""

from __future__ import annotations

import itertools
import json
import threading
import time
from typing import TYPE_CHECKING, Any, NamedTuple

import paho.mqtt.client as mqtt

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from batuta.demo.digits import Image

Address = tuple[str, int]


class Frame(NamedTuple):
    """A frame that a broker acknowledged: what it showed, where, and when."""

    id: str
    label: int
    site: str
    at: float
    """Monotonic seconds at the acknowledgement."""


class Reading(NamedTuple):
    """An answer as it arrived."""

    id: str
    label: int
    instance: str
    node: str
    at: float


class Session:
    """MQTT at one of several addresses; every connection is a new client, so nothing is repeated behind our back."""

    def __init__(self, name: str, addresses: Sequence[Address]) -> None:
        self.name = name
        self.lost = threading.Event()
        self.lost.set()
        self.client: mqtt.Client | None = None
        self.on_message: Callable[[mqtt.MQTTMessage], None] | None = None
        self.subscribe_to: str | None = None
        self._addresses = itertools.cycle(addresses)

    def connect(self, stop: threading.Event) -> bool:
        """Try one address after the other until one answers; False when asked to stop."""
        while not stop.is_set():
            self.close()
            answered = threading.Event()
            self.client = self._client(answered)
            host, port = next(self._addresses)
            try:
                self.client.connect(host, port, keepalive=5)
            except OSError:
                stop.wait(0.1)
                continue
            self.client.loop_start()
            if answered.wait(2):
                return True
        return False

    def close(self) -> None:
        if self.client is not None:
            self.client.on_disconnect = None
            self.client.disconnect()
            self.client.loop_stop()
            self.client = None
        self.lost.set()

    def _client(self, answered: threading.Event) -> mqtt.Client:
        client = mqtt.Client(mqtt.CallbackAPIVersion.VERSION2, client_id=self.name, clean_session=True)

        def arrived(client: mqtt.Client, _userdata: Any, _flags: Any, reason: Any, _properties: Any) -> None:
            if reason.is_failure:
                return
            if self.subscribe_to is not None:
                client.subscribe(self.subscribe_to, qos=1)
            self.lost.clear()
            answered.set()

        client.on_connect = arrived
        client.on_disconnect = lambda *_: self.lost.set()
        if self.on_message is not None:
            heard = self.on_message
            client.on_message = lambda _client, _userdata, message: heard(message)
        return client


class Camera(threading.Thread):
    """Publishes frames on `cameras/<name>/frame` until stopped; keeps a frame until a broker has it."""

    def __init__(
        self, name: str, site: str, addresses: Sequence[Address], images: Iterator[Image], per_second: float
    ) -> None:
        super().__init__(name=name, daemon=True)
        self.site = site
        self.published: list[Frame] = []
        self.moves = 0
        """How often it had to go to another node."""
        self._images = images
        self._pause_s = 1 / per_second
        self._enough = threading.Event()
        self._session = Session(name, addresses)

    def run(self) -> None:
        if not self._session.connect(self._enough):
            return
        for number in itertools.count():
            if self._enough.is_set():
                break
            began = time.monotonic()
            image = next(self._images)
            frame = f"{self.name}-{number}"
            payload = json.dumps({"id": frame, "data": image.pixels})
            if self._deliver(payload):
                self.published.append(Frame(frame, image.label, self.site, time.monotonic()))
            self._enough.wait(max(0.0, self._pause_s - (time.monotonic() - began)))
        self._session.close()

    def _deliver(self, payload: str) -> bool:
        """Offer one frame until a broker acknowledges it. False only if told to stop while nobody has it."""
        while True:
            client = self._session.client
            if client is not None and not self._session.lost.is_set():
                given = client.publish(f"cameras/{self.name}/frame", payload, qos=1)
                until = time.monotonic() + 2
                while not given.is_published() and time.monotonic() < until and not self._session.lost.is_set():
                    given.wait_for_publish(0.02)
                if given.is_published():
                    return True
            if self._enough.is_set():
                return False
            self.moves += 1
            if not self._session.connect(self._enough):
                return False

    def finish(self) -> None:
        """Stop after the frame in hand."""
        self._enough.set()
        self.join(15)


class Onlooker:
    """Reads `meters/+/reading` at one site, as an operator's panel would."""

    def __init__(self, site: str, addresses: Sequence[Address]) -> None:
        self.readings: list[Reading] = []
        self._enough = threading.Event()
        self._session = Session(f"panel-{site}", addresses)
        self._session.subscribe_to = "meters/+/reading"
        self._session.on_message = self._heard
        self._thread = threading.Thread(target=self._stay, name=f"panel-{site}", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def finish(self) -> None:
        self._enough.set()
        self._session.lost.set()
        self._thread.join(15)

    def _stay(self) -> None:
        while self._session.connect(self._enough):
            self._session.lost.wait()
            if self._enough.is_set():
                break
        self._session.close()

    def _heard(self, message: mqtt.MQTTMessage) -> None:
        answer = json.loads(message.payload)
        self.readings.append(
            Reading(answer["id"], int(answer["value"]), answer["instance"], answer["node"], time.monotonic())
        )
