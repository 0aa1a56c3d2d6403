"""Operations are data beside the routes; here the two are held against each other."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

import pytest
from starlette.routing import Route

from batuta.web.app import application
from batuta.web.core_views import core_views
from batuta.web.operations import STATUSES, operations_of
from batuta.web.own_operations import OWN
from batuta.web.rollouts import rollout_view
from batuta.web.sources import KindSource
from tests.web.test_api import api

if TYPE_CHECKING:
    from pathlib import Path

    from batuta.hub.hub import Hub
    from batuta.web.operations import Operation

from batuta.kinds import KINDS


def described(hub: Hub) -> list[Operation]:
    sources = [*core_views(hub), *(KindSource(hub, kind) for kind in KINDS), rollout_view(hub)]
    return [*OWN, *(operation for source in sources for operation in operations_of(source))]


async def test_every_route_is_an_operation_and_every_operation_a_route(tmp_path: Path) -> None:
    async with api(tmp_path) as (hub, _):
        routed = set()
        for route in application(hub).routes:
            assert isinstance(route, Route)
            if route.include_in_schema:
                path = re.sub(r"{(\w+):\w+}", r"{\1}", route.path).rstrip("/")
                # HEAD comes with GET; it is an operation of its own only where somebody needs it.
                routed |= {(method, path) for method in route.methods or {"GET"} if method != "HEAD"}
        operations = described(hub)
        told = [(operation.method, operation.path) for operation in operations]
        assert len(told) == len(set(told))
        assert routed - set(told) == set(), "routes that no operation describes: see batuta/web/own_operations.py"
        assert {row for row in told if row[0] != "HEAD"} - routed == set(), "operations that lead nowhere"


async def test_operations_say_only_statuses_that_have_a_sentence(tmp_path: Path) -> None:
    async with api(tmp_path) as (hub, _):
        for operation in described(hub):
            assert set(operation.all_statuses) <= set(STATUSES), operation.path
            assert operation.statuses[0] < 300, operation.path


@pytest.mark.parametrize("document", ["apis/batuta.dev/v1", "api/v1", "batuta"])
async def test_every_operation_is_in_openapi_once(tmp_path: Path, document: str) -> None:
    async with api(tmp_path) as (hub, call):
        found = (await call("GET", f"/openapi/v3/{document}")).json
        identities = [
            o["operationId"] for item in found["paths"].values() for o in item.values() if isinstance(o, dict)
        ]
        assert len(identities) == len(set(identities)) > 0
        mine = [o for o in described(hub) if o.path in found["paths"]]
        assert len(mine) == len(identities)
        for operation in mine:
            row = found["paths"][operation.path][operation.method.lower()]
            assert set(row["responses"]) == {str(code) for code in operation.all_statuses}
