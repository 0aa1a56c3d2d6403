"""What accuracy, agreement, r2 and error say, and which floors they miss."""

from __future__ import annotations

import numpy as np
import pytest

from batuta.errors import ArtifactRefused
from batuta.tuning.quality import Said, kept, meaning, measure, short_of


def test_the_class_that_a_model_names_counts_before_its_scores() -> None:
    scores = np.array([[0.9, 0.1], [0.2, 0.8]], np.float32)
    assert meaning({"scores": scores}, 2).classes.tolist() == [0, 1]
    assert meaning({"scores": scores, "label": np.array([1, 1])}, 2).classes.tolist() == [1, 1]
    assert meaning({"maps": [{"a": 0.9, "b": 0.1}, {"a": 0.2, "b": 0.8}]}, 2).classes.tolist() == ["a", "b"]
    assert meaning({"words": np.array(["x", "y"], object)}, 2).classes.tolist() == ["x", "y"]


def test_numbers_where_there_is_no_class() -> None:
    assert meaning({"y": np.array([[1.5], [2.5]], np.float32)}, 2).numbers.tolist() == [[1.5], [2.5]]
    with pytest.raises(ArtifactRefused, match="one row for each of 3"):
        meaning({"y": np.ones((2, 1), np.float32)}, 3)


def test_accuracy_and_agreement() -> None:
    base, said = Said(np.array([0, 1, 2, 3])), Said(np.array([0, 1, 2, 0]))
    assert measure(said, base, np.array([0, 1, 0, 0]), None) == {"accuracy": 0.75, "agreement": 0.75}
    assert measure(said, base, None, "classification") == {"agreement": 0.75}


def test_a_regression_is_judged_by_its_distance() -> None:
    base = Said(numbers=np.array([[1.0], [2.0], [3.0]]))
    said = Said(numbers=np.array([[1.0], [2.0], [4.0]]))
    found = measure(said, base, np.array([1.0, 2.0, 3.0]), "regression")
    assert found == {"agreement": 0.5, "r2": 0.5, "error": pytest.approx(1 / 3, abs=1e-6)}
    assert kept(found) == {"agreement": 0.5, "r2": 0.5}


def test_scores_are_no_classes_for_a_regression() -> None:
    both = Said(classes=np.array([0, 1]), numbers=np.array([[1.0, 0.0], [0.0, 1.0]]))
    assert measure(both, both, both.numbers, "regression")["error"] == 0.0


def test_what_is_no_number_is_no_quality() -> None:
    nonsense = Said(numbers=np.array([[np.nan], [np.inf]]))
    assert measure(nonsense, nonsense, None, "regression") == {"agreement": -1e9}


@pytest.mark.parametrize(
    ("floors", "says"),
    [
        ({"accuracy": 0.9}, ""), ({"accuracy": 0.96}, "accuracy 0.95, at least 0.96 asked"),
        ({"error": 0.2}, ""), ({"error": 0.05}, "error 0.1, at most 0.05 asked"), ({"r2": 0.5}, "r2 was not measured"),
    ],
)  # fmt: skip
def test_floors(floors: dict[str, float], says: str) -> None:
    assert short_of({"accuracy": 0.95, "error": 0.1}, floors) == says
