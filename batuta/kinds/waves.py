"""Waves: how far a rollout goes before it looks around: `1 node`, `10%`, `where node.site == "berlin"`, `100%`."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, NamedTuple

from batuta.kinds import condition
from batuta.kinds.base import Problem

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

_COUNT = re.compile(r"([1-9][0-9]{0,6})\s+nodes?\Z")
_SHARE = re.compile(r"([0-9]{1,3}(?:\.[0-9]{1,3})?)\s*%\Z")
_WHERE = re.compile(r"where\s+(.+)\Z", re.DOTALL)


class Wave(NamedTuple):
    """One of: so many nodes, a share of all, those of a condition. Counts and shares include the waves before."""

    nodes: int | None = None
    share: float | None = None
    """0 to 1."""
    where: str | None = None

    def target(self, of: int) -> int:
        """How many nodes of so many are to have the release when this wave is through; never none."""
        if self.nodes is not None:
            return min(self.nodes, of)
        return max(1, min(of, -int(-of * (self.share or 0.0) // 1))) if of else 0


EVERYTHING = Wave(share=1.0)


def wave(text: str) -> Wave | None:
    """What a wave says; None when it says nothing that we know."""
    text = text.strip()
    if found := _COUNT.match(text):
        return Wave(nodes=int(found[1]))
    if (found := _SHARE.match(text)) and 0 < float(found[1]) <= 100:
        return Wave(share=float(found[1]) / 100)
    if found := _WHERE.match(text):
        return Wave(where=found[1])
    return None


def share_of(text: str) -> float | None:
    """`20%` as a number from 0 to 1; None when it is none, or nothing."""
    found = _SHARE.match(text.strip())
    return float(found[1]) / 100 if found and 0 < float(found[1]) <= 100 else None


def waves_of(texts: Sequence[str]) -> tuple[Wave, ...]:
    """All of them; the last one that is not everything is followed by everything, for a rollout ends with all nodes."""
    known = tuple(found for text in texts if (found := wave(text)) is not None)
    return known if known and known[-1] == EVERYTHING else (*known, EVERYTHING)


def wave_problems(path: str, texts: Sequence[str]) -> Iterator[Problem]:
    before: Wave | None = None
    for i, text in enumerate(texts):
        here = f"{path}[{i}]"
        found = wave(text)
        if found is None:
            hint = "write `1 node`, `5 nodes`, `10%`, or `where` and a condition over node and site"
            yield Problem(path=here, code="value", message=f"{text!r} is no wave", hint=hint)
            continue
        if found.where is not None:
            for problem in condition.check(here, found.where):
                inside = None if problem.inside is None else problem.inside + text.index(found.where)
                yield Problem(path=here, code=problem.code, message=problem.message, hint=problem.hint, inside=inside)
            continue
        if before is not None and _shrinks(before, found):
            message = f"{text} is no more than the wave before it: waves count all that have the release by then"
            yield Problem(path=here, code="value", message=message)
        before = found


def _shrinks(before: Wave, after: Wave) -> bool:
    if before.nodes is not None and after.nodes is not None:
        return after.nodes <= before.nodes
    if before.share is not None and after.share is not None:
        return after.share <= before.share
    return before.share == 1.0
