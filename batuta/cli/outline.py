"""Any answer as an indented outline: words line up, lists of like things become tables, instants become ages.

It knows the few shapes that answers are made of (a state word with since and reason, a reason, an instant) and no kind,
so that what the hub learns to say is shown without a change here.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any

from batuta.cli.rows import instant_ms, is_instant, reason_text
from batuta.cli.text import ABSENT, age, cell, clean, size, table, toned

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

COLUMNS_MAX = 8
"""A list of things with more words than this is easier to read one below the other."""


def outline(value: Mapping[str, Any], now_ms: float, *, indent: int = 0) -> Iterator[str]:
    """One line for each plain word, a block for whatever has an inside; what is empty is left out."""
    shown = {key: inner for key, inner in value.items() if inner not in (None, "", [], {}, ())}
    lines = {key: one_line(key, inner, now_ms) for key, inner in shown.items()}
    width = max((len(_words(key)) for key, line in lines.items() if line is not None), default=0)
    margin = " " * indent
    for key, inner in shown.items():
        line = lines[key]
        if line is not None:
            yield f"{margin}{_words(key).ljust(width)}  {line}".rstrip()
            continue
        yield f"{margin}{_words(key)}"
        if isinstance(inner, dict):
            yield from outline(inner, now_ms, indent=indent + 2)
        else:
            yield from _listed(inner, now_ms, indent + 2)


def one_line(key: str, value: Any, now_ms: float) -> str | None:
    """A value on one line; None when it has an inside worth a block of its own."""
    if isinstance(value, dict):
        if "code" in value and "subject" in value:
            return clean(reason_text(value))
        if "word" in value:
            return _state(value, now_ms)
        return cell(value, wide=True) if _is_flat(value) and len(value) <= 2 else None
    if isinstance(value, list):
        return None if any(isinstance(each, dict | list) for each in value) else cell(value, wide=True)
    if is_instant(key) and (since_ms := instant_ms(value)) is not None:
        return f"{age(since_ms, now_ms)} ago"
    if isinstance(value, str) and (amount := re.fullmatch(r"(\d+)([KMGT])i", value)):
        return size(int(amount[1]) << 10 * (1 + "KMGT".index(amount[2])))
    return toned(cell(value, wide=True))


def _state(value: Mapping[str, Any], now_ms: float) -> str:
    """`late for 40s: the node is silent (…)`, and what to do about it."""
    parts = toned(str(value["word"]))
    if (since_ms := instant_ms(value.get("since"))) is not None:
        parts += f" for {age(since_ms, now_ms)}"
    reason = value.get("reason")
    if reason:
        parts += f": {clean(reason_text(reason) if isinstance(reason, dict) else str(reason))}"
    next_step = value.get("next") or value.get("nextStep")
    return parts + (f"; {clean(str(next_step))}" if next_step else "")


def _listed(values: Sequence[Any], now_ms: float, indent: int) -> Iterator[str]:
    margin = " " * indent
    if all(isinstance(each, dict) and "code" in each and "subject" in each for each in values):
        for each in values:
            next_step = each.get("next")
            yield f"{margin}{clean(reason_text(each))}" + (f"; {clean(next_step)}" if next_step else "")
        return
    keys = list(dict.fromkeys(key for each in values if isinstance(each, dict) for key in each))
    fits = all(isinstance(each, dict) for each in values) and len(keys) <= COLUMNS_MAX
    rows = [[one_line(key, each.get(key), now_ms) for key in keys] for each in values] if fits else []
    if rows and all(text is not None for row in rows for text in row):
        named = [_words(key).upper() for key in keys]
        for line in table(named, [[text or ABSENT for text in row] for row in rows]):
            yield f"{margin}{line}"
        return
    for each in values:
        if isinstance(each, dict):
            lines = list(outline(each, now_ms, indent=indent + 2))
            # A dash before the first word marks where the next one begins.
            yield from (f"{margin}- {lines[0][indent + 2 :]}", *lines[1:]) if lines else (f"{margin}-",)
        else:
            yield f"{margin}- {cell(each, wide=True)}"


def _is_flat(value: Mapping[str, Any]) -> bool:
    return not any(isinstance(inner, dict | list) for inner in value.values())


def _words(key: str) -> str:
    """`memoryFree` is `memory free`; a key that is nobody's camel case stays as it is."""
    return re.sub(r"(?<=[a-z0-9])([A-Z])", lambda m: f" {m[1].lower()}", clean(key)) if "/" not in key else clean(key)
