"""POST /optimize and /moves over a real hub: what pays, what is made, what is refused, and that it is audited."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

import msgspec

from batuta.core.observed import InstanceReport
from batuta.fabric.memory import MemoryBroker
from tests.hub.hubs import PROCESS_APP, Voice, join
from tests.web.test_api import api, is_status

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from batuta.hub.hub import Hub

CROWD = PROCESS_APP.replace("NAME", "crowd").replace("count: 1", "count: 4")


def moves(*wanted: dict[str, Any]) -> bytes:
    return msgspec.json.encode({"moves": wanted})


def move(slot: str, node: str, to: str, **more: str) -> dict[str, Any]:
    return {
        "namespace": "default", "application": "crowd", "component": "run", "slot": slot, "node": node, "to": to, **more
    }  # fmt: skip


async def joined(hub: Hub, broker: MemoryBroker, name: str) -> Voice:
    await join(hub, name)
    voice = Voice(broker, name)
    await voice.report()
    await voice.beat()
    await until(hub, lambda: name in hub.loop.state.observed)
    return voice


async def until(hub: Hub, holds: Callable[[], bool]) -> None:
    async with asyncio.timeout(60):
        while not holds():
            await asyncio.sleep(0)
            await hub.loop.turn()


async def obeys(hub: Hub, voice: Voice) -> None:
    """It says that it runs what it was assigned."""
    await hub.loop.turn()
    assignment = hub.loop.state.assignments[voice.name]
    said = tuple(InstanceReport(name=i.name, epoch=i.epoch, phase="ready", since=0) for i in assignment.instances)
    await voice.beat()
    await voice.report(serial=assignment.serial, instances=said)
    await until(hub, lambda: hub.loop.state.observed[voice.name].instances == said)
    await hub.loop.turn()


def places(hub: Hub) -> list[tuple[str, str]]:
    return sorted((h.instance.slot, h.node) for h in hub.loop.state.held.get("default/crowd", ()))


async def test_what_is_proposed_is_made_when_it_is_asked_for(tmp_path: Path) -> None:
    broker = MemoryBroker()
    async with api(tmp_path, broker) as (hub, call):
        one = await joined(hub, broker, "pi-1")
        assert (await call("POST", "/apply", CROWD.encode())).status == 200
        await obeys(hub, one)
        other = await joined(hub, broker, "pi-2")
        await hub.loop.turn()
        before = hub.loop.state.decided
        found = (await call("POST", "/optimize")).json
        assert hub.loop.state.decided == before
        assert (found["kind"], found["horizon"], found["lookedAt"], found["isWhole"]) == ("Proposal", "1h", 4, True)
        assert {(m["node"], m["to"]) for m in found["moves"]} == {("pi-1", "pi-2")}
        assert all(m["gain"] > m["cost"] for m in found["moves"])
        assert (await call("POST", "/optimize?horizon=1s")).json["moves"] == []

        first = found["moves"][0]
        body = moves(move(first["slot"], "pi-1", "pi-2"))
        tried = (await call("POST", "/moves?dryRun=All", body)).json
        assert tried["dryRun"] is True
        assert hub.loop.state.standing == {}
        made = (await call("POST", "/moves", body)).json
        assert made["items"] == [{"slot": f"default/crowd/run/{first['slot']}", "node": "pi-1", "to": "pi-2"}]
        await obeys(hub, other)
        await obeys(hub, one)
        assert (first["slot"], "pi-2") in places(hub)
        assert len(places(hub)) == 4
        assert hub.loop.state.standing == {}
        entry = (await call("GET", "/audit?verb=move")).json["items"][0]
        assert (entry["what"], entry["outcome"]) == ("applications/default/crowd", "accepted")
        assert (entry["before"], entry["after"]["on"]) == ({"on": "pi-1"}, "pi-2")


async def test_all_that_is_wrong_is_said_and_nothing_is_moved(tmp_path: Path) -> None:
    broker = MemoryBroker()
    async with api(tmp_path, broker) as (hub, call):
        one = await joined(hub, broker, "pi-1")
        assert (await call("POST", "/apply", CROWD.encode())).status == 200
        await obeys(hub, one)
        await joined(hub, broker, "pi-2")
        body = moves(move("0", "pi-1", "pi-2"), move("9", "pi-1", "pi-2"), move("1", "pi-1", "nowhere"))
        said = is_status(await call("POST", "/moves", body), 422, "Invalid")
        assert [(p["path"], p["code"]) for p in said["problems"]] == [
            ("moves[1]", "move_unknown"),
            ("moves[2]", "move_unknown"),
        ]
        assert hub.loop.state.standing == {}
        is_status(await call("POST", "/moves", moves()), 422, "Invalid")
        for odd in (b"", b"[]", b'{"moves": 1}', moves(move("0", "pi-1", "pi-2", by="me"))):
            assert (await call("POST", "/moves", odd)).status in (400, 422)
        for query in ("horizon=soon", "horizon=0s", "horizon=99d", "limit=0", "limit=x", "limit=99999"):
            is_status(await call("POST", f"/optimize?{query}"), 400, "BadRequest")


TIDY = b"""\
apiVersion: batuta.dev/v1
kind: Policy
metadata: {name: tidy}
spec:
  moves: {atMost: 1, leastGain: 1}
"""


async def test_a_policy_moves_by_itself_and_it_is_told_and_audited(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setattr("batuta.core.looking.RECONNECT_MS", 0)
    broker = MemoryBroker()
    async with api(tmp_path, broker) as (hub, call):
        one = await joined(hub, broker, "pi-1")
        assert (await call("POST", "/apply", CROWD.encode())).status == 200
        await obeys(hub, one)
        other = await joined(hub, broker, "pi-2")
        assert (await call("GET", "/moves")).json["items"] == []
        assert (await call("POST", "/apply", TIDY)).status == 200
        async with asyncio.timeout(60):
            while len(places(hub)) < 5:
                # On a slow machine a beat grows old, and nobody moves away from who was not just heard.
                await one.beat()
                await other.beat()
                await call(
                    "POST", "/apply", TIDY.replace(b"atMost: 1,", f"atMost: 1, again: {len(places(hub))}h,".encode())
                )
                await hub.loop.turn()
        (told,) = (await call("GET", "/moves")).json["items"]
        assert (told["node"], told["to"], told["state"], told["by"]) == ("pi-1", "pi-2", "moving", "policy/tidy")
        assert "apart" in told["why"]
        await obeys(hub, other)
        await obeys(hub, one)
        (told,) = (await call("GET", "/moves")).json["items"]
        assert told["state"] == "moved"
        answers = (await call("GET", "/apis/batuta.dev/v1/namespaces/default/applications/crowd/why")).json["items"]
        (said,) = [a["moved"]["says"] for a in answers if "moved" in a]
        assert said.startswith("moved by policy tidy from pi-1: pi-2 scores")
        entry = (await call("GET", "/audit?verb=move")).json["items"][0]
        assert (entry["who"], entry["what"]) == ("policy/tidy", "applications/default/crowd")
        assert (entry["before"], entry["after"]["on"]) == ({"on": "pi-1"}, "pi-2")
        status = (await call("GET", "/apis/batuta.dev/v1/policies/tidy")).json["status"]
        assert status["moves"]["remembered"] == 1
        assert status["moves"]["looksAgain"].endswith("Z")
