"""The header reader says what onnx itself says, on models made by the real exporter."""

from __future__ import annotations

import contextlib

import numpy as np
import onnx
import onnx.helper
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import TensorProto, numpy_helper
from skl2onnx import to_onnx
from sklearn.linear_model import LogisticRegression

from batuta.errors import ArtifactRefused
from batuta.interop import onnx_header
from batuta.kinds.model import Tensor


def _affine(elem: int = TensorProto.FLOAT, dims: tuple[int | str | None, ...] = ("batch", 4)) -> onnx.ModelProto:
    """y = x @ W, its weight also listed as an input, as files before IR version 4 do."""
    weight = numpy_helper.from_array(np.zeros((4, 3), dtype=np.float32), "W")
    graph = onnx.helper.make_graph(
        [onnx.helper.make_node("MatMul", ["x", "W"], ["y"])],
        "affine",
        [
            onnx.helper.make_tensor_value_info("x", elem, list(dims)),
            onnx.helper.make_tensor_value_info("W", TensorProto.FLOAT, [4, 3]),
        ],
        [onnx.helper.make_tensor_value_info("y", elem, [dims[0], 3])],
        [weight],
    )
    return onnx.helper.make_model(
        graph, producer_name="ünit", opset_imports=[onnx.helper.make_opsetid("", 17), onnx.helper.make_opsetid("x", 99)]
    )


def test_a_weight_that_is_also_an_input_is_no_input() -> None:
    header = onnx_header.read(_affine().SerializeToString())
    assert header.signature.inputs == (Tensor(name="x", dtype="float32", shape=(-1, 4)),)
    assert header.signature.outputs == (Tensor(name="y", dtype="float32", shape=(-1, 3)),)
    assert (header.opset, header.producer, header.external) == (17, "ünit", ())


@pytest.mark.parametrize("elem", [e for e in onnx_header.DTYPES if e not in (8,)])
def test_every_element_type_has_numpys_word(elem: int) -> None:
    dtype = onnx_header.read(_affine(elem).SerializeToString()).signature.inputs[0].dtype
    if elem <= 15:
        assert dtype == onnx.helper.tensor_dtype_to_np_dtype(elem).name
    else:
        assert TensorProto.DataType.Name(elem).lower() == dtype


def test_unknown_and_unnamed_dimensions_vary() -> None:
    assert onnx_header.read(_affine(dims=(None, 4)).SerializeToString()).signature.inputs[0].shape == (-1, 4)


def test_a_real_exporters_model_reads_as_onnx_reads_it() -> None:
    x, y = np.random.default_rng(0).random((30, 5)).astype(np.float32), np.arange(30) % 3
    model = to_onnx(LogisticRegression().fit(x, y), x[:1], options={"zipmap": False})
    header = onnx_header.read(model.SerializeToString())
    assert [t.name for t in header.signature.inputs] == [i.name for i in model.graph.input]
    assert [(t.name, t.dtype) for t in header.signature.outputs] == [("label", "int64"), ("probabilities", "float32")]
    assert header.signature.inputs[0].shape == (-1, 5)


def test_what_is_no_tensor_says_what_it_is() -> None:
    x, y = np.random.default_rng(0).random((30, 5)).astype(np.float32), np.arange(30) % 3
    model = to_onnx(LogisticRegression().fit(x, y), x[:1])  # ZipMap: probabilities as a sequence of maps
    assert [t.dtype for t in onnx_header.read(model.SerializeToString()).signature.outputs] == ["int64", "sequence"]


def test_weights_in_other_files_are_named(tmp_path) -> None:
    model = _affine()
    onnx.save_model(model, tmp_path / "m.onnx", save_as_external_data=True, location="weights.bin", size_threshold=0)
    assert onnx_header.read((tmp_path / "m.onnx").read_bytes()).external == ("W",)


def test_it_reads_through_a_view_without_copying() -> None:
    blob = bytearray(_affine().SerializeToString())
    assert onnx_header.read(memoryview(blob)).signature == onnx_header.read(bytes(blob)).signature


@pytest.mark.parametrize(
    "blob", [b"", b"PK\x03\x04 a zip", b"\x08\x08", b"\x3a\xff\xff\xff\xff\x0f", b"hello world" * 9]
)
def test_what_is_no_model_is_refused(blob: bytes) -> None:
    with pytest.raises(ArtifactRefused) as refused:
        onnx_header.read(blob)
    assert refused.value.code == "artifact_unreadable"
    assert refused.value.next_step


def test_a_file_that_is_nothing_but_fields_runs_out_of_budget(monkeypatch) -> None:
    monkeypatch.setattr(onnx_header, "FIELDS_MAX", 1_000)
    with pytest.raises(ArtifactRefused, match="more than 1000 fields"):
        onnx_header.read(b"\x08\x08" * 1_001)


@settings(max_examples=200, deadline=None)
@given(st.data())
def test_damage_is_refused_or_read_never_a_crash(data: st.DataObject) -> None:
    blob = bytearray(_affine().SerializeToString())
    at = data.draw(st.integers(0, len(blob) - 1))
    blob[at] = data.draw(st.integers(0, 255))
    with contextlib.suppress(ArtifactRefused):
        onnx_header.read(bytes(blob[: data.draw(st.integers(0, len(blob)))]))
