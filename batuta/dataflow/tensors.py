"""From a message's bytes to the array that a model takes. Imported by workers only: it needs NumPy.

What cannot be decoded raises ValueError with a sentence for people: the message is at fault, never the worker.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

import msgspec
import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray

    Array = NDArray[Any]


ID_LENGTH_MAX = 128


class Item(NamedTuple):
    """What one message holds: the tensor, and the name its publisher gave it, if any."""

    tensor: Array
    id: str | None = None


def decode(data: bytes, how: Literal["json", "raw"], dtype: np.dtype[Any], shape: tuple[int, ...]) -> Item:
    """One item of a batch. `shape` is the item's, without the batch dimension; -1 stands for any length."""
    return _from_json(data, dtype, shape) if how == "json" else Item(_from_raw(data, dtype, shape))


def anything(data: bytes, how: Literal["json", "raw", "image"]) -> Item:
    """Whatever a message holds, for a transform that knows what to make of it: numbers of any shape, the bytes
    themselves, or an image's pixels in rows of red, green and blue."""
    if how == "raw":
        return Item(np.frombuffer(data, np.uint8))
    if how == "image":
        from batuta.dataflow.shaping import opened

        return Item(np.asarray(opened(data).convert("RGB")))
    value, name = _said(data)
    found = _words(value) if isinstance(value, str) else np.asarray(value)
    if found.dtype.kind not in "biufO" or (found.dtype.kind == "O" and not isinstance(value, str)):
        raise ValueError("expected numbers in nested lists, or a text")
    return Item(found, name)


def _from_json(data: bytes, dtype: np.dtype[Any], shape: tuple[int, ...]) -> Item:
    """Numbers in nested lists, bare or as `{"data": …}`; then `id` may name the message."""
    value, name = _said(data)
    return Item(_numbers(value, dtype, shape), name)


def _said(data: bytes) -> tuple[object, str | None]:
    """The value, and the name that its publisher gave it."""
    try:
        value = msgspec.json.decode(data)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"not JSON: {error}") from error
    if not isinstance(value, dict):
        return value, None
    if "data" not in value:
        raise ValueError('an object needs the key "data", holding numbers in nested lists')
    name = value.get("id")
    if name is not None and not (isinstance(name, str) and 0 < len(name) <= ID_LENGTH_MAX and name.isprintable()):
        raise ValueError(f'"id" is a text of 1 to {ID_LENGTH_MAX} printable characters')
    return value["data"], name


def _numbers(value: object, dtype: np.dtype[Any], shape: tuple[int, ...]) -> Array:
    if dtype.kind in "US" or dtype.kind == "O":
        return shaped(_words(value), shape)
    try:
        found = np.asarray(value)
    except (ValueError, OverflowError) as error:
        raise ValueError("lists of unequal lengths") from error
    if found.dtype.kind not in ("b" if dtype.kind == "b" else "iuf"):
        raise ValueError(f"expected {dtype.name} numbers, found {_kind(found)}")
    if dtype.kind in "iu":
        limits = np.iinfo(dtype)
        if found.size and (found.min() < limits.min or found.max() > limits.max or (found != np.trunc(found)).any()):
            raise ValueError(f"a number is not a whole {dtype.name}")
    with np.errstate(over="ignore"):
        cast = found.astype(dtype)
    if dtype.kind == "f" and not np.isfinite(cast).all():
        raise ValueError(f"a number is too large for {dtype.name}")
    return shaped(cast, shape)


def _words(value: object) -> Array:
    found = np.asarray(value, dtype=object)
    if not all(isinstance(each, str) for each in found.flat):
        raise ValueError("expected text")
    return found


def _kind(found: Array) -> str:
    known = {"U": "text", "O": "mixed values or unequal lists", "b": "truth values"}
    return known.get(found.dtype.kind, str(found.dtype))


def _from_raw(data: bytes, dtype: np.dtype[Any], shape: tuple[int, ...]) -> Array:
    """The tensor's little-endian bytes, rows first."""
    if dtype.kind not in "biuf":
        raise ValueError(f"{dtype.name} has no raw form; decode json")
    if len(data) % dtype.itemsize:
        raise ValueError(f"{len(data)} bytes are no whole number of {dtype.name}")
    found = np.frombuffer(data, dtype=dtype.newbyteorder("<")).astype(dtype, copy=False)
    free = shape.count(-1)
    known = math.prod(d for d in shape if d != -1)
    if free > 1 or known == 0 or found.size % known or (free == 0 and found.size != known):
        raise ValueError(f"{len(data)} bytes are no {dtype.name} tensor of shape {_text(shape)}")
    return found.reshape(shape)


def shaped(found: Array, shape: tuple[int, ...]) -> Array:
    """As the model wants one item. A batch of one is an item; a flat list is laid out in rows, rows are flattened."""
    if found.ndim == len(shape) + 1 and found.shape[0] == 1:
        found = found[0]
    if found.ndim == len(shape) and all(want in (-1, have) for want, have in zip(shape, found.shape, strict=True)):
        return found
    known = -1 not in shape and found.size == math.prod(shape)
    if known and (found.ndim == 1 or len(shape) == 1):
        return found.reshape(shape)
    raise ValueError(f"expected shape {_text(shape)}, found {_text(found.shape)}")


def _text(shape: tuple[int, ...]) -> str:
    return "[" + ", ".join("any" if d == -1 else str(d) for d in shape) + "]"
