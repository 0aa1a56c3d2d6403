"""The core views of Kubernetes: what kubectl calls nodes, pods, events and namespaces."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

import msgspec

from batuta.core.observed import InstanceReport
from batuta.core.reasons import Reason
from batuta.fabric.memory import MemoryBroker
from tests.hub.hubs import PROCESS_APP, Voice, join
from tests.web.test_api import BASE, Watching, api, is_status
from tests.web.test_kubernetes import TABLE, TableWatching

if TYPE_CHECKING:
    from pathlib import Path

    from batuta.hub.hub import Hub
    from tests.web.asgi import Caller

CORE = "/api/v1"
PODS = f"{CORE}/namespaces/default/pods"
STRATEGIC = {"content_type": "application/strategic-merge-patch+json"}


async def assigned(hub: Hub, call: Caller, broker: MemoryBroker) -> Voice:
    """A node that was given the one instance of an application."""
    await join(hub, "pi-1")
    voice = Voice(broker, "pi-1")
    await voice.beat()
    await voice.report()
    await call("POST", "/apply", PROCESS_APP.replace("NAME", "one").encode())
    async with asyncio.timeout(60):
        while "default/one" not in hub.loop.state.held:
            await hub.loop.turned.wait(hub.loop.turned.rings, hub.clock, hub.clock.now() + 50)
    return voice


async def says(hub: Hub, voice: Voice, phase: str, **more: Any) -> None:
    (held,) = hub.loop.state.held["default/one"]
    instance = InstanceReport(
        name=held.instance.name, epoch=held.instance.epoch, phase=phase, since=hub.clock.now() - 5_000, **more
    )
    serial = hub.loop.state.assignments["pi-1"].serial
    await voice.report(serial=serial, instances=(instance,), address="10.0.0.7:4222")
    async with asyncio.timeout(60):
        while hub.loop.state.observed["pi-1"].instances != (instance,):
            await hub.loop.turned.wait(hub.loop.turned.rings, hub.clock, hub.clock.now() + 50)
    await asyncio.sleep(0.25)  # what was shown a moment ago is shown again


async def test_instances_are_pods(tmp_path: Path) -> None:
    broker = MemoryBroker()
    async with api(tmp_path, broker) as (hub, call):
        voice = await assigned(hub, call, broker)
        version = (await call("GET", PODS)).json["metadata"]["resourceVersion"]
        (pending,) = (await call("GET", PODS)).json["items"]
        assert (pending["metadata"]["name"], pending["status"]["phase"]) == ("one.run-1-0", "Pending")
        watching = Watching(call, f"{PODS}?watch=true&resourceVersion={version}")
        await says(hub, voice, "ready", starts=3)
        word, pod = await watching.next()
        assert word == "MODIFIED"
        assert (pod["spec"]["nodeName"], pod["status"]["phase"], pod["status"]["podIP"]) == (
            "pi-1",
            "Running",
            "10.0.0.7",
        )
        assert {c["type"]: c["status"] for c in pod["status"]["conditions"]}["Ready"] == "True"
        (status,) = pod["status"]["containerStatuses"]
        assert (status["name"], status["ready"], status["restartCount"]) == ("run", True, 2)
        assert pod["metadata"]["uid"] == pending["metadata"]["uid"]
        assert (await call("GET", f"{PODS}/one.run-1-0")).json == pod
        is_status(await call("GET", f"{PODS}/two"), 404, "NotFound")
        await watching.stream.aclose()

        row = (await call("GET", PODS, accept=TABLE)).json["rows"][0]["cells"]
        assert row[:4] == ["one.run-1-0", "1/1", "Running", "2"]
        assert row[5:] == ["10.0.0.7", "pi-1", "one"]
        everywhere = f"{CORE}/pods?fieldSelector=spec.nodeName%3Dpi-1,status.phase%21%3DFailed"
        assert len((await call("GET", everywhere)).json["items"]) == 1
        assert (await call("GET", f"{CORE}/pods?fieldSelector=spec.nodeName%3Dpi-2")).json["items"] == []
        is_status(await call("GET", f"{CORE}/pods?fieldSelector=spec.colour%3Dred"), 400, "BadRequest")
        assert (await call("GET", f"{CORE}/namespaces/other/pods")).json["items"] == []


async def test_reasons_are_events_of_what_they_are_about(tmp_path: Path) -> None:
    broker = MemoryBroker()
    async with api(tmp_path, broker) as (hub, call):
        voice = await assigned(hub, call, broker)
        await says(
            hub, voice, "backoff", starts=2, reason=Reason(code="exited", subject="instance/run-1-0", detail="1")
        )
        uid = (await call("GET", f"{BASE}/namespaces/default/applications/one")).json["metadata"]["uid"]
        about = f"involvedObject.uid%3D{uid},involvedObject.kind%3DApplication,involvedObject.name%3Done"
        events = (await call("GET", f"{CORE}/namespaces/default/events?fieldSelector={about}")).json["items"]
        assert "Exited" in {e["reason"] for e in events}
        (exited,) = [e for e in events if e["reason"] == "Exited"]
        assert (exited["type"], exited["involvedObject"]["namespace"]) == ("Warning", "default")
        assert "its process ended" in exited["message"]
        other = f"{CORE}/events?fieldSelector=involvedObject.name%3Dtwo"
        assert (await call("GET", other)).json["items"] == []
        pod = (await call("GET", f"{PODS}/one.run-1-0")).json
        assert pod["status"]["containerStatuses"][0]["state"]["waiting"]["reason"] == "Exited"
        await says(hub, voice, "ready")
        assert (await call("GET", f"{CORE}/namespaces/default/events?fieldSelector={about}")).json["items"] == []


async def test_nodes_have_their_core_name_too(tmp_path: Path) -> None:
    broker = MemoryBroker()
    async with api(tmp_path, broker) as (hub, call):
        await join(hub, "pi-1")
        (node,) = (await call("GET", f"{CORE}/nodes")).json["items"]
        assert {c["type"]: c["status"] for c in node["status"]["conditions"]} == {"Ready": "Unknown"}
        voice = Voice(broker, "pi-1")
        await voice.beat()
        await voice.report(address="10.0.0.7:4222")
        await asyncio.sleep(0.3)
        node = (await call("GET", f"{CORE}/nodes/pi-1")).json
        assert {c["type"]: c["status"] for c in node["status"]["conditions"]} == {"Ready": "True"}
        assert node["status"]["capacity"]["cpu"] == "2"
        assert {"type": "InternalIP", "address": "10.0.0.7"} in node["status"]["addresses"]
        assert node["metadata"]["labels"]["topology.kubernetes.io/zone"] == "berlin"

        cordon = await call("PATCH", f"{CORE}/nodes/pi-1", {"spec": {"unschedulable": True}}, **STRATEGIC)
        assert cordon.json["spec"]["unschedulable"] is True
        assert cordon.json == (await call("GET", f"{CORE}/nodes/pi-1")).json
        labels = {"metadata": {"labels": {"rack": "7"}}}
        assert (await call("PATCH", f"{CORE}/nodes/pi-1", labels, **STRATEGIC)).json["metadata"]["labels"][
            "rack"
        ] == "7"
        ours = (await call("GET", f"{BASE}/nodes/pi-1")).json
        assert (ours["spec"]["unschedulable"], ours["metadata"]["labels"]) == (True, {"rack": "7"})
        row = (await call("GET", f"{CORE}/nodes", accept=TABLE)).json["rows"][0]["cells"]
        assert row[:2] == ["pi-1", "Ready,SchedulingDisabled"]
        is_status(await call("PATCH", f"{CORE}/nodes/pi-1", {"spec": {"podCIDR": "x"}}, **STRATEGIC), 422, "Invalid")
        is_status(await call("PATCH", f"{CORE}/nodes/pi-9", labels, **STRATEGIC), 404, "NotFound")
        is_status(await call("DELETE", f"{CORE}/nodes/pi-1"), 405, "MethodNotAllowed")


async def test_namespaces_are_where_something_is_declared(tmp_path: Path) -> None:
    async with api(tmp_path) as (_, call):
        watching = TableWatching(call, f"{CORE}/namespaces?watch=true")
        assert (await watching.next())[1]["rows"][0]["cells"][:2] == ["default", "Active"]
        await call("POST", "/apply?namespace=shops", PROCESS_APP.replace("NAME", "one").encode())
        word, table = await watching.next()
        assert (word, table["rows"][0]["cells"][0]) == ("ADDED", "shops")
        await watching.stream.aclose()
        assert (await call("GET", f"{CORE}/namespaces/shops")).json["status"]["phase"] == "Active"
        is_status(await call("POST", f"{CORE}/namespaces", {}), 405, "MethodNotAllowed")


async def test_pods_have_logs(tmp_path: Path) -> None:
    broker = MemoryBroker()
    async with api(tmp_path, broker) as (hub, call):
        voice = await assigned(hub, call, broker)

        async def tell(message: Any) -> None:
            wanted = msgspec.json.decode(message.data)
            await message.respond(
                msgspec.json.encode({"text": f"{wanted['instance']} {wanted['tail']}\n", "offset": 7})
            )

        await voice.fabric.subscribe("batuta.tell.pi-1.log", tell)
        log = await call("GET", f"{PODS}/one.run-1-0/log?container=run&tailLines=5")
        assert (log.status, log.body) == (200, b"default/one/run-1-0 5\n")
        is_status(await call("GET", f"{PODS}/one.run-1-1/log"), 404, "NotFound")
        is_status(await call("GET", f"{PODS}/one.run-1-0/log?previous=true"), 400, "BadRequest")
        is_status(await call("GET", f"{PODS}/one.run-1-0/log?tailLines=x"), 400, "BadRequest")
