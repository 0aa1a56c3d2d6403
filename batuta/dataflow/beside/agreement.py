"""Whether two releases say the same of one input. They need not agree to the last digit to be of one mind.

| what they say | they agree when |
|---|---|
| a class, with or without scores | it is the same class: by its word where both have words, else by its number |
| a number, or numbers | they are no further apart than a twentieth of the larger, or a thousandth |
| whole numbers, truth values, texts | they are equal |
| tensors: floats in two dimensions, two columns or more | row by row, the largest is in the same column |
| tensors: `classes` and `labels`, as shaping gives them | row by row, the first is the same |
| other tensors | row by row, as numbers or texts above; every output counts |

Boxes and masks are compared as the numbers that they are, not by how far they overlap. Lists of numbers are far apart
as points are: by the length of their difference.
"""

from __future__ import annotations

import math
import re
from typing import TYPE_CHECKING, Any, Final, NamedTuple

import numpy as np

from batuta.dataflow.oip.datatypes import BYTES, FLOATS, widened

if TYPE_CHECKING:
    from collections.abc import Collection, Mapping

    from batuta.dataflow.oip.datatypes import Array
    from batuta.dataflow.oip.messages import Given

WITHIN: Final = 0.05
AT_LEAST: Final = 0.001
_SCORE: Final = re.compile(rb"^-?[0-9.]+(?:[eE][-+]?[0-9]+)?:")
"""Of the protocol's classification, `0.93:7`: what comes before the class."""


class Compared(NamedTuple):
    """Rows of an answer, and how many of them are the same."""

    rows: int
    agreed: int


def same(old: Any, new: Any) -> bool:
    """Two answers to one message, as JSON has them."""
    if isinstance(old, dict) and isinstance(new, dict):
        if "label" in old and "label" in new:
            return bool(old["label"] == new["label"])
        if "value" in old or "value" in new:
            # Scores beside it say how sure a release is, not what it says.
            return "value" in old and "value" in new and same(old["value"], new["value"])
        return old.keys() == new.keys() and all(same(old[key], new[key]) for key in old)
    if isinstance(old, list) and isinstance(new, list):
        if len(old) != len(new):
            return False
        a, b = _numbers(old), _numbers(new)
        if a is not None and b is not None:
            return a.shape == b.shape and _near(a, b)
        return all(same(one, other) for one, other in zip(old, new, strict=True))
    if isinstance(old, bool) or isinstance(new, bool) or not isinstance(old, (int, float)):
        return bool(old == new)
    if isinstance(old, int) and isinstance(new, int):
        return old == new
    return isinstance(new, (int, float)) and _near(np.array([old]), np.array([new]))


def rows(old: Mapping[str, Given], new: Mapping[str, Given], own: Collection[str]) -> Compared:
    """Two answers to one request. `own` are the outputs of the model itself, whose scores are in the order of its
    classes; those that shaping makes are in the order of the scores."""
    names = [name for name in old if name in new]
    if not names:
        return Compared(1, 0)
    for pair in (("labels", "classes"), ("classes",)):
        # Words first: two releases may number the same classes otherwise.
        chosen = next((n for n in pair if n in names and n not in own and _has_words(old[n], new[n])), None)
        if chosen is not None:
            return _all_of({chosen: _firsts(old[chosen], new[chosen])})
    verdicts: dict[str, Array] = {}
    scores = [n for n in names if n in own and _is_scores(old[n]) and _is_scores(new[n])]
    for name in scores or names:
        verdicts[name] = _tops(old[name], new[name]) if scores else _each(old[name], new[name])
    return _all_of(verdicts)


def _all_of(verdicts: Mapping[str, Array]) -> Compared:
    """A row is the same when every output of it is."""
    count = max(len(each) for each in verdicts.values())
    whole = np.ones(count, bool)
    for each in verdicts.values():
        whole &= each if len(each) == count else bool(each.all())
    return Compared(count, int(whole.sum()))


def _has_words(old: Given, new: Given) -> bool:
    """Texts that are all empty are no words: that version has none."""
    return old.datatype != BYTES or (any(old.array.ravel()) and any(new.array.ravel()))


def _is_scores(given: Given) -> bool:
    return given.datatype in FLOATS and given.array.ndim == 2 and given.array.shape[1] >= 2


def _tops(old: Given, new: Given) -> Array:
    one, other = _plain(old), _plain(new)
    if len(one) != len(other):
        return np.zeros(max(len(one), len(other)), bool)
    found: Array = np.argmax(one, axis=1) == np.argmax(other, axis=1)
    return found & np.isfinite(one).all(axis=1) & np.isfinite(other).all(axis=1)


def _firsts(old: Given, new: Given) -> Array:
    one, other = (each.array.reshape(_count(each.array), -1) for each in (old, new))
    if len(one) != len(other) or not one.size or not other.size:
        return np.zeros(max(len(one), len(other), 1), bool)
    found: Array = np.asarray(one[:, 0] == other[:, 0], bool)
    return found


def _each(old: Given, new: Given) -> Array:
    """Row by row; an answer of another shape is another answer."""
    one, other = _plain(old), _plain(new)
    if one.shape != other.shape or (old.datatype == BYTES) != (new.datatype == BYTES):
        return np.zeros(max(_count(one), _count(other)), bool)
    one, other = (each.reshape(_count(each), -1) for each in (one, other))
    if old.datatype == BYTES:
        # The best class of a row comes first, after its score.
        return np.array([_word(a) == _word(b) for a, b in zip(one, other, strict=True)], bool)
    if old.datatype in FLOATS or new.datatype in FLOATS:
        return np.array([_near(a, b) for a, b in zip(one, other, strict=True)], bool)
    found: Array = (one == other).all(axis=1)
    return found


def _word(row: Array) -> list[bytes]:
    words = [bytes(word) for word in row]
    return [_SCORE.sub(b"", words[0])] if words and _SCORE.match(words[0]) else words


def _plain(given: Given) -> Array:
    return widened(given.array) if given.datatype == "BF16" else given.array


def _count(array: Array) -> int:
    return len(array) if array.ndim else 1


def _numbers(values: list[Any]) -> Array | None:
    try:
        found = np.asarray(values)
    except ValueError:
        return None
    return found if found.dtype.kind in "iuf" else None


def _near(one: Array, other: Array) -> bool:
    a, b = one.astype(np.float64).ravel(), other.astype(np.float64).ravel()
    with np.errstate(over="ignore", invalid="ignore"):
        apart = float(np.linalg.norm(a - b))
        larger = max(float(np.linalg.norm(a)), float(np.linalg.norm(b)))
    return math.isfinite(apart) and apart <= max(AT_LEAST, WITHIN * larger)
