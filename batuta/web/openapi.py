"""OpenAPI v3: an index and one document for each group and version, made from the kinds' own schemas.

kubectl validates, explains and diffs by it. Version 2 is protobuf and asked for by nobody who can do without, so it is
not there.
"""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING, Any, Final

import msgspec
from starlette.routing import Route

from batuta import __version__
from batuta.kinds import API_VERSION, KINDS
from batuta.kinds.schema import Field, explain, json_schema
from batuta.web.answers import Wrong, raw, said

if TYPE_CHECKING:
    from collections.abc import Sequence

    from starlette.requests import Request
    from starlette.responses import Response

    from batuta.web.sources import Source

_KEPT: Final = (
    "type", "required", "enum", "description", "default", "pattern", "minimum", "maximum", "minLength", "maxLength",
    "minItems", "maxItems", "format",
)  # fmt: skip
_PATCHES: Final = (
    "application/apply-patch+yaml",
    "application/json-patch+json",
    "application/merge-patch+json",
)


def openapi_routes(sources: Sequence[Source]) -> list[Route]:
    documents = {
        f"apis/{API_VERSION}": _document([s for s in sources if s.api_version == API_VERSION]),
        "api/v1": _document([s for s in sources if s.api_version == "v1"]),
    }
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


def _document(sources: Sequence[Source]) -> bytes:
    schemas: dict[str, Any] = {}
    operations: dict[str, Any] = {}
    for source in sources:
        schemas |= _schemas(source)
        operations |= _paths(source)
    title = {"title": "Batuta", "version": __version__}
    return msgspec.json.encode(
        {"openapi": "3.0.0", "info": title, "paths": operations, "components": {"schemas": schemas}}
    )


def _paths(source: Source) -> dict[str, Any]:
    root = f"/apis/{source.api_version}" if "/" in source.api_version else f"/api/{source.api_version}"
    inside = "/namespaces/{namespace}" if source.namespaced else ""
    where = ["namespace", "name"] if source.namespaced else ["name"]
    parameters = [
        {"name": name, "in": "path", "required": True, "schema": {"type": "string", "uniqueItems": True}}
        for name in where
    ]
    answer = {
        "200": {
            "description": "OK",
            "content": {
                "application/json": {"schema": {"$ref": f"#/components/schemas/{_named(source, source.kind)}"}}
            },
        }
    }
    item: dict[str, Any] = {"parameters": parameters}
    gvk = {"x-kubernetes-group-version-kind": _gvk(source)}
    item["get"] = {"operationId": f"read{source.kind}", "responses": answer, "x-kubernetes-action": "get", **gvk}
    if "patch" in source.verbs:
        asked = [
            {"name": name, "in": "query", "schema": {"type": kind, "uniqueItems": True}}
            for name, kind in (
                ("dryRun", "string"),
                ("fieldManager", "string"),
                ("fieldValidation", "string"),
                ("force", "boolean"),
            )
        ]
        item["patch"] = {
            "operationId": f"patch{source.kind}",
            "parameters": asked,
            "requestBody": {"content": {media: {"schema": {"type": "object"}} for media in _PATCHES}},
            "responses": answer,
            "x-kubernetes-action": "patch",
            **gvk,
        }
    return {f"{root}{inside}/{source.plural}/{{name}}": item}


def _schemas(source: Source) -> dict[str, Any]:
    """The components that one source needs, its own first."""
    kind = next((k for k in KINDS if k.plural == source.plural and source.api_version == API_VERSION), None)
    name = _named(source, source.kind)
    gvk = {"x-kubernetes-group-version-kind": [_gvk(source)]}
    if kind is None:
        described = f"{source.kind}: a view of what Batuta runs, made for clients of Kubernetes."
        return {name: {"type": "object", "description": described, **gvk}}
    definitions: dict[str, Any] = json_schema(kind)["$defs"]
    found = {_named(source, each): _schema(source, schema) for each, schema in definitions.items()}
    root = found[name]
    strings = {word: {"type": "string", "description": said} for word, said in _HEAD.items()}
    status = {
        "type": "object",
        "description": "What is so, computed by the hub from what nodes report; never written.",
        "x-kubernetes-preserve-unknown-fields": True,
    }
    properties = {**root["properties"], **strings, "status": status}
    said = explain(kind.__name__.lower())
    _add_descriptions(properties, said)
    return {**found, name: {**root, "properties": properties, "description": said.description, **gvk}}


_HEAD: Final = {
    "apiVersion": f"The version of the language: {API_VERSION}.",
    "kind": "Which kind of resource this is.",
}


def _add_descriptions(properties: dict[str, Any], field: Field) -> None:
    for inner in field.fields:
        if inner.description and "description" not in properties.get(inner.name, {"description": ""}):
            properties[inner.name] = {**properties[inner.name], "description": inner.description}


def _schema(source: Source, schema: dict[str, Any]) -> dict[str, Any]:
    """One JSON Schema in the words that Kubernetes clients know."""
    if "$ref" in schema:
        target = {"$ref": f"#/components/schemas/{_named(source, schema['$ref'].rpartition('/')[2])}"}
        said: dict[str, Any] = {key: schema[key] for key in ("description", "default") if key in schema}
        return {"allOf": [target], **said} if said else target
    found: dict[str, Any] = {key: schema[key] for key in _KEPT if key in schema}
    if "const" in schema:
        found |= {"type": "string", "enum": [schema["const"]]}
    if "properties" in schema:
        found["properties"] = {name: _schema(source, inner) for name, inner in schema["properties"].items()}
    if isinstance(schema.get("items"), dict):
        found["items"] = _schema(source, schema["items"])
    if isinstance(schema.get("additionalProperties"), dict):
        found["additionalProperties"] = _schema(source, schema["additionalProperties"])
    if "anyOf" in schema:
        found |= _one_of(source, schema["anyOf"], found)
    if "type" not in found and "enum" in found:
        found["type"] = "string"
    return found


def _one_of(source: Source, choices: Sequence[dict[str, Any]], said: dict[str, Any]) -> dict[str, Any]:
    """Alternatives: none of it is `nullable`, and text or a number is what Kubernetes calls int-or-string."""
    real = [choice for choice in choices if choice.get("type") != "null"]
    more: dict[str, Any] = {"nullable": True} if len(real) < len(choices) else {}
    if len(real) == 1:
        return {**_schema(source, {**real[0], **said}), **more}
    kinds = {choice.get("type") for choice in real}
    if kinds == {"string", "number"}:
        pattern = next(choice["pattern"] for choice in real if "pattern" in choice)
        return {"type": "string", "pattern": pattern, "x-kubernetes-int-or-string": True, **more}
    return {"anyOf": [_schema(source, choice) for choice in real], **more}


def _named(source: Source, name: str) -> str:
    return f"{_PREFIXES[source.api_version]}.{name}"


_PREFIXES: Final = {API_VERSION: "dev.batuta.v1", "v1": "io.k8s.api.core.v1"}


def _gvk(source: Source) -> dict[str, str]:
    group, _, version = source.api_version.rpartition("/")
    return {"group": group, "kind": source.kind, "version": version}
