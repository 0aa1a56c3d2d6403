"""Data in the three forms that people have it in, and what is refused with a sentence."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import pytest
from PIL import Image

from batuta.errors import ArtifactRefused
from batuta.tuning.data import digest_of, read
from batuta.tuning.session import Port

if TYPE_CHECKING:
    from pathlib import Path

FLAT = (Port("x", "float32", (-1, 4)),)
PICTURE = (Port("image", "float32", (-1, 1, 8, 8)),)


def test_arrays_by_the_names_of_inputs_or_as_x(tmp_path: Path) -> None:
    np.savez(tmp_path / "a.npz", x=np.ones((3, 4)), y=[1, 2, 3])
    np.savez(tmp_path / "b.npz", left=np.ones((3, 4)), right=np.zeros((3, 2)), y=[0.5, 1.5, 2.5])
    found = read(tmp_path / "a.npz", FLAT)
    assert (found.items, found.truth.tolist(), found.digest) == (3, [1, 2, 3], digest_of(tmp_path / "a.npz"))
    two = read(tmp_path / "b.npz", (Port("left", "float32", (-1, 4)), Port("right", "float32", (-1, 2))))
    assert sorted(two.inputs) == ["left", "right"]
    assert two.truth.tolist() == [0.5, 1.5, 2.5]


def test_a_table_with_a_column_that_says_what_is_right(tmp_path: Path) -> None:
    (tmp_path / "t.csv").write_text("a,b,label,c,d\n1,2,cat,3,4\n5,6,dog,7,8\n")
    found = read(tmp_path / "t.csv", FLAT, labels=("dog", "cat"))
    assert found.inputs["x"].tolist() == [[1, 2, 3, 4], [5, 6, 7, 8]]
    assert found.truth.tolist() == [1, 0]
    assert read(tmp_path / "t.csv", FLAT).truth.tolist() == ["cat", "dog"]


def test_a_table_without_names_ends_with_what_is_right(tmp_path: Path) -> None:
    (tmp_path / "t.csv").write_text("1,2,3,4,0\n5,6,7,8,1\n")
    found = read(tmp_path / "t.csv", FLAT)
    assert (found.inputs["x"].shape, found.truth.tolist()) == ((2, 4), [0, 1])
    (tmp_path / "u.csv").write_text("1,2,3,4\n5,6,7,8\n")
    assert read(tmp_path / "u.csv", FLAT).truth is None


def test_a_table_whose_columns_are_the_inputs(tmp_path: Path) -> None:
    (tmp_path / "t.csv").write_text("age,city,y\n7,berlin,1.5\n8,jena,2.5\n")
    takes = (Port("age", "float32", (-1, 1)), Port("city", "str", (-1, 1)))
    found = read(tmp_path / "t.csv", takes)
    assert found.inputs["age"].tolist() == [[7.0], [8.0]]
    assert found.inputs["city"].tolist() == [["berlin"], ["jena"]]


@pytest.mark.parametrize(
    ("shape", "wanted"),
    [((-1, 1, 8, 8), (1, 8, 8)), ((-1, 8, 8, 3), (8, 8, 3)), ((-1, 8, 8), (8, 8)), ((-1, 64), (64,))],
)
def test_images_in_a_directory_for_each_class(tmp_path: Path, shape: tuple[int, ...], wanted: tuple[int, ...]) -> None:
    for name, grey in (("off", 0), ("on", 255)):
        (tmp_path / name).mkdir()
        Image.new("RGB", (16, 16), (grey, grey, grey)).save(tmp_path / name / "a.png")
    found = read(tmp_path, (Port("image", "float32", shape),), white=16.0)
    assert found.inputs["image"].shape == (2, *wanted)
    assert [float(image.max()) for image in found.inputs["image"]] == [0.0, 16.0]
    assert found.truth.tolist() == [0, 1]
    assert read(tmp_path, PICTURE, labels=("on", "off")).truth.tolist() == [1, 0]


def test_images_of_bytes_stay_bytes_and_without_classes_nothing_is_right(tmp_path: Path) -> None:
    Image.new("L", (8, 8), 200).save(tmp_path / "a.png")
    found = read(tmp_path, (Port("image", "uint8", (-1, 8, 8, 1)),))
    assert (found.inputs["image"].dtype, int(found.inputs["image"].max()), found.truth) == (np.uint8, 200, None)


@pytest.mark.parametrize(
    ("name", "text", "says"),
    [
        ("t.csv", "a,b\n1\n", "row 1 has 1 cells"), ("t.csv", "", "is empty"), ("t.csv", "a,b,y\nx,2,1\n", "could not"),
        ("t.npz", "no archive", "cannot be read as .npz"),
    ],
)  # fmt: skip
def test_what_cannot_be_read_says_why(tmp_path: Path, name: str, text: str, says: str) -> None:
    (tmp_path / name).write_text(text)
    with pytest.raises(ArtifactRefused, match=says) as refused:
        read(tmp_path / name, FLAT)
    assert refused.value.code == "data_unreadable"


def test_objects_in_an_archive_are_not_loaded(tmp_path: Path) -> None:
    np.savez(tmp_path / "evil.npz", x=np.array([{"a": 1}], dtype=object))
    with pytest.raises(ArtifactRefused, match="cannot be read"):
        read(tmp_path / "evil.npz", FLAT)


def test_as_many_labels_as_items(tmp_path: Path) -> None:
    np.savez(tmp_path / "a.npz", x=np.ones((3, 4)), y=[1, 2])
    with pytest.raises(ArtifactRefused, match="3 items and 2 labels"):
        read(tmp_path / "a.npz", FLAT)
