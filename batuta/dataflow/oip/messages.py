"""Requests and answers of the protocol, in bytes and in tensors.

A body is JSON, or JSON followed by the bytes of tensors. Binary tensors are not copied: they are views of the body.
What does not fit together is a Fault that names the tensor. Sizes are bounded by the body, which the listener bounds; a
shape that promises more than is there is refused before anything is made of it.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any, Final, NamedTuple

import msgspec
import numpy as np

from batuta.dataflow.oip.datatypes import BYTES, DTYPES, FLOATS, packed, shortened, unpacked, widened
from batuta.dataflow.oip.faults import Fault

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from batuta.dataflow.oip.datatypes import Array

    Region = Callable[[Mapping[str, Any]], memoryview]
    """The shared memory that parameters of a tensor name. Raises Fault."""

DIMENSIONS_MAX = 32
TENSORS_MAX = 256


_NO_DATA: Final = msgspec.Raw()


class _Input(msgspec.Struct):
    name: str
    shape: list[int]
    datatype: str
    parameters: dict[str, Any] | None = None
    data: msgspec.Raw = _NO_DATA


class _Output(msgspec.Struct):
    name: str
    parameters: dict[str, Any] | None = None


class _Request(msgspec.Struct):
    inputs: list[_Input]
    id: str | None = None
    parameters: dict[str, Any] | None = None
    outputs: list[_Output] | None = None


class _Answer(msgspec.Struct):
    outputs: list[_Input]


class Given(NamedTuple):
    """An input tensor as it was sent."""

    datatype: str
    array: Array


class Asked(NamedTuple):
    """An output that the request names, and how to give it."""

    name: str
    binary: bool = False
    classes: int = 0
    """Not the numbers, but the best so many of them, in words."""
    region: Mapping[str, Any] | None = None
    """Parameters that name the shared memory to write it to."""


class Call(NamedTuple):
    """A request, decoded."""

    inputs: dict[str, Given]
    outputs: tuple[Asked, ...] = ()
    """Empty: all of them."""
    binary: bool = False
    """How to give outputs that the request does not name."""
    id: str | None = None
    parameters: Mapping[str, Any] = {}


class Made(NamedTuple):
    """An output tensor."""

    name: str
    datatype: str
    array: Array


_requests = msgspec.json.Decoder(_Request)
_answers = msgspec.json.Decoder(_Answer)
_floats = msgspec.json.Decoder(list[float])
_ints = msgspec.json.Decoder(list[int])
_bools = msgspec.json.Decoder(list[bool])
_words = msgspec.json.Decoder(list[str])
_anything = msgspec.json.Decoder()
_DECODERS: dict[str, Any] = {
    name: _floats if name in FLOATS else _bools if name == "BOOL" else _words if name == BYTES else _ints
    for name in DTYPES
}
_KINDS = {"BOOL": "truth values", BYTES: "text"} | dict.fromkeys(FLOATS, "numbers")
_NOTHING: dict[str, Any] = {}


def read(body: memoryview, json_bytes: int | None, region: Region | None = None) -> Call:
    """The request in `body`, which begins with so many bytes of JSON (None: all of it). Raises Fault."""
    tail = memoryview(b"")
    if json_bytes is not None:
        if json_bytes > len(body):
            raise Fault("malformed", f"the head says {json_bytes} bytes of JSON, and the body has {len(body)}")
        body, tail = body[:json_bytes], body[json_bytes:]
    try:
        said = _requests.decode(body)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
        raise Fault("malformed", f"not a request: {error}") from None
    inputs = _tensors(said.inputs, tail, region)
    asked = said.parameters or _NOTHING
    binary = asked.get("binary_data_output") is True
    outputs = tuple(_asked(o, binary=binary) for o in said.outputs or ())
    return Call(inputs, outputs, binary, said.id, asked)


def _tensors(said: list[_Input], tail: memoryview, region: Region | None) -> dict[str, Given]:
    if not 0 < len(said) <= TENSORS_MAX:
        raise Fault("malformed", f"a request has 1 to {TENSORS_MAX} inputs; this one has {len(said)}")
    at = 0
    inputs: dict[str, Given] = {}
    for one in said:
        if one.name in inputs:
            raise Fault("malformed", f"input {one.name!r} is there twice")
        parameters = one.parameters or _NOTHING
        if (size := parameters.get("binary_data_size")) is not None:
            if type(size) is not int or size < 0:
                raise Fault("malformed", f"input {one.name!r}: binary_data_size is a whole number")
            if one.data is not _NO_DATA:
                raise Fault("malformed", f"input {one.name!r} has data and binary_data_size")
            if size > len(tail) - at:
                raise Fault("malformed", f"input {one.name!r} has {size} bytes, and {len(tail) - at} are left")
            inputs[one.name] = from_bytes(one.name, one.datatype, one.shape, tail[at : at + size])
            at += size
        elif "shared_memory_region" in parameters:
            if region is None:
                raise Fault("unfit", f"input {one.name!r}: no shared memory can be reached this way")
            if one.data is not _NO_DATA:
                raise Fault("malformed", f"input {one.name!r} has data and a region of shared memory")
            inputs[one.name] = from_bytes(one.name, one.datatype, one.shape, region(parameters))
        elif one.data is not _NO_DATA:
            inputs[one.name] = _from_json(one.name, one.datatype, one.shape, one.data)
        else:
            raise Fault("malformed", f"input {one.name!r} has no data")
    if at != len(tail):
        raise Fault("malformed", f"{len(tail) - at} bytes are left after the last tensor")
    return inputs


def read_answer(body: memoryview, json_bytes: int | None) -> dict[str, Given]:
    """The tensors of an answer, which are written as those of a request are. Raises Fault."""
    try:
        said = _answers.decode(body if json_bytes is None else body[:json_bytes])
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
        raise Fault("malformed", f"not an answer: {error}") from None
    return _tensors(said.outputs, memoryview(b"") if json_bytes is None else body[json_bytes:], None)


def _asked(output: _Output, *, binary: bool) -> Asked:
    parameters = output.parameters or _NOTHING
    classes = parameters.get("classification", 0)
    if type(classes) is not int or classes < 0:
        raise Fault("malformed", f"output {output.name!r}: classification is a whole number")
    region = parameters if "shared_memory_region" in parameters else None
    wanted = parameters.get("binary_data", binary)
    if not isinstance(wanted, bool):
        raise Fault("malformed", f"output {output.name!r}: binary_data is true or false")
    return Asked(output.name, wanted, classes, region)


def _count(name: str, datatype: str, shape: Sequence[int]) -> int:
    if datatype not in DTYPES:
        raise Fault("malformed", f"input {name!r}: there is no datatype {datatype!r}; there is {', '.join(DTYPES)}")
    if len(shape) > DIMENSIONS_MAX or any(d < 0 for d in shape):
        raise Fault("malformed", f"input {name!r}: {list(shape)[:DIMENSIONS_MAX]} is no shape")
    return math.prod(shape)


def from_bytes(name: str, datatype: str, shape: Sequence[int], data: memoryview) -> Given:
    """A tensor of raw little-endian bytes, rows first."""
    count = _count(name, datatype, shape)
    dtype = DTYPES[datatype]
    if datatype == BYTES:
        if count * 4 > len(data):
            raise Fault("unfit", f"input {name!r}: {len(data)} bytes are no {count} elements")
        try:
            return Given(datatype, unpacked(data, count).reshape(shape))
        except ValueError as error:
            raise Fault("unfit", f"input {name!r}: {error}") from None
    if count * dtype.itemsize != len(data):
        message = f"input {name!r}: {datatype} of shape {list(shape)} takes {count * dtype.itemsize} bytes"
        raise Fault("unfit", f"{message}, not {len(data)}")
    array = np.frombuffer(data, dtype)
    if datatype == "BOOL" and count and array.view(np.uint8).max() > 1:
        raise Fault("unfit", f"input {name!r}: a BOOL is 0 or 1")
    return Given(datatype, array.reshape(shape))


def _from_json(name: str, datatype: str, shape: Sequence[int], data: msgspec.Raw) -> Given:
    count = _count(name, datatype, shape)
    # Every number takes two characters of JSON at least.
    if count * 2 > len(memoryview(data)) + 2:
        raise Fault("unfit", f"input {name!r}: shape {list(shape)} takes {count} values; there are fewer")
    try:
        values = _DECODERS[datatype].decode(data)
    except msgspec.ValidationError:
        values = _flattened(name, datatype, data)
    if len(values) != count:
        raise Fault("unfit", f"input {name!r}: shape {list(shape)} takes {count} values, not {len(values)}")
    if datatype == BYTES:
        words = np.empty(count, object)
        words[:] = [word.encode() for word in values]
        return Given(datatype, words.reshape(shape))
    try:
        with np.errstate(over="ignore"):
            array = np.array(values, np.float32 if datatype == "BF16" else DTYPES[datatype])
    except OverflowError:
        raise Fault("unfit", f"input {name!r}: a number does not fit into {datatype}") from None
    # No JSON says infinity; what has become one was too large. The sum is asked first, being quicker.
    if datatype in FLOATS and not math.isfinite(array.sum(dtype=np.float64)) and not np.isfinite(array).all():
        raise Fault("unfit", f"input {name!r}: a number is too large for {datatype}")
    return Given(datatype, (shortened(array) if datatype == "BF16" else array).reshape(shape))


def _flattened(name: str, datatype: str, data: msgspec.Raw) -> list[Any]:
    """Nested lists, row by row; or a sentence about what is there instead."""
    try:
        value: Any = _anything.decode(data)
    except RecursionError:
        raise Fault("malformed", f"input {name!r}: nested too deeply") from None
    for _ in range(DIMENSIONS_MAX):
        if not (isinstance(value, list) and value and all(isinstance(row, list) for row in value)):
            break
        if len({len(row) for row in value}) > 1:
            raise Fault("unfit", f"input {name!r}: lists of unequal lengths")
        value = [each for row in value for each in row]
    try:
        flat: list[Any] = _DECODERS[datatype].decode(msgspec.json.encode(value))
    except msgspec.MsgspecError:
        kind = _KINDS.get(datatype, "whole numbers")
        raise Fault("unfit", f"input {name!r}: data for {datatype} is a list of {kind}") from None
    return flat


def write(
    model: str,
    version: str,
    call: Call,
    outputs: Sequence[Made],
    store: Callable[[Mapping[str, Any], bytes], None] | None = None,
) -> tuple[bytes, int | None]:
    """The answer's body, and how much of it is JSON when binary tensors follow. `outputs` are in the order asked."""
    listed: list[dict[str, Any]] = []
    tail: list[bytes] = []
    for i, made in enumerate(outputs):
        asked = call.outputs[i] if call.outputs else None
        said: dict[str, Any] = {"name": made.name, "datatype": made.datatype, "shape": made.array.shape}
        if asked is not None and asked.region is not None:
            data = to_bytes(made)
            if store is None:
                raise Fault("unanswerable", f"output {made.name!r}: no shared memory can be reached this way")
            store(asked.region, data)
            said["parameters"] = {k: v for k, v in asked.region.items() if k.startswith("shared_memory_")} | {
                "shared_memory_byte_size": len(data)
            }
        elif asked.binary if asked is not None else call.binary:
            data = to_bytes(made)
            tail.append(data)
            said["parameters"] = {"binary_data_size": len(data)}
        else:
            said["data"] = _to_json(made)
        listed.append(said)
    answer: dict[str, Any] = {"model_name": model, "model_version": version}
    if call.id is not None:
        answer["id"] = call.id
    answer["outputs"] = listed
    body = msgspec.json.encode(answer)
    if not tail:
        return body, None
    return b"".join((body, *tail)), len(body)


def to_bytes(made: Made) -> bytes:
    if made.datatype == BYTES:
        return packed(made.array)
    return made.array.astype(DTYPES[made.datatype], copy=False).tobytes()


def _to_json(made: Made) -> list[Any]:
    if made.datatype == BYTES:
        try:
            return [word.decode() for word in made.array.ravel()]
        except UnicodeDecodeError:
            message = f"output {made.name!r} holds bytes that are no text: ask for it with binary_data"
            raise Fault("unanswerable", message) from None
    array = widened(made.array) if made.datatype == "BF16" else made.array
    if made.datatype in FLOATS and not math.isfinite(array.sum(dtype=np.float64)) and not np.isfinite(array).all():
        message = f"output {made.name!r} holds infinities or what is no number, which JSON has not: "
        raise Fault("unanswerable", message + "ask for it with binary_data")
    found: list[Any] = array.ravel().tolist()
    return found
