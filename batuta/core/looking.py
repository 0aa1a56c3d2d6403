"""Looking: moves that pay for themselves and that a policy makes unasked (`spec.moves`).

A look is part of a decision, at the instant that the last one named: what it begins is tended in the same decision. It
weighs as `core.optimize` does, never anything that a policy moved of late and never a way back (`core.unasked`), and
each look is bounded; what it did not come to is looked at soon after. How far it came is remembered (`Looked`), so a
new hub goes on there. A move that begins goes the way of every other: new before old, within disruption budgets, given
up when it cannot begin.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import msgspec

from batuta.core.budget import spare
from batuta.core.liveness import RECONNECT_MS
from batuta.core.optimize import Terms, Trial
from batuta.core.standing import Looked, Moved, Moving
from batuta.core.traits import ruling
from batuta.core.unasked import barred, forget_moved, may_move, moved, note_moved
from batuta.kinds.calendar import opening

if TYPE_CHECKING:
    from collections.abc import Iterator

    from batuta.core.draft import Draft
    from batuta.core.optimize import Candidate, Move
    from batuta.kinds.policy import Moves, Policy

LOOKED_AT_MAX = 500
"""So many instances are weighed in one look; of large fleets fewer, so that no decision takes long."""
SOON_MS = 5_000
"""Between two looks of one round."""
LEAST_LOOKED_AT, NODES_WEIGHED_MAX = 32, 500_000


def look(draft: Draft) -> set[str]:
    """What policies begin to move now: written down as moves that are asked for, and returned by application."""
    state, begun = draft.state, set[str]()
    if not may_move(state) and not state.looks:
        return begun
    moving = {p.metadata.name: p for p in state.policies if p.spec.moves is not None}
    for name, old in sorted(state.looks.items()):
        if name not in moving:
            draft.drop_look(old)
    trial = Trial(draft)
    for policy in moving.values():
        due = _due(draft, policy)
        if due is not None:
            begun |= _look(trial, policy, due)
    trial.undo()
    return begun


def _due(draft: Draft, policy: Policy) -> Looked | None:
    """The round that goes on or begins now; None when it is not yet time."""
    moves, now = policy.spec.moves, draft.now
    assert moves is not None, "only policies that move look for moves"
    known = draft.state.looks.get(policy.metadata.name)
    # An instant to come is of another clock, or of another hub's.
    if known is None or known.moves != moves or known.at > now:
        known = Looked(policy=policy.metadata.name, moves=moves, at=now, next_at=now)
    due_at = max(known.next_at, draft.state.hub_since + RECONNECT_MS)
    if due_at > now:
        draft.wake(due_at)
        return None
    opens = [opening(hours.opens, hours.closes, hours.zone, now) for hours in moves.hours]
    if opens and not any(hours.is_open for hours in opens):
        edge = min((hours.edge for hours in opens if hours.edge is not None), default=now + moves.every_ms)
        _note(draft, msgspec.structs.replace(known, at=now, next_at=edge, is_over=True))
        return None
    return msgspec.structs.replace(known, is_over=False, made=0, looked_at=0) if known.is_over else known


def _note(draft: Draft, row: Looked) -> None:
    draft.write_look(row)
    draft.wake(row.next_at)


def _look(trial: Trial, policy: Policy, row: Looked) -> set[str]:
    """One look: as many as there is time for are weighed, and the best moves begin."""
    draft, moves = trial.draft, row.moves
    forget_moved(draft)
    most = max(LEAST_LOOKED_AT, min(LOOKED_AT_MAX, NODES_WEIGHED_MAX // max(1, len(draft.state.nodes))))
    found: list[tuple[Move, Candidate, Terms]] = []
    after, looked_at, is_through = row.after, 0, True
    for candidate in _candidates(trial, policy, row.after):
        if looked_at >= most:
            is_through = False
            break
        after, looked_at = candidate.key, looked_at + 1
        terms = _terms(draft, candidate, moves)
        if terms is not None and (move := trial.weighed(candidate, terms)) is not None:
            found.append((move, candidate, terms))
    found.sort(key=lambda entry: entry[0].order)
    begun, made = set[str](), row.made
    for _, candidate, terms in found:
        if made >= moves.at_most:
            break
        move = trial.weighed(candidate, terms)
        if move is not None:
            trial.lay(move, candidate)
            _begin(draft, policy, move)
            begun.add(move.app)
            made += 1
    is_over = is_through or made >= moves.at_most
    _note(
        draft,
        Looked(
            policy=row.policy, moves=moves, at=draft.now, is_over=is_over,
            next_at=draft.now + (int(moves.every_ms) if is_over else SOON_MS),
            # Whoever has begun all the moves it may looks at the same again: more of them may pay.
            after=row.after if made >= moves.at_most else None if is_through else after,
            made=made, looked_at=row.looked_at + looked_at,
        ),
    )  # fmt: skip
    return begun


def _candidates(trial: Trial, policy: Policy, after: tuple[str, str, str] | None) -> Iterator[Candidate]:
    """What the policy may move, in order of key, from where it stopped on."""
    draft, name = trial.draft, policy.metadata.name
    for app in draft.state.applications():
        application = draft.state.application(app)
        if application is None or (after is not None and app < after[0]):
            continue
        mine = {c.name for c in application.spec.components if name in ruling(draft.fleet, app, c).movers}
        found = (c for c in trial.candidates([app]) if c.ask.component.name in mine) if mine else ()
        yield from sorted((c for c in found if after is None or c.key > after), key=lambda c: c.key)


def _terms(draft: Draft, candidate: Candidate, moves: Moves) -> Terms | None:
    """On what terms it may be moved; None while it must stay."""
    app, component, slot = candidate.key
    row, fleet = candidate.row, draft.fleet
    left = barred(moved(draft, app, component, slot), moves, draft.now)
    if left is None or slot in draft.asked_slots(app, component):
        return None
    if not fleet.fresh[row] or fleet.held_until[row] > draft.now:
        return None
    if candidate.ask.never_twice and spare(draft, candidate.holder.held) == 0:
        return None
    return Terms(int(moves.within_ms), moves.least_gain, left)


def _begin(draft: Draft, policy: Policy, move: Move) -> None:
    namespace, _, application = move.app.partition("/")
    name, now, why = policy.metadata.name, draft.now, move.said
    before = moved(draft, *move.key)
    moving = Moving(
        namespace=namespace, application=application, component=move.component, slot=move.slot,
        node=move.node, to=move.to, by=f"policy/{name}", why=why, at=now,
    )  # fmt: skip
    draft.write_standing(moving)
    row = Moved(
        namespace=namespace, application=application, component=move.component, slot=move.slot,
        node=move.node, to=move.to, policy=name, why=why, at=now,
    )  # fmt: skip
    note_moved(draft, row, before)
