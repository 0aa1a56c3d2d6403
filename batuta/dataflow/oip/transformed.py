"""Requests for versions with a `transform.py`: what comes in is for `before`, what goes out is what `after` says.

A request in the model's own tensors passes by, as with declared shaping.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from batuta.dataflow.oip.datatypes import BYTES, DTYPES, OF_DTYPE
from batuta.dataflow.oip.faults import Fault
from batuta.dataflow.oip.messages import Made
from batuta.dataflow.transforming import plain

if TYPE_CHECKING:
    from collections.abc import Sequence

    from batuta.dataflow.engines import Engine
    from batuta.dataflow.oip.datatypes import Array
    from batuta.dataflow.oip.messages import Call
    from batuta.dataflow.transforming import Transform


class Transformed:
    """One model and the process that its version's Python runs in."""

    is_slow = True

    def __init__(self, engine: Engine, transform: Transform) -> None:
        self._engine = engine
        self._transform = transform
        self._ports = {port.name: port for port in engine.inputs}

    @property
    def answers(self) -> bool:
        return self._transform.has("after")

    @property
    def takes(self) -> bool:
        return self._transform.has("before")

    def may_answer(self, _name: str) -> bool:
        """Which outputs there are, is known only when they are there; all of them are given."""
        return False

    def is_meant(self, call: Call) -> bool:
        """Anything but the model's own tensors is for `before`."""
        if not self.takes:
            return False
        own = call.inputs.keys() == self._ports.keys() and all(
            given.datatype == self._ports[name].datatype and self._ports[name].takes(given.array.shape)
            for name, given in call.inputs.items()
        )
        return not own

    def feeds(self, call: Call) -> dict[str, Array]:
        """Called in a thread. Raises Fault."""
        try:
            return self.fed({name: given.array for name, given in call.inputs.items()})
        except ValueError as error:
            raise Fault("unfit", str(error)) from None

    def fed(self, given: dict[str, Array]) -> dict[str, Array]:
        """What `before` makes of it, when the model takes that. Raises ValueError."""
        made = self._transform.before(given)
        if made.keys() != self._ports.keys():
            raise ValueError(f"before of transform.py gives {', '.join(sorted(made))}, not {', '.join(self._ports)}")
        feeds = {}
        for name, port in self._ports.items():
            array = made[name]
            if port.datatype == BYTES:
                words = np.empty(array.shape, object)
                words.ravel()[:] = [w if isinstance(w, bytes) else str(w).encode() for w in array.ravel()]
                array = words
            elif OF_DTYPE.get(array.dtype.name) != port.datatype and port.datatype != "BF16":
                raise ValueError(f"before of transform.py gives {name!r} as {array.dtype}, not {DTYPES[port.datatype]}")
            if not port.takes(array.shape) or array.size == 0:
                raise ValueError(
                    f"before of transform.py gives {name!r} of {list(array.shape)}, not {list(port.shape)}"
                )
            feeds[name] = array
        return feeds

    def said(self, outputs: Sequence[Any], count: int) -> list[dict[str, Any]]:
        """What `after` says of each row, for topics. Raises ValueError."""
        arrays = self._engine.tensors(outputs)
        names = [port.name for port in self._engine.outputs]
        rows = ({name: array[i : i + 1] for name, array in zip(names, arrays, strict=True)} for i in range(count))
        return [plain(self._transform.after(row)) for row in rows]

    def made(self, outputs: Sequence[Array], _name: str | None = None) -> list[Made]:
        given = {port.name: array for port, array in zip(self._engine.outputs, outputs, strict=True)}
        try:
            found = self._transform.after(given)
        except ValueError as error:
            raise Fault("model_failed", str(error)) from None
        return [_made(name, array) for name, array in found.items()]


def _made(name: str, array: Array) -> Made:
    if array.dtype.kind in "US":
        words = np.empty(array.shape, object)
        words.ravel()[:] = [w if isinstance(w, bytes) else str(w).encode() for w in array.ravel().tolist()]
        return Made(name, BYTES, words)
    return Made(name, OF_DTYPE[array.dtype.name], array)
