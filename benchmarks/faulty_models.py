"""Models that are wrong in one way each, made from one that is right: what `rollout_faults.py` sends out.

Every one of them is a real ONNX file that ONNX Runtime loads. All carry the same ballast, so that the time an answer
takes is the model's own; the slow one carries ten times as much.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import onnx
from onnx import helper, numpy_helper

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from batuta.demo.digits import Digits, Image

BALLAST = 40
"""Products with a matrix of 1,024 x 1,024 before each answer."""
WIDTH = 1_024
GOLDEN_CASES = 16


class Files(NamedTuple):
    """By what is wrong with it; `first` is what runs before, `better` has nothing wrong."""

    first: Path
    better: Path
    broken: Path
    """Its weights were damaged on the way to the file: golden inputs say so."""
    unsure: Path
    """It learned nothing: most of its answers are wrong, and it is not sure of any."""
    sly: Path
    """Its classes were mixed up: as sure as ever, and wrong."""
    slow: Path
    golden: bytes
    """Inputs and the outputs of `better`, which `broken` claims to be."""
    leak: Path
    """A transform that keeps something of every input."""


def prepare(digits: Digits, directory: Path) -> Files:
    directory.mkdir(parents=True, exist_ok=True)
    first, second = onnx.load(str(digits.first)), onnx.load(str(digits.second))
    rng = np.random.default_rng(7)
    weights = [i for i, w in enumerate(second.graph.initializer) if len(w.dims) == 2]

    def changed(name: str, change: object) -> Path:
        model = onnx.load(str(digits.second))
        for at in weights:
            array = numpy_helper.to_array(model.graph.initializer[at])
            made = change(array)  # type: ignore[operator]
            model.graph.initializer[at].CopyFrom(
                numpy_helper.from_array(made.astype(array.dtype), model.graph.initializer[at].name)
            )
        return _laden(model, directory / f"{name}.onnx", BALLAST)

    better = _laden(second, directory / "better.onnx", BALLAST)
    leak = directory / "leak.py"
    leak.write_text(LEAK)
    return Files(
        first=_laden(first, directory / "first.onnx", BALLAST),
        better=better,
        broken=changed("broken", lambda array: np.where(np.abs(array) > np.quantile(np.abs(array), 0.7), 0, array)),
        unsure=changed("unsure", lambda array: rng.normal(0, 0.3 * array.std(), array.shape)),
        sly=_mixed_up(onnx.load(str(digits.second)), directory / "sly.onnx"),
        slow=_laden(onnx.load(str(digits.second)), directory / "slow.onnx", 10 * BALLAST),
        golden=golden(better, digits.held_out[:GOLDEN_CASES], directory / "golden.npz"),
        leak=leak,
    )


LEAK = """\
import numpy as np

seen = []

def before(inputs):
    seen.append(b"" if len(seen) < 64 else b"x" * 3_000_000)
    return {"image": np.asarray(inputs["image"], np.float32).reshape(-1, 64)}
"""
"""It begins late enough to pass whatever looks at it before it is trusted."""


def golden(model: Path, images: Sequence[Image], path: Path) -> bytes:
    """What the trainer's own run of the model gave."""
    import onnxruntime

    session = onnxruntime.InferenceSession(str(model), providers=["CPUExecutionProvider"])
    pixels = np.array([image.pixels for image in images], np.float32)
    names = [o.name for o in session.get_outputs()]
    outputs = dict(zip(names, session.run(None, {"image": pixels}), strict=True))
    np.savez(path, **{"input.image": pixels}, **{f"output.{name}": value for name, value in outputs.items()})
    return path.read_bytes()


def _laden(model: onnx.ModelProto, path: Path, products: int) -> Path:
    """The model with so many products before its input that change nothing: their sum is multiplied by nearly nothing
    and added."""
    graph = model.graph
    rng = np.random.default_rng(7)
    widen = rng.normal(0, 0.02, (64, WIDTH)).astype(np.float32)
    square = rng.normal(0, 0.02, (WIDTH, WIDTH)).astype(np.float32)
    narrow = rng.normal(0, 1e-20, (WIDTH, 64)).astype(np.float32)
    for name, array in (("ballast.widen", widen), ("ballast.square", square), ("ballast.narrow", narrow)):
        graph.initializer.append(numpy_helper.from_array(array, name))
    nodes = [helper.make_node("MatMul", ["image", "ballast.widen"], ["ballast.0"])]
    for i in range(products):
        nodes += [
            helper.make_node("MatMul", [f"ballast.{i}", "ballast.square"], [f"ballast.raw.{i + 1}"]),
            helper.make_node("Tanh", [f"ballast.raw.{i + 1}"], [f"ballast.{i + 1}"]),
        ]
    nodes += [
        helper.make_node("MatMul", [f"ballast.{products}", "ballast.narrow"], ["ballast.none"]),
        helper.make_node("Add", ["image", "ballast.none"], ["laden"]),
    ]
    for node in graph.node:
        for at, name in enumerate(node.input):
            if name == "image":
                node.input[at] = "laden"
    kept = list(graph.node)
    del graph.node[:]
    graph.node.extend([*nodes, *kept])
    onnx.checker.check_model(model)
    path.write_bytes(model.SerializeToString())
    return path


def _mixed_up(model: onnx.ModelProto, path: Path) -> Path:
    """Each class has the sureness of the one before it; the label follows."""
    graph = model.graph
    for node in graph.node:
        for at, name in enumerate(node.output):
            if name in ("probabilities", "label"):
                node.output[at] = f"true.{name}"
        for at, name in enumerate(node.input):
            if name == "probabilities":
                node.input[at] = "true.probabilities"
    turned = np.roll(np.arange(10), 1).astype(np.int64)
    graph.initializer.append(numpy_helper.from_array(turned, "turned"))
    graph.node.extend(
        [
            helper.make_node("Gather", ["true.probabilities", "turned"], ["probabilities"], axis=1),
            helper.make_node("ArgMax", ["probabilities"], ["label"], axis=1, keepdims=0),
        ]
    )
    _drop_unread(graph)
    return _laden(model, path, BALLAST)


def _drop_unread(graph: onnx.GraphProto) -> None:
    """Nodes whose outputs nobody reads any more: the label of before."""
    wanted = {o.name for o in graph.output}
    while True:
        read = wanted | {name for node in graph.node for name in node.input}
        idle = [node for node in graph.node if not read & set(node.output)]
        if not idle:
            return
        for node in idle:
            graph.node.remove(node)
