"""A version is immutable: what may be added to it, and what is refused before anything is uploaded."""

from __future__ import annotations

import numpy as np
import onnx
import onnx.helper
import pytest
from onnx import TensorProto, numpy_helper

from batuta.errors import ArtifactRefused, Refused
from batuta.kinds.base import Bytes, Metadata
from batuta.kinds.model import Model, ModelSpec, Signature, Tensor, Variant, Version
from batuta.model_push import signature_of, with_version

SIGNATURE = Signature(
    inputs=(Tensor(name="x", dtype="float32", shape=(-1, 4)),),
    outputs=(Tensor(name="y", dtype="float32", shape=(-1, 3)),),
)
EMPTY = Model(metadata=Metadata(name="digits", resource_version="7", uid="u"), spec=ModelSpec())


def variant(name: str = "fp32", byte: str = "a") -> Variant:
    return Variant(name=name, format="onnx", digest=f"sha256:{byte * 64}", size_bytes=Bytes(10))


def version(number: str = "1", one: Variant | None = None, **more: object) -> Version:
    return Version(version=number, variants=(one or variant(),), **{"signature": SIGNATURE, **more})  # type: ignore[arg-type]


def model(*versions: Version) -> Model:
    return Model(metadata=EMPTY.metadata, spec=ModelSpec(versions=versions))


def test_the_first_version_makes_the_model() -> None:
    assert with_version(EMPTY, version(), "classification").spec == ModelSpec(
        task="classification", versions=(version(),)
    )


def test_a_new_version_is_appended_and_the_task_stays() -> None:
    before = with_version(EMPTY, version("1"), "classification")
    after = with_version(before, version("2"))
    assert [v.version for v in after.spec.versions] == ["1", "2"]
    assert after.spec.task == "classification"


def test_the_same_again_is_the_very_same_model() -> None:
    before = model(version(labels=("a", "b")))
    assert with_version(before, version()) is before
    assert with_version(before, version(labels=("a", "b"))) is before


def test_another_variant_joins_its_version() -> None:
    after = with_version(model(version()), version(one=variant("int8", "b")))
    assert [v.name for v in after.spec.versions[0].variants] == ["fp32", "int8"]


def test_a_signature_and_labels_that_were_missing_are_filled_in() -> None:
    after = with_version(model(version(signature=None)), version(one=variant("int8", "b"), labels=("a",)))
    assert (after.spec.versions[0].signature, after.spec.versions[0].labels) == (SIGNATURE, ("a",))


@pytest.mark.parametrize(
    ("addition", "says"),
    [
        (version(one=variant("fp32", "b")), "other bytes"),
        (version(one=variant("int8", "b"), signature=Signature()), "inputs and outputs are not those"),
        (version(one=variant("int8", "b"), labels=("z",)), "other labels"),
    ],
)
def test_a_version_never_changes(addition: Version, says: str) -> None:
    with pytest.raises(Refused, match=says) as refused:
        with_version(model(version(labels=("a",))), addition)
    assert "--version" in refused.value.problems[0].hint


def _save(path, **options: object) -> None:
    weight = numpy_helper.from_array(np.zeros((4, 3), dtype=np.float32), "W")
    graph = onnx.helper.make_graph(
        [onnx.helper.make_node("MatMul", ["x", "W"], ["y"])],
        "affine",
        [onnx.helper.make_tensor_value_info("x", TensorProto.FLOAT, [None, 4])],
        [onnx.helper.make_tensor_value_info("y", TensorProto.FLOAT, [None, 3])],
        [weight],
    )
    onnx.save_model(onnx.helper.make_model(graph), path, **options)


def test_the_signature_is_read_from_the_file(tmp_path) -> None:
    _save(tmp_path / "m.onnx")
    assert signature_of(tmp_path / "m.onnx") == SIGNATURE


def test_a_model_in_several_files_is_refused_with_the_way_out(tmp_path) -> None:
    _save(tmp_path / "m.onnx", save_as_external_data=True, location="w.bin", size_threshold=0)
    with pytest.raises(ArtifactRefused, match="'W'") as refused:
        signature_of(tmp_path / "m.onnx")
    assert "one file" in refused.value.next_step


def test_an_empty_file_is_no_model(tmp_path) -> None:
    (tmp_path / "m.onnx").touch()
    with pytest.raises(ArtifactRefused):
        signature_of(tmp_path / "m.onnx")
