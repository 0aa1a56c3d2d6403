"""Calls between sites, through the hub's broker: they arrive, and the rights to make and answer them are tried."""

from __future__ import annotations

import asyncio
import json
from typing import TYPE_CHECKING, Any

import msgspec
import pytest
from nats.errors import Error as NatsError

from batuta.core.mesh_far import FarAnswer, FarInstance
from batuta.fabric import subjects
from batuta.fabric.base import Message
from batuta.fabric.broker_config import GATEWAY_USER
from tests.mesh.conftest import ONE, http, infer

if TYPE_CHECKING:
    from tests.mesh.conftest import Yard

pytestmark = pytest.mark.slow


class Hub:
    """Answers `elsewhere` as the hub's process does; its broker and callout are the real ones."""

    def __init__(self, yard: Yard) -> None:
        self.yard = yard
        self.answer = FarAnswer()
        self.asked: list[dict[str, Any]] = []
        self.fabric: Any = None

    async def open(self) -> Hub:
        self.fabric = await self.yard.town.hub_fabric()
        await self.fabric.subscribe(subjects.ALL_ASKS, self._hear)
        return self

    async def _hear(self, message: Message) -> None:
        self.asked.append(json.loads(message.data) | {"node": subjects.node_of(message.subject)})
        await message.respond(msgspec.json.encode(self.answer))

    async def close(self) -> None:
        await self.fabric.close()


async def two_sites(yard: Yard, allowed: dict[str, tuple[str, ...]]) -> Hub:
    hub = await Hub(yard).open()
    yard.town.gate.namespaces = lambda node: allowed.get(node, ())
    for name, site in (("n1", "berlin"), ("n2", "paris"), ("n3", "rome")):
        made = await yard.town.node(name, site)
        fabric = await yard.town.node_fabric(made)
        await fabric.wait_connected(20)
        await fabric.close()
    return hub


def known(instance: str, node: str) -> FarInstance:
    return FarInstance(application="app", component="adder", instance=instance, node=node, version="1", nearness="hub")


async def test_a_call_reaches_another_site_and_goes_on_with_the_hub_process_away(yard: Yard) -> None:
    hub = await two_sites(yard, {"n1": ("default",), "n2": ("default",)})
    for name in ("n1", "n2"):
        await yard.gateway(name, far=True)
    there = await yard.instance("n2")
    await yard.heard("n2", 1)
    hub.answer = FarAnswer(instances=(known(there.name, "n2"),))
    trace = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01"
    said = await infer(yard.ports["n1"], batuta_deadline_ms="9000", batuta_class="critical", traceparent=trace)
    assert (said.status, said.headers["batuta-nearness"], said.headers["batuta-node"]) == (200, "hub", "n2")
    assert said.json["outputs"][0]["data"] == [2.0, 3.0]
    asked = there.asked[-1]
    assert asked["batuta-class"] == "critical"
    assert asked["traceparent"].split("-")[1] == trace.split("-")[1]
    assert 0 < int(asked["batuta-deadline-ms"]) <= 9000
    assert hub.asked[0] == {"node": "n1", "namespace": "default", "model": "adder"}
    await hub.close()
    before = len(there.asked)
    for _ in range(20):
        assert (await infer(yard.ports["n1"])).status == 200
    assert len(there.asked) >= before + 20
    mesh = (await http(yard.ports["n1"], "GET", "/batuta/mesh")).json
    assert [(row["instance"], row["nearness"]) for row in mesh["instances"]] == [(there.name, "hub")]
    # The nearest is asked as soon as there is one nearer.
    here = await yard.instance("n1", "1")
    await yard.heard("n1", 2)
    assert (await infer(yard.ports["n1"])).headers["batuta-nearness"] == "local"
    assert len(here.asked) == 1
    # What comes from another site is answered here or not at all: it is never passed on.
    await here.die()
    await there.die()
    await yard.heard("n2", 0)
    gone = await infer(yard.ports["n1"], batuta_deadline_ms="6000")
    assert gone.status in (404, 503), gone
    assert gone.headers["batuta-error"] in ("model_unknown", "nobody_well")


async def test_what_was_said_of_other_sites_outlives_the_gateway(yard: Yard) -> None:
    hub = await two_sites(yard, {"n1": ("default",), "n2": ("default",)})
    await yard.gateway("n1", far=True)
    await yard.gateway("n2", far=True)
    there = await yard.instance("n2")
    await yard.heard("n2", 1)
    hub.answer = FarAnswer(instances=(known(there.name, "n2"),))
    assert (await infer(yard.ports["n1"])).status == 200
    await hub.close()
    # A new gateway, and nobody to ask: what the last one wrote down is enough.
    await yard.gateway("n1", far=True)
    assert (await infer(yard.ports["n1"])).headers["batuta-node"] == "n2"


async def test_an_alias_means_what_the_hub_said_last(yard: Yard) -> None:
    hub = await two_sites(yard, {"n1": ("default",)})
    await yard.gateway("n1", far=True)
    one = await yard.instance("n1", "1", version="1")
    two = await yard.instance("n1", "2", version="2")
    await yard.heard("n1", 2)

    async def champion() -> str:
        said = await http(yard.ports["n1"], "POST", "/v2/models/adder/versions/champion/infer", ONE)
        assert said.status == 200, said
        return said.headers["batuta-instance"]

    hub.answer = FarAnswer(version="1")
    assert await champion() == one.name
    # It moves; what was said is asked for again in passing, so the news comes a little later.
    hub.answer = FarAnswer(version="2")
    async with asyncio.timeout(60):
        while await champion() != two.name:  # noqa: ASYNC110
            await asyncio.sleep(0.2)
    # And it is known without a hub, also by the next gateway.
    await hub.close()
    assert await champion() == two.name
    await yard.gateway("n1", far=True)
    await yard.heard("n1", 2)
    assert await champion() == two.name


async def test_a_namespace_that_is_not_the_nodes_is_refused_in_words(yard: Yard) -> None:
    hub = await two_sites(yard, {"n1": ("default",)})
    await yard.gateway("n1", far=True)
    hub.answer = FarAnswer(error="not_allowed", message="node n1 runs nothing of namespace 'team'")
    async with asyncio.timeout(60):
        while yard.gateways["n1"].calls.is_settling:  # noqa: ASYNC110
            await asyncio.sleep(0.05)
    said = await infer(yard.ports["n1"], batuta_namespace="team")
    assert (said.status, said.headers["batuta-error"]) == (404, "model_unknown")
    assert "runs nothing of namespace" in said.json["error"]
    await hub.close()


async def test_rights_between_sites_tried(yard: Yard) -> None:
    """With a client that is not Batuta's, as a node's most powerful user: what does the hub's broker let pass?"""
    hub = await two_sites(yard, {"n1": ("default",), "n2": ("default", "team"), "n3": ()})
    town = yard.town
    heard: dict[str, list[str]] = {"n1": [], "n2": [], "n3": []}
    agents = {name: await town.client(town.nodes[name].client_port, "agent", "agent-secret") for name in heard}

    def listener(name: str) -> Any:
        async def hear(message: Any) -> None:
            heard[name].append(message.subject)

        return hear

    for name, client in agents.items():
        for wish in ("batuta.mesh.>", "batuta.meshed.>", subjects.far_calls_to(name), subjects.far_answers_to(name)):
            await client.subscribe(wish, cb=listener(name))
        await client.flush()
    call, answer = subjects.far_call, subjects.far_answer
    may = [
        ("n1", call("n1", "default", "n2", "default/a/b-1-0")),
        ("n2", call("n2", "team", "n1", "team/a/b-1-0")),
        ("n2", f"{answer('n2', 'n1')}.1"),
    ]
    may_not = [
        ("n1", call("n1", "team", "n2", "team/a/b-1-0")),  # a namespace that is not its own
        ("n1", call("n2", "default", "n3", "default/a/b-1-0")),  # in another's name
        ("n3", call("n3", "default", "n1", "default/a/b-1-0")),  # it runs nothing at all
        ("n1", f"{answer('n2', 'n3')}.1"),  # an answer in another's name
    ]
    for name, subject in (*may_not, *may):
        await agents[name].publish(subject, b"x")
        await agents[name].flush()
    async with asyncio.timeout(60):
        while not (may[0][1] in heard["n2"] and may[1][1] in heard["n1"] and may[2][1] in heard["n1"]):  # noqa: ASYNC110
            await asyncio.sleep(0.02)
    # What was allowed came last and has come: what was not would have come before it. A node's own broker hears itself.
    for name, subject in may_not:
        assert not [other for other, subjects_heard in heard.items() if other != name and subject in subjects_heard]
    # Nobody overhears others, however wide the wish.
    assert may[0][1] not in heard["n3"]
    assert may[1][1] not in heard["n3"]
    # The gateway's own name at its broker has less than the agent's: it is refused there at once.
    errors: list[str] = []
    gateway = await town.client(
        town.nodes["n2"].client_port, GATEWAY_USER, "gateway-secret", subjects.gateway_inbox("n2")
    )

    async def note(error: Exception) -> None:
        errors.append(str(error))

    gateway._error_cb = note
    for subject in (subjects.report("n2"), subjects.up("n2", "normal"), call("n1", "default", "n3", "a/b/c-1-0")):
        errors.clear()
        await gateway.publish(subject, b"x")
        await gateway.flush()
        async with asyncio.timeout(30):
            while not errors:  # noqa: ASYNC110
                await asyncio.sleep(0.01)
        assert "permissions violation" in errors[0].lower()
    with pytest.raises((NatsError, OSError)):
        await gateway.request(subjects.assignment("n2"), b"", timeout=0.3)
    await hub.close()


async def test_a_namespace_gained_is_given_by_making_the_link_anew(yard: Yard) -> None:
    allowed: dict[str, tuple[str, ...]] = {"n1": (), "n2": ("default",)}
    hub = await two_sites(yard, allowed)
    gate = yard.town.gate
    allowed["n1"] = ("default",)
    assert not gate.may_call("n1", "default")
    before = gate.granted
    assert await gate.relink("n1") == 1
    async with asyncio.timeout(60):
        while not gate.may_call("n1", "default"):  # noqa: ASYNC110
            await asyncio.sleep(0.02)
    assert gate.granted > before
    # A hub process that has just begun knows no link: it finds it by its name, and touches no other.
    await yard.town.close_gate()
    await yard.town.open_gate()
    gate = yard.town.gate
    gate.namespaces = lambda node: allowed.get(node, ())
    assert not gate.may_call("n1", "default")
    assert await gate.relink("n1") == 1
    async with asyncio.timeout(60):
        while not gate.may_call("n1", "default"):  # noqa: ASYNC110
            await asyncio.sleep(0.02)
    assert gate.granted == 1
    await hub.close()
