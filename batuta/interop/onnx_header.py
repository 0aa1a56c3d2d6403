"""What goes into an ONNX model and what comes out, read from the file itself, without onnx or ONNX Runtime.

An ONNX file is one protobuf message, ModelProto. Its signature is a handful of small fields in the graph; the weights
are skipped by their length, so a large file costs little more than a small one. A machine that only pushes models
therefore needs no inference runtime. Every count is bounded, because the file may be anybody's.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

from batuta.errors import ArtifactRefused
from batuta.kinds.model import Signature, Tensor

if TYPE_CHECKING:
    from collections.abc import Iterator

Buffer = bytes | memoryview

FIELDS_MAX = 2_000_000
TENSORS_MAX = 1_024
DIMENSIONS_MAX = 64
NAME_BYTES_MAX = 1_024

# onnx.TensorProto.DataType, in NumPy's words; ONNX's own where NumPy has none.
DTYPES = {
    1: "float32", 2: "uint8", 3: "int8", 4: "uint16", 5: "int16", 6: "int32", 7: "int64", 8: "str", 9: "bool",
    10: "float16", 11: "float64", 12: "uint32", 13: "uint64", 14: "complex64", 15: "complex128", 16: "bfloat16",
    17: "float8e4m3fn", 18: "float8e4m3fnuz", 19: "float8e5m2", 20: "float8e5m2fnuz", 21: "uint4", 22: "int4",
    23: "float4e2m1",
}  # fmt: skip
# onnx.TypeProto: what is no dense tensor. A model worker cannot serve these; the name says what it is.
OTHER_TYPES = {4: "sequence", 5: "map", 7: "opaque", 8: "sparse", 9: "optional"}


class OnnxHeader(NamedTuple):
    """What the file says about itself."""

    signature: Signature
    opset: int
    """Version of the standard operators; 0 when the file does not say."""
    producer: str
    external: tuple[str, ...]
    """Weights that lie in other files; such a model is not whole."""


def read(buffer: Buffer) -> OnnxHeader:
    """Read the signature. Raises ArtifactRefused when the bytes are not an ONNX model."""
    budget = _Budget()
    graphs, opset, producer, ir_version = [], 0, "", 0
    for number, value in _fields(memoryview(buffer), budget):
        if number == 1 and isinstance(value, int):
            ir_version = value
        elif number == 2 and isinstance(value, memoryview):
            producer = _text(value)
        elif number == 7 and isinstance(value, memoryview):
            graphs.append(value)
        elif number == 8 and isinstance(value, memoryview):
            opset = max(opset, _standard_opset(value, budget))
    if len(graphs) != 1 or not ir_version:
        raise _refused("it has no graph")

    inputs: list[Tensor] = []
    outputs: list[Tensor] = []
    weights: set[str] = set()
    external: list[str] = []
    for number, value in _fields(graphs[0], budget):
        if not isinstance(value, memoryview):
            continue
        if number == 11:
            inputs.append(_tensor(value, budget))
        elif number == 12:
            outputs.append(_tensor(value, budget))
        elif number == 5:
            name, is_external = _weight(value, budget)
            weights.add(name)
            external += [name] if is_external else []
        elif number == 15:  # A sparse weight: its values are a tensor, and carry its name.
            for inner, part in _fields(value, budget):
                if inner == 1 and isinstance(part, memoryview):
                    weights.add(_weight(part, budget)[0])
        if len(inputs) + len(outputs) > TENSORS_MAX:
            raise _refused(f"it has more than {TENSORS_MAX} inputs and outputs")
    # Before IR version 4 every weight was also listed as an input.
    inputs = [tensor for tensor in inputs if tensor.name not in weights]
    if not outputs:
        raise _refused("its graph has no output")
    return OnnxHeader(Signature(inputs=tuple(inputs), outputs=tuple(outputs)), opset, producer, tuple(external))


def _standard_opset(message: memoryview, budget: _Budget) -> int:
    """OperatorSetIdProto: 1 domain, 2 version. The standard's domain is the empty one."""
    domain, version = "", 0
    for number, value in _fields(message, budget):
        if number == 1 and isinstance(value, memoryview):
            domain = _text(value)
        elif number == 2 and isinstance(value, int):
            version = value
    return version if domain in ("", "ai.onnx") else 0


def _weight(message: memoryview, budget: _Budget) -> tuple[str, bool]:
    """TensorProto: 8 name, 14 data_location (1: external)."""
    name, is_external = "", False
    for number, value in _fields(message, budget):
        if number == 8 and isinstance(value, memoryview):
            name = _text(value)
        elif number == 14:
            is_external = value == 1
    return name, is_external


def _tensor(message: memoryview, budget: _Budget) -> Tensor:
    """ValueInfoProto: 1 name, 2 type."""
    name, dtype = "", "unknown"
    shape: tuple[int, ...] = ()
    for number, value in _fields(message, budget):
        if number == 1 and isinstance(value, memoryview):
            name = _text(value)
        elif number == 2 and isinstance(value, memoryview):
            dtype, shape = _type(value, budget)
    return Tensor(name=name, dtype=dtype, shape=shape)


def _type(message: memoryview, budget: _Budget) -> tuple[str, tuple[int, ...]]:
    """TypeProto: 1 tensor_type {1 elem_type, 2 shape}, or one of the others."""
    dtype = "unknown"
    shape: tuple[int, ...] = ()
    for number, value in _fields(message, budget):
        if number == 1 and isinstance(value, memoryview):
            for inner, part in _fields(value, budget):
                if inner == 1 and isinstance(part, int):
                    dtype = DTYPES.get(part, "unknown")
                elif inner == 2 and isinstance(part, memoryview):
                    shape = _shape(part, budget)
        elif number in OTHER_TYPES:
            dtype = OTHER_TYPES[number]
    return dtype, shape


def _shape(message: memoryview, budget: _Budget) -> tuple[int, ...]:
    """TensorShapeProto: 1 dim {1 dim_value, 2 dim_param}. What varies is -1."""
    dimensions = []
    for number, value in _fields(message, budget):
        if number == 1 and isinstance(value, memoryview):
            fixed = [part for inner, part in _fields(value, budget) if inner == 1 and isinstance(part, int)]
            dimensions.append(fixed[-1] if fixed and 0 < fixed[-1] < 2**63 else -1)
        if len(dimensions) > DIMENSIONS_MAX:
            raise _refused(f"a tensor has more than {DIMENSIONS_MAX} dimensions")
    return tuple(dimensions)


# --- Protobuf's wire format: only what is needed to walk over it -----------------------------------------------------


class _Budget:
    """How many more fields may be read; a file that spends it is no model."""

    def __init__(self) -> None:
        self.left = FIELDS_MAX

    def spend(self) -> None:
        self.left -= 1
        if self.left < 0:
            raise _refused(f"it has more than {FIELDS_MAX} fields")


def _fields(message: memoryview, budget: _Budget) -> Iterator[tuple[int, int | memoryview]]:
    """Every field of a message: its number, and its value as a number or as the bytes it spans."""
    at, end = 0, len(message)
    while at < end:
        budget.spend()
        key, at = _varint(message, at)
        number, wire = key >> 3, key & 7
        if wire == 0:
            value, at = _varint(message, at)
            yield number, value
            continue
        if wire == 2:
            length, at = _varint(message, at)
        elif wire in (1, 5):
            length = 8 if wire == 1 else 4
        else:
            raise _refused("it is no protobuf message")
        if number == 0 or at + length > end:
            raise _refused("it is cut short, or no protobuf message")
        yield number, message[at : at + length]
        at += length


def _varint(message: memoryview, at: int) -> tuple[int, int]:
    value = 0
    for shift in range(0, 70, 7):
        if at >= len(message):
            raise _refused("it is cut short")
        byte = message[at]
        at += 1
        value |= (byte & 0x7F) << shift
        if not byte & 0x80:
            return value, at
    raise _refused("it is no protobuf message")


def _text(value: memoryview) -> str:
    if len(value) > NAME_BYTES_MAX:
        raise _refused("a name in it is absurdly long")
    try:
        return bytes(value).decode()
    except UnicodeDecodeError:
        raise _refused("a name in it is not text") from None


def _refused(why: str) -> ArtifactRefused:
    return ArtifactRefused(
        "artifact_unreadable", f"this is not an ONNX model: {why}", next_step="export it again, as one .onnx file"
    )
