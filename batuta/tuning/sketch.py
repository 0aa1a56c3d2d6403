"""Sketch: what a model's inputs looked like where it was made, small enough to travel with it.

Each item becomes at most 258 numbers for each input: means of equal stretches of it, its mean and its spread. How far
an item is from what is usual is one number: the root of the mean square of its deviations, each in units of its usual
spread. What is usual is taken from every other item; the distances of the items between them, which it has not seen,
are the reference: their nineteen quantiles part it in twenty bins. On a node the distances of live inputs fall into the
same bins, so inputs that moved, grew, shrank or froze all show as another distribution.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

import msgspec
import numpy as np

from batuta.core.sample import CONFIDENCE_BINS
from batuta.errors import ArtifactRefused
from batuta.kinds.base import Record

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

BINS: Final = CONFIDENCE_BINS
STRETCHES_MAX: Final = 256
ITEMS_MIN: Final = 40
"""Of fewer items nothing is said."""
ITEMS_MAX: Final = 20_000
INPUTS_MAX: Final = 16
BYTES_MAX: Final = 256 * 1024
SPREAD_LEAST: Final = 0.05
"""No number is taken to vary less than this part of what all of them vary: what is always zero may once be one."""
FAR: Final = 100.0
"""A deviation counts for no more than so many spreads."""
FORMAT: Final = "batuta-sketch-1"


class Usual(Record):
    """One input's numbers, and how far each usually is from its mean."""

    mean: tuple[float, ...]
    spread: tuple[float, ...]


class Sketch(Record):
    """The document: an artifact of a version, its `drift`."""

    format: str
    inputs: dict[str, Usual]
    edges: tuple[float, ...]
    """Between the bins, rising."""
    counts: tuple[int, ...]
    """Of the reference, in each bin."""

    def distances(self, feeds: Mapping[str, Any]) -> Any:
        """Of every item of a batch; None when these are not inputs that it knows."""
        parts = []
        for name, usual in self.inputs.items():
            found = numbers(feeds[name]) if name in feeds else None
            if found is None or found.shape[1] != len(usual.mean):
                return None
            parts.append((found - np.asarray(usual.mean)) / np.asarray(usual.spread))
        deviations = np.clip(np.concatenate(parts, axis=1), -FAR, FAR)
        return np.sqrt(np.mean(deviations**2, axis=1))

    def bins(self, feeds: Mapping[str, Any]) -> list[int] | None:
        """How many items of a batch fall into each bin."""
        distances = self.distances(feeds)
        if distances is None or not np.isfinite(distances).all():
            return None
        found = np.searchsorted(np.asarray(self.edges), distances)
        counts: list[int] = np.bincount(found, minlength=BINS).tolist()
        return counts


def made(inputs: Mapping[str, Any]) -> Sketch | None:
    """Of the inputs of a model, as it takes them; None of too few, or of what is not numbers."""
    items = min((len(value) for value in inputs.values()), default=0)
    chosen = np.unique(np.linspace(0, items - 1, min(items, ITEMS_MAX)).astype(np.int64)) if items else np.array([])
    known: dict[str, Any] = {}
    for name, value in sorted(inputs.items()):
        found = numbers(np.asarray(value)[chosen]) if items >= ITEMS_MIN else None
        if found is not None and np.isfinite(found).all() and len(known) < INPUTS_MAX:
            known[name] = found
    if not known:
        return None
    usual = {name: _usual(found[0::2]) for name, found in known.items()}
    empty = Sketch(format=FORMAT, inputs=usual, edges=(), counts=())
    distances = empty.distances({name: np.asarray(inputs[name])[chosen][1::2] for name in known})
    edges = tuple(_short(np.quantile(distances, np.arange(1, BINS) / BINS)))
    counts = np.bincount(np.searchsorted(np.asarray(edges), distances), minlength=BINS)
    return msgspec.structs.replace(empty, edges=edges, counts=tuple(int(n) for n in counts))


def written(sketch: Sketch) -> bytes:
    return msgspec.json.encode(sketch)


def read(path: Path) -> Sketch:
    """Raises ArtifactRefused: it may be anybody's file."""
    try:
        with path.open("rb") as file:
            data = file.read(BYTES_MAX + 1)
        if len(data) > BYTES_MAX:
            raise ValueError(f"it is larger than {BYTES_MAX} bytes")
        sketch = msgspec.json.decode(data, type=Sketch)
        fits = all(len(u.mean) == len(u.spread) and min(u.spread, default=0) > 0 for u in sketch.inputs.values())
        if sketch.format != FORMAT or len(sketch.edges) != BINS - 1 or len(sketch.counts) != BINS or not fits:
            raise ValueError("it is not one that this version knows")
    except (OSError, ValueError, msgspec.MsgspecError) as error:
        raise ArtifactRefused("artifact_unreadable", f"the drift reference cannot be read: {error}") from None
    return sketch


def numbers(batch: Any) -> Any:
    """The numbers of every item, one row each; None of what has none."""
    if not isinstance(batch, np.ndarray) or batch.dtype.kind not in "fiub" or batch.ndim < 1 or not batch.size:
        return None
    flat = batch.reshape(len(batch), -1).astype(np.float64)
    width = flat.shape[1]
    if width > STRETCHES_MAX:
        starts = (np.arange(STRETCHES_MAX) * width) // STRETCHES_MAX
        lengths = np.diff(np.append(starts, width))
        parts = np.add.reduceat(flat, starts, axis=1) / lengths
    else:
        parts = flat
    if width == 1:
        return parts
    return np.concatenate([parts, flat.mean(axis=1, keepdims=True), flat.std(axis=1, keepdims=True)], axis=1)


def _usual(found: Any) -> Usual:
    spread = found.std(axis=0)
    least = max(SPREAD_LEAST * float(np.sqrt(np.mean(spread**2))), 1e-9)
    mean, floored = _short(found.mean(axis=0)), _short(np.maximum(spread, least))
    return Usual(mean=tuple(mean), spread=tuple(floored))


def _short(values: Any) -> list[float]:
    """Six digits: more would be noise, and bytes."""
    return [float(f"{value:.6g}") for value in values.tolist()]
