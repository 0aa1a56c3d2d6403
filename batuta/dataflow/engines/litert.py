"""LiteRT, once TensorFlow Lite: `.tflite` files, one thread, on the processor.

A file with a signature is asked by the names in it; one without by the names of its tensors. Quantised inputs and
outputs are what they are in the file: whole numbers, with scale and zero point in the file's own words, which requests
must know.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
from ai_edge_litert.interpreter import Interpreter

from batuta.dataflow.engines import Unfit, first_line
from batuta.dataflow.oip.datatypes import BYTES, OF_DTYPE, Port

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from batuta.dataflow.oip.datatypes import Array
    from batuta.kinds.model import Signature


def load(path: str, _kinds: Sequence[str], _declared: Signature | None) -> LiteRt:
    return LiteRt(path)


class LiteRt:
    """One interpreter."""

    platform = "tflite"
    runs_on = "CPU"

    def __init__(self, path: str) -> None:
        try:
            self._interpreter = Interpreter(model_path=path, num_threads=1)
            self._interpreter.allocate_tensors()
            signatures = self._interpreter.get_signature_list() or {}
            inputs = self._interpreter.get_input_details()
            outputs = self._interpreter.get_output_details()
        except Exception as error:  # LiteRT raises its own kinds for every fault of a file
            raise Unfit("artifact_unreadable", f"LiteRT cannot load it: {first_line(error)}") from error
        if len(signatures) > 1 and "serving_default" not in signatures:
            raise Unfit("artifact_unreadable", f"it has several signatures: {', '.join(sorted(signatures))}")
        names_in = {each["name"]: each["name"] for each in inputs}
        names_out = {each["name"]: each["name"] for each in outputs}
        if signatures:
            chosen = "serving_default" if "serving_default" in signatures else next(iter(signatures))
            runner = self._interpreter.get_signature_runner(chosen)
            names_in = {detail["name"]: name for name, detail in runner.get_input_details().items()}
            names_out = {detail["name"]: name for name, detail in runner.get_output_details().items()}
        self._inputs = {names_in.get(each["name"], each["name"]): each for each in inputs}
        self._outputs = [each["index"] for each in outputs]
        self.inputs = tuple(_port(name, each) for name, each in self._inputs.items())
        self.outputs = tuple(_port(names_out.get(each["name"], each["name"]), each) for each in outputs)
        if all(port.shape[:1] == (-1,) for port in self.inputs):
            # What is computed from a batch of any size has any size too; files often say 1 of it.
            self.outputs = tuple(p._replace(shape=(-1, *p.shape[1:])) if p.shape else p for p in self.outputs)
        self._shapes = {name: tuple(int(d) for d in each["shape"]) for name, each in self._inputs.items()}

    def run(self, feeds: Mapping[str, Array]) -> list[Any]:
        interpreter = self._interpreter
        changed = [name for name, array in feeds.items() if array.shape != self._shapes[name]]
        for name in changed:
            interpreter.resize_tensor_input(self._inputs[name]["index"], feeds[name].shape, strict=True)
        if changed:
            interpreter.allocate_tensors()
            self._shapes.update({name: feeds[name].shape for name in changed})
        for name, array in feeds.items():
            interpreter.set_tensor(self._inputs[name]["index"], np.ascontiguousarray(array))
        interpreter.invoke()
        return [interpreter.get_tensor(index) for index in self._outputs]

    def tensors(self, outputs: Sequence[Any]) -> list[Array]:
        return list(outputs)


def _port(name: str, detail: Mapping[str, Any]) -> Port:
    dtype = np.dtype(detail["dtype"])
    datatype = OF_DTYPE.get(dtype.name)
    if datatype is None or datatype == BYTES:
        raise Unfit("artifact_unreadable", f"{name} is {dtype.name}, for which there is no datatype here")
    signature = detail.get("shape_signature")
    shape = detail["shape"] if signature is None or len(signature) == 0 else signature
    return Port(name, datatype, tuple(int(d) for d in shape))
