"""ExecuTorch programs made by hand: the tables that say what goes in and out, and nothing that computes."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

import flatbuffers

if TYPE_CHECKING:
    from collections.abc import Sequence

FLOAT, LONG, BFLOAT16 = 6, 4, 15
INT, TENSOR = 2, 5


class Place(NamedTuple):
    """A tensor."""

    sizes: tuple[int, ...]
    dtype: int = FLOAT
    dynamic: bool = False
    kind: int = TENSOR


def program(
    inputs: Sequence[Place], outputs: Sequence[Place], *, method: str = "forward", identity: bytes = b"ET12"
) -> bytes:
    builder = flatbuffers.Builder(1024)
    values = [_value(builder, place) for place in (*inputs, *outputs)]
    name = builder.CreateString(method)
    listed = _offsets(builder, values)
    ins = _numbers(builder, range(len(inputs)))
    outs = _numbers(builder, range(len(inputs), len(values)))
    builder.StartObject(9)
    for slot, offset in ((0, name), (2, listed), (3, ins), (4, outs)):
        builder.PrependUOffsetTRelativeSlot(slot, offset, 0)
    plans = _offsets(builder, [builder.EndObject()])
    builder.StartObject(8)
    builder.PrependUint32Slot(0, 1, 0)
    builder.PrependUOffsetTRelativeSlot(1, plans, 0)
    builder.Finish(builder.EndObject(), identity)
    return bytes(builder.Output())


def _value(builder: flatbuffers.Builder, place: Place) -> int:
    sizes = _numbers(builder, place.sizes)
    builder.StartObject(10)
    builder.PrependInt8Slot(0, place.dtype, 0)
    builder.PrependUOffsetTRelativeSlot(2, sizes, 0)
    builder.PrependInt8Slot(8, int(place.dynamic), 0)
    tensor = builder.EndObject()
    builder.StartObject(2)
    builder.PrependUint8Slot(0, place.kind, 0)
    builder.PrependUOffsetTRelativeSlot(1, tensor, 0)
    return int(builder.EndObject())


def _numbers(builder: flatbuffers.Builder, numbers: Sequence[int] | range) -> int:
    builder.StartVector(4, len(numbers), 4)
    for number in reversed(numbers):
        builder.PrependInt32(number)
    return int(builder.EndVector())


def _offsets(builder: flatbuffers.Builder, offsets: Sequence[int]) -> int:
    builder.StartVector(4, len(offsets), 4)
    for offset in reversed(offsets):
        builder.PrependUOffsetTRelative(offset)
    return int(builder.EndVector())
