"""Rules: the functions that a run plays, as values, so that a rule can be broken on purpose and the laws be tested."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

from batuta.core.decide import decide
from batuta.core.fleet import Fleet
from batuta.core.lease import contacted, grace_ms
from batuta.core.local import heard, step
from batuta.core.touched import touched

if TYPE_CHECKING:
    from collections.abc import Callable

    from batuta.core.decide import Decision
    from batuta.core.decided import Instance
    from batuta.core.local import Event, Local, Plan


class WatchedFleet(Fleet):
    """A fleet whose silences the twin's hub watches for by itself: it alone knows what was heard of who rests."""

    def next_silence(self, now: int) -> int | None:
        del now
        return None


class Rules(NamedTuple):
    """The pure core, as one bundle."""

    decide: Callable[..., Decision] = decide
    touched: Callable[..., frozenset[str]] = touched
    step: Callable[..., Plan] = step
    heard: Callable[[Local, Event, int], Local | None] = heard
    contacted: Callable[..., int | None] = contacted
    grace_ms: Callable[[Instance, int, int | None], int] = grace_ms
    fleet: Callable[[], Fleet] = WatchedFleet
    """Makes what `decide` remembers between decisions of one hub."""


RULES = Rules()
