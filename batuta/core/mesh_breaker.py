"""Breaker: whether an instance that failed is asked again. One for each instance that a caller knows.

    closed      it is asked
    open        it is not asked until an instant
    half-open   one request is let through; its fate closes the breaker, or opens it for longer

Where nobody listens, the breaker opens at once, for a moment: to find out costs next to nothing. Where somebody answers
badly, or late, it opens after several failures in a row or when half of the last ones failed; each time that it does so
without having been closed between, it stays open twice as long. Values: every function gives the next Breaker, and
`now` is an argument.
"""

from __future__ import annotations

from typing import Literal, NamedTuple

State = Literal["closed", "open", "half-open"]

IN_A_ROW = 5
WINDOW = 20
WINDOW_LEAST = 10
"""With fewer outcomes than this, a share says nothing."""
GONE_MS = 250
FIRST_OPEN_MS = 500
LONGEST_OPEN_MS = 30_000
PROBE_MS = 5_000
"""A request let through that has not told its fate for so long is not waited for any more."""


class Breaker(NamedTuple):
    """What is remembered of one instance's answers."""

    outcomes: tuple[bool, ...] = ()
    """The last ones, newest last; True for well."""
    open_until: int | None = None
    trips: int = 0
    """How often it opened since it was last closed."""
    probing_since: int | None = None
    is_gone: bool = False
    """It opened because there was nobody to ask: whoever hears from it again may close the wait (`heard`)."""


def state(breaker: Breaker, now: int) -> State:
    if breaker.open_until is None:
        return "closed"
    return "open" if now < breaker.open_until else "half-open"


def may_ask(breaker: Breaker, now: int) -> bool:
    """Whether a request may go there now. In half-open it is the one probe: say so with `asked`."""
    match state(breaker, now):
        case "closed":
            return True
        case "open":
            return False
        case "half-open":
            return breaker.probing_since is None or now - breaker.probing_since >= PROBE_MS


def asked(breaker: Breaker, now: int) -> Breaker:
    """A request went there."""
    return breaker._replace(probing_since=now) if state(breaker, now) == "half-open" else breaker


def answered(breaker: Breaker, now: int) -> Breaker:
    """It answered well. What was sent before it opened and comes late does not close it."""
    match state(breaker, now):
        case "open":
            return breaker
        case "half-open":
            return Breaker()
        case "closed":
            return breaker._replace(outcomes=_with(breaker, well=True))


def failed(breaker: Breaker, now: int, *, is_gone: bool = False) -> Breaker:
    """It failed; `is_gone`: there was nobody to ask."""
    match state(breaker, now):
        case "open":
            return breaker
        case "half-open":
            return _opened(breaker, now, is_gone=is_gone)
        case "closed":
            outcomes = _with(breaker, well=False)
            wrong = outcomes.count(False)
            in_a_row = len(outcomes) >= IN_A_ROW and not any(outcomes[-IN_A_ROW:])
            half = len(outcomes) >= WINDOW_LEAST and wrong * 2 >= len(outcomes)
            return (
                _opened(breaker, now, is_gone=is_gone)
                if is_gone or in_a_row or half
                else breaker._replace(outcomes=outcomes)
            )


def heard(breaker: Breaker, now: int) -> Breaker:
    """It gave a sign of life by itself: where nobody had answered, one request may go at once."""
    return breaker._replace(open_until=now) if breaker.is_gone and state(breaker, now) == "open" else breaker


def released(breaker: Breaker) -> Breaker:
    """The request that was let through ended without telling anything: another one may go."""
    return breaker._replace(probing_since=None)


def asks_again_at(breaker: Breaker, now: int) -> int:
    """The earliest instant at which `may_ask` can be true."""
    if may_ask(breaker, now):
        return now
    if breaker.probing_since is not None:
        return breaker.probing_since + PROBE_MS
    assert breaker.open_until is not None
    return breaker.open_until


def _opened(breaker: Breaker, now: int, *, is_gone: bool) -> Breaker:
    open_ms = GONE_MS if is_gone else min(LONGEST_OPEN_MS, FIRST_OPEN_MS << min(breaker.trips, 16))
    return Breaker(open_until=now + open_ms, trips=breaker.trips + 1, is_gone=is_gone)


def _with(breaker: Breaker, *, well: bool) -> tuple[bool, ...]:
    return (*breaker.outcomes, well)[-WINDOW:]
