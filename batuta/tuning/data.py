"""Data to evaluate a model on or to calibrate it with: what goes in, and where it is known, what is right.

FILE.npz     `x`, or an array for each input by its name; `y` is what is right
DIRECTORY    images in a directory for each class, named as the class is; or images alone, without labels
FILE.csv     a column for each number, and one of them what is right (`label`, `target`, `class` or `y`, or as said)
"""

from __future__ import annotations

import csv
import hashlib
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from batuta.errors import ArtifactRefused
from batuta.tuning.golden import arrays_of
from batuta.tuning.session import count_of, first_line

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

    from batuta.tuning.session import Port

DATA_BYTES_MAX = 8 << 30
ITEMS_MAX = 1_000_000
IMAGES = (".png", ".jpg", ".jpeg", ".bmp", ".pgm", ".ppm", ".webp")
LABEL_COLUMNS = ("label", "target", "class", "y")


class Data(NamedTuple):
    """Items in order."""

    inputs: Mapping[str, Any]
    truth: Any
    """What is right for each; None where nobody says."""
    digest: str
    """Of the file; of a directory, of the list of its files and their digests."""

    @property
    def items(self) -> int:
        return count_of(self.inputs)


def read(
    path: Path, takes: Sequence[Port], *, labels: Sequence[str] = (), column: str = "", white: float = 1.0
) -> Data:
    """Raises ArtifactRefused with `data_unreadable`. `white`: what the brightest pixel is to a model of numbers."""
    try:
        if path.is_dir():
            found = _images(path, takes, labels, white)
        elif path.suffix == ".csv":
            found = _table(path, takes, column)
        else:
            found = _arrays(path, takes)
    except (OSError, ValueError, csv.Error) as error:
        raise _unreadable(f"{path}: {first_line(error)}") from None
    items = found.items
    if not items:
        raise _unreadable(f"{path} has no items")
    if found.truth is not None and len(found.truth) != items:
        raise _unreadable(f"{path} has {items} items and {len(found.truth)} labels")
    return found._replace(truth=_numbered(found.truth, labels))


def digest_of(path: Path) -> str:
    if path.is_dir():
        lines = "".join(f"{p.relative_to(path)} {digest_of(p)}\n" for p in sorted(path.rglob("*")) if p.is_file())
        return f"sha256:{hashlib.sha256(lines.encode()).hexdigest()}"
    with path.open("rb") as file:
        return f"sha256:{hashlib.file_digest(file, 'sha256').hexdigest()}"


def _arrays(path: Path, takes: Sequence[Port]) -> Data:
    arrays = arrays_of(path, "data_unreadable", DATA_BYTES_MAX)
    truth = arrays.pop("y", None)
    if len(takes) == 1 and set(arrays) == {"x"}:
        arrays = {takes[0].name: arrays["x"]}
    inputs = {port.name: arrays[port.name] for port in takes if port.name in arrays}
    if len(inputs) < len(takes):
        there = ", ".join(sorted(arrays)) or "nothing"
        raise _unreadable(f"{path} has {there}; the model takes {', '.join(p.name for p in takes)}, or call it x")
    return Data(inputs, truth, digest_of(path))


def _table(path: Path, takes: Sequence[Port], column: str) -> Data:
    with path.open(newline="", encoding="utf-8-sig") as file:
        rows = [row for _, row in zip(range(ITEMS_MAX + 1), csv.reader(file), strict=False) if row]
    if not rows:
        raise _unreadable(f"{path} is empty")
    has_names = not all(_is_number(cell) for cell in rows[0])
    names = [name.strip() for name in rows[0]] if has_names else [str(i) for i in range(len(rows[0]))]
    rows = rows[1:] if has_names else rows
    wide = next((i for i, row in enumerate(rows) if len(row) != len(names)), None)
    if wide is not None:
        raise _unreadable(f"{path}: row {wide + 1} has {len(rows[wide])} cells, {len(names)} expected")
    wanted = len(takes) if len(takes) > 1 else abs(int(np.prod(takes[0].shape[1:]))) if takes[0].shape[1:] else 1
    if column and column not in names:
        raise _unreadable(f"{path} has no column {column!r}; it has {', '.join(names[:12])}")
    said = column or next((name for name in LABEL_COLUMNS if name in names), "")
    if not said and not has_names and len(names) == wanted + 1:
        said = names[-1]
    truth = None
    if said:
        at = names.index(said)
        cells = [row[at].strip() for row in rows]
        truth = np.array([float(c) for c in cells] if all(map(_is_number, cells)) else cells)
        names, rows = names[:at] + names[at + 1 :], [row[:at] + row[at + 1 :] for row in rows]
    if len(takes) > 1:
        lacking = [port.name for port in takes if port.name not in names]
        if lacking:
            raise _unreadable(f"{path} has no column {', '.join(lacking)}, which the model takes")
        columns = {port.name: [row[names.index(port.name)] for row in rows] for port in takes}
        inputs = {
            port.name: np.array(
                columns[port.name] if port.dtype == "str" else [float(cell) for cell in columns[port.name]]
            ).reshape(-1, *[1] * (len(port.shape) - 1))
            for port in takes
        }
    else:
        inputs = {takes[0].name: np.array([[float(cell) for cell in row] for row in rows])}
    return Data(inputs, truth, digest_of(path))


def _images(path: Path, takes: Sequence[Port], labels: Sequence[str], white: float) -> Data:
    if len(takes) != 1:
        raise _unreadable("images feed models of one input")
    classes = sorted(p.name for p in path.iterdir() if p.is_dir() and not p.name.startswith("."))
    files = [(p, name) for name in classes or [""] for p in sorted((path / name).iterdir())]
    files = [(p, name) for p, name in files if p.suffix.lower() in IMAGES]
    if not files:
        raise _unreadable(f"{path} has no images: {', '.join(IMAGES)}")
    if len(files) > ITEMS_MAX:
        raise _unreadable(f"{path} has {len(files)} images; {ITEMS_MAX} are read")
    stacked = np.stack([_pixels(file, takes[0], white) for file, _ in files])
    truth = np.array([name for _, name in files]) if classes else None
    if truth is not None and not labels and not all(name.isdigit() for name in classes):
        truth = np.array([classes.index(name) for _, name in files])  # as every trainer on directories counts them
    return Data({takes[0].name: stacked}, truth, digest_of(path))


def _pixels(path: Path, port: Port, white: float) -> Any:
    """One image in the shape that the model takes: [C,H,W], [H,W,C], [H,W] or flat and square."""
    try:
        from PIL import Image
    except ImportError as error:
        raise ArtifactRefused(
            "runtime_missing",
            f"images need Pillow, which cannot be loaded here: {error}",
            next_step="pip install pillow",
        ) from None
    shape = port.shape[1:]
    first = len(shape) == 3 and shape[0] in (1, 3)
    channels = (shape[0] if first else shape[2]) if len(shape) == 3 else 1
    if channels not in (1, 3):
        raise _unreadable(f"the model takes {port.name} {list(port.shape)}, which is no image of one or three colours")
    high, across = (shape[1:] if first else shape[:2]) if len(shape) >= 2 else (-1, -1)
    if len(shape) == 1 and shape[0] > 0:
        high = across = round(shape[0] ** 0.5)
        if high * across != shape[0]:
            raise _unreadable(f"the model takes {shape[0]} numbers, which is no square image")
    with Image.open(path) as opened:
        image = opened.convert("L" if channels == 1 else "RGB")
        if high > 0 and across > 0 and image.size != (across, high):
            image = image.resize((across, high), Image.Resampling.BILINEAR)
        pixels = np.asarray(image)
    if len(shape) == 3:
        pixels = pixels[..., None] if channels == 1 else pixels
        pixels = np.moveaxis(pixels, -1, 0) if first else pixels
    elif len(shape) == 1:
        pixels = pixels.reshape(-1)
    return pixels if port.dtype == "uint8" else (pixels.astype(np.float64) * (white / 255)).astype(port.dtype)


def _numbered(truth: Any, labels: Sequence[str]) -> Any:
    """Names of classes become their numbers, where the model says in which order they are."""
    if truth is None:
        return None
    truth = np.asarray(truth)
    truth = truth.reshape(len(truth)) if truth.ndim == 2 and truth.shape[1] == 1 else truth
    if truth.dtype.kind in "US":
        words = truth.astype(str)
        if labels and set(words.tolist()) <= set(labels):
            return np.array([labels.index(word) for word in words.tolist()])
        if all(word.lstrip("-").isdigit() for word in words.tolist()):
            return words.astype(np.int64)
        return words
    if truth.dtype.kind == "f" and np.all(truth == np.round(truth)) and np.abs(truth).max(initial=0) < 2**31:
        return truth.astype(np.int64)
    return truth


def _is_number(cell: str) -> bool:
    try:
        float(cell)
    except ValueError:
        return False
    return True


def _unreadable(why: str) -> ArtifactRefused:
    return ArtifactRefused("data_unreadable", why)
