"""The gateway over real brokers: who is asked, what is passed on, and what is said when nobody can answer."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

import pytest

from batuta.mesh import AsyncMesh, InferenceFailed
from tests.mesh.conftest import ONE, http, infer, now

if TYPE_CHECKING:
    from tests.mesh.conftest import Yard

pytestmark = pytest.mark.slow

TRACE = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01"


async def three_nodes(yard: Yard) -> None:
    await yard.town.node("n1", with_hub=False)
    await yard.town.node("n2", earlier=("n1",), with_hub=False)
    await yard.town.node("n3", earlier=("n1", "n2"), with_hub=False)


async def test_the_nearest_answers_and_another_one_when_it_dies(yard: Yard) -> None:
    await three_nodes(yard)
    await yard.gateway("n2")
    here = await yard.instance("n2")
    there = await yard.instance("n3", "1")
    await yard.heard("n2", 2)
    for _ in range(5):
        said = await infer(yard.ports["n2"], traceparent=TRACE, tracestate="a=b", batuta_deadline_ms="5000")
        assert (said.status, said.headers["batuta-nearness"]) == (200, "local")
        assert said.json["outputs"][0]["data"] == [2.0, 3.0]
    assert len(here.asked) >= 5
    got = here.asked[-1]
    assert got[":path"] == "POST /v2/models/adder/versions/1/infer HTTP/1.1"
    # The same trace, another span; what is left of the deadline, never more.
    assert got["traceparent"].split("-")[1] == TRACE.split("-")[1]
    assert got["traceparent"].split("-")[2] != TRACE.split("-")[2]
    assert got["tracestate"] == "a=b"
    assert 0 < int(got["batuta-deadline-ms"]) <= 5000
    await here.die()
    said = await infer(yard.ports["n2"], traceparent=TRACE, batuta_deadline_ms="5000")
    assert (said.status, said.headers["batuta-nearness"], said.headers["batuta-node"]) == (200, "site", "n3")
    assert there.asked[-1]["traceparent"].split("-")[1] == TRACE.split("-")[1]
    assert 0 < int(there.asked[-1]["batuta-deadline-ms"]) <= 5000


async def test_versions_applications_and_namespaces_are_told_apart(yard: Yard) -> None:
    await yard.town.node("n1", with_hub=False)
    await yard.gateway("n1")
    await yard.instance("n1", "0")
    await yard.instance("n1", "1", version="2", application="other")
    await yard.instance("n1", "2", namespace="team")
    await yard.heard("n1", 3)
    port = yard.ports["n1"]

    async def instance(path: str, **headers: str) -> str:
        said = await http(port, "POST", path, ONE, **headers)
        assert said.status == 200, said
        return said.headers["batuta-instance"]

    assert await instance("/v2/models/adder/versions/1/infer") == "default/app/adder-1-0"
    assert await instance("/v2/models/adder/versions/2/infer") == "default/other/adder-1-1"
    assert await instance("/v2/models/adder/infer", batuta_application="other") == "default/other/adder-1-1"
    assert await instance("/v2/models/adder/infer", batuta_namespace="team") == "team/app/adder-1-2"
    missing = await http(port, "POST", "/v2/models/adder/versions/3/infer", ONE)
    index = (await http(port, "POST", "/v2/repository/index", b"{}")).json
    assert [(row["name"], row["version"], row["state"]) for row in index] == [
        ("adder", "1", "READY"),
        ("adder", "2", "READY"),
    ]
    # Only a gateway that has been here for a while knows that nobody serves it.
    assert (missing.status, missing.headers["batuta-error"]) == (404, "model_unknown")
    assert "versions that can: 1, 2" in missing.json["error"]
    assert (await http(port, "GET", "/v2/models/adder/ready")).status == 200
    assert (await http(port, "GET", "/v2/models/adder/versions/9/ready")).status == 404
    assert (await http(port, "GET", "/v2/health/ready")).json == {"ready": True}
    assert "binary_tensor_data" in (await http(port, "GET", "/v2")).json["extensions"]
    load = await http(port, "POST", "/v2/repository/models/adder/load", b"{}")
    assert (load.status, load.headers["batuta-error"]) == (400, "placed_by_applications")
    assert "batuta apply" in load.json["error"]
    assert (await http(port, "GET", "/v2/models/adder/infer")).status == 405
    assert (await http(port, "GET", "/nothing")).status == 404
    assert (await http(port, "POST", "/v2/models/..%2Fx/infer", ONE)).status == 400
    assert (await infer(port, batuta_class="urgent")).status == 400
    assert (await infer(port, batuta_deadline_ms="soon")).status == 400


async def test_one_that_answers_errors_is_left_out(yard: Yard) -> None:
    await yard.town.node("n1", with_hub=False)
    await yard.gateway("n1")
    bad, good = await yard.instance("n1", "0"), await yard.instance("n1", "1")
    await yard.heard("n1", 2)
    # Errors are quick, so it looks like the better one: the nastiest case.
    bad.mood, good.slow_s = "errors", 0.005
    said = [await infer(yard.ports["n1"]) for _ in range(60)]
    assert [each.status for each in said] == [200] * 60
    assert len(bad.asked) < 20
    assert len(good.asked) == 60
    mesh = (await http(yard.ports["n1"], "GET", "/batuta/mesh")).json
    assert {row["instance"]: row["breaker"] for row in mesh["instances"]}[bad.name] in ("open", "half-open")
    # Each time that it was asked another one was, too; on a slow machine also by impatience.
    assert mesh["retries"] + mesh["hedges"] >= len(bad.asked)
    # It recovers: one request is let through, and it is asked again.
    bad.mood, before = "well", len(bad.asked)
    async with asyncio.timeout(60):
        while len(bad.asked) < before + 3:
            assert (await infer(yard.ports["n1"])).status == 200
            await asyncio.sleep(0.02)


async def test_what_an_instance_says_about_the_request_is_the_answer(yard: Yard) -> None:
    await yard.town.node("n1", with_hub=False)
    await yard.gateway("n1")
    one, other = await yard.instance("n1", "0"), await yard.instance("n1", "1")
    await yard.heard("n1", 2)
    one.mood = other.mood = "refuses"
    for _ in range(20):
        said = await infer(yard.ports["n1"])
        assert (said.status, said.headers["batuta-error"]) == (400, "unfit")
    assert len(one.asked) + len(other.asked) >= 20
    # A model that fails on a tensor fails on it everywhere: nobody is to blame for that.
    one.mood = other.mood = "fails"
    for _ in range(20):
        said = await infer(yard.ports["n1"])
        assert (said.status, said.headers["batuta-error"]) == (500, "model_failed")
    mesh = (await http(yard.ports["n1"], "GET", "/batuta/mesh")).json
    assert [row["breaker"] for row in mesh["instances"]] == ["closed", "closed"]


async def test_one_that_accepts_and_never_answers_costs_patience_once(yard: Yard) -> None:
    await yard.town.node("n1", with_hub=False)
    await yard.gateway("n1")
    silent, good = await yard.instance("n1", "0"), await yard.instance("n1", "1")
    await yard.heard("n1", 2)
    silent.mood = "silent"
    said = await asyncio.gather(*(infer(yard.ports["n1"], batuta_deadline_ms="20000") for _ in range(20)))
    assert [(each.status, each.body) for each in said if each.status != 200] == []
    assert {each.headers["batuta-instance"] for each in said} == {good.name}
    for _ in range(40):
        assert (await infer(yard.ports["n1"])).status == 200
    mesh = (await http(yard.ports["n1"], "GET", "/batuta/mesh")).json
    assert {row["instance"]: row["breaker"] for row in mesh["instances"]}[silent.name] != "closed"
    assert mesh["hedges"] >= 1
    # With nobody else to ask, the deadline is the end.
    await good.die()
    late = await infer(yard.ports["n1"], batuta_deadline_ms="700")
    assert late.status in (503, 504)
    assert late.headers["batuta-error"] in ("deadline_passed", "nobody_well")


async def test_one_that_is_silent_does_not_keep_a_call_from_those_that_recover(yard: Yard) -> None:
    await yard.town.node("n1", with_hub=False)
    await yard.gateway("n1")
    silent, other = await yard.instance("n1", "0"), await yard.instance("n1", "1")
    await yard.heard("n1", 2)
    silent.mood, other.mood = "silent", "hangs up"
    calling = asyncio.create_task(infer(yard.ports["n1"], batuta_deadline_ms="60000"))
    await asyncio.sleep(2.5)  # by then both were asked
    assert not calling.done()
    other.mood = "well"
    said = await calling
    assert (said.status, said.headers["batuta-instance"]) == (200, other.name)


async def test_a_request_that_was_lost_on_the_way_is_sent_again(yard: Yard) -> None:
    await yard.town.node("n1", with_hub=False)
    await yard.gateway("n1")
    one = await yard.instance("n1")
    await yard.heard("n1", 1)
    one.mood = "silent"
    calling = asyncio.create_task(infer(yard.ports["n1"], batuta_deadline_ms="60000"))
    async with asyncio.timeout(60):
        while not one.asked:  # noqa: ASYNC110
            await asyncio.sleep(0.01)
    one.mood = "well"
    # It answers what came later, so what is still silent will stay so.
    assert (await infer(yard.ports["n1"])).status == 200
    said = await calling
    assert (said.status, said.headers["batuta-attempts"]) == (200, "2")


async def test_a_slow_one_is_overtaken_by_a_hedge_when_the_call_is_critical(yard: Yard) -> None:
    await yard.town.node("n1", with_hub=False)
    gateway = await yard.gateway("n1")
    one, other = await yard.instance("n1", "0"), await yard.instance("n1", "1")
    await yard.heard("n1", 2)
    for _ in range(40):
        await infer(yard.ports["n1"])
    p95_ms = gateway.tally.past("default", "adder", now()).p95_ms
    assert p95_ms is not None
    one.slow_s = other.slow_s = max(0.1, 2 * p95_ms / 1000)
    before = gateway.tally.hedges
    said = await infer(yard.ports["n1"], batuta_class="critical")
    assert said.status == 200
    assert gateway.tally.hedges == before + 1
    assert one.asked[-1]["batuta-class"] == other.asked[-1]["batuta-class"] == "critical"


async def test_a_deadline_that_cannot_be_met_is_not_sent(yard: Yard) -> None:
    await yard.town.node("n1", with_hub=False)
    await yard.gateway("n1")
    one = await yard.instance("n1")
    await yard.heard("n1", 1)
    one.slow_s = 0.06
    for _ in range(25):
        assert (await infer(yard.ports["n1"])).status == 200
    before = len(one.asked)
    said = await infer(yard.ports["n1"], batuta_deadline_ms="20")
    assert (said.status, said.headers["batuta-error"]) == (504, "deadline_passed")
    assert "fastest answer" in said.json["error"]
    gone = await infer(yard.ports["n1"], batuta_deadline_ms="0")
    assert (gone.status, gone.headers["batuta-error"]) == (504, "deadline_passed")
    assert len(one.asked) == before


async def test_nobody_well_and_nobody_at_all_are_said_in_words(yard: Yard) -> None:
    await yard.town.node("n1", with_hub=False)
    await yard.gateway("n1")
    one = await yard.instance("n1")
    await yard.heard("n1", 1)
    await one.tell(ready=False)
    async with asyncio.timeout(60):
        while (await http(yard.ports["n1"], "GET", "/v2/models/adder/ready")).status == 200:  # noqa: ASYNC110
            await asyncio.sleep(0.01)
    said = await infer(yard.ports["n1"], batuta_deadline_ms="10000")
    assert (said.status, said.headers["batuta-error"]) == (503, "nobody_well")
    assert "1 not ready" in said.json["error"]
    # While a call waits for it, an instance gets ready: the call is answered.
    waiting = asyncio.create_task(infer(yard.ports["n1"], batuta_deadline_ms="10000"))
    await asyncio.sleep(0.3)
    await one.tell(ready=True)
    assert (await waiting).status == 200
    await one.die()
    await yard.heard("n1", 0)
    gone = await infer(yard.ports["n1"])
    assert (gone.status, gone.headers["batuta-error"]) == (404, "model_unknown")


async def test_a_card_speaks_for_its_own_instance_only(yard: Yard) -> None:
    await yard.town.node("n1", with_hub=False)
    gateway = await yard.gateway("n1")
    one = await yard.instance("n1")
    await yard.heard("n1", 1)
    await one.client.publish("ctl.serving.n1.default_app_adder-1-9", b'{"node":"n1"}')
    await one.tell(socket="/tmp/elsewhere.sock")
    async with asyncio.timeout(30):
        while gateway.cards.unbelieved < 2:  # noqa: ASYNC110  it tells nobody
            await asyncio.sleep(0.01)


async def test_the_client_asks_by_name(yard: Yard) -> None:

    await yard.town.node("n1", with_hub=False)
    await yard.gateway("n1")
    await yard.instance("n1")
    await yard.heard("n1", 1)
    async with AsyncMesh(f"http://127.0.0.1:{yard.ports['n1']}") as mesh:
        said = await mesh.infer("adder", {"x": [[1.5, 2.0], [3.0, 4.0]]})
        assert said["sum"] == [[2.5, 3.0], [4.0, 5.0]]
        assert (said.model, said.version, said.nearness, said.attempts) == ("adder", "1", "local", 1)
        several = await asyncio.gather(*(mesh.infer("adder", {"x": [float(i)]}) for i in range(20)))
        assert [each["sum"] for each in several] == [[i + 1.0] for i in range(20)]
        with pytest.raises(InferenceFailed, match="nobody within reach") as failed:
            await mesh.infer("nothing", {"x": [1.0]})
        assert (failed.value.code, failed.value.status) == ("model_unknown", 404)
    with pytest.raises(InferenceFailed) as away:
        await AsyncMesh("http://127.0.0.1:1").infer("adder", {"x": [1.0]})
    assert away.value.code == "no_gateway"
