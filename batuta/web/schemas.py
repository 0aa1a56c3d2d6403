"""Schemas: what documents and answers look like, in the words of OpenAPI, read from the kinds' own classes."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

from batuta.kinds import API_VERSION, KINDS, SHOWN
from batuta.kinds.schema import Field, explain, json_schema
from batuta.web.operations import META, named, reference

if TYPE_CHECKING:
    from collections.abc import Sequence

    from batuta.web.sources import Source

_KEPT: Final = (
    "type", "required", "enum", "description", "default", "pattern", "minimum", "maximum", "minLength", "maxLength",
    "minItems", "maxItems", "format",
)  # fmt: skip
_TEXT: Final = {"type": "string"}
_ANYTHING: Final = {"type": "object", "x-kubernetes-preserve-unknown-fields": True}
_LIST_META: Final = {
    "type": "object",
    "properties": {"resourceVersion": _TEXT, "continue": _TEXT, "remainingItemCount": {"type": "integer"}},
}
_CAUSE: Final = {"type": "object", "properties": {"reason": _TEXT, "message": _TEXT, "field": _TEXT}}

SHARED: Final[dict[str, dict[str, Any]]] = {
    f"{META}.Status": {
        "type": "object",
        "description": "How something ended; `details.causes` has one entry for each problem, with its field.",
        "required": ["apiVersion", "kind", "status"],
        "properties": {
            "apiVersion": {"type": "string", "enum": ["v1"]},
            "kind": {"type": "string", "enum": ["Status"]},
            "metadata": _ANYTHING,
            "status": {"type": "string", "enum": ["Success", "Failure"]},
            "message": _TEXT,
            "reason": _TEXT,
            "code": {"type": "integer"},
            "details": {
                "type": "object",
                "properties": {"causes": {"type": "array", "items": _CAUSE}, "name": _TEXT, "kind": _TEXT},
            },
            "problems": {"type": "array", "items": _ANYTHING},
            "nextStep": {"type": "string", "description": "What helps, when it is known."},
        },
    },
    f"{META}.DeleteOptions": {
        "type": "object",
        "description": "How to delete. Nothing here takes time to end gracefully, and nothing is owned by another.",
        "properties": {
            "apiVersion": _TEXT,
            "kind": _TEXT,
            "gracePeriodSeconds": {"type": "integer"},
            "propagationPolicy": _TEXT,
            "dryRun": {"type": "array", "items": {"type": "string", "enum": ["All"]}},
            "preconditions": {"type": "object", "properties": {"uid": _TEXT, "resourceVersion": _TEXT}},
        },
    },
    f"{META}.PatchOperation": {
        "type": "object",
        "description": "One operation of a JSON patch, RFC 6902.",
        "required": ["op", "path"],
        "properties": {
            "op": {"type": "string", "enum": ["add", "remove", "replace", "move", "copy", "test"]},
            "path": _TEXT,
            "from": _TEXT,
            "value": {},
        },
    },
    f"{META}.Scale": {
        "type": "object",
        "description": "The one number of replicas, for those that have one.",
        "required": ["spec"],
        "properties": {
            "apiVersion": _TEXT,
            "kind": _TEXT,
            "metadata": _ANYTHING,
            "spec": {"type": "object", "required": ["replicas"], "properties": {"replicas": {"type": "integer"}}},
            "status": {"type": "object", "properties": {"replicas": {"type": "integer"}}},
        },
    },
}
"""What every document of OpenAPI has."""


def schemas_of(source: Source) -> dict[str, Any]:
    """The components that one source needs, its own first."""
    kind = next((k for k in (*KINDS, *SHOWN) if k.plural == source.plural and source.api_version == API_VERSION), None)
    name = named(source, source.kind)
    gvk = {"x-kubernetes-group-version-kind": [gvk_of(source)]}
    head = {"apiVersion": {"type": "string", "enum": [source.api_version]}}
    many = {
        "type": "object",
        "description": f"A list of {source.kind}.",
        "required": ["apiVersion", "kind", "metadata", "items"],
        "properties": {
            **head,
            "kind": {"type": "string", "enum": [f"{source.kind}List"]},
            "metadata": _LIST_META,
            "items": {"type": "array", "items": reference(source.kind, source)},
        },
        "x-kubernetes-group-version-kind": [{**gvk_of(source), "kind": f"{source.kind}List"}],
    }
    if kind is None:
        described = f"{source.kind}: a view of what Batuta runs, made for clients of Kubernetes."
        if any(k.plural == source.plural for k in KINDS):
            described += f" What people declare: `kubectl explain {source.plural} --api-version={API_VERSION}`."
        view = {
            "type": "object",
            "description": described,
            "required": ["apiVersion", "kind", "metadata"],
            "properties": {**head, "kind": {"type": "string", "enum": [source.kind]}, "metadata": _VIEW_META},
            "x-kubernetes-preserve-unknown-fields": True,
            **gvk,
        }
        return {name: view, f"{name}List": many}
    definitions: dict[str, Any] = json_schema(kind)["$defs"]
    found = {_name_of(source, each): _schema(source, schema) for each, schema in definitions.items()}
    root = found[name]
    strings = {word: {**root["properties"].get(word, _TEXT), "description": said} for word, said in _HEAD.items()}
    status = {
        "type": "object",
        "description": "What is so, computed by the hub from what nodes report; never written.",
        "x-kubernetes-preserve-unknown-fields": True,
    }
    properties = {**root["properties"], **strings, "status": status}
    said = explain(kind.__name__.lower())
    _add_descriptions(properties, said)
    own = {**root, "properties": properties, "description": said.description, **gvk}
    return {**found, name: own, f"{name}List": many}


_HEAD: Final = {
    "apiVersion": f"The version of the language: {API_VERSION}.",
    "kind": "Which kind of resource this is.",
}
_VIEW_META: Final = {
    "type": "object",
    "required": ["name", "resourceVersion"],
    "properties": {"name": _TEXT, "namespace": _TEXT, "uid": _TEXT, "resourceVersion": _TEXT},
    "x-kubernetes-preserve-unknown-fields": True,
}


def _add_descriptions(properties: dict[str, Any], field: Field) -> None:
    for inner in field.fields:
        if inner.description and "description" not in properties.get(inner.name, {"description": ""}):
            properties[inner.name] = {**properties[inner.name], "description": inner.description}


def _schema(source: Source, schema: dict[str, Any]) -> dict[str, Any]:
    """One JSON Schema in the words that Kubernetes clients know."""
    if "$ref" in schema:
        target = {"$ref": f"#/components/schemas/{_name_of(source, schema['$ref'].rpartition('/')[2])}"}
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


def _name_of(source: Source, word: str) -> str:
    """A part of a kind that is called as another kind is, such as `spec.rollout` of an Application, is named apart."""
    is_another = word != source.kind and any(kind.__name__ == word for kind in (*KINDS, *SHOWN))
    return named(source, f"{source.kind}{word}" if is_another else word)


def gvk_of(source: Source) -> dict[str, str]:
    group, _, version = source.api_version.rpartition("/")
    return {"group": group, "kind": source.kind, "version": version}
