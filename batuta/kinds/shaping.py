"""Shaping: what is done to an image before a model sees it, and to its scores before anybody is told.

It belongs to a version, because a model is right only for inputs that are shaped as in its training. It is done
wherever the model is asked, by topic and by request alike. Who sends tensors of the model's own signature has done it
already: they go in as they are, and come out so.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Literal

from msgspec import Meta

from batuta.kinds.base import Problem, Record

if TYPE_CHECKING:
    from collections.abc import Iterator

Side = Annotated[int, Meta(ge=1, le=16_384)]
Numbers = Annotated[tuple[float, ...], Meta(min_length=1, max_length=4)]


class Before(Record):
    """What is done to an image, in the order of these fields. What is left out follows from the shape that the model
    takes: its side lengths, its layout, and grey where it has one channel."""

    colour: Literal["rgb", "bgr", "grey"] | None = None
    """The order of its channels."""
    resize: tuple[Side, Side] | None = None
    """Height and width."""
    fit: Literal["stretch", "crop", "pad"] = "stretch"
    """When the image has other proportions: stretch it, cut off what is too much in the middle, or pad with black."""
    scale: Annotated[float, Meta(gt=0)] | None = None
    """Each number is multiplied by this: 0.00392156862745098 makes 0 to 255 into 0 to 1."""
    mean: Numbers | None = None
    """Taken from each channel, after scaling."""
    std: Numbers | None = None
    """Each channel is divided by this, after that."""
    layout: Literal["hwc", "chw"] | None = None
    """Channels last or first."""


class After(Record):
    """What is done to scores, in the order of these fields."""

    softmax: bool = False
    """Scores become shares of 1."""
    sigmoid: bool = False
    """Each score becomes a share of 1 by itself."""
    threshold: float | None = None
    """Classes with less are not named."""
    top_k: Annotated[int, Meta(ge=1, le=1_000)] | None = None
    """Only the best so many are named."""
    argmax: bool = False
    """Only the best one is named, without scores."""


def shaping_problems(here: str, before: Before | None, after: After | None) -> Iterator[Problem]:
    if before is not None:
        channels = {"rgb": 3, "bgr": 3, "grey": 1}.get(before.colour or "")
        for word, numbers in (("mean", before.mean), ("std", before.std)):
            if numbers is not None and len(numbers) not in (1, channels or len(numbers)):
                message = f"one number, or one for each of {channels} channels; there are {len(numbers)}"
                yield Problem(path=f"{here}.before.{word}", code="value", message=message)
        if before.std is not None and not all(before.std):
            yield Problem(path=f"{here}.before.std", code="value", message="nothing can be divided by 0")
    if after is not None:
        if after.softmax and after.sigmoid:
            yield Problem(path=f"{here}.after", code="one_of", message="say softmax or sigmoid, not both")
        if after.argmax and (after.top_k is not None or after.threshold is not None):
            message = "argmax names the best class and nothing else: leave out topK and threshold"
            yield Problem(path=f"{here}.after.argmax", code="value", message=message)
