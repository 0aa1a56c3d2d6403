"""What goes into an ExecuTorch program and what comes out, read from the file itself, without ExecuTorch.

A `.pte` file is a FlatBuffer, `program.fbs` of ExecuTorch, and after it the weights. Inputs and outputs of a method
have places there and no names, so they are called `input_0`, `output_0` and so on. A tensor that may have another size
is said to be dynamic, up to the size that is written; which of its dimensions vary is not said, so the first is taken
for it, which is the batch. Every offset is checked, because the file may be anybody's.
"""

from __future__ import annotations

import struct
from typing import TYPE_CHECKING, NamedTuple

import msgspec

from batuta.errors import ArtifactRefused
from batuta.kinds.model import Signature, Tensor

if TYPE_CHECKING:
    from collections.abc import Sequence

Buffer = bytes | memoryview

METHOD = "forward"
METHODS_MAX = 256
TENSORS_MAX = 1_024
DIMENSIONS_MAX = 64
NAME_BYTES_MAX = 1_024
VALUES_MAX = 1 << 24

# executorch_flatbuffer.ScalarType, in NumPy's words; ExecuTorch's own where NumPy has none.
DTYPES = {
    0: "uint8", 1: "int8", 2: "int16", 3: "int32", 4: "int64", 5: "float16", 6: "float32", 7: "float64", 11: "bool",
    12: "qint8", 13: "quint8", 14: "qint32", 15: "bfloat16", 16: "quint4x2", 17: "quint2x4", 22: "bits16",
    23: "float8e5m2", 24: "float8e4m3fn", 25: "float8e5m2fnuz", 26: "float8e4m3fnuz", 27: "uint16", 28: "uint32",
    29: "uint64",
}  # fmt: skip
# executorch_flatbuffer.KernelTypes: what an input that is no tensor is.
VALUES = {1: "none", 2: "int", 3: "bool", 4: "double", 6: "string"}
_TENSOR = 5
_STATIC = 0


class ExecutorchProgram(NamedTuple):
    """What the file says about itself."""

    signature: Signature
    batch_max: int
    """The most rows at once, where the first dimension varies; 0 where it does not."""


def read(buffer: Buffer, method: str = METHOD) -> ExecutorchProgram:
    """The signature of one method. Raises ArtifactRefused when the bytes are not a program, or have no such method."""
    try:
        return _read(memoryview(buffer), method)
    except (struct.error, IndexError, ValueError, UnicodeDecodeError) as error:
        raise _refused(f"its bytes are no whole program: {error}") from None


def named(mine: Signature, declared: Signature | None) -> Signature:
    """With the names that a version gives to what is in these places; as it is when that is about something else."""
    if declared is None or not fits(mine, declared):
        return mine
    ins, outs = (
        tuple(msgspec.structs.replace(tensor, name=other.name) for tensor, other in zip(here, there, strict=True))
        for here, there in ((mine.inputs, declared.inputs), (mine.outputs, declared.outputs))
    )
    return Signature(inputs=ins, outputs=outs)


def fits(mine: Signature, declared: Signature) -> bool:
    """Whether they are of one kind, place by place, names aside."""
    return all(
        len(here) == len(there) and all(_alike(a, b) for a, b in zip(here, there, strict=True))
        for here, there in ((mine.inputs, declared.inputs), (mine.outputs, declared.outputs))
    )


def _alike(one: Tensor, other: Tensor) -> bool:
    same = all(-1 in (a, b) or a == b for a, b in zip(one.shape, other.shape, strict=False))
    return one.dtype == other.dtype and len(one.shape) == len(other.shape) and same


def _read(data: memoryview, wanted: str) -> ExecutorchProgram:
    if len(data) < 8 or bytes(data[4:6]) != b"ET":
        raise _refused("its first bytes are not those of a program")
    program = _Table(data, _u32(data, 0))
    methods = {plan.text(0): plan for plan in program.tables(1, METHODS_MAX)}
    if wanted not in methods:
        raise _refused(f"it has no method {wanted!r}, but {', '.join(sorted(methods)) or 'none'}")
    plan = methods[wanted]
    ins, inner = _tensors(plan, 3, "input")
    outs, outer = _tensors(plan, 4, "output")
    if not outs:
        raise _refused("its method has no output")
    bounds = [bound for bound in (*inner, *outer) if bound]
    return ExecutorchProgram(Signature(inputs=ins, outputs=outs), min(bounds, default=0))


def _tensors(plan: _Table, field: int, word: str) -> tuple[tuple[Tensor, ...], list[int]]:
    found: list[Tensor] = []
    bounds: list[int] = []
    for n, at in enumerate(plan.numbers(field, "<i", TENSORS_MAX)):
        value = plan.table_of(2, at)
        kind = value.number(0, "<B")
        name = f"{word}_{n}"
        if kind != _TENSOR:
            found.append(Tensor(name=name, dtype=VALUES.get(kind, "list"), shape=()))
            continue
        tensor = value.table(1)
        shape = list(tensor.numbers(2, "<i", DIMENSIONS_MAX))
        if any(size < 0 for size in shape):
            raise ValueError(f"{name} has the sizes {shape}")
        bound = 0
        if shape and tensor.number(8, "<b") != _STATIC:
            bound, shape[0] = shape[0], -1
        bounds.append(bound)
        dtype = DTYPES.get(tensor.number(0, "<b"), "unknown")
        found.append(Tensor(name=name, dtype=dtype, shape=tuple(shape)))
    return tuple(found), bounds


class _Table:
    """A table of a FlatBuffer: its fields are found by their number in the schema."""

    def __init__(self, data: memoryview, at: int) -> None:
        self._data = data
        self._at = at
        self._names = at - _number(data, at, "<i")
        self._length = _number(data, self._names, "<H")

    def number(self, field: int, how: str) -> int:
        at = self._field(field)
        return _number(self._data, at, how) if at else 0

    def text(self, field: int) -> str:
        start, count = self._vector(field, NAME_BYTES_MAX)
        return str(_part(self._data, start, count), "utf-8")

    def table(self, field: int) -> _Table:
        at = self._field(field)
        if not at:
            raise ValueError(f"field {field} is missing")
        return _Table(self._data, at + _u32(self._data, at))

    def numbers(self, field: int, how: str, most: int) -> Sequence[int]:
        start, count = self._vector(field, most)
        size = struct.calcsize(how)
        return [_number(self._data, start + n * size, how) for n in range(count)]

    def tables(self, field: int, most: int) -> list[_Table]:
        start, count = self._vector(field, most)
        return [_Table(self._data, start + n * 4 + _u32(self._data, start + n * 4)) for n in range(count)]

    def table_of(self, field: int, n: int) -> _Table:
        """One of a list of tables, without looking at the others."""
        start, count = self._vector(field, VALUES_MAX)
        if not 0 <= n < count:
            raise ValueError(f"value {n} of {count}")
        return _Table(self._data, start + n * 4 + _u32(self._data, start + n * 4))

    def _vector(self, field: int, most: int) -> tuple[int, int]:
        at = self._field(field)
        if not at:
            return 0, 0
        start = at + _u32(self._data, at)
        count = _u32(self._data, start)
        if count > most:
            raise ValueError(f"a list of {count}, where {most} are read")
        return start + 4, count

    def _field(self, field: int) -> int:
        """Where it is; 0 when the file leaves it out."""
        place = 4 + 2 * field
        if place + 2 > self._length:
            return 0
        offset = _number(self._data, self._names + place, "<H")
        return self._at + offset if offset else 0


def _u32(data: memoryview, at: int) -> int:
    return _number(data, at, "<I")


def _number(data: memoryview, at: int, how: str) -> int:
    if at < 0:
        raise ValueError("it points before its beginning")
    (found,) = struct.unpack_from(how, data, at)
    return int(found)


def _part(data: memoryview, start: int, count: int) -> memoryview:
    if start + count > len(data):
        raise ValueError("it ends early")
    return data[start : start + count]


def _refused(why: str) -> ArtifactRefused:
    return ArtifactRefused("artifact_unreadable", f"this is not a readable ExecuTorch program: {why}")
