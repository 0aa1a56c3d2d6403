"""What a `.pte` file says goes in and out, without ExecuTorch; what ExecuTorch itself says is in tests/e2e."""

from __future__ import annotations

import random
from typing import TYPE_CHECKING

import msgspec
import pytest

from batuta.errors import ArtifactRefused, Refused
from batuta.interop.executorch_program import named, read
from batuta.kinds.base import Metadata
from batuta.kinds.model import Model, ModelSpec, Signature, Tensor
from batuta.model_push import version_of, with_version
from tests.interop.programs import BFLOAT16, INT, LONG, Place, program

if TYPE_CHECKING:
    from pathlib import Path


def signature(ins: list[tuple[str, str, tuple[int, ...]]], outs: list[tuple[str, str, tuple[int, ...]]]) -> Signature:
    inputs, outputs = (
        tuple(Tensor(name=name, dtype=dtype, shape=shape) for name, dtype, shape in each) for each in (ins, outs)
    )
    return Signature(inputs=inputs, outputs=outputs)


def test_places_become_names_and_a_dynamic_tensor_varies_in_its_first_dimension() -> None:
    data = program([Place((1, 3, 8, 8)), Place((16, 4), LONG, dynamic=True)], [Place((16, 10), BFLOAT16, dynamic=True)])
    found = read(data + bytes(5_000))
    assert found.signature == signature(
        [("input_0", "float32", (1, 3, 8, 8)), ("input_1", "int64", (-1, 4))], [("output_0", "bfloat16", (-1, 10))]
    )
    assert found.batch_max == 16
    assert read(program([Place(())], [Place((2,))])).batch_max == 0
    odd = read(program([Place((), kind=INT)], [Place((2,))])).signature.inputs[0]
    assert (odd.dtype, odd.shape) == ("int", ())


def test_another_method_and_no_output_are_said() -> None:
    with pytest.raises(ArtifactRefused, match="no method 'forward', but encode"):
        read(program([], [Place((1,))], method="encode"))
    with pytest.raises(ArtifactRefused, match="no output"):
        read(program([Place((1,))], []))


def test_anybodys_bytes_are_read_or_refused_and_nothing_else() -> None:
    chance, whole = random.Random(3), program([Place((4, 4), dynamic=True)] * 3, [Place((4,))] * 2)
    refused = 0
    for _ in range(4_000):
        data = bytearray(whole[: chance.choice((len(whole), chance.randrange(len(whole))))])
        for _ in range(chance.randrange(1, 5)):
            if data:
                data[chance.randrange(len(data))] = chance.choice((0, 1, 127, 128, 255, chance.randrange(256)))
        try:
            read(bytes(data))
        except ArtifactRefused:  # anything else is what this looks for
            refused += 1
    assert refused > 1_000
    for nothing in (b"", b"\x1c\x00\x00\x00ET12", b"\xff" * 64):
        with pytest.raises(ArtifactRefused):
            read(nothing)


def test_a_program_beside_an_onnx_file_takes_the_names_of_the_version(tmp_path: Path) -> None:
    declared = signature([("image", "float32", (-1, 64))], [("scores", "float32", (-1, 10))])
    path = tmp_path / "m.pte"
    path.write_bytes(program([Place((1, 64))], [Place((1, 10))]))
    addition = version_of(path, version="1", variant="edge")
    assert addition.signature == signature([("input_0", "float32", (1, 64))], [("output_0", "float32", (1, 10))])
    onnx = msgspec.structs.replace(addition.variants[0], name="fp32", format="onnx", digest="sha256:" + "2" * 64)
    version = msgspec.structs.replace(addition, variants=(onnx,), signature=declared)
    model = Model(metadata=Metadata(name="m", namespace="default"), spec=ModelSpec(versions=(version,)))
    (after,) = with_version(model, addition).spec.versions
    assert after.signature == declared
    assert [each.format for each in after.variants] == ["onnx", "pte"]
    assert named(read(path.read_bytes()).signature, declared) == signature(
        [("image", "float32", (1, 64))], [("scores", "float32", (1, 10))]
    )
    path.write_bytes(program([Place((1, 65))], [Place((1, 10))]))
    with pytest.raises(Refused, match="inputs and outputs"):
        with_version(model, version_of(path, version="1", variant="other"))
