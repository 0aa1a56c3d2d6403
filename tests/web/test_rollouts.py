"""Rollouts over HTTP: read and watched like any resource, paused, resumed, undone; history; all of it audited."""

from __future__ import annotations

import asyncio
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any

from batuta.core.observed import InstanceReport
from batuta.fabric.memory import MemoryBroker
from tests.hub.hubs import Voice, join
from tests.web.asgi import Caller
from tests.web.test_api import BASE, Watching, is_status
from tests.web.test_kubernetes import TABLE
from tests.web.test_rights import LOCAL, bearer, guarded

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable
    from pathlib import Path

    from batuta.hub.hub import Hub

ROLLOUTS = f"{BASE}/namespaces/default/rollouts"
APPS = f"{BASE}/namespaces/default/applications"
READER = """
apiVersion: batuta.dev/v1
kind: Application
metadata: {name: reader, labels: {team: meters}}
spec:
  rollout: {waves: ["1 node", "100%"], soak: SOAK, approvals: APPROVALS}
  components:
  - name: run
    process: {command: [sleep, "COMMAND"]}
    replicas: {everyNode: true}
"""


def reader(command: int, *, soak: str = "0s", approvals: bool = False) -> bytes:
    text = READER.replace("COMMAND", str(command)).replace("SOAK", soak)
    return text.replace("APPROVALS", str(approvals).lower()).encode()


@asynccontextmanager
async def opened(directory: Path, broker: MemoryBroker) -> AsyncIterator[tuple[Hub, Caller]]:
    """A hub behind its door, asked by its own user."""
    async with guarded(directory, broker) as (hub, call):
        yield hub, Caller(call.app, **LOCAL)


class Fleet:
    """Nodes that run whatever they are assigned, as soon as they are told to."""

    def __init__(self, hub: Hub, broker: MemoryBroker, *names: str) -> None:
        self.hub = hub
        self.voices = [Voice(broker, name) for name in names]

    async def join(self) -> None:
        for voice in self.voices:
            await join(self.hub, voice.name)
            await voice.report()
        await self.obey(lambda: len(self.hub.loop.state.observed) == len(self.voices))

    async def obey(self, holds: Callable[[], Any]) -> None:
        """They say that they run what they were assigned, until that is so."""
        async with asyncio.timeout(60):
            while not holds():
                rings = self.hub.loop.turned.rings
                for voice in self.voices:
                    await self._obey(voice)
                await self.hub.loop.turned.wait(rings, self.hub.clock, self.hub.clock.now() + 50)

    async def _obey(self, voice: Voice) -> None:
        await voice.beat()
        assignment = self.hub.loop.state.assignments.get(voice.name)
        if assignment is None:
            return
        said = tuple(InstanceReport(name=i.name, epoch=i.epoch, phase="ready", since=0) for i in assignment.instances)
        known = self.hub.loop.state.observed.get(voice.name)
        if known is None or (known.serial, known.instances) != (assignment.serial, said):
            await voice.report(serial=assignment.serial, instances=said)

    def running(self) -> dict[str, int]:
        """By node, the newest revision that it was given."""
        held = self.hub.loop.state.held.get("default/reader", ())
        return {h.node: h.instance.revision for h in sorted(held, key=lambda h: h.instance.epoch)}


def phase(hub: Hub) -> str:
    rollout = hub.loop.state.rollouts.get("default/reader")
    return rollout.phase if rollout is not None else ""


async def rolling(hub: Hub, call: Caller, broker: MemoryBroker, **more: Any) -> Fleet:
    """Three nodes with release 1, and release 2 through its first wave."""
    fleet = Fleet(hub, broker, "pi-1", "pi-2", "pi-3")
    await fleet.join()
    assert (await call("POST", "/apply", reader(1, **more))).status == 200
    await fleet.obey(lambda: len(fleet.running()) == 3)
    is_status(await call("GET", f"{ROLLOUTS}/reader"), 404, "NotFound")
    is_status(await call("POST", f"{ROLLOUTS}/reader/pause"), 404, "NotFound")
    assert (await call("POST", "/apply", reader(2, **more))).status == 200
    return fleet


async def test_a_rollout_is_read_watched_and_shown_in_columns(tmp_path: Path) -> None:
    broker = MemoryBroker()
    async with opened(tmp_path, broker) as (hub, call):
        fleet = await rolling(hub, call, broker, approvals=True)
        await fleet.obey(lambda: phase(hub) == "soaking" and hub.loop.state.rollouts["default/reader"].reason)
        await asyncio.sleep(0.3)  # what was shown a moment ago is shown again
        found = (await call("GET", f"{ROLLOUTS}/reader")).json
        assert (found["kind"], found["metadata"]["labels"]) == ("Rollout", {"team": "meters"})
        assert found["spec"] == {
            "release": 2,
            "previous": 1,
            "waves": ["1 node", "100%"],
            "soak": "0ms",
            "approvals": True,
        }
        status = found["status"]
        assert (status["phase"], status["progress"], status["awaitsApproval"]) == ("soaking", "1/2", True)
        assert (status["nodes"]["total"], status["nodes"]["done"], status["nodes"]["waiting"]) == (3, 1, 2)
        assert status["reason"]["next"].startswith("`batuta rollout approve reader`")
        assert (await call("GET", f"{ROLLOUTS}/reader/status")).json == found

        (row,) = (await call("GET", f"{BASE}/rollouts", accept=TABLE)).json["rows"]
        assert row["cells"][:8] == ["reader", "2", "soaking", "1/2", "3", "1", "0", "0"]
        assert "waits for somebody to agree" in row["cells"][9]
        listed = (await call("GET", f"{ROLLOUTS}?labelSelector=team%3Dmeters")).json
        assert (listed["kind"], [r["metadata"]["name"] for r in listed["items"]]) == ("RolloutList", ["reader"])
        assert (await call("GET", f"{ROLLOUTS}?fieldSelector=status.phase%3Ddone")).json["items"] == []

        watching = Watching(call, f"{ROLLOUTS}?watch=true&resourceVersion={listed['metadata']['resourceVersion']}")
        assert (await call("POST", f"{ROLLOUTS}/reader/approve")).status == 200
        obeying = asyncio.create_task(fleet.obey(lambda: phase(hub) == "done"))
        seen = []
        async with asyncio.timeout(60):
            while "done" not in seen:
                word, changed = await watching.next()
                assert word == "MODIFIED"
                seen.append(changed["status"]["phase"])
        await obeying
        await watching.stream.aclose()
        assert set(fleet.running().values()) == {2}
        for method in ("PUT", "PATCH", "DELETE"):
            assert (await call(method, f"{ROLLOUTS}/reader")).status == 405
        assert (await call("POST", ROLLOUTS)).status == 405


async def test_it_is_paused_resumed_and_undone_and_the_audit_knows_by_whom(tmp_path: Path) -> None:
    broker = MemoryBroker()
    async with opened(tmp_path, broker) as (hub, call):
        fleet = await rolling(hub, call, broker, soak="1h")
        await fleet.obey(lambda: phase(hub) == "soaking")
        tried = await call("POST", f"{ROLLOUTS}/reader/pause?dryRun=All", {"reason": "x"})
        assert (tried.status, phase(hub)) == (200, "soaking")
        paused = await call("POST", f"{ROLLOUTS}/reader/pause", {"reason": "audit until noon"})
        assert (
            paused.json["message"] == "rollouts/reader: release 2 paused: nothing changes until it is resumed or undone"
        )
        assert phase(hub) == "paused"
        reason = (await call("GET", f"{ROLLOUTS}/reader")).json["status"]["reason"]
        assert reason["code"] == "rollout_paused"
        assert "audit until noon" in reason["sentence"]
        assert reason["next"] == "`batuta rollout resume reader`, or `batuta rollout undo reader`"

        again = await call("POST", f"{ROLLOUTS}/reader/pause")
        is_status(again, 422, "Invalid")
        (problem,) = again.json["problems"]
        assert problem["code"] == "rollout_unfit"
        assert "release 2 is paused; pause is for one that is rolling, soaking or undoing" in problem["message"]
        is_status(await call("POST", f"{ROLLOUTS}/reader/approve"), 422, "Invalid")
        is_status(await call("POST", f"{ROLLOUTS}/reader/resume", {"to": 1}), 422, "Invalid")
        is_status(await call("POST", f"{ROLLOUTS}/reader/resume", {"why": "x"}), 400, "BadRequest")

        assert (await call("POST", f"{ROLLOUTS}/reader/resume")).status == 200
        await fleet.obey(lambda: phase(hub) == "soaking")
        assert (await call("POST", f"{ROLLOUTS}/reader/undo", {"reason": "too hot"})).status == 200
        await fleet.obey(lambda: phase(hub) == "undone" and set(fleet.running().values()) == {1})
        is_status(await call("POST", f"{ROLLOUTS}/reader/undo"), 422, "Invalid")

        told = (await call("GET", "/audit?what=rollouts/default/reader")).json["items"]
        accepted = [e for e in told if e["outcome"] == "accepted"]
        assert [e["verb"] for e in accepted] == ["pause", "resume", "undo"]
        assert accepted[0]["before"] == {"release": 2, "state": "soaking"}
        assert accepted[0]["after"] == {"release": 2, "state": "paused", "reason": "audit until noon"}
        refused = [e["verb"] for e in told if e["outcome"] == "refused"]
        assert refused == ["pause", "pause", "approve", "resume", "resume", "undo"]

        assert (await call("POST", f"{ROLLOUTS}/reader/retry")).status == 200
        await fleet.obey(lambda: phase(hub) == "soaking")
        assert sorted(fleet.running().values()) == [1, 1, 2]
        assert (await call("POST", f"{ROLLOUTS}/reader/abort")).status == 200
        assert phase(hub) == "aborted"


async def test_a_kept_release_comes_back_as_a_release_of_its_own(tmp_path: Path) -> None:
    broker = MemoryBroker()
    async with opened(tmp_path, broker) as (hub, call):
        fleet = await rolling(hub, call, broker)
        await fleet.obey(lambda: phase(hub) == "done")
        history = (await call("GET", f"{APPS}/reader/history")).json
        newest, first = history["items"]
        assert (newest["revision"], newest["isNewest"], first["revision"]) == (2, True, 1)
        assert [c["path"] for c in newest["changes"]] == ["components[0].process.command[1]"]
        assert newest["by"] == first["by"] == "local"
        assert (newest["rollout"], first.get("rollout")) == ("done", None)
        fields = (await call("GET", f"{APPS}/reader/difference?from=2&to=1")).json["fields"]
        assert [(f["before"], f["after"]) for f in fields] == [("2", "1")]
        is_status(await call("GET", f"{APPS}/reader/difference?from=2&to=7"), 404, "NotFound")
        is_status(await call("GET", f"{APPS}/nobody/history"), 404, "NotFound")
        is_status(await call("POST", f"{ROLLOUTS}/reader/undo", {"to": 7}), 422, "Invalid")
        is_status(await call("POST", f"{ROLLOUTS}/reader/undo", {"to": 2}), 422, "Invalid")

        before = hub.loop.state.application("default/reader")
        assert (await call("POST", f"{ROLLOUTS}/reader/undo?dryRun=All")).status == 200
        assert hub.loop.state.application("default/reader") == before
        undone = await call("POST", f"{ROLLOUTS}/reader/undo")
        assert "release 1 is declared again" in undone.json["message"]
        await fleet.obey(lambda: phase(hub) == "done" and hub.loop.state.rollouts["default/reader"].revision == 3)
        declared = (await call("GET", f"{APPS}/reader")).json
        assert declared["spec"]["components"][0]["process"]["command"] == ["sleep", "1"]
        (entry,) = (await call("GET", "/audit?what=applications/default/reader&verb=undo")).json["items"]
        assert entry["after"]["spec"]["components"][0]["process"]["command"] == ["sleep", "1"]
        items = (await call("GET", f"{APPS}/reader/history")).json["items"]
        assert [(i["revision"], i["by"]) for i in items] == [(3, "local"), (2, "local"), (1, "local")]

        # One that is over is shown as it is now, too.
        assert (await call("GET", f"{ROLLOUTS}/reader")).json["status"]["nodes"]["total"] == 3
        assert (await call("DELETE", f"{BASE}/nodes/pi-3")).status == 200
        async with asyncio.timeout(60):
            while (await call("GET", f"{ROLLOUTS}/reader")).json["status"]["nodes"]["total"] != 2:
                await hub.loop.turned.wait(hub.loop.turned.rings, hub.clock, hub.clock.now() + 50)


async def test_operators_ask_in_their_namespaces_and_viewers_look(tmp_path: Path) -> None:
    broker = MemoryBroker()
    async with opened(tmp_path, broker) as (hub, call):
        fleet = await rolling(hub, call, broker, soak="1h")
        await fleet.obey(lambda: phase(hub) == "soaking")
        viewer = Caller(call.app, **await bearer(hub, "viewer", "default"))
        assert (await viewer("GET", f"{ROLLOUTS}/reader")).status == 200
        assert (await viewer("GET", f"{APPS}/reader/history")).status == 200
        is_status(await viewer("POST", f"{ROLLOUTS}/reader/pause"), 403, "Forbidden")
        is_status(await viewer("GET", f"{BASE}/rollouts"), 403, "Forbidden")
        stranger = Caller(call.app, **await bearer(hub, "operator", "lab"))
        is_status(await stranger("GET", f"{ROLLOUTS}/reader"), 403, "Forbidden")
        is_status(await stranger("POST", f"{ROLLOUTS}/reader/undo"), 403, "Forbidden")
        assert phase(hub) == "soaking"
        operator = Caller(call.app, **await bearer(hub, "operator", "default", name="anna"))
        assert (await operator("POST", f"{ROLLOUTS}/reader/pause")).status == 200
        reason = hub.loop.state.rollouts["default/reader"].reason
        assert reason is not None
        assert (reason.code, reason.detail) == ("rollout_paused", "by anna")
