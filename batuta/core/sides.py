"""Sides: what a component is to be while a rollout changes it. The new release's ask, and the trusted one's.

Each slot follows one of them: that of the node that holds it. A node that has its turn runs the new one, every other
the trusted one; what is frozen follows what it is. An empty slot follows where it was, as far as that is remembered,
and else the trusted release: healing is no occasion to try something new.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

import msgspec

from batuta.core.wish import Ask

if TYPE_CHECKING:
    from collections.abc import Sequence

    from batuta.core.decided import Released
    from batuta.core.draft import Draft
    from batuta.core.state import Held
    from batuta.core.turns import Turns
    from batuta.core.wish import Slot


class Sides(NamedTuple):
    """Of one component."""

    new: Ask
    old: Ask | None = None
    """None while all nodes are to run the same."""

    @property
    def both(self) -> tuple[Ask, ...]:
        """The trusted one first: what is to be healed goes before what is to be changed."""
        return (self.new,) if self.old is None else (self.old, self.new)

    def of(self, draft: Draft, slot: Slot, held: Sequence[Held]) -> Ask:
        """The ask that a slot follows."""
        new, old = self
        if old is None:
            return new
        row_of = draft.fleet.row_of
        if held:
            newest = max(held, key=lambda h: (h.instance.epoch, h.node))
            row = row_of.get(newest.node)
            if row is not None and new.frozen is not None and new.frozen[row]:
                return new if newest.instance.revision == new.revision else old
        else:
            row = row_of.get(slot.node or _was_at(draft, new, slot))
        return new if row is not None and new.turn is not None and new.turn[row] else old


def _was_at(draft: Draft, ask: Ask, slot: Slot) -> str:
    fence = draft.fence(ask.app, ask.component.name, slot.name)
    if fence is not None:
        return fence.node
    awaited = draft.awaited(ask.app, ask.component.name, slot.name)
    return awaited.left if awaited is not None else ""


def sides_of(draft: Draft, released: Released, app: str, turns: Turns | None) -> Sides:
    """`released`: of the newest release, with as many replicas as there are to be."""
    new = Ask(app, released, draft.fleet)
    if turns is None:
        return Sides(new)
    if turns.spec is not None:
        new.probation_ms = int(turns.spec.probation_ms)
    if released.component.name not in turns.changed:
        return Sides(new)
    turn, frozen = turns.has_whole(), turns.frozen()
    if frozen is None and bool(turn[draft.fleet.present].all()):
        return Sides(new)
    before = turns.old[released.component.name]
    component = msgspec.structs.replace(before.component, replicas=released.component.replicas)
    old = Ask(app, msgspec.structs.replace(before, component=component), draft.fleet)
    old.here = new.here
    new.turn, old.turn = turn, ~turn
    new.frozen = old.frozen = frozen
    old.tolerated = frozenset(turns.rollout.tolerated)
    return Sides(new, old)
