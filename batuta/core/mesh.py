"""Mesh: which of several instances of a model is asked. Pure: chance and what is known of each are arguments.

The nearest that is well and has room is asked: on the caller's own node, then at its site, then in its region, then
anywhere that the hub leads to. Among equally near ones two are drawn, and the one that will likely answer sooner is
taken: with many callers that each know only half of the truth, this spreads load better than asking the best of all,
because not everybody runs to the same one. The other decisions of a call are in `mesh_breaker`, `mesh_budget`,
`mesh_deadline` and `mesh_gate`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Collection, Sequence

Nearness = Literal["local", "site", "region", "hub"]
NEARNESS: tuple[Nearness, ...] = ("local", "site", "region", "hub")
"""Nearest first."""


class Candidate(NamedTuple):
    """One instance, as its caller knows it this moment."""

    key: str
    """Names it: node and instance."""
    nearness: Nearness
    is_well: bool = True
    """It says that it is ready, and its breaker lets a request through."""
    in_flight: int = 0
    """Requests under way there, by its card and by the caller's own count, whichever is more."""
    room: int = 0
    """How many it takes at once; 0 when it has not said."""
    latency_ms: float | None = None

    @property
    def is_full(self) -> bool:
        return bool(self.room) and self.in_flight >= self.room


def choose(
    candidates: Sequence[Candidate], chance: tuple[float, float], tried: Collection[str] = ()
) -> Candidate | None:
    """The one to ask; None when none of them is well, has room, and was not tried by this call before.

    `chance` is two numbers of [0, 1): they draw the two that are compared.
    """
    for nearness in NEARNESS:
        found = sorted(c for c in candidates if c.nearness == nearness and c.is_well and not c.is_full)
        fresh = [c for c in found if c.key not in tried]
        if fresh:
            return _of_two(fresh, chance)
    return None


def _of_two(fresh: Sequence[Candidate], chance: tuple[float, float]) -> Candidate:
    first = int(chance[0] * len(fresh))
    # The second is drawn from the others, so that two are compared whenever there are two.
    second = (first + 1 + int(chance[1] * (len(fresh) - 1))) % len(fresh)
    # One that nobody has measured yet passes for as quick as the quickest: so it is tried, and becomes known.
    unknown_ms = min((c.latency_ms for c in fresh if c.latency_ms is not None), default=1.0)
    return min(fresh[first], fresh[second], key=lambda c: (expected_ms(c, unknown_ms), c.key))


def expected_ms(candidate: Candidate, unknown_ms: float) -> float:
    """When it would answer one more request, if it works on them one after the other."""
    latency_ms = candidate.latency_ms if candidate.latency_ms is not None else unknown_ms
    return (candidate.in_flight + 1) * max(latency_ms, 0.001)
