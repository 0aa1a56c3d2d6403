"""Shaping: from an image to what a model takes, and from its scores to classes. Imported by workers only.

Images come from anybody, so how many pixels they may have is bounded before one of them is unpacked, and only JPEG and
PNG are read. What cannot be read raises ValueError with a sentence for people.
"""

from __future__ import annotations

import io
from typing import TYPE_CHECKING, Final, NamedTuple

import numpy as np

from batuta.dataflow.oip.datatypes import BYTES, DTYPES, Port, shortened
from batuta.kinds.shaping import Before

if TYPE_CHECKING:
    from collections.abc import Sequence

    from PIL.Image import Image

    from batuta.dataflow.oip.datatypes import Array
    from batuta.kinds.shaping import After

PIXELS_MAX: Final = 24 * 1024 * 1024
FORMATS: Final = ("JPEG", "PNG")


class Shape(NamedTuple):
    """What an image must become."""

    height: int
    """-1: as it is."""
    width: int
    channels: int
    is_chw: bool


def item_of(data: bytes | Array, before: Before | None, port: Port) -> Array:
    """One item of a batch, from the bytes of a JPEG or PNG, or from whole numbers of 0 to 255 in rows of pixels."""
    how = before or Before()
    wanted = _wanted(how, port)
    image = opened(data) if isinstance(data, bytes) else _of_pixels(data)
    pixels = np.asarray(_fitted(image.convert("L" if wanted.channels == 1 else "RGB"), how, wanted))
    pixels = pixels[..., np.newaxis] if pixels.ndim == 2 else pixels
    if how.colour == "bgr":
        pixels = pixels[..., ::-1]
    if how.scale is not None or how.mean is not None or how.std is not None:
        pixels = pixels.astype(np.float32)
        pixels = pixels * np.float32(how.scale) if how.scale is not None else pixels
        pixels = pixels - np.array(how.mean, np.float32) if how.mean is not None else pixels
        pixels = pixels / np.array(how.std, np.float32) if how.std is not None else pixels
    if wanted.is_chw:
        pixels = pixels.transpose(2, 0, 1)
    shape = port.shape[1:]
    if len(shape) == 2:
        pixels = pixels[..., 0]
    if not Port("", "", shape).takes(pixels.shape):
        raise ValueError(f"the image becomes {list(pixels.shape)}, and the model takes {list(shape)}")
    return _typed(pixels, port.datatype)


def _wanted(how: Before, port: Port) -> Shape:
    """What is said, and for what is not, what the shape of the input means."""
    shape = port.shape[1:]
    if len(shape) == 2:
        rows, columns, channels, is_chw = shape[0], shape[1], 1, False
    elif len(shape) == 3:
        is_chw = how.layout == "chw" if how.layout is not None else shape[0] in (1, 3) and shape[2] not in (1, 3)
        channels, rows, columns = shape if is_chw else (shape[2], shape[0], shape[1])
    else:
        raise ValueError(f"an image is no item of shape {list(shape)}")
    if channels < 0:
        channels = 1 if how.colour == "grey" else 3
    if channels not in (1, 3) or (how.colour == "grey") != (channels == 1 and how.colour is not None):
        raise ValueError(f"the model takes {channels} channels, which {how.colour or 'an image'} has not")
    rows, columns = how.resize if how.resize is not None else (rows, columns)
    return Shape(rows, columns, channels, is_chw)


def opened(data: bytes) -> Image:
    import PIL.Image

    try:
        image = PIL.Image.open(io.BytesIO(data), formats=FORMATS)
        if image.width * image.height > PIXELS_MAX:
            raise ValueError(f"an image of {image.width} by {image.height} pixels is too large")
        image.load()
    except PIL.Image.DecompressionBombError:
        raise ValueError("the image is too large") from None
    except (OSError, SyntaxError) as error:
        raise ValueError(f"neither JPEG nor PNG: {error}") from None
    return image


def _of_pixels(data: Array) -> Image:
    import PIL.Image

    pixels = data[..., 0] if data.ndim == 3 and data.shape[2] == 1 else data
    if data.dtype != np.uint8 or pixels.ndim not in (2, 3) or (pixels.ndim == 3 and pixels.shape[2] != 3):
        raise ValueError(f"pixels are UINT8 of shape [height, width, 3] or [height, width], not {list(data.shape)}")
    return PIL.Image.fromarray(np.ascontiguousarray(pixels))


def _fitted(image: Image, how: Before, wanted: Shape) -> Image:
    import PIL.Image
    import PIL.ImageOps

    height = wanted.height if wanted.height > 0 else image.height
    width = wanted.width if wanted.width > 0 else image.width
    if (image.width, image.height) == (width, height):
        return image
    if how.fit == "crop":
        return PIL.ImageOps.fit(image, (width, height), PIL.Image.Resampling.BILINEAR)
    if how.fit == "pad":
        return PIL.ImageOps.pad(image, (width, height), PIL.Image.Resampling.BILINEAR)
    return image.resize((width, height), PIL.Image.Resampling.BILINEAR)


def _typed(pixels: Array, datatype: str) -> Array:
    if datatype == BYTES:
        raise ValueError("the model takes text, which an image is not")
    if datatype == "BF16":
        return shortened(pixels.astype(np.float32))
    dtype = DTYPES[datatype]
    if dtype.kind in "iu" and pixels.dtype.kind == "f":
        limits = np.iinfo(dtype)
        pixels = np.clip(np.rint(pixels), limits.min, limits.max)
    return np.ascontiguousarray(pixels.astype(dtype))


# --- Scores ---


def shares(scores: Array, after: After | None) -> Array:
    """Scores by row, as `after` wants them."""
    if after is None or not (after.softmax or after.sigmoid):
        return scores
    numbers = scores.astype(np.float64)
    if after.sigmoid:
        return np.asarray(np.where(numbers >= 0, 1 / (1 + np.exp(-np.abs(numbers))), _low(numbers)))
    raised = np.exp(numbers - numbers.max(axis=1, keepdims=True))
    return np.asarray(raised / raised.sum(axis=1, keepdims=True))


def _low(numbers: Array) -> Array:
    small = np.exp(-np.abs(numbers))
    return np.asarray(small / (1 + small))


class Named(NamedTuple):
    """The best classes of each row, best first. A place that nobody deserves has class -1, no label and score 0."""

    classes: Array
    labels: Array
    scores: Array


def named(scores: Array, after: After, labels: Sequence[str]) -> Named:
    """What `after` names of scores that are shares already."""
    most = 1 if after.argmax else min(after.top_k or scores.shape[1], scores.shape[1])
    classes = np.argsort(-scores, axis=1, kind="stable")[:, :most].astype(np.int64)
    best = np.take_along_axis(scores, classes, axis=1).astype(np.float32)
    if after.threshold is not None:
        low = best < after.threshold
        classes, best = np.where(low, -1, classes), np.where(low, np.float32(0), best)
    words = np.empty(classes.shape, object)
    words.ravel()[:] = [_label(int(i), labels).encode() for i in classes.ravel()]
    return Named(classes, words, best)


def _label(number: int, labels: Sequence[str]) -> str:
    if number < 0:
        return ""
    return labels[number] if number < len(labels) else str(number)
