"""What a model's outputs mean, and which files are refused."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx.helper as oh
import pytest

from batuta.core.decided import ModelOrder
from batuta.dataflow.engines import Unfit, load
from batuta.dataflow.scoring import Scorer, meaning
from batuta.kinds.base import Bytes
from batuta.kinds.model import Signature, Tensor, Variant

LABELS = ("cat", "dog", "eel")
VARIANT = Variant(name="fp32", format="onnx", digest="sha256:" + "0" * 64, size_bytes=Bytes(1))


def order(**more: Any) -> ModelOrder:
    return ModelOrder(name="m", version="1", variant=VARIANT, **more)


@pytest.mark.parametrize(
    ("outputs", "labels", "expected"),
    [
        ([np.float32([[0.25, 0.5, 0.25]])], (), {"value": 1, "scores": [0.25, 0.5, 0.25]}),
        (
            [np.float32([[0.25, 0.5, 0.125]])],
            LABELS,
            {"value": 1, "label": "dog", "scores": {"dog": 0.5, "cat": 0.25, "eel": 0.125}},
        ),
        ([np.int64([2]), np.float32([[0.5, 0.25, 0.25]])], LABELS[:0], {"value": 2, "scores": [0.5, 0.25, 0.25]}),
        (
            [np.array(["b"], dtype=object), np.float32([[0.25, 0.75]])],
            (),
            {"value": "b", "label": "b", "scores": [0.25, 0.75]},
        ),
        ([np.int64([1]), [{0: 0.25, 1: 0.75}]], (), {"value": 1, "scores": {"1": 0.75, "0": 0.25}}),
        ([np.float32([[21.5]])], (), {"value": 21.5}),
        ([np.float32([21.5])], (), {"value": 21.5}),
        ([np.int64([2])], LABELS, {"value": 2, "label": "eel"}),
        ([np.float32([[[1, 2], [3, 4]]])], (), {"value": [1.0, 2.0, 3.0, 4.0]}),
    ],
)
def test_outputs(outputs: list[Any], labels: tuple[str, ...], expected: dict[str, Any]) -> None:
    assert meaning(outputs, 1, labels) == [expected]


def test_many_classes_list_only_the_best() -> None:
    row = np.zeros((1, 1000), dtype=np.float32)
    row[0, [7, 8, 9]] = [0.5, 0.25, 0.125]
    assert meaning([row], 1, ()) == [{"value": 7, "scores": {"7": 0.5, "8": 0.25, "9": 0.125}}]


@pytest.mark.parametrize(
    "outputs",
    [
        [np.float32([[np.nan, 1]])],
        [np.float32([np.inf])],
        [np.zeros((1, 5000, 1), np.float32)],
        [np.zeros((3, 1), np.float32)],
    ],
)
def test_what_is_no_answer(outputs: list[Any]) -> None:
    with pytest.raises(ValueError, match=r"number|row"):
        meaning(outputs, 1, ())


def model(path: Path, shape: list[Any], *, kind: int = onnx.TensorProto.FLOAT, extra: bool = False) -> str:
    inputs = [oh.make_tensor_value_info("x", kind, shape)]
    if extra:
        inputs.append(oh.make_tensor_value_info("z", kind, shape))
    nodes = [oh.make_node("Add", ["x", "z" if extra else "x"], ["y"])]
    graph = oh.make_graph(nodes, "g", inputs, [oh.make_tensor_value_info("y", kind, shape)])
    onnx.save(oh.make_model(graph, opset_imports=[oh.make_opsetid("", 17)], ir_version=9), path)
    return str(path)


@pytest.mark.parametrize("batch", [None, 1, 2, 4])
async def test_any_number_of_items_whatever_the_batch_of_the_file(tmp_path: Path, batch: int | None) -> None:
    engine = load(model(tmp_path / "m.onnx", [batch, 2]), "onnx")
    scorer = Scorer(engine, order(), None)

    async def run(feeds: dict[str, Any], _rows: int, _own: int) -> Any:
        return engine.run(feeds)

    assert (scorer.fixed_batch, scorer.shape) == (batch or 0, (2,))
    items = [np.float32([i, -i]) for i in range(5)]
    assert [a["scores"] for a in await scorer.score(items, run)] == [[2.0 * i, -2.0 * i] for i in range(5)]


@pytest.mark.parametrize(
    ("shape", "kind", "extra", "tensor", "declared", "why"),
    [
        ([None, 2], onnx.TensorProto.FLOAT, False, "w", None, "no input 'w'; it has x"),
        ([None, 2], onnx.TensorProto.FLOAT, True, "x", None, "also needs z"),
        ([None, 2], onnx.TensorProto.FLOAT, False, None, ("x", "uint8", (-1, 2)), "declared as uint8"),
        ([None, 2], onnx.TensorProto.FLOAT, False, None, ("x", "float32", (-1, 3)), r"declared as float32\[-1, 3\]"),
        ([None, 2], onnx.TensorProto.FLOAT, False, None, ("w", "float32", (-1, 2)), "not in the declared signature"),
        ([], onnx.TensorProto.FLOAT, False, None, None, "no dimensions"),
    ],
)
def test_files_that_do_not_fit(
    tmp_path: Path, shape: list[Any], kind: int, extra: bool, tensor: str | None, declared: Any, why: str
) -> None:
    signature = (
        Signature(inputs=(Tensor(name=declared[0], dtype=declared[1], shape=declared[2]),)) if declared else None
    )
    engine = load(model(tmp_path / "m.onnx", shape, kind=kind, extra=extra), "onnx")
    with pytest.raises(Unfit, match=why) as unfit:
        Scorer(engine, order(signature=signature), tensor)
    assert unfit.value.code == "artifact_unreadable"


def test_a_file_that_is_no_model(tmp_path: Path) -> None:
    (tmp_path / "m.onnx").write_bytes(b"nonsense")
    with pytest.raises(Unfit, match="cannot load"):
        load(str(tmp_path / "m.onnx"), "onnx")
