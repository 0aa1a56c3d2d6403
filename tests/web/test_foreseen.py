"""POST /diff over a real hub: fields, moves, refusals; and nothing is stored."""

from __future__ import annotations

from typing import TYPE_CHECKING

from batuta.fabric.memory import MemoryBroker
from tests.hub.hubs import PROCESS_APP, Voice, join
from tests.web.test_api import APPS, api, is_status

if TYPE_CHECKING:
    from pathlib import Path

SLEEPER = PROCESS_APP.replace("NAME", "sleeper")


async def test_a_change_is_told_by_field_and_by_instance_and_nothing_is_stored(tmp_path: Path) -> None:
    broker = MemoryBroker()
    async with api(tmp_path, broker) as (hub, call):
        await join(hub, "pi-1")
        pi = Voice(broker, "pi-1")
        await pi.report()
        await pi.beat()
        while "pi-1" not in hub.loop.state.observed:
            await hub.loop.turn()
        new = (await call("POST", "/diff", SLEEPER.encode())).json
        assert [(i["action"], i["fields"]) for i in new["items"]] == [("created", [])]
        assert [(s["action"], s["node"], s["instance"]) for s in new["steps"]] == [("start", "pi-1", "run-1-0")]
        assert (await call("GET", f"{APPS}/sleeper")).status == 404

        await call("POST", "/apply", SLEEPER.encode())
        await hub.loop.turn()
        assert (await call("POST", "/diff", SLEEPER.encode())).json["items"][0]["action"] == "unchanged"
        more = (await call("POST", "/diff", SLEEPER.replace("count: 1", "count: 2").encode())).json
        assert more["items"][0]["fields"] == [
            {"op": "~", "path": "spec.components[0].replicas.count", "before": 1, "after": 2}
        ]
        assert [(s["action"], s["slot"]) for s in more["steps"]] == [("start", "1")]
        before = hub.loop.state.decided
        other = SLEEPER.replace('"1000"', '"2000"')
        changed = (await call("POST", "/diff", other.encode())).json
        assert [(s["action"], s["was"], s["instance"]) for s in changed["steps"]] == [("replace", "run-1-0", "run-2-0")]
        assert hub.loop.state.decided == before


async def test_what_would_be_refused_is_refused_with_its_place(tmp_path: Path) -> None:
    async with api(tmp_path) as (_, call):
        wrong = SLEEPER.replace("replicas: {count: 1}", "replicas: {count: -1}")
        said = is_status(await call("POST", "/diff", wrong.encode()), 422, "Invalid")
        assert said["problems"][0]["line"] == wrong[: wrong.index("count: -1")].count("\n") + 1
