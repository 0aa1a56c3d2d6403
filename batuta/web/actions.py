"""What people ask beyond resources: apply many at once, why, logs, forwarded data."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Final

import msgspec
from starlette.responses import StreamingResponse
from starlette.routing import Route

from batuta.core.why import why
from batuta.errors import BatutaError, NotFound, Refused
from batuta.fabric.subjects import UP_CLASSES
from batuta.fabric.tasks import end
from batuta.hub.questions import instances_of
from batuta.kinds.base import API_VERSION, Ref, encode_hook
from batuta.web.access import check_documents
from batuta.web.answers import raw, said
from batuta.web.applying import by_update, writer_of
from batuta.web.bodies import in_namespace, manifest_of
from batuta.web.logs import Logs
from batuta.web.queries import dry_run_of, number, yes

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from starlette.requests import Request
    from starlette.responses import Response

    from batuta.hub.hub import Hub

TAIL_MAX: Final = 10_000
APPLICATION: Final = f"/apis/{API_VERSION}/namespaces/{{namespace}}/applications/{{name}}"


def action_routes(hub: Hub) -> list[Route]:
    actions = Actions(hub)
    return [
        Route("/apply", actions.apply, methods=["POST"]),
        Route(f"{APPLICATION}/why", actions.why, methods=["GET"]),
        Route(f"{APPLICATION}/log", actions.log, methods=["GET"]),
        Route("/data/up/{priority}", actions.up, methods=["GET"]),
    ]


class Actions:
    """Endpoints that are not about one resource."""

    def __init__(self, hub: Hub) -> None:
        self._hub = hub
        self._logs = Logs(hub)

    async def apply(self, request: Request) -> Response:
        """Every document of the body, or none: all problems come back at once."""
        query = request.query_params
        dry_run = dry_run_of(request)
        read = await manifest_of(request)
        resources = read.resources
        resources = [in_namespace(resource, query.get("namespace", "")) for resource in resources]
        check_documents(request.scope, self._hub.loop.state, [resource.ref for resource in resources])
        try:
            owners = by_update(writer_of(request, "Update"), self._hub.clock)
            declared = await self._hub.declarations.apply(resources, dry_run=dry_run, owners=owners)
        except Refused as refused:
            raise read.placed(refused.problems, [str(r.ref) for r in resources]) from None
        items = []
        for resource, action in declared:
            metadata = {"name": resource.ref.name, "generation": resource.metadata.generation}
            if resource.namespaced:
                metadata["namespace"] = resource.ref.namespace
            items.append({"kind": type(resource).__name__, "metadata": metadata, "action": action})
        return said({"kind": "ApplyResult", "apiVersion": API_VERSION, "items": items, "dryRun": dry_run})

    async def why(self, request: Request) -> Response:
        state, app = self._hub.loop.state, self._application(request)
        query = request.query_params
        component, node = query.get("component") or None, query.get("node") or None
        items = why(state, self._hub.clock.now(), app, component, node)
        return raw(msgspec.json.encode({"application": app, "items": items}, enc_hook=encode_hook))

    async def log(self, request: Request) -> Response:
        app, query = self._application(request), request.query_params
        tail = number(query, "tail", 100)
        found = instances_of(self._hub.loop.state, app, query.get("component", ""), query.get("instance", ""))
        if not found:
            raise NotFound(f"{app} has no such instance", next_step=f"batuta why {app.split('/')[1]}")
        follow = yes(query, "follow")
        streams = [self._logs.log(node, name, min(tail, TAIL_MAX), follow=follow) for node, name in found]
        names = [name.split("/")[2] if len(found) > 1 else "" for _, name in found]
        lines = _following(streams, names) if follow else _in_order(streams, names)
        # The first words are awaited here: a node that cannot be asked is an answer of its own, not an empty log.
        first = await anext(lines, b"")
        return StreamingResponse(_after(first, lines), media_type="text/plain; charset=utf-8")

    async def up(self, request: Request) -> Response:
        priority, query = request.path_params["priority"], request.query_params
        if priority not in UP_CLASSES:
            raise NotFound(f"{priority[:20]!r} is no class of data: {', '.join(UP_CLASSES)}")
        items = await self._hub.up.read(priority, number(query, "after"), number(query, "limit", 100))
        return said({"items": items})

    def _application(self, request: Request) -> str:
        namespace, name = request.path_params["namespace"], request.path_params["name"]
        app = f"{namespace}/{name}"
        state = self._hub.loop.state
        # One that was deleted may still leave instances behind, and it may be asked why.
        if state.get(Ref("applications", namespace, name)) is None and app not in state.held:
            raise NotFound(f"applications {name[:80]!r} not found", next_step="batuta get applications")
        return app


async def _in_order(streams: list[AsyncIterator[str]], names: list[str]) -> AsyncIterator[bytes]:
    """One log after the other. With several, each line begins with its instance, and one that fails says so."""
    for stream, name in zip(streams, names, strict=True):
        try:
            async for text in stream:
                yield _marked(text, name)
        except BatutaError as error:
            if not name:
                raise
            yield _marked(f"({error.message})\n", name)


async def _following(streams: list[AsyncIterator[str]], names: list[str]) -> AsyncIterator[bytes]:
    """All logs at once, as they grow."""
    if len(streams) == 1:
        async for text in streams[0]:
            yield text.encode()
        return
    lines: asyncio.Queue[bytes] = asyncio.Queue(maxsize=64)

    async def copy(stream: AsyncIterator[str], name: str) -> None:
        try:
            async for text in stream:
                if text:
                    await lines.put(_marked(text, name))
        except BatutaError as error:
            await lines.put(_marked(f"({error.message})\n", name))

    copies = [asyncio.create_task(copy(s, n)) for s, n in zip(streams, names, strict=True)]
    taken: asyncio.Task[bytes] | None = None
    try:
        while not (all(task.done() for task in copies) and lines.empty()):
            taken = asyncio.create_task(lines.get())
            await asyncio.wait((taken, *(t for t in copies if not t.done())), return_when=asyncio.FIRST_COMPLETED)
            if taken.done():
                yield taken.result()
            else:
                taken.cancel()
    finally:
        await end(taken, *copies)


async def _after(first: bytes, rest: AsyncIterator[bytes]) -> AsyncIterator[bytes]:
    yield first
    async for each in rest:
        yield each


def _marked(text: str, name: str) -> bytes:
    if not name:
        return text.encode()
    return "".join(f"{name}: {line}" for line in text.splitlines(keepends=True)).encode()
