"""Unasked: what is remembered of moves that policies made by themselves (`core.looking` makes them).

A slot that was moved stays for a while, and never goes back to a node that it was moved away from while that is
remembered. So each slot is moved a few times at most, and moves that policies make always come to an end.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import msgspec

from batuta.core.standing import Left, Moved

if TYPE_CHECKING:
    from batuta.core.draft import Draft
    from batuta.core.state import State
    from batuta.kinds.policy import Moves

REMEMBERED_MS = 30 * 86_400_000
"""How long a slot remembers what it was moved away from."""
LEFT_MAX = 8
"""What was moved so often stays until the first of it is forgotten."""


def may_move(state: State) -> bool:
    """Is there a policy that moves anything by itself?"""
    return any(policy.spec.moves is not None for policy in state.policies)


def moved(draft: Draft, app: str, component: str, slot: str) -> Moved | None:
    """The last move of a slot that a policy made."""
    if app not in draft.state.standing and not draft.has_standing(app):
        return None
    rows = draft.standing(app, Moved)
    return next((row for row in rows if (row.component, row.slot) == (component, slot)), None)


def barred(row: Moved | None, moves: Moves, now: int) -> frozenset[str] | None:
    """The nodes that a slot was moved away from; None while it must stay where it is."""
    if row is None:
        return frozenset()
    left = still_known(row, now)
    if now - row.at < moves.again_ms or len(left) >= LEFT_MAX:
        return None
    return frozenset(one.node for one in left)


def still_known(row: Moved | None, now: int) -> tuple[Left, ...]:
    """What it was moved away from, as far as that is remembered. An instant to come is of another clock, and counts."""
    return tuple(one for one in row.left if now - one.at < REMEMBERED_MS) if row is not None else ()


def settle_moved(draft: Draft, app: str, wanted: set[str]) -> None:
    """Nothing is remembered of slots that nobody wants any more, nor when no policy moves anything."""
    keeps = may_move(draft.state)
    for row in draft.standing(app, Moved):
        if not keeps or f"{row.component}/{row.slot}" not in wanted:
            draft.drop_standing(row)


def forget_moved(draft: Draft) -> None:
    """Drops what is so long ago that it keeps nobody from anything."""
    for app in sorted(draft.state.standing):
        for row in draft.standing(app, Moved):
            moves = [p.spec.moves for p in draft.state.policies if p.spec.moves is not None]
            longest_ms = max((REMEMBERED_MS, *(int(m.again_ms) for m in moves)))
            if draft.now - row.at >= longest_ms:
                draft.drop_standing(row)


def note_moved(draft: Draft, row: Moved, before: Moved | None) -> None:
    """Remember a move that begins now."""
    left = (*still_known(before, draft.now), Left(node=row.node, at=draft.now))
    draft.write_standing(msgspec.structs.replace(row, left=left))
