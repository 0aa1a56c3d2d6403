"""Small real models: a classifier of 64 numbers, a regression of 4, a tree that multiplies nothing."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import onnx
import onnx.helper as make
import pytest
from onnx import TensorProto, numpy_helper

if TYPE_CHECKING:
    from pathlib import Path

FLOAT, INT = TensorProto.FLOAT, TensorProto.INT64


def save(
    path: Path, nodes: list[onnx.NodeProto], ends: list[onnx.ValueInfoProto], outputs: int, **weights: object
) -> Path:
    found = [numpy_helper.from_array(np.asarray(value), name) for name, value in weights.items()]
    graph = make.make_graph(nodes, "g", ends[:-outputs], ends[-outputs:], found)
    onnx.save(make.make_model(graph, opset_imports=[make.make_opsetid("", 17)], ir_version=8), path)
    return path


@pytest.fixture(scope="session")
def classifier(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """`image` float32[?,64] to `label` int64[?] and `scores` float32[?,10]."""
    chance = np.random.default_rng(3)
    nodes = [
        make.make_node("MatMul", ["image", "w"], ["hidden"]),
        make.make_node("Add", ["hidden", "b"], ["sum"]),
        make.make_node("Relu", ["sum"], ["relu"]),
        make.make_node("MatMul", ["relu", "v"], ["logits"]),
        make.make_node("Softmax", ["logits"], ["scores"], axis=1),
        make.make_node("ArgMax", ["scores"], ["label"], axis=1, keepdims=0),
    ]
    ends = [
        make.make_tensor_value_info("image", FLOAT, ["n", 64]), make.make_tensor_value_info("label", INT, ["n"]),
        make.make_tensor_value_info("scores", FLOAT, ["n", 10]),
    ]  # fmt: skip
    return save(
        tmp_path_factory.mktemp("models") / "classifier.onnx", nodes, ends, 2,
        w=chance.normal(size=(64, 32)).astype(np.float32), b=chance.normal(size=32).astype(np.float32),
        v=chance.normal(size=(32, 10)).astype(np.float32),
    )  # fmt: skip


@pytest.fixture(scope="session")
def regression(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """`x` float32[?,4] to `y` float32[?,1]."""
    weights = np.array([[1.0], [2.0], [-3.0], [0.5]], np.float32)
    ends = [make.make_tensor_value_info("x", FLOAT, ["n", 4]), make.make_tensor_value_info("y", FLOAT, ["n", 1])]
    nodes = [make.make_node("MatMul", ["x", "w"], ["y"])]
    return save(tmp_path_factory.mktemp("models") / "regression.onnx", nodes, ends, 1, w=weights)


@pytest.fixture(scope="session")
def barren(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Nothing to quantise: `x` float32[?,4] to `y` float32[?,4]."""
    ends = [make.make_tensor_value_info("x", FLOAT, ["n", 4]), make.make_tensor_value_info("y", FLOAT, ["n", 4])]
    return save(tmp_path_factory.mktemp("models") / "barren.onnx", [make.make_node("Abs", ["x"], ["y"])], ends, 1)


@pytest.fixture(scope="session")
def labelled(tmp_path_factory: pytest.TempPathFactory, classifier: Path) -> Path:
    """200 items, labelled by the classifier itself, ten of them wrongly: its accuracy is 0.95."""
    from batuta.tuning.session import Session

    inputs = np.random.default_rng(5).random((200, 64)).astype(np.float32)
    right = Session(classifier).run_all({"image": inputs})["label"]
    right[:10] = (right[:10] + 1) % 10
    path = tmp_path_factory.mktemp("data") / "labelled.npz"
    np.savez(path, x=inputs, y=right)
    return path
