"""Words of queries that make no sense are refused before anything is done; refusals say what would be possible."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from tests.hub.hubs import join
from tests.web.test_api import APPS, BASE, MERGE, SITES, api, is_status, site

if TYPE_CHECKING:
    from pathlib import Path

MANY = "9" * 5000


@pytest.mark.parametrize("query", ["dryRun=AAA", "dryRun=all", "dryRun=All&dryRun=", "dryRun=All&dryRun=No"])
async def test_a_try_that_is_not_understood_is_no_write(tmp_path: Path, query: str) -> None:
    async with api(tmp_path) as (hub, call):
        await join(hub, "pi-1")
        cordon = {"spec": {"unschedulable": True}}
        for where in (f"/api/v1/nodes/pi-1?{query}", f"{BASE}/nodes/pi-1?{query}"):
            is_status(await call("PATCH", where, cordon, **MERGE), 400, "BadRequest")
        is_status(await call("POST", f"{SITES}?{query}", site("a")), 400, "BadRequest")
        is_status(await call("POST", f"/apply?{query}", site("a")), 400, "BadRequest")
        is_status(await call("DELETE", f"{BASE}/nodes/pi-1?{query}"), 400, "BadRequest")
        assert (await call("GET", f"{BASE}/nodes/pi-1")).json["spec"] == {"site": "berlin"}
        assert (await call("GET", f"{SITES}/a")).status == 404


@pytest.mark.parametrize(
    "where",
    [
        f"{SITES}?limit={MANY}", f"{SITES}?limit=-1", f"{SITES}?watch=true&resourceVersion={MANY}",
        f"{SITES}?watch=true&timeoutSeconds=soon", f"{SITES}?watch=maybe", f"{SITES}?watch=true&sendInitialEvents=true",
        f"/audit?limit={MANY}", f"/audit?since={MANY}", f"/data/up/normal?after={MANY}",
    ],
)  # fmt: skip
async def test_numbers_are_numbers(tmp_path: Path, where: str) -> None:
    async with api(tmp_path) as (_, call):
        is_status(await call("GET", where), 400, "BadRequest")


async def test_a_version_that_nobody_gave_out_is_stale(tmp_path: Path) -> None:
    async with api(tmp_path) as (_, call):
        await call("POST", SITES, site("a"))
        is_status(await call("PUT", f"{SITES}/a", site("a", resourceVersion=MANY)), 409, "Conflict")


@pytest.mark.parametrize(
    ("method", "where", "allowed"),
    [
        ("POST", f"{SITES}/a", "DELETE, GET, HEAD, PATCH, PUT"),
        ("OPTIONS", APPS, "GET, HEAD, POST"),
        ("PUT", f"{SITES}/a/status", "GET, HEAD"),
        ("POST", "/api/v1/namespaces", "GET, HEAD"),
        ("DELETE", "/tokens", "GET, HEAD, POST"),
    ],
)
async def test_what_cannot_be_done_says_what_can(tmp_path: Path, method: str, where: str, allowed: str) -> None:
    async with api(tmp_path) as (_, call):
        answer = await call(method, where)
        is_status(answer, 405, "MethodNotAllowed")
        assert answer.headers["allow"] == allowed
