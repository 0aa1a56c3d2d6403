"""Candidates: variants with what was found out about each, and which of them are worth choosing between."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from batuta.core.proving import Measured
    from batuta.core.reasons import Reason


class Candidate(NamedTuple):
    """One variant and what was found out."""

    name: str
    is_base: bool = False
    digest: str = ""
    size_bytes: int = 0
    how: str = ""
    quality: Mapping[str, float] = {}
    measured: Measured | None = None
    on_front: bool = False
    """No other is at least as good, as fast and as small, and better in one of them."""
    reason: Reason | None = None
    """Why it is not kept."""


def with_front(candidates: Sequence[Candidate]) -> list[Candidate]:
    """The Pareto front among those that are good enough: quality up, time and size down."""

    def place(candidate: Candidate) -> tuple[float, ...]:
        assert candidate.measured is not None
        best = next((candidate.quality[m] for m in ("accuracy", "r2", "agreement") if m in candidate.quality), 0.0)
        return -best, candidate.measured.p50_us, candidate.size_bytes

    places = {c.name: place(c) for c in candidates if c.measured is not None and c.reason is None}

    def is_beaten(mine: tuple[float, ...]) -> bool:
        return any(other != mine and all(a <= b for a, b in zip(other, mine, strict=True)) for other in places.values())

    return [c._replace(on_front=c.name in places and not is_beaten(places[c.name])) for c in candidates]
