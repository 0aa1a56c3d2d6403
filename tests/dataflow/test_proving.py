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

from batuta.core.decided import Instance, ModelOrder
from batuta.core.proving import Proof, ProvingOrder
from batuta.core.worker import WorkerOrder
from batuta.dataflow.proving import prove
from batuta.dataflow.proving_session import opened
from batuta.kinds.base import Bytes, decode_hook, encode_hook
from batuta.kinds.model import Variant
from batuta.kinds.shaping import After, Before
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


TRANSFORM = b"""
import numpy as np
def before(inputs):
    return {"x": inputs["celsius"].astype(np.float32).repeat(3, axis=1) / 100}
def after(outputs):
    return {"sum": outputs["y"].sum(axis=1), "word": np.array(["warm" if outputs["y"][0, 0] > 1.3 else "cold"])}
"""
CELSIUS = np.int64([[10], [20], [30], [40]])


def version_of(model: Path, text: bytes = TRANSFORM, **around: object) -> WorkerOrder:
    """An order whose version does something around the file."""
    variant = Variant(name="fp32", format="onnx", digest="sha256:" + "1" * 64, size_bytes=Bytes(1))
    path = model.with_suffix(".py")
    path.write_bytes(text)
    said = {"transform": "sha256:" + "2" * 64, **around}
    instance = Instance(
        namespace="default", application="a", component="c", revision=1, slot="0", epoch=1,
        model=ModelOrder(name="m", version="1", variant=variant, **said),  # type: ignore[arg-type]
    )  # fmt: skip
    return WorkerOrder(
        instance=instance, artifact=str(model), directory=str(model.parent), broker={}, start=0,
        transform=str(path) if said["transform"] else "",
    )  # fmt: skip


def requests(model: Path, **answers: object) -> str:
    made = golden.GoldenSet({}, {}, {"celsius": CELSIUS}, answers)
    golden.write(model.with_suffix(".npz"), made)
    return str(model.with_suffix(".npz"))


def test_requests_go_through_the_versions_own_python_as_they_will_be_served(model: Path) -> None:
    right = np.exp(CELSIUS[:, 0].astype(np.float32) / 100) * 3
    words = np.array(["cold", "cold", "warm", "warm"])
    asked = order(model, golden=requests(model, sum=right, word=words), vouching=version_of(model))
    proof = prove(asked)
    assert (proof.reasons, proof.cases) == ((), 4)
    assert proof.measured is not None
    wrong = prove(order(model, golden=requests(model, sum=right, word=words[::-1]), vouching=version_of(model)))
    assert [r.code for r in wrong.reasons] == ["golden_mismatch"]
    assert "answer word of case 0 is cold, warm expected" in wrong.reasons[0].detail
    # The same requests, and Python that has changed since they were made.
    changed = version_of(model, TRANSFORM.replace(b"/ 100", b"/ 10"))
    assert [r.code for r in prove(msgspec.structs.replace(asked, vouching=changed)).reasons] == ["golden_mismatch"]
    broken = version_of(model, b"def before(inputs): return {}")
    reasons = prove(msgspec.structs.replace(asked, vouching=broken)).reasons
    assert (reasons[0].code, "a golden request is refused" in reasons[0].detail) == ("golden_mismatch", True)
    alone = prove(msgspec.structs.replace(asked, vouching=None))
    assert [r.code for r in alone.reasons] == ["golden_unreadable"]


def test_both_levels_may_be_asked_and_each_may_be_wrong(model: Path) -> None:
    right = np.exp(CELSIUS[:, 0].astype(np.float32) / 100) * 3
    inner = golden.make(Session(model), {"x": np.arange(6, dtype=np.float32).reshape(2, 3)})
    made = inner._replace(requests={"celsius": CELSIUS}, answers={"sum": right})
    path = model.with_suffix(".npz")
    golden.write(path, made)
    asked = order(model, golden=str(path), vouching=version_of(model))
    assert (prove(asked).reasons, prove(asked).cases) == ((), 6)
    golden.write(path, made._replace(outputs={"y": made.outputs["y"] + 1}))
    assert "output y" in prove(asked).reasons[0].detail
    golden.write(path, made._replace(answers={"sum": right + 1}))
    assert "answer sum" in prove(asked).reasons[0].detail


def test_declared_shaping_is_replayed_from_the_picture_to_the_label(tmp_path: Path) -> None:
    """A model that sums each colour of a picture of two by two: the strongest colour is the class."""
    ends = [
        make.make_tensor_value_info("image", onnx.TensorProto.FLOAT, ["n", 2, 2, 3]),
        make.make_tensor_value_info("scores", onnx.TensorProto.FLOAT, ["n", 3]),
    ]
    node = make.make_node("ReduceMean", ["image"], ["scores"], axes=[1, 2], keepdims=0)
    graph = make.make_graph([node], "g", ends[:1], ends[1:])
    file = tmp_path / "m.onnx"
    onnx.save(make.make_model(graph, opset_imports=[make.make_opsetid("", 17)], ir_version=8), file)
    pictures = np.zeros((3, 8, 8, 3), np.uint8)
    for n in range(3):
        pictures[n, :, :, n] = 200
    labels = np.array([["red"], ["green"], ["blue"]])
    made = golden.GoldenSet({}, {}, {"image": pictures}, {"labels": labels, "classes": np.int64([[0], [1], [2]])})
    golden.write(tmp_path / "g.npz", made)
    its = version_of(
        file, transform=None, before=Before(resize=(2, 2), scale=1 / 255), after=After(argmax=True),
        labels=("red", "green", "blue"),
    )  # fmt: skip
    proof = prove(order(file, golden=str(tmp_path / "g.npz"), vouching=its))
    assert (proof.reasons, proof.cases) == ((), 3)
    golden.write(tmp_path / "g.npz", made._replace(answers={"labels": labels[::-1]}))
    (reason,) = prove(order(file, golden=str(tmp_path / "g.npz"), vouching=its)).reasons
    assert "answer labels of case 0 is red, blue expected" in reason.detail
