"""What inputs looked like: the same kind of inputs falls into the same bins, and whatever happens to them shows."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from batuta.core.evidence import distance_within
from batuta.errors import ArtifactRefused
from batuta.tuning import sketch

CHANCE = np.random.default_rng(7)


def images(count: int) -> Any:
    """Grey ones, brighter in the middle, each a little otherwise."""
    across = np.linspace(-1, 1, 20)
    shape = np.exp(-(across[:, None] ** 2 + across[None, :] ** 2))
    return (shape * CHANCE.normal(1, 0.2, (count, 1, 1)) + CHANCE.normal(0, 0.05, (count, 20, 20))).astype(np.float32)


@pytest.fixture(scope="module")
def known() -> sketch.Sketch:
    found = sketch.made({"image": images(600)})
    assert found is not None
    return found


def seen(known: sketch.Sketch, batch: Any) -> float:
    bins = known.bins({"image": batch})
    assert bins is not None
    return distance_within(bins, known.counts, 0.01).seen


def test_inputs_of_the_same_kind_are_not_far(known: sketch.Sketch) -> None:
    assert seen(known, images(500)) < 0.12


@pytest.mark.parametrize(
    "happens",
    [
        lambda x: x + 0.3, lambda x: x * 0.5, lambda x: x * 0, lambda x: 1 - x,
        lambda x: np.repeat(x[:1], len(x), axis=0), lambda x: x + CHANCE.normal(0, 0.5, x.shape),
    ],
    ids=["brighter", "fainter", "dark", "inverted", "frozen", "noisy"],
)  # fmt: skip
def test_whatever_happens_to_them_shows(known: sketch.Sketch, happens: Any) -> None:
    assert seen(known, happens(images(500))) > 0.4


def test_it_is_small_and_reads_back(known: sketch.Sketch, tmp_path: Path) -> None:
    data = sketch.written(known)
    assert len(data) < 8_192
    (tmp_path / "drift.json").write_bytes(data)
    assert sketch.read(tmp_path / "drift.json") == known
    wide = sketch.made({f"input{i}": CHANCE.normal(size=(100, 3, 64, 64)) for i in range(20)})
    assert wide is not None
    assert len(wide.inputs) == sketch.INPUTS_MAX
    assert len(sketch.written(wide)) < sketch.BYTES_MAX


def test_of_too_few_items_and_of_words_nothing_is_said() -> None:
    assert sketch.made({"image": images(sketch.ITEMS_MIN - 1)}) is None
    assert sketch.made({"text": np.array(["a"] * 100)}) is None
    assert sketch.made({}) is None


def test_inputs_of_another_shape_are_not_counted(known: sketch.Sketch) -> None:
    assert known.bins({"image": np.zeros((3, 5), np.float32)}) is None
    assert known.bins({"other": images(3)}) is None
    assert known.bins({"image": np.full((3, 20, 20), np.nan)}) is None


@pytest.mark.parametrize("data", [b"", b"{}", b"x" * (sketch.BYTES_MAX + 1), b'{"format": "other", "inputs": {}}'])
def test_what_is_no_sketch_is_refused(tmp_path: Path, data: bytes) -> None:
    (tmp_path / "drift.json").write_bytes(data)
    with pytest.raises(ArtifactRefused):
        sketch.read(tmp_path / "drift.json")
