"""The broker as a process: born, adopted, changed, killed, and clear about what is wrong."""

from __future__ import annotations

import asyncio
import os
import signal
import socket
import stat
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import paho.mqtt.client as paho
import psutil
import pytest
from nats.aio.client import Client
from nats.errors import Error as NatsError

from batuta.fabric import broker, broker_health, nats, subjects
from batuta.fabric.base import SNAPSHOT_DONE, Entry
from batuta.fabric.broker import Broker, BrokerFailed, NodeBroker
from batuta.fabric.broker_config import HEALTH_USER

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

pytestmark = pytest.mark.e2e

HERE = "127.0.0.1"


def node(directory: Path) -> NodeBroker:
    return NodeBroker(
        node="pi-4",
        store=directory / "store",
        client_port=broker.free_port(HERE),
        mqtt_port=broker.free_port(HERE),
        agent_password="agent-secret",
        site_password="site-secret",
    )


@pytest.fixture
async def running(tmp_path: Path) -> AsyncIterator[tuple[Broker, NodeBroker]]:
    made, settings = Broker(tmp_path, memory_limit=broker.NODE_MEMORY_LIMIT, tied=True), node(tmp_path)
    assert await made.start(broker.node_config(settings)) == "started"
    yield made, settings
    await made.stop()
    assert not made.pid


def test_a_configuration_is_text_that_says_what_it_must(tmp_path: Path) -> None:
    tls = broker.TlsFiles(tmp_path / "chain", tmp_path / "key", tmp_path / "root")
    alone = node(tmp_path)
    assert "leafnodes" not in broker.node_config(alone)
    joined = replace(
        alone, tls=tls, hub_urls=("tls://hub:7422",), site_port=7423, site_trusts=tls.trusts, earlier=("10.0.0.1:7423",)
    )
    text = broker.node_config(joined)
    for wanted in (
        'urls: ["tls://hub:7422"]',
        'urls: ["tls://neighbour:neighbour@10.0.0.1:7423"]',
        "no_randomize: true",
        'deny_exports: ["$MQTT.msgs.>"',
        'domain: "n-pi-4"',
        "verify: true",
    ):
        assert wanted in text
    # Off loopback nobody is let in without a password.
    assert "no_auth_user" in text
    assert "no_auth_user" not in broker.node_config(replace(joined, mqtt_host="0.0.0.0"))
    camera = broker.Device("cam", 'with "quotes"', publish=("cameras/c1/#",), subscribe=())
    text = broker.node_config(replace(joined, mqtt_host="0.0.0.0", devices=(camera,)))
    assert "no_auth_user" not in text
    assert '"cameras.c1", "cameras.c1.>"' in text
    assert r'"with \"quotes\""' in text
    assert broker.node_config(joined) == broker.node_config(joined)


async def test_files_are_private_and_memory_is_small(running: tuple[Broker, NodeBroker]) -> None:
    made, _ = running
    for name in ("broker.conf", "broker.log", "broker.pid"):
        assert stat.S_IMODE((made.directory / name).stat().st_mode) == 0o600
    assert 5_000_000 < made.rss_bytes() < 20_000_000


async def test_a_restarted_parent_adopts_and_brings_it_up_to_date(running: tuple[Broker, NodeBroker]) -> None:
    made, settings = running
    pid = made.pid
    second = Broker(made.directory)
    assert await second.start(broker.node_config(settings)) == "adopted"
    assert second.pid == pid
    third = Broker(made.directory)
    changed = broker.node_config(replace(settings, site_password="another"))
    assert await third.start(changed) == "adopted"
    assert third.pid == pid
    # It says why and hangs up; with bad luck only the hanging up is heard.
    with pytest.raises(broker.FabricUnavailable, match=r"uthorization|reset by peer"):
        await nats.connect_node("pi-4", f"nats://{HERE}:{settings.client_port}", "agent", "wrong")
    assert await third.apply(changed) == "unchanged"
    # A change that no broker takes while it runs.
    moved = replace(settings, store=made.directory / "elsewhere")
    assert await third.apply(broker.node_config(moved)) == "restarted"
    assert third.pid not in (0, pid)
    await third.stop()
    assert not made.pid


async def test_another_process_under_the_same_number_is_not_adopted(running: tuple[Broker, NodeBroker]) -> None:
    made, settings = running
    pid_file = made.directory / "broker.pid"
    await made.stop()
    pid_file.write_text(f'{{"pid": {os.getpid()}, "born": {psutil.Process().create_time()}, "program": "/bin/true"}}')
    assert await Broker(made.directory, tied=True).start(broker.node_config(settings)) == "started"
    again = Broker(made.directory)
    assert await again.start(broker.node_config(settings)) == "adopted"
    await again.stop()
    pid_file.write_text("nonsense")
    assert not Broker(made.directory).is_running()


async def test_a_copied_directory_does_not_adopt_the_broker_of_the_original(
    running: tuple[Broker, NodeBroker], tmp_path: Path
) -> None:
    made, settings = running
    copy = Broker(tmp_path / "copy", tied=True)
    copy.directory.mkdir()
    (copy.directory / "broker.pid").write_text((made.directory / "broker.pid").read_text())
    ports = {"client_port": broker.free_port(HERE), "mqtt_port": broker.free_port(HERE)}
    assert await copy.start(broker.node_config(replace(settings, store=copy.directory / "store", **ports))) == "started"
    assert copy.pid not in (0, made.pid)
    await copy.stop()
    assert made.pid


async def test_a_killed_broker_is_noticed_and_keeps_what_it_had(running: tuple[Broker, NodeBroker]) -> None:
    made, settings = running
    fabric = await nats.connect_node("pi-4", f"nats://{HERE}:{settings.client_port}", "agent", "agent-secret")
    kept = fabric.log("outgoing-critical")
    await kept.append("stop", b"before")
    gone = asyncio.create_task(made.wait())
    await asyncio.sleep(0)
    os.kill(made.pid, signal.SIGKILL)
    await asyncio.wait_for(gone, 120)
    assert not made.is_running()
    await made.start(broker.node_config(settings))
    async with asyncio.timeout(60):
        while True:
            try:
                assert [entry.data for entry in await kept.read()] == [b"before"]
                break
            except broker.FabricUnavailable:
                await asyncio.sleep(0.05)
    await fabric.close()


async def test_readers_go_on_after_the_hubs_broker_was_killed(new_town: Any) -> None:
    town = await new_town()
    hub = await town.hub_fabric()
    fabric = await town.node_fabric(await town.node("n1"))
    await fabric.wait_connected(10)
    table, key = hub.table("desired"), subjects.assignment_key("n1")
    await table.put("sites.a", b"1")
    rows, orders = table.watch("sites."), fabric.table("decided").watch(key)
    deliveries = hub.log("audit").follow("reader")
    await hub.log("audit").append("ada", b"1")
    async with asyncio.timeout(30):
        assert [(await anext(rows)) for _ in range(2)][-1] is SNAPSHOT_DONE
        assert await anext(orders) is SNAPSHOT_DONE
        await (await anext(deliveries)).ack()
        await town.kill("hub")
        await town.revive("hub")
        await hub.wait_connected(10)
        await table.put("sites.b", b"2")
        await hub.table("decided").put(key, b"order")
        await hub.log("audit").append("ada", b"2")
        found = await anext(rows)
        assert isinstance(found, Entry)
        assert (found.key, found.value) == ("sites.b", b"2")
        order = await anext(orders)
        assert isinstance(order, Entry)
        assert order.value == b"order"
        delivery = await anext(deliveries)
        if delivery.entry.data == b"1":
            # At least once: it was killed before it had written down that this was handed out and acknowledged.
            await delivery.ack()
            delivery = await anext(deliveries)
        assert delivery.entry.data == b"2"
        await fabric.wait_connected(10)
    for each in (rows, orders, deliveries):
        await each.aclose()
    await fabric.close()
    await hub.close()


async def test_a_taken_port_is_said_and_the_next_free_one_found(tmp_path: Path) -> None:
    with socket.socket() as other:
        other.bind((HERE, 0))
        other.listen()
        taken = other.getsockname()[1]
        assert broker.free_port(HERE, taken) > taken
        assert broker.free_port(HERE, 0, taken={taken}) != taken
        settings = replace(node(tmp_path), mqtt_port=taken)
        with pytest.raises(BrokerFailed) as caught:
            await Broker(tmp_path, tied=True).start(broker.node_config(settings))
    assert caught.value.code == "port_taken"
    assert str(taken) in caught.value.message
    assert caught.value.next_step


async def test_a_refused_configuration_is_shown_with_its_line(running: tuple[Broker, NodeBroker]) -> None:
    made, settings = running
    good = broker.node_config(settings)
    with pytest.raises(BrokerFailed) as caught:
        await made.apply(good + "no_such_thing: 1\n")
    assert caught.value.code == "config_refused"
    assert f"broker.conf:{good.count(chr(10)) + 1}" in caught.value.message
    assert made.config_file.read_text() == good
    await made.stop()
    with pytest.raises(BrokerFailed) as caught:
        await made.start("jetstream {\n")
    assert caught.value.code == "config_refused"
    assert "line 2" in caught.value.message


async def test_a_missing_program_and_an_unusable_store_are_said(tmp_path: Path) -> None:
    with pytest.raises(BrokerFailed) as caught:
        await Broker(tmp_path / "a", binary=tmp_path / "nowhere").start(broker.node_config(node(tmp_path)))
    assert caught.value.code == "binary_missing"
    assert "pip install" in caught.value.next_step
    (tmp_path / "store").write_text("a file, not a directory")
    with pytest.raises(BrokerFailed) as caught:
        await Broker(tmp_path / "b", tied=True).start(broker.node_config(node(tmp_path)))
    assert caught.value.code == "store_unusable"


async def test_a_damaged_store_does_not_keep_the_broker_down(running: tuple[Broker, NodeBroker]) -> None:
    made, settings = running
    fabric = await nats.connect_node("pi-4", f"nats://{HERE}:{settings.client_port}", "agent", "agent-secret")
    await fabric.log("outgoing-normal").append("a", b"x" * 1000)
    await fabric.close()
    os.kill(made.pid, signal.SIGKILL)
    await made.wait()
    damaged = [file for file in (made.directory / "store").rglob("*.blk") if file.stat().st_size]
    assert damaged
    for file in damaged:
        file.write_bytes(b"\xff" * 100)
    assert await made.start(broker.node_config(settings)) == "started"


async def test_a_tied_broker_dies_with_its_parent_and_a_free_one_lives(tmp_path: Path) -> None:
    program = (
        "import asyncio, os, sys\n"
        "from pathlib import Path\n"
        "from batuta.fabric.broker import Broker\n"
        "async def main():\n"
        "    for name, config in zip(sys.argv[1::2], sys.argv[2::2]):\n"
        "        made = Broker(Path(name), tied=name.endswith('tied'))\n"
        "        await made.start(config)\n"
        "        print(made.pid, flush=True)\n"
        "    os.kill(os.getpid(), 9)\n"
        "asyncio.run(main())\n"
    )
    arguments = []
    for name in ("tied", "free"):
        arguments += [str(tmp_path / name), broker.node_config(node(tmp_path / name))]
    ran = await asyncio.to_thread(
        subprocess.run, [sys.executable, "-c", program, *arguments], capture_output=True, text=True, check=False
    )
    tied, free = (int(line) for line in ran.stdout.split())
    async with asyncio.timeout(60):
        while psutil.pid_exists(tied) and psutil.Process(tied).status() != psutil.STATUS_ZOMBIE:  # noqa: ASYNC110
            await asyncio.sleep(0.01)
    assert psutil.pid_exists(free)
    adopted = Broker(tmp_path / "free")
    assert adopted.is_running()
    assert adopted.pid == free
    await adopted.stop()
    assert not psutil.pid_exists(free) or psutil.Process(free).status() == psutil.STATUS_ZOMBIE


async def test_devices_have_the_rights_they_were_given(tmp_path: Path) -> None:
    made = Broker(tmp_path, tied=True)
    camera = broker.Device("cam", "pw", publish=("cameras/c1/#",), subscribe=("cameras/c1/set",))
    settings = replace(node(tmp_path), devices=(camera,))
    await made.start(broker.node_config(settings))

    def connects(user: str | None, password: str) -> bool:
        client = paho.Client(paho.CallbackAPIVersion.VERSION2)
        if user:
            client.username_pw_set(user, password)
        answers: list[bool] = []
        client.on_connect = lambda _c, _u, _f, reason, _p: answers.append(not reason.is_failure)
        client.connect(HERE, settings.mqtt_port)
        for _ in range(200):
            client.loop(0.02)
            if answers:
                break
        client.disconnect()
        return bool(answers and answers[0])

    assert await asyncio.to_thread(connects, "cam", "pw")
    assert not await asyncio.to_thread(connects, "cam", "guess")
    assert not await asyncio.to_thread(connects, None, "")
    assert subjects.subjects_of_topic_filter("cameras/c1/#") == ("cameras.c1", "cameras.c1.>")
    await made.stop()


# --- How it is -------------------------------------------------------------------------------------------------------


async def test_it_says_how_it_is_to_whoever_keeps_it_and_nothing_else(running: tuple[Broker, NodeBroker]) -> None:
    made, settings = running
    port, password = settings.client_port, settings.agent_password
    assert await broker_health.ask(port, HEALTH_USER, password) == ""
    assert str(await broker_health.ask(port, HEALTH_USER, "a guess")).startswith(broker_health.UNSAID)
    client = await asyncio.wait_for(nats_client(port, HEALTH_USER, password), 120)
    try:
        with pytest.raises((NatsError, TimeoutError)):
            await client.request("$SYS.REQ.SERVER.PING.VARZ", b"", timeout=0.5)
    finally:
        await client.close()
    os.kill(made.pid, signal.SIGSTOP)
    assert await broker_health.ask(port, HEALTH_USER, password, 0.2) is None
    os.kill(made.pid, signal.SIGCONT)
    await made.stop()
    assert await broker_health.ask(port, HEALTH_USER, password) is None


async def nats_client(port: int, user: str, password: str) -> Client:
    client = Client()
    await client.connect(f"nats://{HERE}:{port}", user=user, password=password, max_reconnect_attempts=0)
    return client


def test_a_store_that_gave_up_is_started_anew_once_there_is_room_and_ever_more_seldom(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    room = 0
    monkeypatch.setattr(broker_health, "room_bytes", lambda _directory: room)
    mending, words = broker_health.Mending(tmp_path), "JetStream stream 'A > B' write error: no space left on device"
    assert not mending.is_due("", 100.0)
    assert not mending.is_due("another fault, which no new start mends", 100.0)
    assert not mending.is_due(words, 100.0), "there is no room"
    room = broker_health.ROOM_BYTES
    due = [second for second in range(101, 1500) if mending.is_due(words, float(second))]
    assert due == [101, 106, 116, 136, 176, 256, 416, 716, 1016, 1316]
    assert not mending.is_due("", 2000.0), "well for long enough"
    assert [second for second in range(2001, 2012) if mending.is_due(words, float(second))] == [2001, 2006]
