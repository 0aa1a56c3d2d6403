"""The proving process: what it says of good files, of wrong ones, and of limits; and that it says it as a process."""

from __future__ import annotations

import subprocess
import sys
from importlib.util import find_spec
from typing import TYPE_CHECKING

import msgspec
import numpy as np
import onnx
import onnx.helper as make
import pytest

from batuta.core.proving import Proof, ProvingOrder
from batuta.dataflow.proving import prove
from batuta.dataflow.proving_session import opened
from batuta.kinds.base import Bytes, decode_hook, encode_hook
from batuta.tuning import golden
from batuta.tuning.session import Session
from tests.dataflow.test_engines import tflite

if TYPE_CHECKING:
    from pathlib import Path


@pytest.fixture
def model(tmp_path: Path) -> Path:
    """`x` float32[?,3] to `y` float32[?,3]."""
    ends = [make.make_tensor_value_info(n, onnx.TensorProto.FLOAT, ["n", 3]) for n in "xy"]
    graph = make.make_graph([make.make_node("Exp", ["x"], ["y"])], "g", ends[:1], ends[1:])
    onnx.save(make.make_model(graph, opset_imports=[make.make_opsetid("", 17)], ir_version=8), tmp_path / "m.onnx")
    return tmp_path / "m.onnx"


def order(model: Path, **more: object) -> ProvingOrder:
    said = {"artifact": str(model), "format": "onnx", "result": str(model.with_suffix(".json")), "measure_ms": 50}
    return ProvingOrder(**{**said, **more})  # type: ignore[arg-type]


def cases(model: Path, off: float = 0.0) -> str:
    made = golden.make(Session(model), {"x": np.arange(12, dtype=np.float32).reshape(4, 3) / 10})
    outputs = {"y": made.outputs["y"] + np.float32(off)}
    golden.write(model.with_suffix(".npz"), made._replace(outputs=outputs))
    return str(model.with_suffix(".npz"))


def test_a_good_model_is_measured(model: Path) -> None:
    proof = prove(order(model, golden=cases(model)))
    assert (proof.reasons, proof.cases, proof.furthest) == ((), 4, 0.0)
    assert proof.runtime.startswith("onnxruntime ")
    assert proof.measured is not None
    assert 0 < proof.measured.p50_us <= proof.measured.p99_us
    assert proof.measured.samples >= 20
    assert proof.measured.memory_bytes > 20 << 20


def test_without_golden_inputs_it_is_only_measured(model: Path) -> None:
    proof = prove(order(model))
    assert (proof.reasons, proof.cases) == ((), 0)
    assert proof.measured is not None


def test_what_does_not_take_made_up_inputs_is_not_refused_for_it(tmp_path: Path) -> None:
    ends = [make.make_tensor_value_info(n, onnx.TensorProto.FLOAT, [None, None]) for n in "xy"]
    shape = make.make_tensor("shape", onnx.TensorProto.INT64, [2], [-1, 7])
    graph = make.make_graph([make.make_node("Reshape", ["x", "shape"], ["y"])], "g", ends[:1], ends[1:], [shape])
    path = tmp_path / "picky.onnx"
    onnx.save(make.make_model(graph, opset_imports=[make.make_opsetid("", 17)], ir_version=8), path)
    proof = prove(order(path))
    assert (proof.reasons, proof.measured) == ((), None)
    assert proof.runtime


def test_another_answer_is_a_mismatch_and_nothing_is_measured(model: Path) -> None:
    proof = prove(order(model, golden=cases(model, off=0.1)))
    assert [r.code for r in proof.reasons] == ["golden_mismatch"]
    assert "output y of case" in proof.reasons[0].detail
    assert proof.measured is None
    assert prove(order(model, golden=cases(model, off=0.1), tolerance=0.2)).reasons == ()


@pytest.mark.parametrize(
    ("limits", "code"),
    [
        ({"p99_ms_max": 1e-6}, "too_slow"), ({"p50_ms_max": 1e-6}, "too_slow"),
        ({"memory_bytes_max": Bytes(1 << 20)}, "too_much_memory"),
    ],
)  # fmt: skip
def test_limits(model: Path, limits: dict[str, object], code: str) -> None:
    proof = prove(order(model, **limits))
    assert [r.code for r in proof.reasons] == [code]
    assert proof.measured is not None


def test_files_that_are_none(model: Path, tmp_path: Path) -> None:
    (tmp_path / "junk").write_bytes(b"junk")
    assert [r.code for r in prove(order(tmp_path / "junk")).reasons] == ["artifact_unreadable"]
    assert [r.code for r in prove(order(model, golden=str(tmp_path / "junk"))).reasons] == ["golden_unreadable"]
    code = "artifact_unreadable" if find_spec("executorch") else "runtime_missing"
    assert [r.code for r in prove(order(model, format="pte")).reasons] == [code]


def test_it_is_a_process_that_leaves_one_document(model: Path) -> None:
    asked = order(model, golden=cases(model))
    body = msgspec.json.encode(asked, enc_hook=encode_hook)
    done = subprocess.run(
        [sys.executable, "-P", "-m", "batuta.dataflow.proving"],
        input=body,
        capture_output=True,
        check=False,
        timeout=120,
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, b"", b"")
    proof = msgspec.json.decode(model.with_suffix(".json").read_bytes(), type=Proof, dec_hook=decode_hook)
    assert (proof.reasons, proof.cases) == ((), 4)


def test_other_runtimes_are_proved_as_they_serve(tmp_path: Path) -> None:
    weights = np.float32([[1, 2, 3], [-1, 0, 1]])
    file = tflite(tmp_path / "m.tflite", weights, batch=1)
    made = golden.make(opened(file, "tflite"), {"x": np.arange(12, dtype=np.float32).reshape(4, 3)})
    golden.write(tmp_path / "right.npz", made)
    golden.write(tmp_path / "wrong.npz", made._replace(outputs={"y": made.outputs["y"] + 1}))
    right = prove(order(file, format="tflite", golden=str(tmp_path / "right.npz")))
    assert (right.reasons, right.cases) == ((), 4)
    assert right.runtime.startswith("ai-edge-litert ")
    assert right.measured is not None
    wrong = prove(order(file, format="tflite", golden=str(tmp_path / "wrong.npz")))
    assert [r.code for r in wrong.reasons] == ["golden_mismatch"]


def test_words_go_in_and_come_out(tmp_path: Path) -> None:
    ends = [make.make_tensor_value_info(n, onnx.TensorProto.STRING, ["n"]) for n in "xy"]
    graph = make.make_graph([make.make_node("Identity", ["x"], ["y"])], "g", ends[:1], ends[1:])
    file = tmp_path / "words.onnx"
    onnx.save(make.make_model(graph, opset_imports=[make.make_opsetid("", 17)], ir_version=8), file)
    golden.write(tmp_path / "g.npz", golden.make(opened(file, "onnx"), {"x": np.array(["ä", "bc"])}))
    assert prove(order(file, golden=str(tmp_path / "g.npz"))).reasons == ()
    assert prove(order(file)).reasons == ()
