"""Ownership of fields: who last said what. Server-side apply merges by it, and refuses to take what others hold.

`managedFields` has one entry for each manager and operation. An Update owns what it changed; an Apply owns what its
document says, and what it no longer says goes away unless somebody else holds it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

from msgspec import inspect

from batuta.kinds.base import API_VERSION
from batuta.web.fieldsets import (
    MISSING,
    Path,
    can_be_merged,
    field_type,
    from_fields,
    is_keyed,
    item_type,
    key_in,
    key_of,
    paths_of,
    to_fields,
    value_at,
)

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from batuta.kinds.base import Resource

MANAGERS_MAX = 64


class Writer(NamedTuple):
    """One who writes, and how."""

    name: str
    operation: str
    """`Apply` or `Update`."""


class Conflict(NamedTuple):
    """A field that another holds with another value."""

    manager: Writer
    path: Path


Owned = dict[Writer, frozenset[Path]]


def owned_in(entries: Sequence[Mapping[str, Any]]) -> Owned:
    """Who owns what. Raises ValueError when an entry cannot be read."""
    found: Owned = {}
    for entry in entries[: MANAGERS_MAX + 1]:
        name, operation = entry.get("manager", ""), entry.get("operation", "")
        if not isinstance(name, str) or operation not in ("Apply", "Update"):
            raise ValueError("an entry of managedFields has a manager, and an operation that is Apply or Update")
        if not isinstance(entry.get("time") or "", str):
            raise ValueError("the time of an entry of managedFields is text")
        manager = Writer(name[:128], operation)
        found[manager] = found.get(manager, frozenset()) | from_fields(entry.get("fieldsV1") or {})
    return found


def entries_of(owned: Owned, before: Sequence[Mapping[str, Any]], at: str) -> tuple[dict[str, Any], ...]:
    """`managedFields`; an entry keeps its time until its fields change."""
    old = {Writer(str(e.get("manager", "")), str(e.get("operation", ""))): e for e in before}
    entries = []
    for manager, paths in owned.items():
        if not paths:
            continue
        fields = to_fields(paths)
        known = old.get(manager)
        kept = known.get("time") if known is not None and known.get("fieldsV1") == fields else None
        entries.append(
            {
                "manager": manager.name,
                "operation": manager.operation,
                "apiVersion": API_VERSION,
                "time": kept or at,
                "fieldsType": "FieldsV1",
                "fieldsV1": fields,
            }
        )
    return tuple(sorted(entries, key=lambda e: (e["time"], e["manager"], e["operation"])))


def after_update(
    owned: Owned, kind: type[Resource], before: dict[str, Any], after: dict[str, Any], manager: Writer
) -> Owned:
    """What an Update changed is its own from now on. Documents are whole: with their defaults."""
    there, was = paths_of(kind, after), paths_of(kind, before)
    changed = {path for path in there if value_at(before, path) != value_at(after, path)}
    # An item of a list is not changed by what changes inside of it.
    changed -= {path for path in changed if path[-1].startswith("k:") and value_at(before, path) is not MISSING}
    gone = was - there
    kept = {m: frozenset(p for p in paths - changed - gone if _exists(after, p)) for m, paths in owned.items()}
    kept[manager] = kept.get(manager, frozenset()) | changed
    return kept


class Merge(NamedTuple):
    """What an Apply makes of a document."""

    document: dict[str, Any]
    said: frozenset[Path]


def merge(owned: Owned, kind: type[Resource], base: dict[str, Any], config: dict[str, Any], manager: Writer) -> Merge:
    """The base with what the config says, without what this manager said before and nobody says any more."""
    said = frozenset(paths_of(kind, config))
    others: set[Path] = set().union(*(paths for m, paths in owned.items() if m != manager))
    document = _merged(inspect.type_info(kind), base, config)
    held = said.union(others)
    # From the outside in: an item of a list is found by a key that is a field of it.
    for path in sorted(owned.get(manager, frozenset()) - held, key=len):
        _remove(document, path, held)
    return Merge(document, said)


def after_apply(
    owned: Owned,
    merged: Merge,
    before: dict[str, Any],
    after: dict[str, Any],
    manager: Writer,
    *,
    force: bool,
) -> tuple[Owned, list[Conflict]]:
    """Who owns what then, and what stands against it. Documents are whole: with their defaults."""
    conflicts: list[Conflict] = []
    kept: Owned = {}
    for other, paths in owned.items():
        if other == manager:
            continue
        taken = {p for p in paths & merged.said if not p[-1].startswith("k:") and _differs(before, after, p)}
        conflicts += [Conflict(other, path) for path in sorted(taken)]
        kept[other] = frozenset(p for p in paths - taken if _exists(after, p))
    kept[manager] = merged.said
    return kept, [] if force else conflicts


def _differs(before: dict[str, Any], after: dict[str, Any], path: Path) -> bool:
    return bool(value_at(before, path) != value_at(after, path))


def _exists(document: dict[str, Any], path: Path) -> bool:
    return value_at(document, path) is not MISSING


def _merged(type_: inspect.Type | None, base: Any, config: Any) -> Any:
    if isinstance(base, dict) and isinstance(config, dict) and can_be_merged(type_):
        return {**base, **{k: _merged(field_type(type_, k), base.get(k), v) for k, v in config.items()}}
    key = key_of(type_)
    if key and is_keyed(base, key) and is_keyed(config, key):
        inner = item_type(type_)
        news = {item[key]: item for item in config}
        items = [_merged(inner, item, news.pop(item[key])) if item[key] in news else item for item in base]
        return [*items, *news.values()]
    return config


def _remove(document: dict[str, Any], path: Path, held: frozenset[Path]) -> None:
    """Takes out what is at a path, and every Record around it of which nobody holds a part any more."""
    if path[-1].startswith("k:") and any(p[: len(path)] == path for p in held):
        return
    _drop(document, path)
    for end in range(len(path) - 1, 2, -1):
        # An item of a list goes by its own path, which was said as well.
        if path[end - 1].startswith("k:") or any(p[:end] == path[:end] for p in held):
            return
        _drop(document, path[:end])


def _drop(document: dict[str, Any], path: Path) -> None:
    around = value_at(document, path[:-1])
    step = path[-1]
    if step.startswith("f:") and isinstance(around, dict):
        around.pop(step[2:], None)
    elif step.startswith("k:") and isinstance(around, list):
        key, wanted = key_in(step)
        around[:] = [item for item in around if not (isinstance(item, dict) and item.get(key) == wanted)]
