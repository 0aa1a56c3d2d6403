"""Differences between two documents, field by field: what `batuta diff` prints and dry runs answer."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Literal

from batuta.kinds.base import Record

if TYPE_CHECKING:
    from collections.abc import Iterator

NAMES = ("name", "version", "topic", "key")
"""Fields by which the members of a list are known again, though others came before them."""


class FieldChange(Record):
    """One field that differs: `~ spec.components[0].replicas.perSite: 1 → 2`."""

    op: Literal["+", "-", "~"]
    path: str
    before: Any = None
    after: Any = None


def differences(before: Any, after: Any, path: str = "") -> Iterator[FieldChange]:
    """Every field in which two plain documents differ, in the order of the newer one; the smallest that says it."""
    if isinstance(before, dict) and isinstance(after, dict):
        for key in [*after, *(k for k in before if k not in after)]:
            inner = f"{path}.{key}" if path else str(key)
            if key not in before:
                yield FieldChange(op="+", path=inner, after=after[key])
            elif key not in after:
                yield FieldChange(op="-", path=inner, before=before[key])
            else:
                yield from differences(before[key], after[key], inner)
    elif isinstance(before, list) and isinstance(after, list):
        yield from _lists(before, after, path)
    elif before != after or isinstance(before, bool) != isinstance(after, bool):
        yield FieldChange(op="~", path=path, before=before, after=after)


def _lists(before: list[Any], after: list[Any], path: str) -> Iterator[FieldChange]:
    """Members that have names are compared with their namesakes; others with those in the same place."""
    was, now = _names(before), _names(after)
    if was is None or now is None:
        was, now = {str(i): i for i in range(len(before))}, {str(i): i for i in range(len(after))}
    for name, i in now.items():
        if name in was:
            yield from differences(before[was[name]], after[i], f"{path}[{i}]")
        else:
            yield FieldChange(op="+", path=f"{path}[{i}]", after=after[i])
    for name, i in was.items():
        if name not in now:
            yield FieldChange(op="-", path=f"{path}[{i}]", before=before[i])
    kept = [name for name in was if name in now]
    if kept != [name for name in now if name in was]:
        yield FieldChange(op="~", path=path, before=kept, after=[name for name in now if name in was])


def _names(members: list[Any]) -> dict[str, int] | None:
    """Where each member is, by name; None when they have no names, or not each its own."""
    for field in NAMES:
        if all(isinstance(m, dict) and isinstance(m.get(field), str) for m in members):
            found = {m[field]: i for i, m in enumerate(members)}
            return found if len(found) == len(members) else None
    return None
