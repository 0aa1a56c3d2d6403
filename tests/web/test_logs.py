"""Logs of instances whose nodes do not answer: what is known is said, and nothing is made up."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

import msgspec

from batuta.core.observed import InstanceReport
from batuta.core.reasons import Reason
from batuta.fabric.memory import MemoryBroker
from batuta.hub.tails import KEPT_BYTES_MAX, KEPT_MAX
from tests.hub.hubs import PROCESS_APP, Voice, join
from tests.web.test_api import APPS, api, is_status

if TYPE_CHECKING:
    from pathlib import Path


async def test_of_a_node_that_does_not_answer_all_is_said_that_is_known(tmp_path: Path) -> None:
    broker = MemoryBroker()
    async with api(tmp_path, broker) as (hub, call):
        await join(hub, "pi-1")
        voice = Voice(broker, "pi-1")
        await voice.beat()
        await voice.report()
        await call("POST", "/apply", PROCESS_APP.replace("NAME", "one").encode())
        async with asyncio.timeout(60):
            while "default/one" not in hub.loop.state.held:
                await hub.loop.turned.wait(hub.loop.turned.rings, hub.clock, hub.clock.now() + 50)
        said = is_status(await call("GET", f"{APPS}/one/log"), 503, "ServiceUnavailable")
        assert said["message"].startswith("pi-1 does not answer: its link is online; last heard ")
        assert said["message"].endswith("its last report does not name run-1-0")
        assert said["nextStep"] == "see `batuta describe node pi-1`"

        async def tell(message: Any) -> None:
            tail = msgspec.json.decode(message.data)["tail"]
            text = "".join(f"line {n}\n" for n in range(6 - tail, 6))
            await message.respond(msgspec.json.encode({"text": text, "offset": 7}))

        answering = await voice.fabric.subscribe("batuta.tell.pi-1.log", tell)
        await call("GET", f"{APPS}/one/log?tail=3")
        assert (await call("GET", f"{APPS}/one/log?tail=1")).body == b"line 5\n"
        await answering.close()

        log = (await call("GET", f"{APPS}/one/log?tail=2")).body.decode().splitlines()
        assert log[0].startswith("(pi-1 does not answer: ")
        assert "what follows is from " in log[0]
        assert log[1:] == ["line 4", "line 5"]


async def test_what_is_kept_is_bounded_and_outlives_the_hub(tmp_path: Path) -> None:
    async with api(tmp_path) as (hub, _):
        tails = hub.tails
        tails.keep("n", "i", "début\n" * KEPT_BYTES_MAX, adds=False)
        tails.keep("n", "i", "fin\n", adds=True)
        kept = tails.get("n", "i")
        assert kept is not None
        assert len(kept.text.encode()) <= KEPT_BYTES_MAX
        assert kept.text.startswith("début\n")
        assert kept.text.endswith("début\nfin\n")
        tails.keep("n", "i", "fin\n", adds=False)
        assert tails.get("n", "i") == msgspec.structs.replace(kept, at=tails.get("n", "i").at)  # type: ignore[union-attr]
        tails.flush()
        for n in range(KEPT_MAX):
            tails.keep("n", str(n), "x", adds=False)
        assert tails.get("n", "i") is None
    files = list((tmp_path / "hub" / "tails").iterdir())
    assert len(files) == KEPT_MAX
    assert {file.stat().st_mode & 0o777 for file in files} == {0o600}
    files[0].write_text("{")
    async with api(tmp_path) as (hub, _):
        there = [n for n in range(KEPT_MAX) if (tail := hub.tails.get("n", str(n))) is not None and tail.text == "x"]
        assert len(there) == KEPT_MAX - 1
        assert hub.counters["tails_unreadable"] == 1


async def test_the_last_lines_are_fetched_before_a_node_dies(tmp_path: Path) -> None:
    broker, asked = MemoryBroker(), list[dict[str, Any]]()
    async with api(tmp_path, broker) as (hub, call):
        await join(hub, "pi-1")
        voice = Voice(broker, "pi-1")

        async def tell(message: Any) -> None:
            wanted = msgspec.json.decode(message.data)
            asked.append(wanted)
            text = "and more\n" if wanted.get("offset") else "line 1\nline 2\n"
            await message.respond(msgspec.json.encode({"text": text, "offset": 7 + len(asked)}))

        answering = await voice.fabric.subscribe("batuta.tell.pi-1.log", tell)
        await voice.beat()
        await call("POST", "/apply", PROCESS_APP.replace("NAME", "one").encode())
        said = InstanceReport(name="default/one/run-1-0", epoch=1, phase="ready", since=1, starts=1)

        async def until(count: int) -> None:
            async with asyncio.timeout(60):
                while len(asked) < count:
                    await voice.beat()
                    await hub.tails.look()

        await voice.report(instances=(said,))
        await until(1)
        assert (asked[0]["instance"], asked[0].get("offset")) == (said.name, None)
        # It fails: what is new is fetched, from where the last piece ended. That it goes on failing is no news.
        failed = msgspec.structs.replace(said, phase="backoff", reason=Reason(code="exited", subject="instance/one"))
        await voice.report(instances=(failed,))
        await until(2)
        assert asked[1]["offset"] == 8
        await voice.report(instances=(failed,), artifacts=("sha256:0",))
        for _ in range(5):
            await hub.tails.look()
        assert len(asked) == 2

        await answering.close()
        broker.cut("pi-1")
        log = (await call("GET", f"{APPS}/one/log?tail=2")).body.decode().splitlines()
        assert log[0].startswith("(pi-1 does not answer: ")
        assert "what follows is from " in log[0]
        assert log[1:] == ["line 2", "and more"]


async def test_logs_of_several_instances_are_followed_together(tmp_path: Path) -> None:
    broker = MemoryBroker()
    async with api(tmp_path, broker) as (hub, call):
        asked: list[tuple[str, int | None]] = []

        def answering(name: str) -> Any:
            async def tell(message: Any) -> None:
                wanted = msgspec.json.decode(message.data)
                asked.append((name, wanted.get("offset")))
                text = f"{name} begins\n" if wanted.get("offset") is None else f"{name} goes on\n"
                await message.respond(msgspec.json.encode({"text": text, "offset": 7}))

            return tell

        for name in ("pi-1", "pi-2"):
            await join(hub, name)
            voice = Voice(broker, name)
            await voice.fabric.subscribe(f"batuta.tell.{name}.log", answering(name))
            await voice.beat()
            await voice.report()
        every = PROCESS_APP.replace("NAME", "one").replace("count: 1", "everyNode: true")
        await call("POST", "/apply", every.encode())
        async with asyncio.timeout(60):
            while len(hub.loop.state.held.get("default/one", ())) < 2:
                await hub.loop.turned.wait(hub.loop.turned.rings, hub.clock, hub.clock.now() + 50)
        whole = await call("GET", f"{APPS}/one/log?tail=5")
        assert whole.body.decode().splitlines() == ["run-1-pi-1: pi-1 begins", "run-1-pi-2: pi-2 begins"]
        seen = b""
        stream = call.stream("GET", f"{APPS}/one/log?follow=true")
        async with asyncio.timeout(60):
            async for message in stream:
                seen += message.get("body", b"")
                if seen.count(b"goes on") >= 2 and b"pi-1 goes" in seen and b"pi-2 goes" in seen:
                    break
        await stream.aclose()
        assert {"run-1-pi-1: pi-1 begins", "run-1-pi-2: pi-2 goes on"} <= set(seen.decode().splitlines())
        assert ("pi-1", 7) in asked
        # Whoever hung up is not asked for any more.
        await asyncio.sleep(0.1)
        count = len(asked)
        await asyncio.sleep(0.7)
        assert len(asked) == count

        # A node that does not answer says so beside those that do.
        broker.cut("pi-2")
        hub.questions._fabric.request = _hasty(hub.questions._fabric.request)  # type: ignore[method-assign]
        half = (await call("GET", f"{APPS}/one/log")).body.decode().splitlines()
        assert half[0] == "run-1-pi-1: pi-1 begins"
        assert half[1].startswith("run-1-pi-2: (")
        only = await call("GET", f"{APPS}/one/log?instance=run-1-pi-2")
        assert only.status == 200
        assert only.body.startswith(b"(pi-2 does not answer: ")
        assert b"what follows is from " in only.body


def _hasty(request: Any) -> Any:
    """The same question, with less patience than a person has."""

    async def ask(subject: str, data: bytes) -> bytes:
        answer: bytes = await request(subject, data, 0.1)
        return answer

    return ask
