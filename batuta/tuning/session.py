"""A model file in its runtime, as workers load it: one thread, no spinning, so that what is measured is what runs."""

from __future__ import annotations

import os
from abc import ABC, abstractmethod
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from batuta.errors import ArtifactRefused

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

    from batuta.kinds.model import Signature

DTYPES = {
    "float": "float32", "double": "float64", "float16": "float16", "int8": "int8", "int16": "int16", "int32": "int32",
    "int64": "int64", "uint8": "uint8", "uint16": "uint16", "uint32": "uint32", "uint64": "uint64", "bool": "bool",
    "string": "str",
}  # fmt: skip
"""ONNX Runtime's words in NumPy's."""


class Port(NamedTuple):
    """One input or output."""

    name: str
    dtype: str
    """NumPy's word; empty for what is no tensor."""
    shape: tuple[int, ...]
    """-1 for a dimension that varies."""


class Loaded(ABC):
    """A loaded file, whichever runtime has it."""

    def __init__(self, runtime: str, inputs: Sequence[Port], outputs: Sequence[Port]) -> None:
        self.runtime = runtime
        self.inputs, self.outputs = tuple(inputs), tuple(outputs)
        fixed = {port.shape[0] for port in self.inputs if port.shape and port.shape[0] > 0}
        self.batch = fixed.pop() if len(fixed) == 1 else 0
        """Items that it takes at once and no other number; 0 when any is right."""

    @abstractmethod
    def call(self, feed: Mapping[str, Any]) -> list[Any]:
        """The outputs, in order, as the runtime gives them. Raises whatever it raises."""

    def run(self, feed: Mapping[str, Any]) -> list[Any]:
        """The outputs, in order. Raises ArtifactRefused: a file that cannot run is none."""
        try:
            return self.call(feed)
        except Exception as error:  # runtimes raise their own kinds
            code = "too_much_memory" if _is_of_memory(error) else "artifact_unreadable"
            raise ArtifactRefused(code, f"it cannot be run: {first_line(error)}") from error

    def run_all(self, inputs: Mapping[str, Any], batch: int = 64) -> dict[str, Any]:
        """The outputs for all items, by name; items are the first dimension of every input."""
        count = count_of(inputs)
        size = self.batch or batch
        parts: list[list[Any]] = []
        for begin in range(0, count, size):
            chunk = {name: value[begin : begin + size] for name, value in inputs.items()}
            there = count_of(chunk)
            if self.batch and there < self.batch:  # the last one fills up, and its echoes are dropped
                chunk = {
                    n: np.concatenate([v, np.repeat(v[-1:], self.batch - there, axis=0)]) for n, v in chunk.items()
                }
            parts.append([_head(output, there) for output in self.run(chunk)])
        return {port.name: _joined([part[i] for part in parts]) for i, port in enumerate(self.outputs)}


class Session(Loaded):
    """An ONNX file in ONNX Runtime. Raises ArtifactRefused when it cannot be loaded."""

    def __init__(self, path: str | os.PathLike[str] | Path) -> None:
        try:
            import onnxruntime as ort
        except ImportError as error:
            said, step = f"ONNX Runtime cannot be loaded here: {error}", "pip install 'batuta[model]'"
            raise ArtifactRefused("runtime_missing", said, next_step=step) from None
        options = ort.SessionOptions()
        options.intra_op_num_threads = options.inter_op_num_threads = 1
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")
        options.log_severity_level = 3
        try:
            self._session = ort.InferenceSession(os.fspath(path), options, providers=["CPUExecutionProvider"])
        except Exception as error:  # ONNX Runtime raises its own kinds for every fault of a file
            code = "too_much_memory" if _is_of_memory(error) else "artifact_unreadable"
            raise ArtifactRefused(code, f"ONNX Runtime cannot load it: {first_line(error)}") from error
        super().__init__(
            f"onnxruntime {ort.__version__}",
            [_port(each) for each in self._session.get_inputs()],
            [_port(each) for each in self._session.get_outputs()],
        )

    def call(self, feed: Mapping[str, Any]) -> list[Any]:
        found: list[Any] = self._session.run(None, dict(feed))
        return found


def count_of(inputs: Mapping[str, Any]) -> int:
    """How many items there are; every input must have as many. Raises ArtifactRefused."""
    counts = {name: len(value) for name, value in inputs.items()}
    if len(set(counts.values())) != 1:
        raise ArtifactRefused("data_unreadable", f"inputs differ in how many items they have: {counts}")
    return next(iter(counts.values()))


def feedable(session: Loaded, inputs: Mapping[str, Any]) -> dict[str, Any]:
    """Inputs as the model takes them: by name, of its type and shape. Raises ArtifactRefused where they are not."""
    lacking = [port.name for port in session.inputs if port.name not in inputs]
    unknown = sorted(inputs.keys() - {port.name for port in session.inputs})
    if lacking or unknown:
        takes = ", ".join(port.name for port in session.inputs)
        raise ArtifactRefused("data_unreadable", f"the model takes {takes}; the data has {', '.join(sorted(inputs))}")
    found: dict[str, Any] = {}
    for port in session.inputs:
        value = np.asarray(inputs[port.name])
        rest = port.shape[1:]
        if value.shape[1:] != rest and value.size and -1 not in rest and value.size == len(value) * int(np.prod(rest)):
            value = value.reshape(len(value), *rest)
        fits = value.ndim == len(port.shape) and all(
            size in (-1, there) for size, there in zip(rest, value.shape[1:], strict=False)
        )
        if not fits:
            shown = f"{port.name} {port.dtype}{list(port.shape)}"
            raise ArtifactRefused("data_unreadable", f"the model takes {shown}; the data has {list(value.shape)}")
        if port.dtype == "str":
            found[port.name] = value.astype(str).astype(object)
        elif port.dtype:
            found[port.name] = np.ascontiguousarray(value, dtype=port.dtype)
        else:
            raise ArtifactRefused("artifact_unreadable", f"input {port.name} is no tensor")
    return found


def anything(session: Loaded, signature: Signature | None, items: int) -> dict[str, Any]:
    """Inputs to measure with where nobody gave any: the same ones every time. A dimension that varies is taken as 1."""
    chance = np.random.default_rng(7)
    found: dict[str, Any] = {}
    for port in session.inputs:
        declared = next((t.shape for t in signature.inputs if t.name == port.name), ()) if signature else ()
        shape = [
            size if size > 0 else declared[i] if i < len(declared) and declared[i] > 0 else 1
            for i, size in enumerate(port.shape)
        ]
        if shape:
            shape[0] = items
        if port.dtype.startswith("float"):
            found[port.name] = chance.random(shape).astype(port.dtype)
        elif port.dtype == "str":
            found[port.name] = np.full(shape, "a", dtype=object)
        elif port.dtype:
            found[port.name] = chance.integers(0, 2, shape).astype(port.dtype)
        else:
            raise ArtifactRefused("artifact_unreadable", f"input {port.name} is no tensor")
    return found


def first_line(error: BaseException) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:300]


def _port(said: Any) -> Port:
    inner = said.type[len("tensor(") : -1] if said.type.startswith("tensor(") else ""
    shape = tuple(size if isinstance(size, int) and size >= 0 else -1 for size in said.shape or ())
    return Port(said.name, DTYPES.get(inner, ""), shape)


def _head(output: Any, count: int) -> Any:
    return output[:count] if isinstance(output, (np.ndarray, list)) else output


def _joined(parts: Sequence[Any]) -> Any:
    if all(isinstance(part, np.ndarray) and part.ndim for part in parts):
        return np.concatenate(parts)
    return [item for part in parts for item in (part if isinstance(part, list) else [part])]


def _is_of_memory(error: BaseException) -> bool:
    words = str(error).lower()
    return (
        isinstance(error, MemoryError)
        or "bad_alloc" in words
        or "bad allocation" in words
        or "failed to allocate" in words
    )
