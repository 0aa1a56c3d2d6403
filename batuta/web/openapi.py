"""OpenAPI v3: an index and one document for each group and version, made from Operations and the kinds' own schemas.

kubectl validates, explains and diffs by it. Version 2 is protobuf and asked for by nobody who can do without, so it is
not there.
"""

from __future__ import annotations

import hashlib
import re
from typing import TYPE_CHECKING, Any, Final

import msgspec
from starlette.routing import Route

from batuta import __version__
from batuta.kinds import API_VERSION
from batuta.web.answers import Wrong, raw, said
from batuta.web.operations import PLACES, STATUSES, meta, operations_of
from batuta.web.own_operations import OWN
from batuta.web.schemas import SHARED, gvk_of, schemas_of

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from starlette.requests import Request
    from starlette.responses import Response

    from batuta.web.operations import Operation
    from batuta.web.sources import Source

_DOOR: Final = {"BearerToken": {"type": "http", "scheme": "bearer"}}


def openapi_routes(sources: Sequence[Source]) -> list[Route]:
    documents = {path: msgspec.json.encode(document) for path, document in openapi_documents(sources).items()}
    hashes = {path: hashlib.sha256(body).hexdigest()[:32].upper() for path, body in documents.items()}
    index = {path: {"serverRelativeURL": f"/openapi/v3/{path}?hash={said}"} for path, said in hashes.items()}

    async def paths(_request: Request) -> Response:
        return said({"paths": index})

    async def document(request: Request) -> Response:
        body = documents.get(request.path_params["path"])
        if body is None:
            raise Wrong(404, "there is no such group and version here", next_step="see /openapi/v3")
        return raw(body)

    return [Route("/openapi/v3", paths), Route("/openapi/v3/{path:path}", document)]


def openapi_documents(sources: Sequence[Source]) -> dict[str, dict[str, Any]]:
    """Each document by its place below /openapi/v3. What is not of Kubernetes' making is in `batuta`."""
    found = {}
    for path, version in ((f"apis/{API_VERSION}", API_VERSION), ("api/v1", "v1")):
        mine = [source for source in sources if source.api_version == version]
        found[path] = _document(mine, [operation for source in mine for operation in operations_of(source)])
    return {**found, "batuta": _document((), OWN)}


def _document(sources: Sequence[Source], operations: Iterable[Operation]) -> dict[str, Any]:
    schemas: dict[str, Any] = dict(SHARED)
    paths: dict[str, dict[str, Any]] = {}
    for source in sources:
        schemas |= schemas_of(source)
    for operation in operations:
        item = paths.setdefault(operation.path, _place(operation.path))
        item[operation.method.lower()] = _operation(operation)
    return {
        "openapi": "3.0.0",
        "info": {"title": "Batuta", "version": __version__},
        "paths": paths,
        "components": {"schemas": schemas, "securitySchemes": _DOOR},
    }


def _place(path: str) -> dict[str, Any]:
    names = re.findall(r"{(\w+)}", path)
    rows = [{"name": n, "in": "path", "required": True, "schema": PLACES.get(n, {"type": "string"})} for n in names]
    return {"parameters": rows} if rows else {}


def _operation(operation: Operation) -> dict[str, Any]:
    refused = {operation.refuses_with: {"schema": meta("Status")}}
    done = {operation.answers_with: {"schema": operation.answer}}
    if operation.refuses_with != "application/json":
        refused = {operation.refuses_with: {"schema": {"type": "string"}}}
    row: dict[str, Any] = {
        "operationId": _identity(operation),
        "description": operation.sentence,
        "parameters": [
            {"name": p.name, "in": "query", "description": p.sentence, "schema": p.schema} for p in operation.query
        ],
        "responses": {
            str(code): {"description": STATUSES[code], "content": done if code < 300 else refused}
            for code in operation.all_statuses
        },
    }
    if operation.bodies:
        content = {media: {"schema": schema} for media, schema in operation.bodies.items()}
        row["requestBody"] = {"content": content, "required": operation.needs_body}
    if not operation.is_open:
        row["security"] = [{name: [] for name in _DOOR}]
    if operation.source is not None:
        row |= {"x-kubernetes-action": operation.action, "x-kubernetes-group-version-kind": gvk_of(operation.source)}
    return row


def _identity(operation: Operation) -> str:
    """A name of its own for each: the method, then the words of the path."""
    words = re.findall(r"[A-Za-z0-9]+", operation.path.replace(f"/apis/{API_VERSION}/", "").replace("/api/v1/", ""))
    return operation.method.lower() + "".join(word[0].upper() + word[1:] for word in words)
