"""Real handwriting: the UCI optical digits that scikit-learn ships, two classifiers trained on them, both as ONNX.

1,797 images of 8 x 8 pixels, values 0 to 16 (E. Alpaydin and C. Kaynak, Optical Recognition of Handwritten Digits, UCI
Machine Learning Repository, 1998). A fifth is held out: the cameras show only images that no model has seen.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from pathlib import Path


class Image(NamedTuple):
    """A held-out image: 64 pixels, row by row, and the digit that a person read."""

    pixels: tuple[float, ...]
    label: int


class Digits(NamedTuple):
    """Two versions of a classifier and the images that neither was trained on."""

    first: Path
    second: Path
    held_out: tuple[Image, ...]


def prepare(directory: Path, seed: int = 7) -> Digits:
    """Train both versions, write `digits-1.onnx` and `digits-2.onnx` into `directory`, and say what was held out.

    Input `image`: float32 [-1, 64]; outputs `label`: int64 [-1] and `probabilities`: float32 [-1, 10].
    """
    from sklearn.datasets import load_digits
    from sklearn.linear_model import LogisticRegression
    from sklearn.model_selection import train_test_split
    from sklearn.neural_network import MLPClassifier
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    images, labels = load_digits(return_X_y=True)
    shown, kept, shown_labels, kept_labels = train_test_split(
        images, labels, test_size=0.2, random_state=seed, stratify=labels
    )
    first = make_pipeline(StandardScaler(), LogisticRegression(max_iter=300, C=0.1))
    second = make_pipeline(StandardScaler(), MLPClassifier((64,), max_iter=300, random_state=seed))
    directory.mkdir(parents=True, exist_ok=True)
    paths = []
    for version, classifier in (("1", first), ("2", second)):
        classifier.fit(shown, shown_labels)
        path = directory / f"digits-{version}.onnx"
        path.write_bytes(_as_onnx(classifier))
        paths.append(path)
    held_out = tuple(
        Image(tuple(float(p) for p in pixels), int(label)) for pixels, label in zip(kept, kept_labels, strict=True)
    )
    return Digits(paths[0], paths[1], held_out)


def _as_onnx(classifier: object) -> bytes:
    """The classifier as an ONNX file, with plain arrays for probabilities instead of a list of maps."""
    from skl2onnx import to_onnx
    from skl2onnx.common.data_types import FloatTensorType

    model = to_onnx(
        classifier,
        initial_types=[("image", FloatTensorType([None, 64]))],
        options={id(classifier): {"zipmap": False}},
        target_opset=17,
    )
    data: bytes = model.SerializeToString()
    return data
