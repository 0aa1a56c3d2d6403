"""The core API of Kubernetes, as far as it means something here: views, logs of pods, cordon and labels of nodes."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

import msgspec
from starlette.responses import StreamingResponse
from starlette.routing import Route

from batuta.errors import NotFound, Stale
from batuta.kinds import Node, manifest
from batuta.kinds.base import Ref
from batuta.web.answers import Wrong, raw
from batuta.web.applying import by_update, writer_of
from batuta.web.bodies import json_of
from batuta.web.core_nodes import core_node
from batuta.web.core_views import core_views, instance_of
from batuta.web.logs import Logs
from batuta.web.patches import merged
from batuta.web.queries import dry_run_of, number, yes
from batuta.web.reading import Reading, no_such
from batuta.web.sources import at

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Sequence

    from starlette.requests import Request
    from starlette.responses import Response

    from batuta.core.state import State
    from batuta.hub.hub import Hub
    from batuta.web.views import View

TAIL_MAX: Final = 10_000
ROOT: Final = "/api/v1"
_PATCHES: Final = ("application/merge-patch+json", "application/strategic-merge-patch+json")
_UNKNOWN_TO_LOGS: Final = ("sinceSeconds", "sinceTime", "timestamps", "limitBytes", "stream")


class Core:
    """The views and what can be done with them."""

    def __init__(self, hub: Hub) -> None:
        self._hub = hub
        self._logs = Logs(hub)
        self.views: Sequence[View] = core_views(hub)

    def routes(self) -> list[Route]:
        routes = []
        for view in self.views:
            reading = Reading(self._hub, view)
            inside = f"{ROOT}/namespaces/{{namespace}}/{view.plural}" if view.namespaced else f"{ROOT}/{view.plural}"
            routes.append(Route(inside, reading.list_or_watch, methods=["GET"]))
            routes.append(Route(f"{inside}/{{name}}", reading.get, methods=["GET"]))
            if view.namespaced:
                routes.append(Route(f"{ROOT}/{view.plural}", reading.list_or_watch, methods=["GET"]))
        return [
            *routes,
            Route(f"{ROOT}/namespaces", _namespaces_are_virtual, methods=["POST"], include_in_schema=False),
            Route(f"{ROOT}/namespaces/{{namespace}}/pods/{{name}}/log", self._log, methods=["GET"]),
            Route(f"{ROOT}/nodes/{{name}}", self._patch_node, methods=["PATCH"]),
        ]

    async def _log(self, request: Request) -> Response:
        namespace, name, query = request.path_params["namespace"], request.path_params["name"], request.query_params
        found = instance_of(self._hub, namespace, name)
        if found is None:
            raise NotFound(f'pods "{name[:80]}" not found', next_step="kubectl get pods")
        if yes(query, "previous"):
            raise Wrong(400, "the log of an instance goes on over its restarts", next_step="ask without previous")
        asked = [word for word in _UNKNOWN_TO_LOGS if query.get(word) not in (None, "", "false", "All")]
        if asked:
            raise Wrong(400, f"{asked[0]} is not known here", next_step="follow and tailLines are")
        tail = number(query, "tailLines", TAIL_MAX)
        follow = yes(query, "follow")
        lines = self._logs.log(*found, min(tail, TAIL_MAX), follow=follow)
        # The first words are awaited here: a node that cannot be asked is an answer of its own, not an empty log.
        first = await anext(lines, "")
        return StreamingResponse(_after(first, lines), media_type="text/plain; charset=utf-8")

    async def _patch_node(self, request: Request) -> Response:
        """Cordon, label, annotate. The rest of a machine is declared by its own kind."""
        media = request.headers.get("content-type", "").partition(";")[0].strip()
        if media not in _PATCHES:
            raise Wrong(415, f"{media or 'no content type'} cannot be applied here", next_step=f"send {_PATCHES[0]}")
        change = _node_change(await json_of(request))
        ref = Ref(Node.plural, "", request.path_params["name"])
        before = self._hub.loop.state.get(ref)
        nodes = next(view for view in self.views if view.kind == "Node")
        if before is None:
            raise no_such(nodes, ref.name)
        row = nodes.row(ref)
        known = at(change, "metadata.resourceVersion")
        if known is not None and (row is None or str(known) != _version_of(row.body)):
            raise Stale(f"{ref} was changed since", next_step="get it again, then write")
        change["metadata"].pop("resourceVersion", None)
        resource = manifest.from_document(merged(manifest.to_document(before), change))

        def same(state: State) -> None:
            if state.get(ref) != before:
                raise Stale(f"{ref} was changed meanwhile")

        dry_run = dry_run_of(request)
        owners = by_update(writer_of(request, "Update"), self._hub.clock)
        (written,) = await self._hub.declarations.apply([resource], dry_run=dry_run, unless=same, owners=owners)
        body = self._hub.feed.preview(written.resource, self._hub.loop.state)
        shown, row = core_node(msgspec.json.decode(body)), nodes.row(ref)
        if row is not None:
            # The version that a watch can go on from; of a dry run, the one that would be changed.
            shown["metadata"]["resourceVersion"] = _version_of(row.body)
        return raw(msgspec.json.encode(shown))


def _version_of(body: bytes) -> str:
    return str(msgspec.json.decode(body)["metadata"]["resourceVersion"])


def _node_change(patch: Any) -> dict[str, Any]:
    """What of a patch of a core node a Node has as well. Raises Wrong for everything else."""
    if not isinstance(patch, dict):
        raise Wrong(400, "a merge patch is an object")
    metadata, spec = patch.get("metadata") or {}, patch.get("spec") or {}
    if not isinstance(metadata, dict) or not isinstance(spec, dict):
        raise Wrong(400, "metadata and spec are objects")
    meant = {"metadata": {"labels", "annotations", "name", "resourceVersion", "uid"}, "spec": {"unschedulable"}}
    others = [key for key in patch if key not in ("metadata", "spec", "apiVersion", "kind")]
    others += [f"metadata.{key}" for key in metadata if key not in meant["metadata"]]
    others += [f"spec.{key}" for key in spec if key not in meant["spec"]]
    if others:
        step = "kubectl edit nodes.batuta.dev NAME"
        raise Wrong(422, f"{others[0]} of a node cannot be changed by its core name", next_step=step)
    change: dict[str, Any] = {
        "metadata": {k: metadata[k] for k in ("labels", "annotations", "resourceVersion") if k in metadata}
    }
    if "unschedulable" in spec:
        change["spec"] = {"unschedulable": spec["unschedulable"]}
        if not spec["unschedulable"]:
            # To uncordon also ends a drain: both are shown as the one thing.
            change["spec"]["drain"] = None
    return change


async def _namespaces_are_virtual(_request: Request) -> Response:
    raise Wrong(405, "a namespace is there as soon as something is declared in it", next_step="declare something in it")


async def _after(first: str, rest: AsyncIterator[str]) -> AsyncIterator[bytes]:
    yield first.encode()
    async for each in rest:
        yield each.encode()
