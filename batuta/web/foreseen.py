"""POST /diff: what manifests would change and what would move, with nothing declared and nothing stored."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

import msgspec
from starlette.routing import Route

from batuta.core.foresee import foresee
from batuta.core.state import Change
from batuta.core.view_application import plain_reason
from batuta.errors import Refused
from batuta.hub.api_tokens import EVERY_NAMESPACE
from batuta.kinds import manifest
from batuta.kinds.base import API_VERSION, encode_hook
from batuta.kinds.difference import differences
from batuta.web import rights
from batuta.web.answers import Wrong, raw
from batuta.web.bodies import in_namespace, manifest_of

if TYPE_CHECKING:
    from collections.abc import Sequence

    from starlette.requests import Request
    from starlette.responses import Response

    from batuta.core.state import State
    from batuta.hub.hub import Hub
    from batuta.kinds.base import Resource


def foreseen_routes(hub: Hub) -> list[Route]:
    async def diff(request: Request) -> Response:
        """Body and query as for /apply, and refused for the same reasons."""
        read = await manifest_of(request)
        resources = [in_namespace(r, request.query_params.get("namespace", "")) for r in read.resources]
        state = hub.loop.state
        _check_seen(request, resources)
        try:
            declared = await hub.declarations.apply(resources, dry_run=True)
        except Refused as refused:
            raise read.placed(refused.problems, [str(r.ref) for r in resources]) from None
        changes = [Change("desired", d.resource.ref.key, d.resource) for d in declared if d.action != "unchanged"]
        items = [_item(state, d.resource, d.action) for d in declared]
        # In a thread of its own: deciding again and again takes time, and the hub has nodes to answer.
        found = await asyncio.to_thread(foresee, state, changes, hub.clock.now())
        answer = {
            "kind": "DiffResult",
            "apiVersion": API_VERSION,
            "items": items,
            "steps": (steps := [s for s in found.steps if _sees(request, s.app)]),
            "hidden": len(found.steps) - len(steps),
            "reasons": {
                app: [plain_reason(r) for r in said] for app, said in found.reasons.items() if _sees(request, app)
            },
            "isWhole": found.is_whole,
        }
        return raw(msgspec.json.encode(answer, enc_hook=encode_hook))

    return [Route("/diff", diff, methods=["POST"])]


def _check_seen(request: Request, resources: Sequence[Resource]) -> None:
    """Refuses, with 403, to compare with what this asker may not read. Without a door nothing is refused."""
    who = request.scope.get("batuta.who")
    if who is None:
        return
    asked = {r.ref: rights.missing(who.role, who.namespaces, "GET", rights.place_of(r.ref)) for r in resources}
    lacking = [f"{ref}: {why}" for ref, why in asked.items() if why]
    if lacking:
        raise Wrong(403, "; ".join(lacking), next_step="leave them out, or ask an admin for a token with that right")


def _sees(request: Request, app: str) -> bool:
    who = request.scope.get("batuta.who")
    return who is None or EVERY_NAMESPACE in who.namespaces or app.partition("/")[0] in who.namespaces


def _item(state: State, resource: Resource, action: str) -> dict[str, Any]:
    before = state.get(resource.ref)
    was = manifest.to_document(before, server_fields=False) if before is not None else None
    will = manifest.to_document(resource, server_fields=False)
    metadata = {"name": resource.ref.name} | ({"namespace": resource.ref.namespace} if resource.namespaced else {})
    return {
        "kind": type(resource).__name__,
        "metadata": metadata,
        "action": action,
        "fields": list(differences(was, will)) if was is not None else [],
    }
