"""Golden inputs: written alike every time, read with care, and compared within a tolerance and no further."""

from __future__ import annotations

import zipfile
from typing import TYPE_CHECKING

import numpy as np
import pytest

from batuta.errors import ArtifactRefused
from batuta.tuning import golden
from batuta.tuning.golden import GoldenSet
from batuta.tuning.session import Session

if TYPE_CHECKING:
    from pathlib import Path


@pytest.fixture
def made(classifier: Path) -> GoldenSet:
    inputs = np.random.default_rng(1).random((40, 64)).astype(np.float32)
    return golden.make(Session(classifier), {"image": inputs}, 8)


def test_the_same_model_gives_the_same_answers(classifier: Path, made: GoldenSet, tmp_path: Path) -> None:
    golden.write(tmp_path / "a.npz", made)
    golden.write(tmp_path / "b.npz", made)
    assert (tmp_path / "a.npz").read_bytes() == (tmp_path / "b.npz").read_bytes()
    found = golden.read(tmp_path / "a.npz")
    assert sorted((*found.inputs, *found.outputs)) == ["image", "label", "scores"]
    assert golden.replay(Session(classifier), found, 0.0) == (8, 0.0, "")


def test_a_number_too_far_away_is_named(classifier: Path, made: GoldenSet) -> None:
    scores = made.outputs["scores"].copy()
    scores[3, 2] += 0.5
    replayed = golden.replay(Session(classifier), made._replace(outputs={"scores": scores}), 0.01)
    assert replayed.furthest == pytest.approx(0.5 / 0.01, rel=0.3)
    assert replayed.wrong.startswith("output scores of case 3 is ")
    assert golden.replay(Session(classifier), made._replace(outputs={"scores": scores}), 0.6).wrong == ""


def test_a_class_is_right_or_wrong(classifier: Path, made: GoldenSet) -> None:
    labels = made.outputs["label"].copy()
    labels[5] = (labels[5] + 1) % 10
    assert (
        "label of case 5" in golden.replay(Session(classifier), made._replace(outputs={"label": labels}), 100.0).wrong
    )


def test_what_is_no_number_is_wrong_where_one_is_expected(classifier: Path, made: GoldenSet) -> None:
    scores = made.outputs["scores"].copy()
    scores[0, 0] = np.nan
    assert golden.replay(Session(classifier), made._replace(outputs={"scores": scores}), 1.0).wrong != ""


def test_other_outputs_and_shapes_do_not_match(classifier: Path, made: GoldenSet) -> None:
    wide = made._replace(outputs={"scores": made.outputs["scores"][:, :9]})
    assert "[8, 9] expected" in golden.replay(Session(classifier), wide, 1.0).wrong
    with pytest.raises(ArtifactRefused, match="no output other"):
        golden.replay(Session(classifier), made._replace(outputs={"other": made.outputs["scores"]}), 1.0)


def test_a_file_of_something_else_is_refused(tmp_path: Path) -> None:
    np.savez(tmp_path / "a.npz", x=[1])
    np.savez(tmp_path / "b.npz", **{"input.x": [1, 2], "output.y": [1]})
    np.savez(tmp_path / "c.npz", **{"input.x": np.zeros((0, 4)), "output.y": np.zeros(0)})
    with zipfile.ZipFile(tmp_path / "bomb.npz", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("input.x.npy", bytes(70 << 20))
    for name, says in (
        ("a", "arrays input.NAME"),
        ("b", "how many cases"),
        ("c", "no cases"),
        ("bomb", "bytes are read"),
    ):
        with pytest.raises(ArtifactRefused, match=says) as refused:
            golden.read(tmp_path / f"{name}.npz")
        assert refused.value.code == "golden_unreadable"
