"""A site of three nodes: what a device says is kept once, worked on anywhere, answered once, whoever dies."""

from __future__ import annotations

import asyncio
import json
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import paho.mqtt.client as paho
import pytest

from batuta.fabric import broker, site, subjects

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable

    from nats.aio.client import Client
    from nats.aio.msg import Msg

pytestmark = pytest.mark.e2e

FRAMES = ("cameras/+/frame",)
TREE = {"n1": (), "n2": ("n1",), "n3": ("n1", "n2")}


class Device:
    """An MQTT client, as a camera or a panel has one."""

    def __init__(self, port: int, name: str, *, clean: bool = True) -> None:
        self.heard: list[tuple[str, bytes, int]] = []
        self.acknowledged: set[int] = set()
        self.ends = 0
        self._client = paho.Client(paho.CallbackAPIVersion.VERSION2, client_id=name, clean_session=clean)
        self._client.on_message = lambda _c, _u, m: self.heard.append((m.topic, m.payload, m.qos))
        self._client.on_publish = lambda _c, _u, mid, *_: self.acknowledged.add(mid)
        self._client.on_disconnect = self._ended
        self._client.reconnect_delay_set(0.05, 0.2)  # type: ignore[arg-type]
        self._client.connect("127.0.0.1", port, keepalive=10)
        self._client.loop_start()

    def _ended(self, *_: object) -> None:
        self.ends += 1

    async def subscribe(self, topic: str, qos: int) -> None:
        granted = asyncio.Event()
        loop = asyncio.get_running_loop()
        self._client.on_subscribe = lambda *_: loop.call_soon_threadsafe(granted.set)
        await until(self._client.is_connected)
        self._client.subscribe(topic, qos)
        await asyncio.wait_for(granted.wait(), 120)

    def say(self, topic: str, data: bytes, qos: int = 1) -> int:
        return self._client.publish(topic, data, qos).mid

    async def say_and_wait(self, topic: str, data: bytes, qos: int = 1) -> None:
        mid = self.say(topic, data, qos)
        await until(lambda: mid in self.acknowledged)

    def close(self) -> None:
        self._client.disconnect()
        self._client.loop_stop()


async def until(condition: Callable[[], bool], timeout_s: float = 60) -> None:
    async with asyncio.timeout(timeout_s):
        while not condition():  # noqa: ASYNC110  paho lives in threads
            await asyncio.sleep(0.01)


async def pull(client: Client, source: site.Source, timeout_s: float = 5) -> Msg:
    inbox = client.new_inbox()
    arrivals = await client.subscribe(inbox)
    await client.publish(source.next_subject, site.pull(1, timeout_s), reply=inbox)
    try:
        frame = await arrivals.next_msg(timeout=timeout_s)
    finally:
        await arrivals.unsubscribe()
    assert "Status" not in (frame.headers or {}), frame.headers
    return frame


class Site:
    """Three linked brokers, ready for devices and workers."""

    def __init__(self, town: Any) -> None:
        self.town = town
        self.clients: dict[str, Client] = {}
        self.devices: list[Device] = []

    async def open(self) -> None:
        for name, earlier in TREE.items():
            await self.town.node(name, earlier=earlier, with_hub=False)
            self.clients[name] = await self.town.site_client(name)
            await site.ensure_inbox(self.clients[name])
            await site.ensure_results(self.clients[name], name, "meters")
            await site.ensure_source(self.clients[name], self.source(name))
        for name in TREE:
            await self.linked(name)

    async def linked(self, name: str) -> None:
        """Returns when the node's own streams answer to every living other."""
        for other, client in self.clients.items():
            if not self.town.brokers[other].pid:
                continue
            async with asyncio.timeout(60):
                while True:
                    try:
                        await site.backlog(client, self.source(name))
                        break
                    except Exception:
                        await asyncio.sleep(0.05)

    def source(self, node: str) -> site.Source:
        return site.device_source(node, "read", FRAMES)

    def device(self, node: str, name: str, *, clean: bool = True) -> Device:
        made = Device(self.town.nodes[node].mqtt_port, name, clean=clean)
        self.devices.append(made)
        return made

    async def kept(self, node: str) -> int:
        answer = await self.clients[node].request("$JS.API.STREAM.INFO.$MQTT_msgs", b"", timeout=5)
        return int(json.loads(answer.data)["state"]["messages"])

    async def pull(self, worker: str, ingest: str, timeout_s: float = 5) -> Msg:
        """One frame kept at `ingest`, worked on at `worker`."""
        return await pull(self.clients[worker], self.source(ingest), timeout_s)

    async def answer(self, worker: str, ingest: str, frame: Msg) -> dict[str, Any]:
        """What a worker does: the result, then, once that is kept, the acknowledgement of the frame."""
        subject = subjects.result(ingest, "meters.c1.reading")
        identity = site.result_id(ingest, "read", frame.metadata.sequence.stream)
        kept = await self.clients[worker].request(
            subject, b"read " + frame.data, timeout=5, headers={"Nats-Msg-Id": identity}
        )
        await self.clients[worker].request(frame.reply, b"+ACK", timeout=5)
        decoded: dict[str, Any] = json.loads(kept.data)
        return decoded

    def close(self) -> None:
        for device in self.devices:
            device.close()


@pytest.fixture
async def berlin(new_town: Any) -> AsyncIterator[Site]:
    made = Site(await new_town())
    try:
        await made.open()
        yield made
    finally:
        made.close()


async def test_a_frame_is_kept_once_and_read_from_two_links_away(berlin: Site) -> None:
    camera = berlin.device("n2", "camera")
    await camera.say_and_wait("cameras/c1/frame", b"pixels")
    assert [await berlin.kept(node) for node in TREE] == [0, 1, 0]
    # n3 links to n1, and so does n2: the frame crosses two links to be worked on.
    frame = await berlin.pull("n3", "n2")
    assert frame.data == b"pixels"
    assert subjects.topic_of_subject(subjects.topic_subject(frame.subject)) == "cameras/c1/frame"
    first = await berlin.answer("n3", "n2", frame)
    assert first["stream"] == "out-n2-meters"
    assert await berlin.kept("n2") == 0
    assert await site.backlog(berlin.clients["n1"], berlin.source("n2")) == site.Backlog(0, 0, 0)


async def test_every_panel_of_the_site_hears_a_result_once(berlin: Site) -> None:
    panels = {node: berlin.device(node, f"panel-{node}") for node in TREE}
    for qos, (node, panel) in zip((0, 1, 1), panels.items(), strict=True):
        await panel.subscribe("meters/#", qos)
        await panel.subscribe("cameras/#", 0)
        assert node in TREE
    camera = berlin.device("n3", "camera")
    # A wish to hear travels to the other brokers on its own time; the later of two wishes does not overtake.
    while not all(panel.heard for panel in panels.values()):
        camera.say("cameras/probe", b"", 0)
        await asyncio.sleep(0.05)
    await camera.say_and_wait("cameras/c1/frame", b"1")
    frame = await berlin.pull("n1", "n3")
    await berlin.answer("n1", "n3", frame)
    # The same again, as after a worker died between its result and its acknowledgement.
    again = await berlin.answer("n2", "n3", frame)
    assert again["duplicate"] is True
    await camera.say_and_wait("cameras/c1/frame", b"2")
    await berlin.answer("n2", "n3", await berlin.pull("n2", "n3"))
    readings = [("meters/c1/reading", b"read 1"), ("meters/c1/reading", b"read 2")]
    for panel in panels.values():
        await until(lambda panel=panel: len([d for _, d, _ in panel.heard if d]) >= 4)  # type: ignore[misc]
        assert [(t, d) for t, d, _ in panel.heard if t.startswith("meters")] == readings
        assert [d for t, d, _ in panel.heard if t == "cameras/c1/frame"] == [b"1", b"2"]


async def test_a_frame_goes_to_another_worker_when_the_first_is_killed(berlin: Site) -> None:
    camera = berlin.device("n1", "camera")
    await camera.say_and_wait("cameras/c1/frame", b"pixels")
    doomed = await berlin.town.site_client("n2")
    taken = await pull(doomed, berlin.source("n1"))
    assert taken.metadata.num_delivered == 1
    doomed._transport.close()  # gone without a word, as after kill -9
    started_s = asyncio.get_running_loop().time()
    second = await berlin.pull("n3", "n1")
    assert second.data == b"pixels"
    assert second.metadata.num_delivered == 2
    assert asyncio.get_running_loop().time() - started_s < site.ACK_WAIT_S + 1
    await berlin.answer("n3", "n1", second)
    assert await berlin.kept("n1") == 0


async def test_the_tree_grows_together_again_without_its_root(berlin: Site) -> None:
    camera = berlin.device("n3", "camera", clean=False)
    await camera.say_and_wait("cameras/c1/frame", b"before")
    await berlin.town.kill("n1")
    killed_s = asyncio.get_running_loop().time()
    await camera.say_and_wait("cameras/c1/frame", b"meanwhile")
    await berlin.linked("n3")
    took_s = asyncio.get_running_loop().time() - killed_s
    for expected in (b"before", b"meanwhile"):
        frame = await berlin.pull("n2", "n3")
        assert frame.data == expected
        await berlin.answer("n2", "n3", frame)
    assert took_s < 5
    await berlin.town.revive("n1")
    await until(lambda: berlin.clients["n1"].is_connected)
    await berlin.linked("n3")
    await camera.say_and_wait("cameras/c1/frame", b"after")
    frame = await berlin.pull("n1", "n3")
    assert frame.data == b"after"
    assert camera.ends == 0


async def test_what_the_broker_acknowledged_survives_its_kill(berlin: Site) -> None:
    said: dict[bytes, bool] = {}
    for round_ in range(4):
        camera = berlin.device("n1", f"camera-{round_}")
        mids: dict[int, bytes] = {}
        await camera.say_and_wait("cameras/c1/frame", b"ready")
        for i in range(400):
            data = b"%d-%d" % (round_, i)
            mids[camera.say("cameras/c1/frame", data)] = data
        await until(lambda camera=camera: len(camera.acknowledged) > 100)  # type: ignore[misc]
        await berlin.town.kill("n1")
        camera._client.loop_stop()
        said |= {data: mid in camera.acknowledged for mid, data in mids.items()}
        await berlin.town.revive("n1")
    await until(lambda: berlin.clients["n1"].is_connected)
    stored = set()
    while (await site.backlog(berlin.clients["n1"], berlin.source("n1"))).waiting:
        frame = await berlin.pull("n1", "n1")
        stored.add(frame.data)
        await berlin.clients["n1"].publish(frame.reply, b"+ACK")
    acknowledged = {data for data, was in said.items() if was}
    assert len(acknowledged) > 400
    assert acknowledged - stored == set()


async def test_only_nodes_of_the_site_may_link(berlin: Site, new_town: Any) -> None:
    town = berlin.town
    await town.node("stranger", "madrid", with_hub=False)
    # The stranger even trusts Berlin; Berlin does not trust the stranger.
    config = replace(
        town.nodes["stranger"],
        site_trusts=town.directory / "berlin.pem",
        earlier=(f"127.0.0.1:{town.nodes['n1'].site_port}",),
    )
    assert await town.brokers["stranger"].apply(broker.node_config(config)) in ("reloaded", "restarted")
    heard: list[bytes] = []

    async def hear(message: Msg) -> None:
        heard.append(message.data)

    outside = await town.site_client("stranger")
    await outside.subscribe("cameras.>", cb=hear)
    journal = town.brokers["n1"].log_file
    await until(lambda: "TLS leafnode handshake error" in journal.read_text())
    camera = berlin.device("n1", "camera")
    await camera.say_and_wait("cameras/c1/frame", b"secret")
    await asyncio.sleep(0.2)
    assert heard == []


async def test_a_reload_disturbs_neither_devices_nor_links(berlin: Site) -> None:
    town = berlin.town
    camera = berlin.device("n2", "camera")
    await camera.say_and_wait("cameras/c1/frame", b"1")
    alone = replace(town.nodes["n3"], earlier=())
    assert await town.brokers["n3"].apply(broker.node_config(alone)) == "reloaded"
    assert await town.brokers["n3"].apply(broker.node_config(town.nodes["n3"])) == "reloaded"
    assert await town.brokers["n3"].apply(broker.node_config(town.nodes["n3"])) == "unchanged"
    lively = replace(town.nodes["n2"], sync_interval="2s")
    assert await town.brokers["n2"].apply(broker.node_config(lively)) in ("reloaded", "restarted")
    await berlin.linked("n3")
    await camera.say_and_wait("cameras/c1/frame", b"2")
    assert await berlin.kept("n2") == 2


async def test_a_device_speaks_topics_and_nothing_else(berlin: Site) -> None:
    heard: list[str] = []

    async def hear(message: Msg) -> None:
        heard.append(message.subject)

    for subject in ("out.>", "ctl.>", "batuta.>", "cameras.>"):
        await berlin.clients["n1"].subscribe(subject, cb=hear)
    await berlin.clients["n1"].flush()
    camera = berlin.device("n1", "camera")
    for topic in ("out/n1/meters/c1/reading", "ctl/stop", "batuta/report/n1", "$JS/API/STREAM/DELETE/$MQTT_msgs"):
        camera.say(topic, b"{}", 0)
    await camera.say_and_wait("cameras/c1/frame", b"pixels")
    await until(lambda: "cameras.c1.frame" in heard)
    assert heard == ["cameras.c1.frame"]
    assert await berlin.kept("n1") == 1


async def test_qos_0_is_heard_live_by_one_worker_of_a_group(berlin: Site) -> None:
    heard: list[tuple[str, bytes, bool]] = []
    for node in ("n2", "n3"):

        async def hear(message: Msg, node: str = node) -> None:
            heard.append((node, message.data, site.is_live_only(message.headers)))

        await berlin.clients[node].subscribe("cameras.*.frame", "read", cb=hear)
        await berlin.clients[node].flush()
    camera = berlin.device("n1", "camera")
    probe = 0
    while not heard:
        camera.say("cameras/c1/frame", b"probe", 0)
        probe += 1
        await asyncio.sleep(0.02)
    await until(lambda: len(heard) == probe)
    heard.clear()
    camera.say("cameras/c1/frame", b"cheap", 0)
    await camera.say_and_wait("cameras/c1/frame", b"dear", 1)
    await until(lambda: len(heard) == 2)
    assert sorted((data, live) for _, data, live in heard) == [(b"cheap", True), (b"dear", False)]
