"""How good a variant is: by labelled data, and by how far it agrees with the variant that it was made from.

accuracy     share of the items whose class is right
agreement    share of the items of which it says the same as the base; of numbers, how much of their variation is kept
r2           of numbers: the share of what varies that it explains
error        of numbers: the mean distance from what is right; the only one of which less is better
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from batuta.errors import ArtifactRefused

if TYPE_CHECKING:
    from collections.abc import Mapping

LESS_IS_BETTER = frozenset({"error"})
CLASSES_MAX = 1 << 16


class Said(NamedTuple):
    """What outputs mean: a class for each item, or numbers."""

    classes: Any = None
    numbers: Any = None


def meaning(outputs: Mapping[str, Any], count: int) -> Said:
    """Of the outputs of a run over `count` items. Raises ArtifactRefused when none has one row for each."""
    scores = numbers = None
    for output in outputs.values():
        if isinstance(output, list) and len(output) == count and output and isinstance(output[0], dict):
            return Said(classes=np.array([max(each, key=each.__getitem__) for each in output]))
        if not isinstance(output, np.ndarray) or output.shape[:1] != (count,):
            continue
        if output.dtype.kind in "iuUO" and output.size == count:
            return Said(classes=output.reshape(count))
        if output.dtype.kind == "f" and output.ndim == 2 and 2 <= output.shape[1] <= CLASSES_MAX and scores is None:
            scores = output
        elif output.dtype.kind in "fiu" and numbers is None:
            numbers = output.astype(np.float64).reshape(count, -1)
    if scores is not None:
        return Said(np.argmax(scores, axis=1), scores.astype(np.float64))
    if numbers is None:
        raise ArtifactRefused("data_unreadable", f"no output of the model has one row for each of {count} items")
    return Said(numbers=numbers)


def measure(said: Said, base: Said, truth: Any, task: str | None) -> dict[str, float]:
    """All that can be said of it: with labels, how right it is; without, how far it agrees with the base."""
    if _is_of_numbers(said, truth, task):
        mine, others = said.numbers, base.numbers
        if mine is None or others is None:
            raise ArtifactRefused("data_unreadable", f"a model for {task} answers with numbers, and this one does not")
        found = {"agreement": _explained(mine, others)}
        if truth is not None:
            right = np.asarray(truth, np.float64).reshape(len(truth), -1)
            if right.shape != mine.shape:
                raise ArtifactRefused(
                    "data_unreadable", f"labels are {list(right.shape)}, answers are {list(mine.shape)}"
                )
            found |= {"r2": _explained(mine, right), "error": float(np.mean(np.abs(mine - right)))}
        return {key: _rounded(value) for key, value in found.items()}
    chosen, before = _classes(said), _classes(base)
    found = {"agreement": float(np.mean(chosen == before))}
    if truth is not None:
        right = np.asarray(truth)
        if "U" in (right.dtype.kind, chosen.dtype.kind):
            right, chosen = right.astype(str), chosen.astype(str)
        found = {"accuracy": float(np.mean(chosen == right)), **found}
    return {key: _rounded(value) for key, value in found.items()}


def short_of(found: Mapping[str, float], floors: Mapping[str, float]) -> str:
    """Which floor is missed and by how much; empty when none is."""
    missed = [
        f"{metric} {found[metric]:g}, {'at most' if metric in LESS_IS_BETTER else 'at least'} {floor:g} asked"
        for metric, floor in floors.items()
        if metric in found and (found[metric] > floor if metric in LESS_IS_BETTER else found[metric] < floor)
    ]
    missed += [f"{metric} was not measured" for metric in floors if metric not in found]
    return "; ".join(missed)


def kept(found: Mapping[str, float]) -> dict[str, float]:
    """What a Model says of a variant: measures of which more is better."""
    return {metric: value for metric, value in found.items() if metric not in LESS_IS_BETTER}


def _is_of_numbers(said: Said, truth: Any, task: str | None) -> bool:
    if said.numbers is None:
        return False
    if task == "regression":
        return True
    if task == "classification":
        return False
    if said.classes is not None:
        return False
    return truth is None or np.asarray(truth).dtype.kind == "f" or np.asarray(truth).ndim > 1 or len(set(truth)) > 2


def _classes(said: Said) -> Any:
    if said.classes is not None:
        found = np.asarray(said.classes)
        return found.astype(str) if found.dtype.kind == "O" else found
    assert said.numbers is not None
    if said.numbers.shape[1] != 1:
        raise ArtifactRefused("data_unreadable", "a model for classification names a class, or scores for each")
    return (said.numbers[:, 0] >= 0.5).astype(np.int64)  # one number: how likely it is


def _explained(found: Any, right: Any) -> float:
    """1 for the same; 0 for no better than always saying the mean."""
    with np.errstate(invalid="ignore", over="ignore"):
        apart, varies = float(np.sum((found - right) ** 2)), float(np.sum((right - right.mean(axis=0)) ** 2))
    if not np.isfinite(apart):
        return -1e9
    return 1.0 - apart / varies if varies > 0 else 1.0 if apart == 0 else 0.0


def _rounded(value: float) -> float:
    return round(max(-1e9, min(1e9, value)), 6) if np.isfinite(value) else -1e9
