"""What ONNX Runtime's tools make of a file can be exchanged for it, and is what it says it is."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import onnx
import pytest

from batuta.errors import ArtifactRefused
from batuta.model_push import signature_of
from batuta.tuning import variants
from batuta.tuning.session import Session

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

INPUTS = {"image": np.random.default_rng(2).random((70, 64)).astype(np.float32)}


def static(source: Path, target: Path) -> str:
    return variants.quantised_static(source, target, INPUTS)


@pytest.mark.parametrize(
    ("make", "within", "smaller"),
    [
        (variants.simplified, 1e-6, False), (variants.halved, 0.02, True), (variants.quantised_dynamic, 0.2, True),
        (static, 0.2, True),
    ],
)  # fmt: skip
def test_a_variant_answers_alike(
    classifier: Path, tmp_path: Path, make: Callable[[Path, Path], str], within: float, smaller: bool
) -> None:
    made = tmp_path / "made.onnx"
    assert "onnxruntime" in make(classifier, made)
    variants.is_interchangeable(signature_of(classifier), made, is_fixed=False)
    before, after = Session(classifier).run_all(INPUTS), Session(made).run_all(INPUTS)
    assert float(np.abs(before["scores"] - after["scores"]).max()) <= within
    assert float(np.mean(before["label"] == after["label"])) >= 0.9
    assert (made.stat().st_size < classifier.stat().st_size * 0.75) == smaller


def test_quantised_weights_have_eight_bits(classifier: Path, tmp_path: Path) -> None:
    static(classifier, tmp_path / "s.onnx")
    variants.quantised_dynamic(classifier, tmp_path / "d.onnx")
    for name in "sd":
        kinds = {w.data_type for w in onnx.load(tmp_path / f"{name}.onnx").graph.initializer if len(w.dims) == 2}
        assert kinds == {onnx.TensorProto.INT8}


def test_a_fixed_shape_is_one_of_those_that_fitted(classifier: Path, tmp_path: Path) -> None:
    variants.fixed(classifier, tmp_path / "f.onnx", {"image": (1, 64)})
    assert signature_of(tmp_path / "f.onnx").inputs[0].shape == (1, 64)
    variants.is_interchangeable(signature_of(classifier), tmp_path / "f.onnx", is_fixed=True)
    before, after = Session(classifier).run_all(INPUTS), Session(tmp_path / "f.onnx").run_all(INPUTS)
    assert np.allclose(before["scores"], after["scores"], atol=1e-5)


@pytest.mark.parametrize(
    ("shapes", "says"), [({"image": (1, 65)}, "does not fit"), ({"x": (1, 64)}, "has no input 'x'")]
)
def test_a_shape_that_never_fitted_is_refused(
    classifier: Path, tmp_path: Path, shapes: dict[str, tuple[int, ...]], says: str
) -> None:
    with pytest.raises(ArtifactRefused, match=says) as refused:
        variants.fixed(classifier, tmp_path / "f.onnx", shapes)
    assert refused.value.code == "variant_unmade"


def test_what_has_nothing_to_quantise_is_refused(barren: Path, tmp_path: Path) -> None:
    takes = {"x": np.ones((4, 4), np.float32)}
    for make in (
        variants.quantised_dynamic,
        variants.halved,
        lambda source, target: variants.quantised_static(source, target, takes),
    ):
        with pytest.raises(ArtifactRefused) as refused:
            make(barren, tmp_path / "v.onnx")
        assert refused.value.code == "variant_unmade"


def test_another_signature_is_no_variant(classifier: Path, regression: Path) -> None:
    with pytest.raises(ArtifactRefused, match="not those of the version"):
        variants.is_interchangeable(signature_of(classifier), regression, is_fixed=False)


def test_what_comes_out_of_classical_operators_is_quantised_too(classifier: Path, tmp_path: Path) -> None:
    model = onnx.load(classifier)
    scaler = onnx.helper.make_node(
        "Scaler", ["image"], ["scaled"], domain="ai.onnx.ml", offset=[0.1] * 64, scale=[2.0] * 64
    )
    model.graph.node[0].input[0] = "scaled"
    model.graph.node.insert(0, scaler)
    model.opset_import.append(onnx.helper.make_opsetid("ai.onnx.ml", 3))
    onnx.save(model, tmp_path / "scaled.onnx")
    for make in (variants.quantised_dynamic, static):
        make(tmp_path / "scaled.onnx", tmp_path / "made.onnx")
        kinds = {w.data_type for w in onnx.load(tmp_path / "made.onnx").graph.initializer if len(w.dims) == 2}
        assert kinds == {onnx.TensorProto.INT8}
        before, after = (
            Session(tmp_path / "scaled.onnx").run_all(INPUTS),
            Session(tmp_path / "made.onnx").run_all(INPUTS),
        )
        assert float(np.mean(before["label"] == after["label"])) >= 0.9
