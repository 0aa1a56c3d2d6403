"""What runs a model inside its worker: one tenant per runtime, found by the format of the file.

Belongs here: loading a file, saying what goes in and comes out, one run of one batch. Never here: batching, messages or
meaning. A tenant is imported only when its format is asked for, and only by workers.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any, Protocol

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from batuta.dataflow.oip.datatypes import Array, Port
    from batuta.kinds.model import Format, Signature

MODULES = {"onnx": "onnx_runtime", "tflite": "litert", "pte": "executorch"}


class Unfit(Exception):
    """The model file cannot be used as ordered. `code` is a Reason code; the same order would fail again."""

    def __init__(self, code: str, message: str) -> None:
        super().__init__(message)
        self.code = code


class Engine(Protocol):
    """One loaded model."""

    platform: str
    """The protocol's word for what it is: `onnx_onnxv1`."""
    runs_on: str
    """What computes: `CPUExecutionProvider`."""
    inputs: tuple[Port, ...]
    outputs: tuple[Port, ...]

    def run(self, feeds: Mapping[str, Array]) -> list[Any]:
        """The outputs, in their order: sequences with one row for each of the batch, as the runtime gives them. Feeds
        are of the datatypes and shapes of `inputs`. Raises what it raises."""
        ...

    def tensors(self, outputs: Sequence[Any]) -> list[Array]:
        """The same outputs as `outputs` says of them: texts as bytes, scores by class as a table."""
        ...


def load(path: str, how: Format, kinds: Sequence[str] = (), declared: Signature | None = None) -> Engine:
    """The model in the file at `path`; `kinds` are the accelerators it was given, best first. Raises Unfit.

    `declared` is what its version says of it: a file whose inputs have no names takes them from there.
    """
    try:
        tenant = importlib.import_module(f"batuta.dataflow.engines.{MODULES[how]}")
    except ImportError as error:
        raise Unfit("runtime_missing", f"what runs {how} is not installed here: {error}") from error
    loaded: Engine = tenant.load(path, kinds, declared)
    return loaded


def first_line(error: BaseException) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:300]
