"""Datatypes of the protocol and what they are in NumPy.

Two have no type of their own there. BYTES are object arrays of `bytes`. BF16 are the upper halves of FP32, so they are
kept as the 16 bits that they are, and only those who write or read numbers widen and shorten them.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final, NamedTuple

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

    Array = NDArray[Any]

DTYPES: Final[dict[str, np.dtype[Any]]] = {
    name: np.dtype(kind).newbyteorder("<") for name, kind in {
        "BOOL": "bool", "UINT8": "u1", "UINT16": "u2", "UINT32": "u4", "UINT64": "u8", "INT8": "i1", "INT16": "i2",
        "INT32": "i4", "INT64": "i8", "FP16": "f2", "FP32": "f4", "FP64": "f8", "BF16": "u2",
    }.items()
}  # fmt: skip
BYTES: Final = "BYTES"
DTYPES[BYTES] = np.dtype(object)

FLOATS: Final = frozenset({"FP16", "FP32", "FP64", "BF16"})
OF_DTYPE: Final[dict[str, str]] = {DTYPES[name].name: name for name in DTYPES if name != "BF16"}
"""The datatype of an array, by NumPy's word. An array of BF16 says of itself that it is UINT16."""


class Port(NamedTuple):
    """One input or output of a model."""

    name: str
    datatype: str
    shape: tuple[int, ...]
    """-1 for a dimension that varies."""

    def takes(self, shape: Sequence[int]) -> bool:
        mine = self.shape
        return len(mine) == len(shape) and all(m in (-1, g) for m, g in zip(mine, shape, strict=True))


def widened(bits: Array) -> Array:
    """The numbers that BF16 stand for, as FP32."""
    return (bits.astype(np.uint32) << 16).view(np.float32)


def shortened(numbers: Array) -> Array:
    """To BF16, rounded to the nearest, to even where two are as near. What is not a number stays so."""
    bits = np.ascontiguousarray(numbers, dtype=np.float32).view(np.uint32)
    rounded = (bits + 0x7FFF + ((bits >> 16) & 1)) >> 16
    return np.where(np.isnan(numbers), (bits >> 16) | 0x40, rounded).astype(np.uint16)


def packed(words: Array) -> bytes:
    """BYTES on the wire: each element after its length."""
    return b"".join(len(word).to_bytes(4, "little") + word for word in words.ravel())


def unpacked(data: memoryview, count: int) -> Array:
    """The opposite. Raises ValueError when `data` does not hold exactly `count` elements."""
    found = np.empty(count, object)
    at, end = 0, len(data)
    for i in range(count):
        if end - at < 4:
            raise ValueError(f"its bytes end in element {i} of {count}")
        length = int.from_bytes(data[at : at + 4], "little")
        at += 4
        if end - at < length:
            raise ValueError(f"element {i} says that it has {length} bytes, and {end - at} are left")
        found[i] = bytes(data[at : at + length])
        at += length
    if at != end:
        raise ValueError(f"{end - at} bytes are left after {count} elements")
    return found
