"""Sets of fields of a kind: which paths a document says, and how they are written in `managedFields`.

A path is a tuple of steps as FieldsV1 has them: `f:spec`, `f:components`, `k:{"name":"run"}`. Which lists are told
apart by a key follows from the class: a list of Records whose first required field is a name or a version.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

import msgspec
from msgspec import inspect

from batuta.kinds.base import Quantity

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence

    from batuta.kinds.base import Resource

Path = tuple[str, ...]
KEYS: Final = ("name", "version")
MISSING: Final = object()
_OWNED_METADATA: Final = ("labels", "annotations", "finalizers", "ownerReferences")
_DEPTH_MAX: Final = 64


def paths_of(kind: type[Resource], document: dict[str, Any]) -> set[Path]:
    """Every field that a document says: the leaves, and the items of lists that have keys."""
    type_ = inspect.type_info(kind)
    found: set[Path] = set()
    parts = {name: value for name, value in document.items() if name not in ("apiVersion", "kind", "status")}
    metadata = parts.pop("metadata", None)
    if isinstance(metadata, dict):
        parts["metadata"] = {key: inner for key, inner in metadata.items() if key in _OWNED_METADATA and inner}
    for name, value in parts.items():
        if value not in (None, {}):
            found.update(_paths(field_type(type_, name), value, (f"f:{name}",)))
    return found


def _paths(type_: inspect.Type | None, value: Any, here: Path) -> Iterator[Path]:
    if isinstance(value, dict) and value and (is_record(type_) or _is_map(type_)):
        for name, inner in value.items():
            if inner is not None:
                yield from _paths(field_type(type_, name), inner, (*here, f"f:{name}"))
    elif (key := key_of(type_)) and is_keyed(value, key):
        for item in value:
            step = (*here, key_step(key, item[key]))
            yield step
            yield from _paths(item_type(type_), item, step)
    else:
        yield here


def value_at(document: Any, path: Path) -> Any:
    """What is there; MISSING when nothing is."""
    value = document
    for step in path:
        if step.startswith("f:"):
            value = value.get(step[2:], MISSING) if isinstance(value, dict) else MISSING
        elif isinstance(value, list):
            key, wanted = key_in(step)
            value = next((item for item in value if isinstance(item, dict) and item.get(key) == wanted), MISSING)
        else:
            value = MISSING
        if value is MISSING:
            return MISSING
    return value


def whole(value: Any) -> Any:
    """A Record as plain values, with the defaults that its wire form leaves out; nothing where there is None."""
    if isinstance(value, msgspec.Struct):
        fields = {f.encode_name: getattr(value, f.name) for f in msgspec.structs.fields(type(value))}
        return {name: whole(inner) for name, inner in fields.items() if inner is not None}
    if isinstance(value, Quantity):
        return value.text()
    if isinstance(value, tuple | list):
        return [whole(inner) for inner in value]
    return {k: whole(v) for k, v in value.items()} if isinstance(value, dict) else value


# --- FieldsV1 ---------------------------------------------------------------------------------------------------------


def to_fields(paths: Iterable[Path]) -> dict[str, Any]:
    """The tree that `fieldsV1` is. `.` says that the step itself is meant, beside what lies below it."""
    tree: dict[str, Any] = {}
    for path in sorted(paths):
        branch = tree
        for step in path:
            branch = branch.setdefault(step, {})
        if path[-1].startswith("k:"):
            branch["."] = {}
    return tree


def from_fields(tree: Any) -> set[Path]:
    """The paths of a tree. Raises ValueError when it is none."""
    found: set[Path] = set()
    pending: list[tuple[Path, Any]] = [((), tree)]
    while pending:
        path, branch = pending.pop()
        if not isinstance(branch, dict) or len(path) > _DEPTH_MAX:
            raise ValueError(f"fieldsV1 is no tree of fields at {'/'.join(path)[:80]}")
        if path and (not branch or "." in branch):
            found.add(path)
        for step, inner in branch.items():
            if step == ".":
                continue
            if step.startswith("k:"):
                key_in(step)
            elif not step.startswith(("f:", "v:")):
                raise ValueError(f"{step[:40]!r} is no step of fieldsV1")
            pending.append(((*path, step), inner))
    return found


def written(path: Path) -> str:
    """A path for people: `.spec.components[name="run"].replicas.count`."""
    parts = []
    for step in path:
        if step.startswith("k:"):
            key, value = key_in(step)
            parts.append(f'[{key}="{value}"]')
        else:
            parts.append(f".{step[2:]}")
    return "".join(parts)


def key_step(key: str, value: str) -> str:
    return "k:" + msgspec.json.encode({key: value}).decode()


def key_in(step: str) -> tuple[str, Any]:
    """The key and its value in a `k:` step. Raises ValueError."""
    read = msgspec.json.decode(step[2:])
    if not isinstance(read, dict) or len(read) != 1:
        raise ValueError(f"{step[:40]!r} names no key")
    return next(iter(read.items()))


# --- Types ------------------------------------------------------------------------------------------------------------


def bare(type_: inspect.Type | None) -> inspect.Type | None:
    """A type without its annotations and without None."""
    while True:
        if isinstance(type_, inspect.Metadata):
            type_ = type_.type
        elif isinstance(type_, inspect.UnionType):
            real = [t for t in type_.types if not isinstance(t, inspect.NoneType)]
            type_ = real[0] if len(real) == 1 else None
        else:
            return type_


def is_record(type_: inspect.Type | None) -> bool:
    return isinstance(bare(type_), inspect.StructType)


def _is_map(type_: inspect.Type | None) -> bool:
    """Text by text, like labels: each key is a field of its own."""
    type_ = bare(type_)
    return isinstance(type_, inspect.DictType) and not isinstance(type_.value_type, inspect.AnyType)


def can_be_merged(type_: inspect.Type | None) -> bool:
    return is_record(type_) or _is_map(type_)


def field_type(type_: inspect.Type | None, name: str) -> inspect.Type | None:
    type_ = bare(type_)
    if isinstance(type_, inspect.StructType):
        return next((field.type for field in type_.fields if field.encode_name == name), None)
    return type_.value_type if isinstance(type_, inspect.DictType) else None


def item_type(type_: inspect.Type | None) -> inspect.Type | None:
    type_ = bare(type_)
    return type_.item_type if isinstance(type_, inspect.VarTupleType | inspect.ListType) else None


def key_of(type_: inspect.Type | None) -> str:
    """The field that tells the items of a list apart; empty for lists that are one value."""
    item = bare(item_type(type_))
    if not isinstance(item, inspect.StructType):
        return ""
    first = next((field.encode_name for field in item.fields if field.required), "")
    return first if first in KEYS else ""


def is_keyed(value: Any, key: str) -> bool:
    """Has every item its own key?"""
    if not isinstance(value, list) or not value:
        return False
    keys: Sequence[Any] = [item.get(key) if isinstance(item, dict) else None for item in value]
    return all(isinstance(k, str) for k in keys) and len(set(keys)) == len(keys)
