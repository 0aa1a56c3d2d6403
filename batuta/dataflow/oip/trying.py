"""Trying a model out before it serves: how long a run takes, and whether rows of several requests may share one.

A model whose first dimension is no batch (time steps, say) answers otherwise when requests are joined. So made-up rows
are run alone and together, and joined from then on only if every row said the same both times.
"""

from __future__ import annotations

import math
import time
from typing import TYPE_CHECKING, Any

import numpy as np

from batuta.dataflow.oip.datatypes import BYTES, DTYPES, shortened

if TYPE_CHECKING:
    from batuta.dataflow.engines import Engine
    from batuta.dataflow.oip.datatypes import Array

TRIES = 3


def tried(engine: Engine, *, together: bool) -> tuple[bool, float]:
    """Whether rows may run together, and how many seconds a run of one takes (0 when it could not be tried)."""
    mixes = together and all(port.shape[:1] == (-1,) for port in (*engine.inputs, *engine.outputs))
    one, two = made_up(engine, 1, 0), made_up(engine, 2, 1)
    try:
        alone = engine.run(one)
        mixes = mixes and _leave_each_other_be(engine, one, two)
    except Exception:  # whatever it is: this model cannot be tried with rows that mean nothing
        return False, 0.0
    took_s = []
    for _ in range(TRIES):
        begun = time.perf_counter()
        alone = engine.run(one)
        took_s.append(time.perf_counter() - begun)
    return mixes and len(alone) > 0, min(took_s)


def _leave_each_other_be(engine: Engine, one: dict[str, Array], two: dict[str, Array]) -> bool:
    first, second = engine.run(one), engine.run(two)
    both = engine.run({name: np.concatenate([one[name], two[name]]) for name in one})
    return all(
        len(whole) == 3 and _alike(whole[:1], a) and _alike(whole[1:], b)
        for whole, a, b in zip(both, first, second, strict=True)
    )


def made_up(engine: Engine, rows: int, seed: int) -> dict[str, Array]:
    """Feeds that mean nothing; dimensions that vary are 1 long, but for the first."""
    chance = np.random.default_rng(seed)
    feeds: dict[str, Array] = {}
    for port in engine.inputs:
        shape = tuple(max(1, d) if d > 0 else (rows if i == 0 else 1) for i, d in enumerate(port.shape))
        dtype = DTYPES[port.datatype]
        if port.datatype == BYTES:
            words = np.empty(shape, object)
            words.ravel()[:] = [b"a"] * words.size
            feeds[port.name] = words
        elif port.datatype == "BF16":
            feeds[port.name] = shortened(chance.random(shape, np.float32))
        elif dtype.kind == "f":
            feeds[port.name] = chance.random(shape).astype(dtype)
        else:
            feeds[port.name] = chance.integers(0, 2, shape).astype(dtype)
    return feeds


def _alike(one: Any, two: Any) -> bool:
    if isinstance(one, list):
        return len(one) == len(two) and all(_alike_maps(a, b) for a, b in zip(one, two, strict=True))
    if one.dtype.kind == "f":
        return one.shape == two.shape and bool(np.allclose(one, two, rtol=1e-3, atol=1e-5, equal_nan=True))
    return bool(np.array_equal(one, two))


def _alike_maps(one: dict[Any, float], two: dict[Any, float]) -> bool:
    return one.keys() == two.keys() and all(math.isclose(one[key], two[key], rel_tol=1e-3, abs_tol=1e-5) for key in one)
