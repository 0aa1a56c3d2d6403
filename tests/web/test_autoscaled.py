"""What is autoscaled has a number that nobody sets by hand."""

from __future__ import annotations

from typing import TYPE_CHECKING

from tests.hub.hubs import PROCESS_APP
from tests.web.test_api import APPS, api, is_status

if TYPE_CHECKING:
    from pathlib import Path

BY_LOAD = PROCESS_APP.replace("NAME", "busy").replace(
    "replicas: {count: 1}", 'replicas: {autoscale: {min: 2, max: 5, load: "latency.p99 / 50.0"}}'
)
MERGE = {"content_type": "application/merge-patch+json"}


async def test_scaling_by_hand_is_refused_with_its_bounds(tmp_path: Path) -> None:
    async with api(tmp_path) as (hub, call):
        assert (await call("POST", "/apply", BY_LOAD.encode())).status == 200
        await hub.loop.turn()
        for answer in (
            await call("GET", f"{APPS}/busy/scale"),
            await call("PATCH", f"{APPS}/busy/scale", {"spec": {"replicas": 3}}, **MERGE),
        ):
            said = is_status(answer, 422, "Invalid")
            assert "is autoscaled between 2 and 5" in said["message"]
        shown = (await call("GET", f"{APPS}/busy")).json["status"]["components"][0]
        assert shown["wanted"] == 2
        assert shown["autoscale"]["says"] == "2 of 2 to 5 (as declared); the load is not measured, so it stays"
