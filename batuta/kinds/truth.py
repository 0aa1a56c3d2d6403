"""Truth: what is so of a version wherever the twin runs it, and nobody in the play can know in advance."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import msgspec
from msgspec import Meta

from batuta.kinds.base import Millis, Name, Problem, Record

if TYPE_CHECKING:
    from collections.abc import Collection, Iterator

Word = Annotated[str, Meta(min_length=1, max_length=256)]
Percent = Annotated[float, Meta(ge=0, le=100)]


class Truth(Record):
    """What is so of a version, on all machines or on those of some classes. Where several fit, each adds what it says,
    and the last to say something holds."""

    model: Name | None = None
    version: Word | None = None
    command: Word | None = None
    """A word of a program's command, for what runs no model."""
    hardware: Annotated[tuple[Name, ...], Meta(max_length=32)] = ()
    """Only on machines of these sorts, by the names that the fleet gives them."""
    per_second: Annotated[float, Meta(gt=0, le=1_000_000)] | None = None
    """Messages that come to each instance. Where nothing says so, nothing is measured."""
    latency_ms: Annotated[float, Meta(gt=0, le=3_600_000)] | None = None
    """Half of the answers take no longer; 10 when left out."""
    errors: Percent | None = None
    """Of a hundred messages, those that cannot be answered; 0.2 when left out."""
    unsure: Percent | None = None
    """Of a hundred answers, those of which it is unsure and was not to be; none when left out."""
    agrees: Percent | None = None
    """In another version's shadow: of a hundred answers, those that are the other's too; all when left out."""
    memory_percent: Annotated[float, Meta(gt=0, le=100_000)] | None = None
    """How much of the memory that it asked for it takes; 50 when left out."""
    refused: Annotated[str, Meta(min_length=1, max_length=1024)] | None = None
    """Why such a machine cannot load it at all."""
    fails_after_ms: Millis | None = msgspec.field(default=None, name="failsAfter")
    """It ends by itself so long after it was ready, time and again until everything heals."""


def truth_problems(here: str, truth: Truth, hardware: Collection[str]) -> Iterator[Problem]:
    if (truth.model is None) == (truth.command is None):
        yield Problem(path=here, code="one_of", message="say exactly one of model, command")
    if truth.version is not None and truth.model is None:
        yield Problem(path=f"{here}.version", code="value", message="a version is a model's", hint="say which model")
    for i, name in enumerate(truth.hardware):
        if name not in hardware:
            message = f"the fleet has no hardware {name!r}"
            hint = f"it names {', '.join(sorted(hardware))}" if hardware else "give its sorts of machines names"
            yield Problem(path=f"{here}.hardware[{i}]", code="value", message=message, hint=hint)
    said = (getattr(truth, name) for name in EFFECTS)
    if all(value is None for value in said):
        yield Problem(path=here, code="missing_field", message=f"say what is so: one of {', '.join(WIRE)}")


EFFECTS = ("per_second", "latency_ms", "errors", "unsure", "agrees", "memory_percent", "refused", "fails_after_ms")
WIRE = ("perSecond", "latencyMs", "errors", "unsure", "agrees", "memoryPercent", "refused", "failsAfter")
