"""What a kind looks like, for editors and for people: JSON Schema and `explain`, read off the classes themselves.

Field descriptions come from the text under each attribute, the class's own from its docstring; nothing is said twice.
`python -m batuta.kinds.schema` writes the schemas that editors complete manifests with.
"""

from __future__ import annotations

import ast
import inspect as source
import sys
import textwrap
from functools import lru_cache
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec
from msgspec import inspect

from batuta.errors import NotFound
from batuta.kinds import KINDS, kind_called
from batuta.kinds.base import API_VERSION, Quantity, Record, Resource, encode_hook, schema_hook
from batuta.kinds.nearest import did_you_mean

if TYPE_CHECKING:
    from collections.abc import Sequence

SCHEMAS = Path(__file__).parents[2] / "docs" / "schemas"


class Field(Record):
    """One field of a kind, as people write it."""

    name: str
    type: str
    """A few words: `text`, `list of mappings`, `duration`, `one of keep, failover`."""
    description: str = ""
    required: bool = False
    default: str | None = None
    """As it would be written; None when there is none worth saying."""
    fields: tuple[Field, ...] = ()

    def __str__(self) -> str:
        lines = [f"{self.name}: {self.type}{_note(self)}"]
        lines += textwrap.wrap(self.description, 100, initial_indent="  ", subsequent_indent="  ")
        for field in self.fields:
            lines += ["", f"  {field.name}: {field.type}{_note(field)}"]
            lines += textwrap.wrap(field.description, 100, initial_indent="    ", subsequent_indent="    ")
        return "\n".join(lines)


def explain(path: str) -> Field:
    """What is at `application.spec.components.replicas`, to print or to read. Raises NotFound with a hint."""
    first, *rest = path.split(".")
    kind = kind_called(first)
    if kind is None:
        names = [k.__name__.lower() for k in KINDS]
        raise NotFound(f"there is no kind {first!r}", next_step=did_you_mean(first, names))
    field = _kind_field(kind)
    walked = first
    for step in rest:
        found = next((f for f in field.fields if f.name == step), None)
        if found is None:
            hint = did_you_mean(step, [f.name for f in field.fields]) or f"{walked} has no fields"
            raise NotFound(f"{walked} has no field {step!r}", next_step=hint)
        field, walked = found, f"{walked}.{step}"
    return field


def json_schema(kind: type[Resource]) -> dict[str, Any]:
    """The JSON Schema (2020-12) of one kind's documents."""
    (reference,), definitions = msgspec.json.schema_components([kind], schema_hook=schema_hook)
    classes = _classes(kind)
    for name, definition in definitions.items():
        described = _descriptions(classes[name])
        for wire_name, schema in definition["properties"].items():
            if text := described.get(wire_name):
                schema["description"] = text
    root: dict[str, Any] = definitions[kind.__name__]
    # Classes default to the one api version there is; documents say it, so that the next one can differ.
    properties = root["properties"]
    root["properties"] = {
        "apiVersion": {"const": API_VERSION},
        **{k: v for k, v in properties.items() if k != "apiVersion"},
    }
    root["required"] = ["apiVersion", *root["required"]]
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "title": kind.__name__,
        **reference,
        "$defs": dict(sorted(definitions.items())),
    }


def all_schemas() -> dict[str, dict[str, Any]]:
    """Every kind's schema, by plural."""
    return {kind.plural: json_schema(kind) for kind in KINDS}


def rendered() -> dict[str, str]:
    """The files under docs/schemas: name and exact text."""
    return {
        f"{plural}.json": msgspec.json.format(msgspec.json.encode(schema), indent=2).decode() + "\n"
        for plural, schema in all_schemas().items()
    }


def main(arguments: Sequence[str] = ()) -> None:
    """Write docs/schemas, or the directory named as the one argument."""
    directory = Path(arguments[0]) if arguments else SCHEMAS
    directory.mkdir(parents=True, exist_ok=True)
    for name, text in rendered().items():
        (directory / name).write_text(text)


def _classes(kind: type[Record]) -> dict[str, type[Any]]:
    """Every class that a kind is built of, by name."""
    found: dict[str, type[Any]] = {}
    pending = [inspect.type_info(kind)]
    while pending:
        type_ = pending.pop()
        if isinstance(type_, inspect.StructType):
            found[type_.cls.__name__] = type_.cls
            pending += [field.type for field in type_.fields]
        else:
            pending += _inner(type_)
    return found


def _inner(type_: inspect.Type) -> list[inspect.Type]:
    if isinstance(type_, inspect.Metadata):
        return [type_.type]
    if isinstance(type_, inspect.UnionType):
        return list(type_.types)
    if isinstance(type_, inspect.VarTupleType | inspect.ListType):
        return [type_.item_type]
    return [type_.value_type] if isinstance(type_, inspect.DictType) else []


@lru_cache(maxsize=128)
def _class_descriptions(cls: Any) -> dict[str, str]:
    """The text under each attribute of one class, by attribute name."""
    tree = ast.parse(textwrap.dedent(source.getsource(cls))).body[0]
    body = tree.body if isinstance(tree, ast.ClassDef) else []
    found = {}
    for attribute, text in pairwise(body):
        if (
            isinstance(attribute, ast.AnnAssign)
            and isinstance(attribute.target, ast.Name)
            and isinstance(text, ast.Expr)
            and isinstance(text.value, ast.Constant)
            and isinstance(text.value.value, str)
        ):
            found[attribute.target.id] = " ".join(text.value.value.split())
    return found


def _descriptions(cls: type[Any]) -> dict[str, str]:
    """The text under each field of a Record, by wire name, its bases' included."""
    texts: dict[str, str] = {}
    for base in reversed(cls.__mro__):
        if isinstance(base, msgspec.StructMeta) and base is not msgspec.Struct:
            texts |= _class_descriptions(base)
    fields = msgspec.structs.fields(cls)
    return {field.encode_name: texts[field.name] for field in fields if field.name in texts}


# --- Explaining -------------------------------------------------------------------------------------------------------


def _kind_field(kind: type[Resource]) -> Field:
    fields = _fields(inspect.type_info(kind))
    named = {field.name: field for field in fields}
    ordered = tuple(named[name] for name in ("metadata", "spec") if name in named)
    return Field(name=kind.__name__, type="kind", description=_first_paragraph(kind), fields=ordered)


def _fields(type_: inspect.Type) -> tuple[Field, ...]:
    if not isinstance(type_, inspect.StructType):
        return next((fields for inner in _inner(type_) if (fields := _fields(inner))), ())
    described = _descriptions(type_.cls)
    return tuple(
        Field(
            name=field.encode_name,
            type=_words(field.type),
            description=described.get(field.encode_name) or _described(field.type),
            required=field.required,
            default=_default(field),
            fields=_fields(field.type),
        )
        for field in type_.fields
    )


_QUANTITY_WORDS = {
    "Bytes": "bytes",
    "Millicores": "processor cores",
    "Millis": "duration",
    "BitsPerSecond": "bits a second",
    "Instant": "instant",
}


def _words(type_: inspect.Type, plural: bool = False) -> str:
    """A type in a few words."""
    if isinstance(type_, inspect.Metadata):
        return _words(type_.type, plural)
    if isinstance(type_, inspect.UnionType):
        return _words(next(t for t in type_.types if not isinstance(t, inspect.NoneType)), plural)
    if isinstance(type_, inspect.VarTupleType | inspect.ListType):
        return f"{'lists' if plural else 'list'} of {_words(type_.item_type, plural=True)}"
    if isinstance(type_, inspect.LiteralType):
        return f"one of {', '.join(str(value) for value in type_.values)}"
    if isinstance(type_, inspect.DictType) and not isinstance(type_.value_type, inspect.AnyType):
        return f"mapping of text to {_words(type_.value_type)}"
    if isinstance(type_, inspect.CustomType) and issubclass(type_.cls, Quantity):
        return f"{_QUANTITY_WORDS[type_.cls.__name__]}, like {type_.cls.example}"
    if isinstance(type_, inspect.IntType | inspect.FloatType):
        word = "whole number" if isinstance(type_, inspect.IntType) else "number"
        word += "s" if plural else ""
        span = [f"from {type_.ge}"] * (type_.ge is not None) + [f"to {type_.le}"] * (type_.le is not None)
        return " ".join([word, *span])
    if isinstance(type_, inspect.BoolType):
        return "true or false"
    if isinstance(type_, inspect.StrType):
        return "text"
    return "mappings" if plural else "mapping"


def _described(type_: inspect.Type) -> str:
    """What a type says of itself: its Meta's description, or its class's first paragraph."""
    if isinstance(type_, inspect.Metadata) and (text := (type_.extra_json_schema or {}).get("description")):
        return str(text)
    if isinstance(type_, inspect.StructType | inspect.CustomType):
        return _first_paragraph(type_.cls)
    return next((text for inner in _inner(type_) if (text := _described(inner))), "")


def _first_paragraph(cls: type[Any]) -> str:
    # A class without a docstring of its own would speak with its base's.
    own = cls.__dict__.get("__doc__") or ""
    return " ".join(own.split("\n\n")[0].split())


def _default(field: inspect.Field) -> str | None:
    value = field.default
    if value is msgspec.NODEFAULT and field.default_factory is not msgspec.NODEFAULT:
        value = field.default_factory()
    if value in (msgspec.NODEFAULT, None, (), {}, "") or isinstance(value, msgspec.Struct):
        return None
    return msgspec.json.encode(value, enc_hook=encode_hook).decode().strip('"')


def _note(field: Field) -> str:
    if field.required:
        return " (required)"
    return f" (default {field.default})" if field.default is not None else ""


if __name__ == "__main__":
    main(sys.argv[1:])
