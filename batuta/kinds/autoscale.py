"""Autoscale: how many replicas when, by the hour and by what is measured. Values and their checks.

A window opens and closes by the clock of a place; while it is open its bounds hold. Between the bounds the load
decides: 1 is just right, 2 asks for twice as many.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import msgspec
from msgspec import Meta

from batuta.kinds.base import Condition, Millis, Problem, Record

if TYPE_CHECKING:
    from collections.abc import Iterator

Replica = Annotated[int, Meta(ge=0, le=100_000)]
Cron = Annotated[
    str,
    Meta(
        min_length=9,
        max_length=128,
        description="Minute, hour, day of month, month, day of week: `0 8 * * mon-fri`.",
    ),
]


class Window(Record):
    """A time that comes again and again, and the bounds that hold while it lasts."""

    opens: Cron
    closes: Cron
    zone: str = "UTC"
    """Whose clock: `Europe/Berlin`. What falls into the hour that spring skips happens when it is skipped; what falls
    into the hour that autumn repeats happens the first time."""
    min: Replica | None = None
    max: Replica | None = None


class Autoscale(Record):
    """How many replicas, by the hour and by the load."""

    max: Replica
    min: Replica = 1
    windows: Annotated[tuple[Window, ...], Meta(max_length=32)] = ()
    """Bounds for certain hours. Where several are open, the highest of each bound holds."""
    load: Condition | None = None
    """CEL that gives a number: 1.0 when the replicas there are, are just enough. It knows latency.p50 and latency.p99
    (ms), queue.stored (messages), rate.received (messages/s), memory.used (bytes) and memory.share, cpu.percent (of its
    nodes), errors.share, replicas.wanted and replicas.ready; all of them with a fraction, as `latency.p99 / 50.0`."""
    tolerance_percent: Annotated[int, Meta(ge=0, le=100)] = msgspec.field(default=10, name="tolerancePercent")
    """Loads so near to 1 change nothing."""
    up_after_ms: Millis = msgspec.field(default_factory=lambda: Millis(10_000), name="upAfter")
    """For so long the load must have asked for more; then there are as many more as it asked for all that time."""
    down_after_ms: Millis = msgspec.field(default_factory=lambda: Millis(300_000), name="downAfter")
    """For so long it must have asked for fewer. What is not measured never asks for fewer."""


def autoscale_problems(here: str, autoscale: Autoscale) -> Iterator[Problem]:
    """Everything wrong with one that can be seen from itself."""
    from batuta.kinds import calendar, condition

    if autoscale.min > autoscale.max:
        yield Problem(path=f"{here}.min", code="value", message="min is more than max")
    for i, window in enumerate(autoscale.windows):
        path = f"{here}.windows[{i}]"
        for name in ("opens", "closes"):
            if wrong := calendar.why_no_cron(getattr(window, name)):
                yield Problem(path=f"{path}.{name}", code="value", message=wrong, hint="for example 0 8 * * mon-fri")
        if nowhere := calendar.why_no_zone(window.zone):
            yield Problem(path=f"{path}.zone", code="value", message=nowhere[0], hint=nowhere[1])
        if window.min is None and window.max is None:
            yield Problem(path=path, code="empty", message="a window that bounds nothing", hint="say min or max")
        low = autoscale.min if window.min is None else window.min
        if low > (autoscale.max if window.max is None else window.max):
            yield Problem(path=path, code="value", message="in this window min is more than max")
    if autoscale.load is not None:
        yield from condition.check(f"{here}.load", autoscale.load, condition.LOAD_VARIABLES, gives=condition.NUMBER)
    elif not autoscale.windows:
        yield Problem(path=here, code="empty", message="nothing would ever scale", hint="say windows, load or both")
