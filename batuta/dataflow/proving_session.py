"""A model file in the engine that serves it, as what proves and compares models takes it."""

from __future__ import annotations

from importlib.metadata import PackageNotFoundError, version
from typing import TYPE_CHECKING, Any

from batuta.dataflow import engines
from batuta.dataflow.oip.datatypes import BYTES, DTYPES
from batuta.errors import ArtifactRefused
from batuta.tuning.session import Loaded, Port

if TYPE_CHECKING:
    import os
    from collections.abc import Mapping, Sequence

    from batuta.dataflow.engines import Engine
    from batuta.kinds.model import Format, Signature

RUNTIMES: dict[str, tuple[str, ...]] = {
    "onnx": ("onnxruntime", "onnxruntime-gpu"), "tflite": ("ai-edge-litert",), "pte": ("executorch",)
}  # fmt: skip
"""By format: the distributions that may hold its runtime."""


class EngineSession(Loaded):
    """One engine. Raises ArtifactRefused when it cannot load the file."""

    def __init__(
        self, path: str | os.PathLike[str], how: Format, kinds: Sequence[str] = (), declared: Signature | None = None
    ) -> None:
        try:
            self.engine: Engine = engines.load(str(path), how, kinds, declared)
        except engines.Unfit as unfit:
            raise ArtifactRefused(unfit.code, str(unfit)) from None
        on = self.engine.runs_on.removesuffix("ExecutionProvider")
        super().__init__(
            _runtime(how) + ("" if on == "CPU" else f" {on}"),
            [Port(p.name, _dtype(p.datatype), p.shape) for p in self.engine.inputs],
            [Port(p.name, _dtype(p.datatype), p.shape) for p in self.engine.outputs],
        )

    def call(self, feed: Mapping[str, Any]) -> list[Any]:
        return self.engine.run(feed)


def opened(
    path: str | os.PathLike[str], how: Format, kinds: Sequence[str] = (), declared: Signature | None = None
) -> EngineSession:
    """The file, loaded; `kinds` are the accelerators that it may use, `declared` what its version says of it."""
    return EngineSession(path, how, kinds, declared)


def _dtype(datatype: str) -> str:
    return "str" if datatype == BYTES else DTYPES[datatype].name


def _runtime(how: Format) -> str:
    for name in RUNTIMES[how]:
        try:
            return f"{name} {version(name)}"
        except PackageNotFoundError:
            continue
    return RUNTIMES[how][0]
