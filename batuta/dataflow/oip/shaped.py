"""Requests in images and answers in classes, for versions that declare what is done before and after.

A request in the model's own tensors needs none of this. One whose only input is BYTES, each a JPEG or PNG, or UINT8
pixels, is shaped as the version says, and answered in `classes`, `labels` and `scores`, unless it names outputs of the
model itself. The three can also be asked for by name beside raw inputs.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

import numpy as np

from batuta.dataflow.oip.datatypes import BYTES, widened
from batuta.dataflow.oip.faults import Fault
from batuta.dataflow.oip.messages import Made
from batuta.dataflow.shaping import item_of, named, shares
from batuta.kinds.shaping import After

if TYPE_CHECKING:
    from collections.abc import Sequence

    from batuta.dataflow.engines import Engine
    from batuta.dataflow.oip.datatypes import Array
    from batuta.dataflow.oip.messages import Call
    from batuta.kinds.shaping import Before

OUTPUTS: Final = ("classes", "labels", "scores")
IMAGES_MAX: Final = 256


class Shaped:
    """One model, and what its version says of shaping."""

    is_slow = False
    """What comes after a run takes no time worth a thread."""

    def __init__(self, engine: Engine, before: Before | None, after: After | None, labels: Sequence[str]) -> None:
        self._engine = engine
        self._before = before
        self.after = after
        self._labels = labels

    @property
    def answers(self) -> bool:
        """Requests in images are answered in the three outputs."""
        return self.after is not None

    def may_answer(self, name: str) -> bool:
        return name in OUTPUTS

    def is_meant(self, call: Call) -> bool:
        """Whether the request is in images."""
        if self._before is None or len(self._engine.inputs) != 1 or len(call.inputs) != 1:
            return False
        port, (given,) = self._engine.inputs[0], call.inputs.values()
        if given.datatype == BYTES:
            return port.datatype != BYTES
        return given.datatype == "UINT8" and not (port.datatype == "UINT8" and port.takes(given.array.shape))

    def feeds(self, call: Call) -> dict[str, Array]:
        """Unpacks and shapes; takes milliseconds, so it is called in a thread. Raises Fault."""
        port, ((name, given),) = self._engine.inputs[0], call.inputs.items()
        if name != port.name:
            raise Fault("unfit", f"there is no input {name!r}; there is {port.name}")
        array = given.array
        # A batch of pixels has four dimensions; three are one image in colour, two one in grey.
        flat = array.ravel() if given.datatype == BYTES else array if array.ndim == 4 else array[np.newaxis]
        items = list(flat)
        if not 0 < len(items) <= IMAGES_MAX:
            raise Fault("unfit", f"1 to {IMAGES_MAX} images a request, not {len(items)}")
        try:
            return {port.name: np.stack([item_of(item, self._before, port) for item in items])}
        except ValueError as error:
            raise Fault("unfit", f"input {name!r}: {error}") from None

    def made(self, outputs: Sequence[Array], name: str | None = None) -> list[Made]:
        """All three, or the one of that name. Raises Fault when the model gives no scores."""
        found = next(
            (
                widened(array) if port.datatype == "BF16" else array
                for array, port in zip(outputs, self._engine.outputs, strict=True)
                if (array.dtype.kind == "f" or port.datatype == "BF16") and array.ndim == 2 and array.shape[1] > 1
            ),
            None,
        )
        if found is None:
            raise Fault("unanswerable", "the model gives no scores of classes: ask for its own outputs")
        if not np.isfinite(found).all():
            raise Fault("model_failed", "the model answered with something that is not a number")
        after = self.after or After()
        said = named(shares(found, after), after, self._labels)
        everything = [
            Made("classes", "INT64", said.classes),
            Made("labels", BYTES, said.labels),
            Made("scores", "FP32", said.scores),
        ]
        return [each for each in everything if name in (None, each.name)]
