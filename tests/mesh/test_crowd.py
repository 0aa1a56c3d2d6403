"""Ten thousand calls at once at a gateway in its own process: all are answered, the least urgent are refused first."""

from __future__ import annotations

import asyncio
import contextlib
import json
import resource
from collections import Counter
from typing import TYPE_CHECKING, Any

import psutil
import pytest

from batuta.agent.config import AgentConfig
from batuta.agent.door import Door
from batuta.fabric.tasks import end
from tests.mesh.conftest import ONE, http
from tests.mesh.instances import Instance

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

pytestmark = pytest.mark.slow

CROWD = {"critical": 500, "normal": 4_500, "bulk": 5_000}


@pytest.fixture
def many_files() -> Iterator[None]:
    """Each call is a connection of this process."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if hard != resource.RLIM_INFINITY and hard < sum(CROWD.values()) + 1_000:
        pytest.skip(f"this machine lets a process open {hard} files")
    wanted = 16_384 if hard == resource.RLIM_INFINITY else min(hard, 16_384)
    resource.setrlimit(resource.RLIMIT_NOFILE, (max(soft, wanted), hard))
    yield
    resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


@pytest.mark.usefixtures("many_files")
async def test_ten_thousand_at_once_are_answered_and_shed_by_class(new_town: Any, tmp_path: Path) -> None:
    town = await new_town()
    node = await town.node("n1", with_hub=False)
    config = AgentConfig(state=str(tmp_path), mqtt_port=0)
    door = Door(config, "n1", lambda _: None)
    credentials = tmp_path / "site.json"
    credentials.write_text(json.dumps({"user": "site", "password": "site-secret"}))
    url = f"nats://127.0.0.1:{node.client_port}"
    door.broker = {"url": url, "credentials": str(credentials), "node": "n1"}
    door.open()
    running = asyncio.create_task(door.run())
    one = await Instance("n1", await town.site_client("n1"), config.instances).open()
    one.slow_s = 0.02
    lines: list[tuple[asyncio.StreamReader, asyncio.StreamWriter]] = []
    try:
        async with asyncio.timeout(60):
            while (await http(door.port, "GET", "/v2/models/adder/ready")).status != 200:  # noqa: ASYNC110
                await asyncio.sleep(0.05)

        # All are connected before anybody asks.
        for _ in range(sum(CROWD.values())):
            lines.append(await asyncio.open_connection("127.0.0.1", door.port))  # noqa: PERF401
        words = [word for word, count in CROWD.items() for _ in range(count)]
        # The least urgent come first, so the others find everything full.
        words.reverse()
        for (_, writer), word in zip(lines, words, strict=True):
            head = f"POST /v2/models/adder/infer HTTP/1.1\r\nHost: x\r\nBatuta-Class: {word}\r\n"
            head += f"Batuta-Deadline-Ms: 60000\r\nContent-Length: {len(ONE)}\r\n\r\n"
            writer.write(head.encode() + ONE)

        async def heard(reader: asyncio.StreamReader, word: str) -> tuple[str, int, str]:
            said = (await reader.readuntil(b"\r\n\r\n")).decode()
            fields = {k.lower(): v.strip() for k, _, v in (line.partition(":") for line in said.split("\r\n")[1:])}
            body = json.loads(await reader.readexactly(int(fields["content-length"])))
            status = int(said.split()[1])
            assert status == 200 or "too many calls" in body["error"], (status, body)
            return word, status, fields.get("batuta-error", "")

        async with asyncio.timeout(240):
            outcomes = await asyncio.gather(
                *(heard(reader, word) for (reader, _), word in zip(lines, words, strict=True))
            )
        fates = Counter(outcomes)
        assert {(status, code) for _, status, code in fates} <= {(200, ""), (503, "overloaded")}
        share = {word: fates[word, 200, ""] / count for word, count in CROWD.items()}
        # Nobody urgent is refused: room for them is made by those who are less.
        assert share["critical"] == 1.0
        assert share["critical"] > share["normal"] > 0
        assert share["normal"] >= share["bulk"] * 0.9
        assert one.most_at_once <= one.card.room
        process = psutil.Process(door.pid)
        assert process.memory_info().rss < 400 << 20
        mesh = (await http(door.port, "GET", "/batuta/mesh")).json
        assert mesh["shed"].get("critical", 0) == 0
        assert mesh["shed"]["bulk"] > 0
        assert (mesh["underWay"], mesh["waiting"]) == (0, 0)
        assert (await http(door.port, "POST", "/v2/models/adder/infer", ONE)).status == 200
    finally:
        for _, writer in lines:
            writer.close()
        with contextlib.suppress(OSError):
            await asyncio.gather(*(writer.wait_closed() for _, writer in lines), return_exceptions=True)
        await one.die()
        await end(running)
        await door.stop()
