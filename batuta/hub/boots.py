"""Who speaks as a node: one machine, from one run of its agent at a time. Neither ever returns to an earlier run.

When runs alternate, two machines have one identity, because a disk was copied. Then neither is the node: what must
never run twice would be held by both. So nobody is answered while two speak; and a machine that takes the place of
another is answered only when that one has been quiet, for by then a copy has learnt that it is one of two.
"""

from __future__ import annotations

from typing import Final, Literal, NamedTuple

TWO_FOR_MS: Final = 8_000
"""So long after an earlier run was heard again there are two."""
EARLIER_MAX: Final = 4
WORD_MAX: Final = 64

Voice = Literal["one", "new", "two"]
"""Whether it is the node; another machine in its place since just now; or one of two."""


class _Run(NamedTuple):
    """One run of an agent on one run of a machine, and when it was heard last."""

    boot: str
    machine: str
    last: int


class _Speaker(NamedTuple):
    """Who spoke last as a node, who before, newest first, and when one of those was heard again."""

    run: _Run
    earlier: tuple[_Run, ...] = ()
    returned_at: int | None = None


class Boots:
    """What was heard of every node, in memory: a new hub listens anew."""

    def __init__(self) -> None:
        self._speakers: dict[str, _Speaker] = {}

    def heard(self, node: str, boot: str, machine: str, now: int, quiet_ms: int) -> Voice:
        """A heartbeat of that run on that machine. `quiet_ms`: who was silent for so long is gone."""
        run = _Run(boot[:WORD_MAX], machine[:WORD_MAX], now)
        before = self._speakers.get(node)
        self._speakers[node] = after = _Speaker(run) if before is None else _after(before, run)
        if after.returned_at is not None and now - after.returned_at < TWO_FOR_MS:
            return "two"
        others = (each for each in after.earlier if each.machine != run.machine)
        return "new" if any(now - each.last < quiet_ms for each in others) else "one"

    def forget(self, node: str) -> None:
        self._speakers.pop(node, None)


def _after(before: _Speaker, run: _Run) -> _Speaker:
    if run.boot == before.run.boot:
        return before._replace(run=run)
    returned = any(each.boot == run.boot for each in before.earlier)
    others = tuple(each for each in before.earlier if each.boot != run.boot)
    earlier = (before.run, *others)[:EARLIER_MAX]
    return _Speaker(run, earlier, run.last if returned else before.returned_at)
