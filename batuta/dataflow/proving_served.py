"""A version as its callers see it: what they send goes through its `before`, the model and its `after`, as in a worker.

What makes the difference between the two is the very code that workers have, asked without sockets or batches.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from batuta.dataflow.engines import Unfit, first_line
from batuta.dataflow.oip.datatypes import BYTES, OF_DTYPE
from batuta.dataflow.oip.faults import Fault
from batuta.dataflow.oip.messages import Call, Given, Made
from batuta.dataflow.oip.shaped import Shaped
from batuta.dataflow.oip.transformed import Transformed
from batuta.dataflow.transforming import Transform
from batuta.errors import ArtifactRefused

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from batuta.dataflow.proving_session import EngineSession
    from batuta.kinds.shaping import After, Before


class ServedVersion:
    """One version, asked one case at a time. To be closed."""

    def __init__(
        self, session: EngineSession, before: Before | None, after: After | None, labels: Sequence[str],
        transform: bytes | None,
    ) -> None:  # fmt: skip
        self._session = session
        self._transform: Transform | None = None
        try:
            self._transform = Transform(transform) if transform is not None else None
        except Unfit as unfit:
            raise ArtifactRefused(unfit.code, str(unfit)) from None
        self._shaped: Shaped | Transformed = (
            Transformed(session.engine, self._transform)
            if self._transform is not None
            else Shaped(session.engine, before, after, labels)
        )

    def ask(self, given: Mapping[str, Any]) -> dict[str, Any]:
        """What callers are told: by name, one row each. Raises ArtifactRefused."""
        try:
            return self._asked(Call({name: _given(name, array) for name, array in given.items()}))
        except Fault as fault:
            raise ArtifactRefused("golden_mismatch", f"a golden request is refused: {fault.message}") from None
        except ArtifactRefused:
            raise
        except Exception as error:  # runtimes raise their own kinds
            raise ArtifactRefused("artifact_unreadable", f"it cannot be run: {first_line(error)}") from error

    def close(self) -> None:
        if self._transform is not None:
            self._transform.close()

    def _asked(self, call: Call) -> dict[str, Any]:
        engine, is_meant = self._session.engine, self._shaped.is_meant(call)
        feeds = self._shaped.feeds(call) if is_meant else {name: each.array for name, each in call.inputs.items()}
        lacking = [port.name for port in engine.inputs if port.name not in feeds]
        if lacking or len(feeds) != len(engine.inputs):
            takes = ", ".join(port.name for port in engine.inputs)
            raise Fault("unfit", f"the model takes {takes}")
        rows, size = len(next(iter(feeds.values()))), self._session.batch
        if size > rows:  # a file of a fixed batch is fed a full one, as workers do for topics
            feeds = {name: np.concatenate([a, np.repeat(a[-1:], size - rows, axis=0)]) for name, a in feeds.items()}
        arrays = [array[:rows] if size else array for array in engine.tensors(engine.run(feeds))]
        if is_meant and self._shaped.answers:
            return {made.name: _told(made) for made in self._shaped.made(arrays)}
        ports = zip(engine.outputs, arrays, strict=True)
        return {port.name: _told(Made(port.name, port.datatype, array)) for port, array in ports}


def _given(name: str, array: Any) -> Given:
    if array.dtype.kind in "SUO":
        words = np.empty(array.shape, object)
        words.ravel()[:] = [w if isinstance(w, bytes) else str(w).encode() for w in array.ravel().tolist()]
        return Given(BYTES, words)
    datatype = OF_DTYPE.get(array.dtype.name)
    if datatype is None:
        raise ArtifactRefused("golden_unreadable", f"request.{name} is {array.dtype}, for which there is no datatype")
    return Given(datatype, array)


def _told(made: Made) -> Any:
    array = np.asarray(made.array)
    if made.datatype == BYTES:
        words = [w.decode("utf-8", "replace") if isinstance(w, bytes) else str(w) for w in array.ravel().tolist()]
        array = np.array(words, str).reshape(array.shape)
    return array if array.shape[:1] == (1,) else array[np.newaxis]
