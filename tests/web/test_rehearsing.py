"""POST /rehearsal and GET /recording over a real hub: what the twin begins from."""

from __future__ import annotations

import gzip
from typing import TYPE_CHECKING

from batuta.fabric.memory import MemoryBroker
from batuta.twin.replay import replay
from batuta.twin.replay_frames import frames
from tests.hub.hubs import PROCESS_APP, Voice, join
from tests.web.test_api import APPS, api, is_status

if TYPE_CHECKING:
    from pathlib import Path

SLEEPER = PROCESS_APP.replace("NAME", "sleeper")


async def test_all_tables_are_told_as_of_one_instant_with_what_would_be_declared(tmp_path: Path) -> None:
    broker = MemoryBroker()
    async with api(tmp_path, broker) as (hub, call):
        await join(hub, "pi-1")
        pi = Voice(broker, "pi-1")
        await pi.report()
        await pi.beat()
        while "pi-1" not in hub.loop.state.observed:
            await hub.loop.turn()
        said = (await call("POST", "/rehearsal", SLEEPER.encode())).json
        rows = {(row["table"], row["key"]) for row in said["rows"]}
        assert {("desired", "nodes.pi-1"), ("observed", "pi-1"), ("sightings", "pi-1")} <= rows
        [change] = said["changes"]
        assert change["key"] == "applications.default.sleeper"
        assert change["value"]["metadata"]["generation"] == 1
        assert said["hubSince"] <= said["at"]
        assert (await call("GET", f"{APPS}/sleeper")).status == 404, "nothing is stored"
        assert (await call("POST", "/rehearsal")).json["changes"] == []


async def test_what_would_be_refused_is_refused_with_its_place(tmp_path: Path) -> None:
    async with api(tmp_path) as (_, call):
        wrong = SLEEPER.replace("replicas: {count: 1}", "replicas: {count: -1}")
        said = is_status(await call("POST", "/rehearsal", wrong.encode()), 422, "Invalid")
        assert said["problems"][0]["line"] == wrong[: wrong.index("count: -1")].count("\n") + 1


async def test_nothing_secret_is_told(tmp_path: Path) -> None:
    async with api(tmp_path) as (hub, call):
        token, _ = await hub.enrolment.create_token(site="berlin", node="", ttl_ms=60_000, uses=1)
        await join(hub, "pi-1")
        said = (await call("POST", "/rehearsal")).body
        packed = (await call("GET", "/recording")).body
        secret = token.rpartition(".")[2].encode()
        assert len(secret) > 8
        for told in (said, gzip.decompress(packed)):
            assert secret not in told
            assert b"PRIVATE KEY" not in told


async def test_the_recording_is_one_file_that_can_be_replayed(tmp_path: Path) -> None:
    async with api(tmp_path) as (hub, call):
        await join(hub, "pi-1")
        await call("POST", "/apply", SLEEPER.encode())
        await hub.loop.turn()
        answer = await call("GET", "/recording")
        assert answer.headers["content-type"] == "application/gzip"
        lines = gzip.decompress(answer.body).splitlines(keepends=True)
        found = replay(frames(lines))
        assert found.turns
        assert found.parted == ()
