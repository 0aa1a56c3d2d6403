"""What a key gets of a flag, on one node or on each, and which rule says so."""

from __future__ import annotations

from itertools import islice
from typing import TYPE_CHECKING, Final

from starlette.routing import Route

from batuta.core.view_flag import flag_answer
from batuta.errors import NotFound
from batuta.kinds.base import API_VERSION, Ref
from batuta.kinds.flag import Flag
from batuta.web.answers import said

if TYPE_CHECKING:
    from starlette.requests import Request
    from starlette.responses import Response

    from batuta.hub.hub import Hub

FLAG: Final = f"/apis/{API_VERSION}/namespaces/{{namespace}}/flags/{{name}}"
NODES_MAX: Final = 1_000


def flag_routes(hub: Hub) -> list[Route]:
    async def evaluation(request: Request) -> Response:
        namespace, name = request.path_params["namespace"], request.path_params["name"]
        state, query = hub.loop.state, request.query_params
        flag = state.get(Ref("flags", namespace, name))
        if not isinstance(flag, Flag):
            raise NotFound(f"flags {name[:80]!r} not found", next_step="batuta get flags")
        node = query.get("node", "")
        if node and node not in state.nodes:
            raise NotFound(f"nodes {node[:80]!r} not found", next_step="batuta get nodes")
        asked = [node] if node else list(islice(sorted(state.nodes), NODES_MAX))
        items = [flag_answer(state, flag, each, query.get("key")) for each in asked]
        return said({"flag": name, "namespace": namespace, "items": items, "nodes": len(state.nodes)})

    return [Route(f"{FLAG}/evaluation", evaluation, methods=["GET"])]
