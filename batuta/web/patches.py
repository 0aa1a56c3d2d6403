"""Patches: RFC 7386 merge patch and RFC 6902 JSON patch, on plain values. Pure."""

from __future__ import annotations

import copy
from typing import Any, Final

OPERATIONS_MAX: Final = 10_000
"""As many as Kubernetes takes."""


class PatchFails(ValueError):
    """A patch that cannot be applied to this document; a failed `test` among them."""


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


def patched(document: Any, operations: Any) -> Any:
    """RFC 6902: all operations in order, or PatchFails saying which one and why."""
    if not isinstance(operations, list) or len(operations) > OPERATIONS_MAX:
        raise PatchFails(f"a JSON patch is a list of at most {OPERATIONS_MAX} operations")
    document = copy.deepcopy(document)
    for number, operation in enumerate(operations):
        try:
            document = _apply(document, operation)
        except PatchFails as error:
            raise PatchFails(f"operation {number}: {error}") from None
    return document


def _apply(document: Any, operation: Any) -> Any:
    if not isinstance(operation, dict):
        raise PatchFails("it is no object")
    verb, path = operation.get("op"), _steps(operation.get("path"))
    if verb in ("add", "replace", "test") and "value" not in operation:
        raise PatchFails(f"{verb} needs a value")
    if verb == "add":
        return _add(document, path, copy.deepcopy(operation["value"]))
    if verb == "remove":
        return _remove(document, path)
    if verb == "replace":
        _at(document, path)
        return _add(_remove(document, path), path, copy.deepcopy(operation["value"])) if path else operation["value"]
    if verb == "test":
        if not _same(_at(document, path), operation["value"]):
            raise PatchFails(f"the test of {operation['path']} fails")
        return document
    if verb in ("move", "copy"):
        source = _steps(operation.get("from"))
        if verb == "move" and path[: len(source)] == source and path != source:
            raise PatchFails("nothing can be moved into itself")
        value = copy.deepcopy(_at(document, source))
        return _add(_remove(document, source) if verb == "move" else document, path, value)
    raise PatchFails(f"{str(verb)[:20]!r} is no operation")


def _same(left: Any, right: Any) -> bool:
    """Equal as JSON: true is not 1."""
    if isinstance(left, bool) or isinstance(right, bool):
        return left is right
    if isinstance(left, dict) and isinstance(right, dict):
        return left.keys() == right.keys() and all(_same(left[key], right[key]) for key in left)
    if isinstance(left, list) and isinstance(right, list):
        return len(left) == len(right) and all(_same(a, b) for a, b in zip(left, right, strict=True))
    return bool(left == right)


def _steps(pointer: Any) -> list[str]:
    """RFC 6901."""
    if not isinstance(pointer, str) or (pointer and not pointer.startswith("/")):
        raise PatchFails(f"{str(pointer)[:80]!r} is no pointer: it begins with a slash")
    return [step.replace("~1", "/").replace("~0", "~") for step in pointer.split("/")[1:]]


def _index(step: str, size: int) -> int:
    if not step.isascii() or not step.isdigit() or (len(step) > 1 and step[0] == "0") or int(step) >= size:
        raise PatchFails(f"there is no item {step[:20]!r}")
    return int(step)


def _at(document: Any, path: list[str]) -> Any:
    value = document
    for step in path:
        if isinstance(value, list):
            value = value[_index(step, len(value))]
        elif isinstance(value, dict) and step in value:
            value = value[step]
        else:
            raise PatchFails(f"there is nothing at {step[:80]!r}")
    return value


def _add(document: Any, path: list[str], value: Any) -> Any:
    if not path:
        return value
    around, step = _at(document, path[:-1]), path[-1]
    if isinstance(around, list):
        around.insert(len(around) if step == "-" else _index(step, len(around) + 1), value)
    elif isinstance(around, dict):
        around[step] = value
    else:
        raise PatchFails(f"{step[:80]!r} cannot be added to what is no object and no list")
    return document


def _remove(document: Any, path: list[str]) -> Any:
    if not path:
        raise PatchFails("the whole document cannot be removed")
    around = _at(document, path[:-1])
    _at(around, path[-1:])
    if isinstance(around, list):
        del around[_index(path[-1], len(around))]
    else:
        del around[path[-1]]
    return document
