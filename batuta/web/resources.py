"""Resources over HTTP: one set of endpoints for every kind, read from KINDS; nothing here knows a kind by name."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

import msgspec
from starlette.routing import Route

from batuta.errors import Refused, Stale
from batuta.kinds import manifest
from batuta.kinds.base import API_VERSION, Problem
from batuta.web.answers import Wrong, raw, said
from batuta.web.bodies import body_of, json_of
from batuta.web.reading import Reading, no_such
from batuta.web.sources import KindSource

if TYPE_CHECKING:
    from collections.abc import Callable

    from starlette.requests import Request
    from starlette.responses import Response

    from batuta.core.state import State
    from batuta.hub.feed import Row
    from batuta.hub.hub import Hub
    from batuta.kinds.base import Ref, Resource

BASE: Final = f"/apis/{API_VERSION}"
MERGE_PATCH: Final = "application/merge-patch+json"


class KindApi:
    """The endpoints of one kind."""

    def __init__(self, hub: Hub, kind: type[Resource]) -> None:
        self._hub = hub
        self._kind = kind
        self.source = KindSource(hub, kind)
        self._reading = Reading(hub, self.source)

    def routes(self) -> list[Route]:
        plural = self._kind.plural
        inside = f"{BASE}/namespaces/{{namespace}}/{plural}" if self._kind.namespaced else f"{BASE}/{plural}"
        routes = [
            Route(inside, self._reading.list_or_watch, methods=["GET"]),
            Route(inside, self._create, methods=["POST"]),
            Route(f"{inside}/{{name}}", self._reading.get, methods=["GET"]),
            Route(f"{inside}/{{name}}", self._replace, methods=["PUT"]),
            Route(f"{inside}/{{name}}", self._patch, methods=["PATCH"]),
            Route(f"{inside}/{{name}}", self._delete, methods=["DELETE"]),
            Route(f"{inside}/{{name}}/status", self._reading.get, methods=["GET"]),
            Route(f"{inside}/{{name}}/status", _status_is_computed, methods=["PUT", "PATCH", "POST"]),
        ]
        if self._kind.namespaced:
            routes.append(Route(f"{BASE}/{plural}", self._reading.list_or_watch, methods=["GET"]))
        return routes

    # --- Writing ---

    async def _create(self, request: Request) -> Response:
        resource = self._read(await json_of(request), request)
        dry_run = _dry_run(request)
        created = await self._hub.declarations.create(resource, dry_run=dry_run)
        return raw(self._shown(created, dry_run=dry_run), 201)

    async def _replace(self, request: Request) -> Response:
        ref = self._reading.ref(request)
        self._row(ref)
        resource = self._read(await json_of(request), request)
        return await self._write(request, resource)

    async def _patch(self, request: Request) -> Response:
        said_type = request.headers.get("content-type", "").partition(";")[0].strip()
        if said_type not in (MERGE_PATCH, "application/json"):
            message = f"{said_type or 'no content type'} cannot be applied here"
            raise Wrong(415, message, next_step=f"send {MERGE_PATCH}")
        patch = await json_of(request)
        ref = self._reading.ref(request)
        before = self._hub.loop.state.get(ref)
        if before is None:
            raise no_such(self.source, ref.name)
        document = msgspec.json.decode(manifest.to_json(before))
        document["metadata"].pop("resourceVersion", None)
        resource = self._read(merged(document, patch), request)

        def same(state: State) -> None:
            if state.get(ref) != before:
                raise Stale(f"{ref} was changed meanwhile")

        return await self._write(request, resource, same)

    async def _write(
        self, request: Request, resource: Resource, unless: Callable[[State], None] | None = None
    ) -> Response:
        ref, known = resource.ref, resource.metadata.resource_version
        dry_run = _dry_run(request)

        def check(state: State) -> None:
            if state.get(ref) is None:
                raise no_such(self.source, ref.name)
            if known is not None:
                self._check_version(ref, known)
            if unless is not None:
                unless(state)

        written = await self._hub.declarations.apply([resource], dry_run=dry_run, unless=check)
        return raw(self._shown(written[0].resource, dry_run=dry_run))

    async def _delete(self, request: Request) -> Response:
        ref = self._reading.ref(request)
        row = self._row(ref)
        options = await _delete_options(request)
        wanted = options.get("preconditions") or {}

        def check(_state: State) -> None:
            if wanted.get("uid") not in (None, row.resource.metadata.uid):
                raise Stale(f"{ref} has another uid")
            if wanted.get("resourceVersion") is not None:
                self._check_version(ref, str(wanted["resourceVersion"]))

        dry_run = _dry_run(request) or options.get("dryRun") == ["All"]
        gone = await self._hub.declarations.delete(ref, dry_run=dry_run, unless=check)
        details = {"name": ref.name, "kind": ref.plural, "group": "batuta.dev", "uid": gone.metadata.uid}
        return said({"kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Success", "details": details})

    def _check_version(self, ref: Ref, known: str) -> None:
        """A write that knows the last declaration overwrites nobody; newer status does not count."""
        row = self._row(ref)
        if not known.isascii() or not known.isdigit() or not row.declared <= int(known) <= self._hub.feed.version:
            raise Stale(f"{ref} was changed since resourceVersion {known[:20]}", next_step="get it again, then write")

    # --- Small words ---

    def _row(self, ref: Ref) -> Row:
        row = self._hub.feed.row(ref)
        if row is None:
            raise no_such(self.source, ref.name)
        return row

    def _read(self, document: Any, request: Request) -> Resource:
        """The resource in a body, which must be what the path says."""
        if isinstance(document, dict):
            document = {key: value for key, value in document.items() if key != "status"}
            metadata = document.get("metadata")
            if isinstance(metadata, dict):
                metadata = dict(metadata)
                namespace = request.path_params.get("namespace")
                if namespace and not metadata.get("namespace"):
                    metadata["namespace"] = namespace
                document["metadata"] = metadata
        resource = manifest.from_document(document)
        problems = []
        if not isinstance(resource, self._kind):
            message = f"this is the place of {self._kind.plural}, not of a {type(resource).__name__}"
            problems.append(Problem(path="kind", code="wrong_place", message=message))
        for field in ("namespace", "name"):
            wanted = request.path_params.get(field)
            got = getattr(resource.ref, field)
            if wanted is not None and got != wanted:
                message = f"{got!r} in the body, {wanted!r} in the path"
                problems.append(Problem(path=f"metadata.{field}", code="wrong_place", message=message))
        if problems:
            raise Refused(problems)
        return resource

    def _shown(self, resource: Resource, *, dry_run: bool) -> bytes:
        if dry_run:
            return self._hub.feed.preview(resource, self._hub.loop.state)
        return self._row(resource.ref).body


def merged(target: Any, patch: Any) -> Any:
    """RFC 7386: null removes, objects merge, everything else replaces."""
    if not isinstance(patch, dict):
        return patch
    out = dict(target) if isinstance(target, dict) else {}
    for key, value in patch.items():
        if value is None:
            out.pop(key, None)
        else:
            out[key] = merged(out.get(key), value)
    return out


async def _status_is_computed(_request: Request) -> Response:
    raise Wrong(405, "status is computed from what nodes report; nobody can write it")


async def _delete_options(request: Request) -> dict[str, Any]:
    body = await body_of(request)
    if not body.strip():
        return {}
    try:
        options = msgspec.json.decode(body)
    except msgspec.DecodeError as error:
        raise Wrong(400, f"the body is not JSON: {error}") from None
    return options if isinstance(options, dict) else {}


def _dry_run(request: Request) -> bool:
    said_so = request.query_params.get("dryRun", "")
    if said_so not in ("", "All"):
        raise Wrong(400, f"dryRun={said_so[:20]} is not known; it can be All")
    return said_so == "All"
