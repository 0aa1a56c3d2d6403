"""Has this plain value the shape of that class? All answers at once, where msgspec gives the first.

msgspec decides: it is strict, fast, and the only judge of what is accepted. This module explains its no. It walks the
same types that msgspec was given, so a kind is still said once, and a law in the tests says the two always agree.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any, NamedTuple

from msgspec import inspect

from batuta.kinds import condition
from batuta.kinds.base import NAME_PATTERN, Quantity
from batuta.kinds.nearest import did_you_mean, nearest

if TYPE_CHECKING:
    from collections.abc import Iterator

Path = tuple[str | int, ...]


class Misfit(NamedTuple):
    """One place where a value has not the shape that its class asks for."""

    path: Path
    code: str
    message: str
    hint: str = ""
    inside: int = 0
    """Not a misfit of shape at all but a mistake in a condition, at this character of it."""


def misfits(kind: type[Any], value: object) -> Iterator[Misfit]:
    """Everything that keeps `value` from being a `kind`, and what is wrong with the conditions on the way.

    Conditions are read here too, because a kind's own `problems()` cannot be asked of what is not yet a kind. Lazy: a
    caller may stop when it has seen enough.
    """
    yield from _walk(inspect.type_info(kind), value, ())


def written(path: Path) -> str:
    """A path as people read it: `spec.components[0].name`."""
    text = ""
    for step in path:
        text += f"[{step}]" if isinstance(step, int) else f"{'.' if text else ''}{_short(step)}"
    return text


def _walk(type_: inspect.Type, value: object, path: Path) -> Iterator[Misfit]:
    description = ""
    if isinstance(type_, inspect.Metadata):
        description = (type_.extra_json_schema or {}).get("description", "")
        of = (type_.extra or {}).get("condition")
        if of and isinstance(value, str):
            yield from _condition(value, path, condition.VARIABLES[of])
        type_ = type_.type
    if isinstance(type_, inspect.UnionType):
        # Our unions are all "something or null".
        if value is None and any(isinstance(t, inspect.NoneType) for t in type_.types):
            return
        inner = next(t for t in type_.types if not isinstance(t, inspect.NoneType))
        yield from _walk(inner, value, path)
    elif isinstance(type_, inspect.StructType):
        yield from _struct(type_, value, path)
    elif isinstance(type_, inspect.DictType):
        if not isinstance(value, dict):
            yield _other(path, "a mapping", value)
            return
        for key, inner in value.items():
            yield from _walk(type_.value_type, inner, (*path, key))
    elif isinstance(type_, inspect.VarTupleType | inspect.ListType):
        yield from _list(type_, value, path)
    elif isinstance(type_, inspect.CustomType):
        yield from _quantity(type_.cls, value, path)
    elif isinstance(type_, inspect.LiteralType):
        if value not in type_.values or isinstance(value, bool):
            yield _not_one_of(path, value, [str(v) for v in type_.values])
    elif isinstance(type_, inspect.StrType):
        yield from _text(type_, value, path, description)
    elif isinstance(type_, inspect.IntType | inspect.FloatType):
        yield from _number(type_, value, path)
    elif isinstance(type_, inspect.BoolType) and not isinstance(value, bool):
        hint = "remove the quotes" if value in ("true", "false") else ""
        yield _other(path, "true or false", value, hint)


def _struct(type_: inspect.StructType, value: object, path: Path) -> Iterator[Misfit]:
    if not isinstance(value, dict):
        named = [field.encode_name for field in type_.fields]
        yield _other(path, f"a mapping with {', '.join(named[:4])}{', …' if len(named) > 4 else ''}", value)
        return
    known = {field.encode_name: field for field in type_.fields}
    for key, inner in value.items():
        if key in known:
            yield from _walk(known[key].type, inner, (*path, key))
        elif key != type_.tag_field:
            free = [name for name in known if name not in value]
            hint = did_you_mean(key, free, otherwise="") or did_you_mean(key, known)
            if key == "status" and not path:
                hint = "the hub writes it; leave it out"
            yield Misfit((*path, key), "unknown_field", f"there is no field {_short(key)!r}", hint)
    for name, field in known.items():
        if field.required and name not in value:
            near = nearest(name, [key for key in value if key not in known])
            if near is None:
                # A near miss among the unknown fields has been said already.
                yield Misfit(path, "missing_field", f"{name!r} is missing")


def _list(type_: inspect.VarTupleType | inspect.ListType, value: object, path: Path) -> Iterator[Misfit]:
    if not isinstance(value, list | tuple):
        hint = "write a list, like [a, b]" if isinstance(value, str) else ""
        hint = "put a dash before it, or brackets around it" if isinstance(value, dict) else hint
        yield _other(path, "a list", value, hint)
        return
    yield from _length(type_, len(value), path, "entries")
    for i, inner in enumerate(value):
        yield from _walk(type_.item_type, inner, (*path, i))


def _text(type_: inspect.StrType, value: object, path: Path, description: str) -> Iterator[Misfit]:
    if not isinstance(value, str):
        shown = {True: "true", False: "false", None: "null"}.get(value) if isinstance(value, bool | None) else value
        quotable = isinstance(value, bool | int | float)
        yield _other(path, "text", value, f'write "{shown}"' if quotable else "")
        return
    if type_.pattern is not None and not re.search(type_.pattern, value):
        hint = ""
        if type_.pattern == NAME_PATTERN and (proposed := _as_name(value)):
            hint = f"for example {proposed!r}"
        rule = description.rstrip(".")
        rule = f": {rule[:1].lower() + rule[1:]}" if rule else ""
        yield Misfit(path, "value", f"{_short(value)!r} does not fit{rule}" if value else f"this is empty{rule}", hint)
        return
    yield from _length(type_, len(value), path, "characters")


def _condition(text: str, path: Path, variables: frozenset[str]) -> Iterator[Misfit]:
    for problem in condition.check(written(path), text, variables):
        if text:
            yield Misfit(path, problem.code, problem.message, problem.hint, max(problem.inside, 1))


def _number(type_: inspect.IntType | inspect.FloatType, value: object, path: Path) -> Iterator[Misfit]:
    whole = isinstance(type_, inspect.IntType)
    expected = "a whole number" if whole else "a number"
    if isinstance(value, bool) or not isinstance(value, int if whole else (int, float)):
        digits = isinstance(value, str) and re.fullmatch(r"-?\d+(\.\d+)?", value)
        yield _other(path, expected, value, "remove the quotes" if digits else "")
        return
    low, high = type_.ge, type_.le
    if (low is not None and value < low) or (high is not None and value > high):
        span = f"from {low} to {high}" if low is not None and high is not None else ""
        span = span or (f"at least {low}" if low is not None else f"at most {high}")
        yield Misfit(path, "value", f"{value} is out of range: {span}")


def _quantity(kind: type[Any], value: object, path: Path) -> Iterator[Misfit]:
    if issubclass(kind, Quantity):
        try:
            kind.parse(value)
        except ValueError as error:
            yield Misfit(path, "value", str(error))


def _length(
    type_: inspect.StrType | inspect.VarTupleType | inspect.ListType, length: int, path: Path, what: str
) -> Iterator[Misfit]:
    if type_.min_length is not None and length < type_.min_length:
        message = "this is empty" if length == 0 else f"this has {length} {what}"
        yield Misfit(path, "value", message, f"it needs at least {type_.min_length}")
    if type_.max_length is not None and length > type_.max_length:
        yield Misfit(path, "value", f"this has {length} {what}", f"it may have {type_.max_length} at most")


def _not_one_of(path: Path, value: object, known: list[str]) -> Misfit:
    if not isinstance(value, str):
        return _other(path, f"one of {', '.join(known)}", value)
    near = nearest(value, known)
    hint = f"did you mean {near!r}?" if near else ""
    return Misfit(path, "value", f"{_short(value)!r} is not one of {', '.join(known)}", hint)


def _other(path: Path, expected: str, value: object, hint: str = "") -> Misfit:
    if value is None:
        hint = "fill it in, or leave it out"
    return Misfit(path, "wrong_type", f"expected {expected}, found {_described(value)}", hint)


def _described(value: object) -> str:
    if value is None:
        return "nothing"
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, str):
        return f"the text {_short(value)!r}" if value else "empty text"
    if isinstance(value, int | float):
        return f"the number {value}"
    return "a mapping" if isinstance(value, dict) else "a list"


def _as_name(value: str) -> str:
    """The nearest lawful name: what people would have typed had they known the rule."""
    dashed = re.sub(r"[^a-z0-9]+", "-", value.lower()).strip("-")
    return dashed[:63].strip("-")


def _short(word: str) -> str:
    return word if len(word) <= 60 else word[:57] + "…"
