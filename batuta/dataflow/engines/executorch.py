"""ExecuTorch: `.pte` files, one thread, on the processor.

Its Python package computes on PyTorch's tensors, so a worker of this format holds all of PyTorch: 370 MB before any
model. A program that was exported for a batch that varies takes as many rows as it was exported for; more are run in
pieces.
"""

from __future__ import annotations

import mmap
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from executorch.extension.pybindings import portable_lib

from batuta.dataflow.engines import Unfit, first_line
from batuta.dataflow.oip.datatypes import DTYPES, OF_DTYPE, Port
from batuta.errors import ArtifactRefused
from batuta.interop import executorch_program

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from batuta.dataflow.oip.datatypes import Array
    from batuta.kinds.model import Signature, Tensor


def load(path: str, _kinds: Sequence[str], declared: Signature | None) -> ExecuTorch:
    return ExecuTorch(path, declared)


class ExecuTorch:
    """One method of one program."""

    platform = "executorch"
    runs_on = "CPU"

    def __init__(self, path: str, declared: Signature | None = None) -> None:
        try:
            with Path(path).open("rb") as file:
                program = executorch_program.read(memoryview(mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)))
        except (ArtifactRefused, ValueError) as error:  # an empty file cannot be mapped
            raise Unfit("artifact_unreadable", f"ExecuTorch cannot load it: {error}") from error
        found = executorch_program.named(program.signature, declared)
        self.inputs = tuple(_port(each) for each in found.inputs)
        self.outputs = tuple(_port(each) for each in found.outputs)
        self._rows_max = program.batch_max
        torch.set_num_threads(1)
        portable_lib._unsafe_reset_threadpool(1)
        try:
            self._module = portable_lib._load_for_executorch(path)
            self._module.method_meta(executorch_program.METHOD)
        except Exception as error:  # it raises RuntimeError with a number for every fault of a file
            raise Unfit("artifact_unreadable", f"ExecuTorch cannot load it: {first_line(error)}") from error

    def run(self, feeds: Mapping[str, Array]) -> list[Any]:
        arrays = [np.ascontiguousarray(feeds[port.name]) for port in self.inputs]
        rows = {len(array) for array, port in zip(arrays, self.inputs, strict=True) if port.shape[:1] == (-1,)}
        most = self._rows_max
        if not most or not rows or max(rows) <= most:
            return self._run(arrays)
        (count,) = rows
        parts = [
            self._run([
                array[begin : begin + most] if port.shape[:1] == (-1,) else array
                for array, port in zip(arrays, self.inputs, strict=True)
            ])
            for begin in range(0, count, most)
        ]  # fmt: skip
        return [
            np.concatenate(each) if port.shape[:1] == (-1,) else each[0]
            for each, port in zip(zip(*parts, strict=True), self.outputs, strict=True)
        ]

    def tensors(self, outputs: Sequence[Any]) -> list[Array]:
        return list(outputs)

    def _run(self, arrays: Sequence[Array]) -> list[Any]:
        given = [_tensor(array, port) for array, port in zip(arrays, self.inputs, strict=True)]
        found = self._module.run_method(executorch_program.METHOD, given)
        return [_array(each, port) for each, port in zip(found, self.outputs, strict=True)]


def _tensor(array: Array, port: Port) -> Any:
    # What cannot be written to is copied: PyTorch knows no tensors that are only read.
    made = torch.from_numpy((array if array.flags.writeable else array.copy()).view(_native(array)))
    return made.view(torch.bfloat16) if port.datatype == "BF16" else made


def _native(array: Array) -> Any:
    return array.dtype.newbyteorder("=")


def _array(found: Any, port: Port) -> Array:
    if port.datatype == "BF16":
        found = found.view(torch.int16).numpy().view(np.uint16)
        return np.asarray(found)
    return np.asarray(found.numpy())


def _port(tensor: Tensor) -> Port:
    if tensor.dtype == "bfloat16":
        return Port(tensor.name, "BF16", tensor.shape)
    datatype = OF_DTYPE.get(tensor.dtype)
    if datatype is None or datatype not in DTYPES or tensor.dtype == "object":
        raise Unfit("artifact_unreadable", f"{tensor.name} is {tensor.dtype}, for which there is no datatype here")
    return Port(tensor.name, datatype, tensor.shape)
