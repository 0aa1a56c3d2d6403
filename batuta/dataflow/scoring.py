"""What the messages of topics make a model take, and what its outputs mean. Imported by workers only.

A component feeds one input, a message an item of its batch; the answer to a message is a class with its scores, a
number, or numbers. Requests speak tensors instead, and need none of this.
"""

from __future__ import annotations

import asyncio
import math
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from batuta.dataflow.engines import Unfit
from batuta.dataflow.oip.datatypes import BYTES, DTYPES, shortened, widened
from batuta.dataflow.shaping import item_of, named, shares
from batuta.dataflow.tensors import Item, anything, decode

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Sequence

    from batuta.core.decided import ModelOrder
    from batuta.dataflow.engines import Engine
    from batuta.dataflow.oip.datatypes import Port
    from batuta.dataflow.oip.transformed import Transformed
    from batuta.dataflow.tensors import Array
    from batuta.kinds.shaping import After

    Run = Callable[[dict[str, Array], int, int], Awaitable[Sequence[Any]]]
    """Feeds, how many rows they have, and how many of those are items; gives the outputs."""

CLASSES_MAX = 4096
SCORES_LISTED_MAX = 64
"""More classes than this, or classes with names: only the best are listed."""
BEST = 3
NONSENSE = "the model answered with something that is not a number"
NUMBERS_MAX = 4096
"""An answer is a message; a larger output is no answer."""


class Scorer:
    """One loaded model, as topics see it."""

    def __init__(
        self, engine: Engine, order: ModelOrder, tensor: str | None, transformed: Transformed | None = None
    ) -> None:
        self.labels = order.labels
        self._before, self._after = order.before, order.after
        self._transformed = transformed
        self._engine = engine
        given = _input(engine, tensor)
        self.input = given.name
        self._is_bf16 = given.datatype == "BF16"
        self.dtype = np.dtype("float32") if self._is_bf16 else DTYPES[given.datatype].newbyteorder("=")
        """What an item is made of. NumPy has no bfloat16; it is made from float32."""
        if not given.shape:
            raise Unfit("artifact_unreadable", f"input {given.name} has no dimensions, so nothing can be batched")
        _check_declared(order, given)
        self.fixed_batch = given.shape[0] if given.shape[0] > 0 else 0
        """A batch of this many and no other; 0 when any is right."""
        self.shape = given.shape[1:]
        self._image = given._replace(datatype="FP32") if self._is_bf16 else given
        self._bf16_outputs = frozenset(i for i, port in enumerate(engine.outputs) if port.datatype == "BF16")

    def decode(self, data: bytes, how: Literal["json", "raw", "image"]) -> Item:
        """One message. Raises ValueError with a sentence for people."""
        if self._transformed is not None and self._transformed.takes:
            given = anything(data, how)
            return given._replace(tensor=self._transformed.fed({self.input: given.tensor})[self.input][0])
        if how == "image":
            return Item(item_of(data, self._before, self._image))
        return decode(data, how, self.dtype, self.shape)

    def is_slow(self, how: Literal["json", "raw", "image"]) -> bool:
        """Whether decoding takes long enough for others to be answered meanwhile."""
        return how == "image" or (self._transformed is not None and self._transformed.takes)

    async def score(self, items: Sequence[Array], run: Run) -> list[dict[str, Any]]:
        """The answers, in order. Raises what the runtime raises, or ValueError for what is no answer."""
        size = self.fixed_batch or len(items)
        answers: list[dict[str, Any]] = []
        for begin in range(0, len(items), size):
            chunk = list(items[begin : begin + size])
            # A model of a fixed batch is fed full ones: the last item fills up, and its echoes are dropped.
            batch = np.stack(chunk + [chunk[-1]] * (size - len(chunk)))
            outputs = await run({self.input: shortened(batch) if self._is_bf16 else batch}, size, len(chunk))
            if self._bf16_outputs:
                outputs = [widened(o) if i in self._bf16_outputs else o for i, o in enumerate(outputs)]
            if self._transformed is not None and self._transformed.answers:
                answers += await asyncio.to_thread(self._transformed.said, outputs, len(chunk))
                continue
            answers += meaning(outputs, size, self.labels, self._after)[: len(chunk)]
        return answers


def meaning(
    outputs: Sequence[Any], count: int, labels: Sequence[str], after: After | None = None
) -> list[dict[str, Any]]:
    """What a model's outputs say about each of `count` items: a class with its scores, a number, or numbers."""
    scores = next((o for o in outputs if _is_scores(o, count)), None)
    maps = next((o for o in outputs if isinstance(o, list) and len(o) == count and isinstance(o[0], dict)), None)
    plain = next((np.asarray(o) for o in outputs if isinstance(o, np.ndarray) and o.shape[:1] == (count,)), None)
    chosen = _choices(outputs, count) if len(outputs) > 1 else None
    if maps is not None:
        return [_named(each, labels) for each in maps]
    if scores is not None:
        best = chosen if chosen is not None else [int(i) for i in np.argmax(scores, axis=1)]
        if not np.isfinite(scores).all():
            raise ValueError(NONSENSE)
        scores = shares(scores, after)
        if after is not None and (after.argmax or after.top_k is not None or after.threshold is not None):
            return _picked(scores, after, labels)
        rows = np.round(scores.astype(np.float64), 6).tolist()
        return [_class(value, row, labels) for value, row in zip(best, rows, strict=True)]
    if plain is None:
        raise ValueError(f"no output has one row for each of {count} items")
    if plain.size > NUMBERS_MAX * count:
        raise ValueError(f"an output of {plain.size // count} numbers is too large for an answer")
    return [_number(row, labels) for row in plain.reshape(count, -1).tolist()]


def _is_scores(output: Any, count: int) -> bool:
    """Floating, one row an item, one column a class."""
    if not isinstance(output, np.ndarray) or output.dtype.kind != "f" or output.ndim != 2:
        return False
    return bool(output.shape[0] == count and 2 <= output.shape[1] <= CLASSES_MAX)


def _choices(outputs: Sequence[Any], count: int) -> list[int | str] | None:
    """The classes that a model names by itself, beside their scores."""
    for output in outputs:
        if isinstance(output, np.ndarray) and output.dtype.kind in "iuUO" and output.size == count:
            return [v if isinstance(v, str) else int(v) for v in output.reshape(count).tolist()]
    return None


def _class(value: int | str, row: list[float], labels: Sequence[str]) -> dict[str, Any]:
    """`row` is rounded already."""
    answer = _labelled(value, labels)
    if len(row) <= SCORES_LISTED_MAX and not labels:
        answer["scores"] = row
        return answer
    best = sorted(range(len(row)), key=lambda i: -row[i])[:BEST]
    answer["scores"] = {labels[i] if len(labels) == len(row) else str(i): row[i] for i in best}
    return answer


def _picked(scores: Array, after: After, labels: Sequence[str]) -> list[dict[str, Any]]:
    """What the version wants to be named, and nothing else; no value where no class is good enough."""
    found: list[dict[str, Any]] = []
    said = named(scores, after, labels)
    for row, words, best in zip(said.classes.tolist(), said.labels, np.round(said.scores, 6).tolist(), strict=True):
        answer: dict[str, Any] = _labelled(row[0], labels) if row[0] >= 0 else {"value": None}
        if not after.argmax:
            answer["scores"] = {w.decode(): s for c, w, s in zip(row, words, best, strict=True) if c >= 0}
        found.append(answer)
    return found


def _named(scores: dict[Any, float], labels: Sequence[str]) -> dict[str, Any]:
    """Scores by class, as scikit-learn's exporter gives them when nobody asks it not to."""
    _refuse_nonsense(list(scores.values()))
    best = sorted(scores, key=lambda each: -scores[each])[:BEST]
    answer = _labelled(best[0] if isinstance(best[0], str) else int(best[0]), labels)
    answer["scores"] = {str(each): round(float(scores[each]), 6) for each in best}
    return answer


def _labelled(value: int | str, labels: Sequence[str]) -> dict[str, Any]:
    answer: dict[str, Any] = {"value": value}
    if isinstance(value, str):
        answer["label"] = value
    elif 0 <= value < len(labels):
        answer["label"] = labels[value]
    return answer


def _number(row: list[Any], labels: Sequence[str]) -> dict[str, Any]:
    _refuse_nonsense(row)
    if len(row) != 1:
        return {"value": row}
    return _labelled(row[0], labels) if isinstance(row[0], (int, str)) and labels else {"value": row[0]}


def _refuse_nonsense(row: list[Any]) -> None:
    if any(isinstance(v, float) and not math.isfinite(v) for v in row):
        raise ValueError(NONSENSE)


def _input(engine: Engine, tensor: str | None) -> Port:
    inputs = {port.name: port for port in engine.inputs}
    if tensor is not None:
        if tensor not in inputs:
            raise Unfit("artifact_unreadable", f"it has no input {tensor!r}; it has {', '.join(sorted(inputs))}")
        needed = [name for name in inputs if name != tensor]
    else:
        needed = list(inputs)[1:]
    if needed:
        raise Unfit("artifact_unreadable", f"it also needs {', '.join(needed)}; a component feeds one input")
    return inputs[tensor] if tensor is not None else next(iter(inputs.values()))


def _check_declared(order: ModelOrder, given: Port) -> None:
    """The file must be what its version declares: all variants are exchanged on the strength of that."""
    if order.signature is None or not order.signature.inputs:
        return
    declared = next((t for t in order.signature.inputs if t.name == given.name), None)
    if declared is None:
        raise Unfit("artifact_unreadable", f"its input {given.name!r} is not in the declared signature")
    said = {"string": "object", "str": "object"}.get(declared.dtype, declared.dtype)
    found = (
        "bfloat16" if given.datatype == "BF16" else "object" if given.datatype == BYTES else DTYPES[given.datatype].name
    )
    same = len(declared.shape) == len(given.shape) and all(
        -1 in (a, b) or a == b for a, b in zip(declared.shape, given.shape, strict=True)
    )
    if said != found or not same:
        is_so = f"its input {given.name!r} is {found}{list(given.shape)}"
        raise Unfit("artifact_unreadable", f"{is_so}, declared as {declared.dtype}{list(declared.shape)}")
