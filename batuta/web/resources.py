"""Resources over HTTP: one set of endpoints for every kind, read from KINDS; nothing here knows a kind by name."""

from __future__ import annotations

import secrets
from typing import TYPE_CHECKING, Any, Final, Literal

import msgspec
from starlette.routing import Route

from batuta.errors import NotFound, Refused, Stale
from batuta.hub.declare import AlreadyThere, is_released
from batuta.kinds import manifest
from batuta.kinds.base import API_VERSION, Problem
from batuta.web.answers import ABOUT, Wrong, raw, said
from batuta.web.applying import applied, by_update, config_of, managed_in, writer_of
from batuta.web.bodies import body_of, json_of, text_of
from batuta.web.leniency import lenient, own_up, validation_of
from batuta.web.operations import APPLY_PATCH, JSON_PATCH, MERGE_PATCH
from batuta.web.patches import PatchFails, merged, patched
from batuta.web.queries import dry_run_of, is_number, yes
from batuta.web.reading import Reading, no_such
from batuta.web.scaling import scale_of, scaled
from batuta.web.sources import KindSource, at

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from starlette.requests import Request
    from starlette.responses import Response

    from batuta.core.state import State
    from batuta.hub.declare import Owners
    from batuta.hub.feed import Row
    from batuta.hub.hub import Hub
    from batuta.kinds.base import Ref, Resource

    Write = Callable[[Request], Awaitable[Response]]

BASE: Final = f"/apis/{API_VERSION}"
TRIES: Final = 5


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
        item = f"{inside}/{{name}}"
        routes = [
            Route(inside, self._reading.list_or_watch, methods=["GET"]),
            Route(inside, self._writing(self._create), methods=["POST"]),
            Route(item, self._reading.get, methods=["GET"]),
            Route(item, self._writing(self._replace), methods=["PUT"]),
            Route(item, self._writing(self._patch), methods=["PATCH"]),
            Route(item, self._delete, methods=["DELETE"]),
            Route(f"{item}/status", self._reading.get, methods=["GET"]),
            Route(f"{item}/status", _status_is_computed, methods=["PUT", "PATCH", "POST"], include_in_schema=False),
        ]
        if self._kind.namespaced:
            routes.append(Route(f"{BASE}/{plural}", self._reading.list_or_watch, methods=["GET"]))
        if self.source.is_scalable:
            routes.append(Route(f"{item}/scale", self._scale, methods=["GET"]))
            routes.append(Route(f"{item}/scale", self._rescale, methods=["PUT", "PATCH"]))
        return routes

    # --- Writing ---

    def _writing(self, write: Write) -> Write:
        async def answer(request: Request) -> Response:
            validation_of(request)
            return own_up(request, await write(request), self._hub.counters)

        return answer

    async def _create(self, request: Request) -> Response:
        document = await json_of(request)
        dry_run = dry_run_of(request)
        prefix = _generated(document)
        owners: Owners | None = None
        for tries_left in reversed(range(TRIES if prefix else 1)):
            if prefix:
                document["metadata"]["name"] = f"{prefix}{secrets.token_hex(3)[:5]}"
            resource = self._read(document, request)
            owners = by_update(writer_of(request, "Update"), self._hub.clock, managed_in(resource, None))
            try:
                created = await self._hub.declarations.create(resource, dry_run=dry_run, owners=owners)
            except AlreadyThere:
                if not tries_left:
                    raise
            else:
                return raw(self._shown(created, dry_run=dry_run), 201)
        raise AssertionError("the last try returns or raises")

    async def _replace(self, request: Request) -> Response:
        ref = self._reading.ref(request)
        before = self._row(ref).resource
        resource = self._read(await json_of(request), request)
        return await self._write(request, resource, self._by_update(request, resource, before))

    async def _patch(self, request: Request) -> Response:
        media = request.headers.get("content-type", "").partition(";")[0].strip()
        if media in APPLY_PATCH:
            return await self._apply(request)
        change = await _change_in(request, media)
        before = self._before(self._reading.ref(request))
        resource = self._read(_changed(_as_patched(before, self._hub), change), request)
        return await self._write(request, resource, self._by_update(request, resource, before), _same(before))

    async def _apply(self, request: Request) -> Response:
        manager = writer_of(request, "Apply")
        config = lenient(self._kind, config_of(await text_of(request)), request)
        force, dry_run = yes(request.query_params, "force"), dry_run_of(request)
        ref = self._reading.ref(request)
        known = config["metadata"].get("resourceVersion")
        if known:
            self._check_version(ref, str(known))
        for tries_left in reversed(range(TRIES)):
            before = self._hub.loop.state.get(ref)
            resource, managed = applied(
                self._kind,
                before,
                config,
                manager,
                self._hub.clock,
                decode=lambda document: self._read(document, request),
                force=force,
            )

            def owners(
                _after: Resource, _before: Resource | None, managed: tuple[dict[str, Any], ...] = managed
            ) -> tuple[dict[str, Any], ...]:
                return managed

            try:
                if before is None:
                    created = await self._hub.declarations.create(resource, dry_run=dry_run, owners=owners)
                    return raw(self._shown(created, dry_run=dry_run), 201)
                return await self._write(request, _without_version(resource), owners, _same(before))
            except (Stale, AlreadyThere):
                # Somebody else wrote meanwhile: an apply says what should be, whatever was before.
                if not tries_left:
                    raise
        raise AssertionError("the last try returns or raises")

    def _by_update(self, request: Request, resource: Resource, before: Resource) -> Owners:
        return by_update(writer_of(request, "Update"), self._hub.clock, managed_in(resource, before))

    async def _write(
        self,
        request: Request,
        resource: Resource,
        owners: Owners,
        unless: Callable[[State], None] | None = None,
    ) -> Response:
        written = await self._put(request, resource, owners, unless)
        return raw(self._shown(written, dry_run=dry_run_of(request)))

    async def _put(
        self,
        request: Request,
        resource: Resource,
        owners: Owners,
        unless: Callable[[State], None] | None = None,
    ) -> Resource:
        ref, known = resource.ref, resource.metadata.resource_version

        def check(state: State) -> None:
            if state.get(ref) is None:
                raise no_such(self.source, ref.name)
            if known is not None:
                self._check_version(ref, known)
            if unless is not None:
                unless(state)

        written = await self._hub.declarations.apply(
            [resource], dry_run=dry_run_of(request), unless=check, owners=owners
        )
        return written[0].resource

    async def _delete(self, request: Request) -> Response:
        ref = self._reading.ref(request)
        row = self._row(ref)
        options = await _delete_options(request)
        wanted = options.preconditions

        def check(_state: State) -> None:
            if wanted.uid not in (None, row.resource.metadata.uid):
                raise Stale(f"{ref} has another uid")
            if wanted.resource_version is not None:
                self._check_version(ref, wanted.resource_version)

        dry_run = dry_run_of(request) or bool(options.dry_run)
        gone = await self._hub.declarations.delete(ref, dry_run=dry_run, unless=check)
        if gone.metadata.finalizers:
            return raw(self._shown(gone, dry_run=dry_run))
        details = {"name": ref.name, "kind": ref.plural, "group": "batuta.dev", "uid": gone.metadata.uid}
        return said({"kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Success", "details": details})

    # --- Scaling ---

    async def _scale(self, request: Request) -> Response:
        row = self._row(self._reading.ref(request))
        return said(scale_of(row.resource, msgspec.json.decode(row.body)))

    async def _rescale(self, request: Request) -> Response:
        ref = self._reading.ref(request)
        before = self._before(ref)
        now = scale_of(before, msgspec.json.decode(self._row(ref).body))
        if request.method == "PUT":
            wanted = await json_of(request)
        else:
            media = request.headers.get("content-type", "").partition(";")[0].strip()
            wanted = _changed(now, await _change_in(request, media))
        known = at(wanted, "metadata.resourceVersion")
        document = scaled(before, manifest.to_document(before), wanted)
        if known is not None and known != now["metadata"]["resourceVersion"]:
            document["metadata"]["resourceVersion"] = str(known)
        resource = self._read(document, request)
        written = await self._put(request, resource, self._by_update(request, resource, before), _same(before))
        return said(scale_of(written, msgspec.json.decode(self._shown(written, dry_run=dry_run_of(request)))))

    # --- Small words ---

    def _row(self, ref: Ref) -> Row:
        row = self._hub.feed.row(ref)
        if row is None:
            raise no_such(self.source, ref.name)
        return row

    def _before(self, ref: Ref) -> Resource:
        before = self._hub.loop.state.get(ref)
        if before is None:
            raise no_such(self.source, ref.name)
        return before

    def _check_version(self, ref: Ref, known: str) -> None:
        """A write that knows the last declaration overwrites nobody; newer status does not count."""
        row = self._row(ref)
        if not is_number(known) or not row.declared <= int(known) <= self._hub.feed.version:
            raise Stale(f"{ref} was changed since resourceVersion {known[:20]}", next_step="get it again, then write")

    def _read(self, document: Any, request: Request) -> Resource:
        """The resource in a body, which must be what the path says. Status is nobody's to write, so it is not read."""
        if isinstance(document, dict):
            document = {key: value for key, value in document.items() if key != "status"}
            document = lenient(self._kind, document, request)
            metadata = document.get("metadata")
            if isinstance(metadata, dict):
                metadata = dict(metadata)
                namespace = request.path_params.get("namespace")
                if namespace and not metadata.get("namespace"):
                    metadata["namespace"] = namespace
                document["metadata"] = metadata
                # What a refusal is about: clients print it.
                request.scope[ABOUT] = {
                    "group": API_VERSION.partition("/")[0],
                    "kind": self._kind.__name__,
                    "name": str(metadata.get("name", ""))[:80],
                }
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
        if dry_run or is_released(resource):
            return self._hub.feed.preview(resource, self._hub.loop.state)
        return self._row(resource.ref).body


def _same(before: Resource) -> Callable[[State], None]:
    def same(state: State) -> None:
        if state.get(before.ref) != before:
            raise Stale(f"{before.ref} was changed meanwhile")

    return same


def _without_version(resource: Resource) -> Resource:
    metadata = msgspec.structs.replace(resource.metadata, resource_version=None)
    return msgspec.structs.replace(resource, metadata=metadata)


def _as_patched(before: Resource, hub: Hub) -> dict[str, Any]:
    """What a patch is applied to: the declaration, with the version that a JSON patch may test or replace."""
    document = manifest.to_document(before)
    row = hub.feed.row(before.ref)
    if row is None:
        raise NotFound(f"there is no {before.ref}")
    document["metadata"]["resourceVersion"] = str(row.version)
    return document


async def _change_in(request: Request, media: str) -> tuple[str, Any]:
    if media not in (MERGE_PATCH, JSON_PATCH, "application/json"):
        known = ", ".join((MERGE_PATCH, JSON_PATCH, APPLY_PATCH[0]))
        raise Wrong(415, f"{media or 'no content type'} cannot be applied here", next_step=f"send one of {known}")
    return media, await json_of(request)


def _changed(document: Any, change: tuple[str, Any]) -> Any:
    media, patch = change
    if media != JSON_PATCH:
        return merged(document, patch)
    try:
        return patched(document, patch)
    except PatchFails as error:
        raise Wrong(422, f"the patch cannot be applied: {error}") from None


def _generated(document: Any) -> str:
    """The beginning of a name that the hub shall finish; empty when it is whole."""
    metadata = document.get("metadata") if isinstance(document, dict) else None
    if not isinstance(metadata, dict) or metadata.get("name") or not isinstance(metadata.get("generateName"), str):
        return ""
    return str(metadata["generateName"])[:58]


async def _status_is_computed(_request: Request) -> Response:
    raise Wrong(405, "status is computed from what nodes report; nobody can write it")


class _Preconditions(msgspec.Struct, rename="camel"):
    uid: str | None = None
    resource_version: str | None = None


class _DeleteOptions(msgspec.Struct, rename="camel"):
    """What counts here of Kubernetes' words for a deletion: nothing takes time to end, and nothing owns another."""

    dry_run: tuple[Literal["All"], ...] = ()
    preconditions: _Preconditions = msgspec.field(default_factory=_Preconditions)


async def _delete_options(request: Request) -> _DeleteOptions:
    body = await body_of(request)
    if not body.strip():
        return _DeleteOptions()
    try:
        return msgspec.json.decode(body, type=_DeleteOptions)
    except (msgspec.DecodeError, RecursionError) as error:
        raise Wrong(400, f"the body does not say how to delete: {error}") from None
