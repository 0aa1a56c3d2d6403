"""The hub names the nodes of a region that give a file, and keeps the books of the links on the way."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

import msgspec

from batuta.fabric.memory import MemoryBroker
from batuta.kinds.manifest import parse
from tests.hub.hubs import Voice, join, running

if TYPE_CHECKING:
    from pathlib import Path

DIGEST = "sha256:" + "1" * 64
SITES = """
apiVersion: batuta.dev/v1
kind: Site
metadata: {name: north}
spec:
  depot: {port: 7424}
  uplink: {budget: {perDay: 1}}
---
apiVersion: batuta.dev/v1
kind: Site
metadata: {name: shop}
spec:
  parent: north
  uplink: UPLINK
"""


async def said(voice: Voice, verb: str, asked: Any) -> dict[str, Any]:
    found: dict[str, Any] = msgspec.json.decode((await voice.ask(verb, asked)).partition(b"\n")[0])
    return found


async def test_who_is_there_is_told_and_bytes_pass_as_the_links_between_allow(tmp_path: Path) -> None:
    broker = MemoryBroker()
    async with running(tmp_path, broker) as hub, asyncio.timeout(60):
        voices = {node: Voice(broker, node) for node in ("north-0", "shop-0")}
        for node, site in (("north-0", "north"), ("shop-0", "shop")):
            await join(hub, node, site)
        await hub.declarations.apply(parse(SITES.replace("UPLINK", "{}")))
        while (await voices["north-0"].beat()).get("commons", 0) == 0:  # noqa: ASYNC110  the hub decides on its own
            await asyncio.sleep(0.01)
        commons = await said(voices["north-0"], "commons", None)
        assert commons["depotPort"] == 7424
        await voices["shop-0"].beat()
        await voices["north-0"].report(depot="10.0.0.1:7424", artifacts=(DIGEST,))
        wanted = {"digest": DIGEST}
        while not (found := await said(voices["shop-0"], "depots", wanted)).get("depots"):
            hub.region._found.clear()
            await asyncio.sleep(0.01)
        assert found["depots"] == [{"node": "north-0", "address": "10.0.0.1:7424"}]
        assert await said(voices["north-0"], "depots", wanted) == {}
        assert (await said(voices["shop-0"], "depots", ["no"]))["error"] == "request_malformed"

        # The region's own uplink is spent, and has no part in what crosses only the shop's.
        passage = {"digest": DIGEST, "node": "north-0", "sizeBytes": 600_000}
        assert await said(voices["shop-0"], "passage", passage) == {}
        await hub.declarations.apply(parse(SITES.replace("UPLINK", "{budget: {perDay: 1M}}")))
        hub.region._found.clear()
        assert (await said(voices["shop-0"], "depots", wanted))["depots"][0]["isMetered"] is True
        assert await said(voices["shop-0"], "passage", passage) == {}
        assert await said(voices["shop-0"], "passage", passage) == {}, "the last one may go over"
        held = await said(voices["shop-0"], "passage", passage)
        assert (held["error"], held["subject"]) == ("budget_spent", "site/shop")
        assert held["message"] == "1200000 of 1000000 bytes today"
        for wrong in ({"node": "nobody"}, {"sizeBytes": -1}, {"sizeBytes": 1 << 40}, {"sizeBytes": "many"}):
            assert (await said(voices["shop-0"], "passage", {**passage, **wrong}))["error"] == "request_malformed"
