"""ONNX Runtime. One thread and no spinning: on an edge machine a model shares its cores with others, and a thread that
waits by turning takes theirs.

It computes on what the instance was given: without an accelerator of its own on the processor, with one on the first of
that family's providers that this build has. ONNX Runtime itself falls back to the processor for what a provider lacks.
"""

from __future__ import annotations

import ctypes
from typing import TYPE_CHECKING, Any, Final

import numpy as np
import onnxruntime as ort

from batuta.dataflow.engines import Unfit, first_line
from batuta.dataflow.oip.datatypes import BYTES, Port

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from batuta.dataflow.oip.datatypes import Array
    from batuta.kinds.model import Signature

CPU: Final = "CPUExecutionProvider"
PROVIDERS: Final[dict[str, tuple[str, ...]]] = {
    # TensorRT builds an engine for minutes at the first start, so it comes after CUDA except where it is the custom.
    "nvidia": ("CUDAExecutionProvider", "TensorrtExecutionProvider"),
    "jetson": ("TensorrtExecutionProvider", "CUDAExecutionProvider"),
    "gpu": ("MIGraphXExecutionProvider", "ROCMExecutionProvider", "OpenVINOExecutionProvider", "DmlExecutionProvider"),
    "npu": ("OpenVINOExecutionProvider", "QNNExecutionProvider", "VitisAIExecutionProvider"),
    "coral": (),
    "hailo": ("HailoExecutionProvider",),
}
_TYPES: Final = {
    "float": "FP32", "double": "FP64", "float16": "FP16", "bfloat16": "BF16", "int8": "INT8", "int16": "INT16",
    "int32": "INT32", "int64": "INT64", "uint8": "UINT8", "uint16": "UINT16", "uint32": "UINT32", "uint64": "UINT64",
    "bool": "BOOL", "string": BYTES,
}  # fmt: skip
_BFLOAT16: Final = 16
"""As ONNX numbers it."""


def load(path: str, kinds: Sequence[str], _declared: Signature | None) -> OnnxRuntime:
    return OnnxRuntime(path, kinds)


def providers(kinds: Sequence[str], here: Sequence[str]) -> list[str]:
    """Those to try, in order; the processor is the last one."""
    wanted = (each for kind in kinds for each in PROVIDERS.get(kind, ()))
    return [*dict.fromkeys(each for each in wanted if each in here), CPU]


class OnnxRuntime:
    """One session."""

    platform = "onnx_onnxv1"

    def __init__(self, path: str, kinds: Sequence[str] = ()) -> None:
        options = ort.SessionOptions()
        options.intra_op_num_threads = 1
        options.inter_op_num_threads = 1
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")
        options.log_severity_level = 3
        try:
            chosen = providers(kinds, ort.get_available_providers())
            self._session = ort.InferenceSession(path, options, providers=chosen)
        except Exception as error:  # ONNX Runtime raises its own kinds for every fault of a file
            raise Unfit("artifact_unreadable", f"ONNX Runtime cannot load it: {first_line(error)}") from error
        self.runs_on: str = self._session.get_providers()[0]
        self.inputs = tuple(_port(each) for each in self._session.get_inputs())
        self.outputs = tuple(_port(each) for each in self._session.get_outputs())
        self._names = [each.name for each in self.outputs]
        self._has_words = any(each.datatype == BYTES for each in (*self.inputs, *self.outputs))
        self._has_bf16 = any(each.datatype == "BF16" for each in (*self.inputs, *self.outputs))
        if self._has_words and self._has_bf16:
            raise Unfit("artifact_unreadable", "it has texts and bfloat16, which ONNX Runtime cannot be fed together")
        self._listed = [each.type.startswith("seq(map(") for each in self._session.get_outputs()]
        self._bf16_inputs = frozenset(each.name for each in self.inputs if each.datatype == "BF16")
        self._plain = not (self._has_words or self._has_bf16 or any(self._listed))

    def run(self, feeds: Mapping[str, Array]) -> list[Any]:
        if not self._has_bf16 and not self._has_words:
            found: list[Any] = self._session.run(self._names, feeds)
            return found
        if self._has_bf16:
            return self._run_values(feeds)
        texts = {name: _texts(a) if a.dtype == object else a for name, a in feeds.items()}
        return list(self._session.run(self._names, texts))

    def tensors(self, outputs: Sequence[Any]) -> list[Array]:
        if self._plain:
            return list(outputs)
        return [
            _table(output) if listed else _words(output) if port.datatype == BYTES else output
            for output, listed, port in zip(outputs, self._listed, self.outputs, strict=True)
        ]

    def _run_values(self, feeds: Mapping[str, Array]) -> list[Any]:
        """NumPy has no bfloat16, so its bits go in and come out by their address."""
        values = {name: self._value(name, array) for name, array in feeds.items()}
        outputs = self._session.run_with_ort_values(self._names, values)
        found: list[Any] = []
        for value, port in zip(outputs, self.outputs, strict=True):
            if port.datatype != "BF16":
                found.append(value.numpy())
                continue
            shape = value.shape()
            bits = (ctypes.c_uint16 * int(np.prod(shape))).from_address(value.data_ptr())
            found.append(np.ctypeslib.as_array(bits).reshape(shape).copy())
        return found

    def _value(self, name: str, array: Array) -> Any:
        array = np.ascontiguousarray(array)
        if name in self._bf16_inputs:
            return ort.OrtValue.ortvalue_from_numpy_with_onnx_type(array, _BFLOAT16)
        return ort.OrtValue.ortvalue_from_numpy(array)


def _port(each: Any) -> Port:
    kind = each.type
    if kind.startswith("seq(map("):
        # Scores by class, as scikit-learn's exporter gives them when nobody asks it not to: a column for each class.
        return Port(each.name, "FP32", (-1, -1))
    datatype = _TYPES.get(kind[len("tensor(") : -1]) if kind.startswith("tensor(") else None
    if datatype is None:
        raise Unfit("artifact_unreadable", f"{each.name} is a {kind}, for which there is no datatype")
    return Port(each.name, datatype, tuple(d if isinstance(d, int) and d >= 0 else -1 for d in each.shape))


def _texts(array: Array) -> Array:
    """BYTES as ONNX Runtime takes them. Raises UnicodeDecodeError, which is a ValueError, for what is no text."""
    found = np.empty(array.shape, object)
    found.ravel()[:] = [each.decode() if isinstance(each, bytes) else each for each in array.ravel()]
    return found


def _words(array: Any) -> Array:
    found = np.empty(np.shape(array), object)
    found.ravel()[:] = [each.encode() if isinstance(each, str) else bytes(each) for each in np.ravel(array)]
    return found


def _table(rows: Sequence[Mapping[Any, float]]) -> Array:
    return np.array([[row[key] for key in sorted(row)] for row in rows], np.float32)
