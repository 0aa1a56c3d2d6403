"""Runtimes of models: what they say of a file, what they compute, and which provider ONNX Runtime is given."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import flatbuffers
import numpy as np
import pytest
from ai_edge_litert import schema_py_generated as schema

from batuta.dataflow.engines import Unfit, load
from batuta.dataflow.engines.onnx_runtime import providers
from batuta.dataflow.oip.batching import Batching
from batuta.dataflow.oip.datatypes import Port

if TYPE_CHECKING:
    from pathlib import Path


def tflite(path: Path, weights: Any, *, batch: int) -> Path:
    """A fully connected layer: `y = x · weightsᵀ`."""
    outs, ins = weights.shape

    def tensor(name: str, shape: list[int], buffer: int, *, varies: bool) -> Any:
        made = schema.TensorT()
        made.name, made.type, made.buffer = name, schema.TensorType.FLOAT32, buffer
        made.shape = [1 if d < 0 else d for d in shape]
        if varies:
            made.shapeSignature = shape
        return made

    operator = schema.OperatorT()
    operator.opcodeIndex, operator.inputs, operator.outputs = 0, [0, 1, -1], [2]
    operator.builtinOptionsType = schema.BuiltinOptions.FullyConnectedOptions
    operator.builtinOptions = schema.FullyConnectedOptionsT()
    graph = schema.SubGraphT()
    varies = batch < 0
    graph.tensors = [
        tensor("x", [batch, ins], 0, varies=varies), tensor("w", [outs, ins], 1, varies=False),
        tensor("y", [batch, outs], 0, varies=varies),
    ]  # fmt: skip
    graph.inputs, graph.outputs, graph.operators = [0], [2], [operator]
    code = schema.OperatorCodeT()
    code.builtinCode = code.deprecatedBuiltinCode = schema.BuiltinOperator.FULLY_CONNECTED
    code.version = 1
    model = schema.ModelT()
    model.version, model.subgraphs, model.operatorCodes = 3, [graph], [code]
    empty, data = schema.BufferT(), schema.BufferT()
    data.data = np.frombuffer(weights.astype("<f4").tobytes(), np.uint8)
    model.buffers = [empty, data]
    builder = flatbuffers.Builder(1024)
    builder.Finish(model.Pack(builder), b"TFL3")
    path.write_bytes(bytes(builder.Output()))
    return path


@pytest.mark.parametrize("batch", [-1, 1])
async def test_litert_computes_what_the_file_says(tmp_path: Path, batch: int) -> None:
    weights = np.float32([[1, 2, 3], [-1, 0, 1]])
    engine = load(str(tflite(tmp_path / "m.tflite", weights, batch=batch)), "tflite")
    assert engine.platform == "tflite"
    assert engine.inputs == (Port("x", "FP32", (batch, 3)),)
    assert engine.outputs == (Port("y", "FP32", (batch, 2)),)
    for rows in (1, 4, 2) if batch < 0 else (1, 1):
        x = np.random.default_rng(rows).random((rows, 3), np.float32)
        (y,) = engine.tensors(engine.run({"x": x}))
        assert np.allclose(y, x @ weights.T, atol=1e-5)
    batching = Batching(engine)
    batching.try_out()
    assert batching.mixes == (batch < 0)
    batching.close()


def test_files_that_are_none(tmp_path: Path) -> None:
    (tmp_path / "m").write_bytes(b"nonsense")
    for how in ("onnx", "tflite"):
        with pytest.raises(Unfit, match="cannot load") as unfit:
            load(str(tmp_path / "m"), how)
        assert unfit.value.code == "artifact_unreadable"


@pytest.mark.parametrize(
    ("kinds", "here", "chosen"),
    [
        ((), ("CUDA", "CPU"), ["CPU"]),
        (("nvidia",), ("CPU",), ["CPU"]),
        (("nvidia",), ("TensorrtExecution", "CUDAExecution", "CPU"), ["CUDAExecution", "TensorrtExecution", "CPU"]),
        (("jetson",), ("CUDAExecution", "TensorrtExecution", "CPU"), ["TensorrtExecution", "CUDAExecution", "CPU"]),
        (("gpu",), ("OpenVINOExecution", "CPU"), ["OpenVINOExecution", "CPU"]),
        (("coral",), ("OpenVINOExecution", "CPU"), ["CPU"]),
    ],
)
def test_providers_are_those_of_what_was_given(kinds: Any, here: Any, chosen: list[str]) -> None:
    def full(word: str) -> str:
        return "CPUExecutionProvider" if word == "CPU" else f"{word}Provider"

    assert providers(kinds, [full(each) for each in here]) == [full(each) for each in chosen]
