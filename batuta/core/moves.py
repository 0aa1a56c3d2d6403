"""Moves: what somebody asked to be elsewhere. Kept until it is done, cannot be, or has waited too long.

A move that was asked for goes the way of every other: the new one ready before the old one stops, and what must never
run twice is taken away first. What is asked for may be what `core.optimize` proposes, or anything else that fits.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from batuta.core.place import refusals
from batuta.core.standing import Moving

if TYPE_CHECKING:
    from batuta.core.care import Care, Notes
    from batuta.core.draft import Draft
    from batuta.core.state import Held
    from batuta.core.wish import Slot, Wish

ASKED_MS = 600_000
"""So long a move is tried; then things stay as they are."""


def towards(care: Care, wish: Wish) -> Wish:
    """The same wish for the node that was asked for, if one was and is there."""
    asked = care.draft.asked_move(care.ask.app, care.ask.component.name, wish.slot.name)
    to = care.fleet.row_of.get(asked.to) if asked is not None else None
    return wish if to is None or to in wish.own else wish._replace(only=to)


def wait_for_room(care: Care, wish: Wish, budget: str = "") -> None:
    asked = care.draft.asked_move(care.ask.app, care.ask.component.name, wish.slot.name)
    if asked is not None:
        why = ", ".join(refusals(wish, care.fleet)) or budget
        care.say("move_waits", wish.slot, f"{asked.node} to {asked.to}: {why}; {asked.said}")
        care.draft.wake(asked.at + ASKED_MS)
        care.notes.turn_away()


def look_again_when_alone(care: Care, slot: Slot) -> None:
    """A move of a slot with several holders begins when one of them is left: should that come to be in this very
    decision, it begins in this decision."""
    if care.draft.asked_move(care.ask.app, care.ask.component.name, slot.name) is not None:
        care.notes.turn_away()


def who_asked(care: Care, slot: Slot) -> str:
    """By whom and why a slot is being moved, to be said after something else; empty when nobody asked."""
    asked = care.draft.asked_move(care.ask.app, care.ask.component.name, slot.name)
    return "" if asked is None else f"; {asked.said}"


def expire_moves(draft: Draft, app: str) -> None:
    """What could not begin for so long is given up; what has begun goes on."""
    for row in draft.standing(app, Moving):
        if draft.now >= row.at + ASKED_MS and sum(_is_about(row, h) for h in draft.held(app)) == 1:
            draft.drop_standing(row)


def settle_moving(notes: Notes, app: str) -> None:
    """A move is over when nobody is where it began and somebody is elsewhere, or when nobody wants it any more."""
    draft = notes.draft
    for row in draft.standing(app, Moving):
        holders = [h.node for h in draft.held(app) if _is_about(row, h)]
        done = bool(holders) and row.node not in holders
        gone = row.to not in draft.state.nodes or f"{row.component}/{row.slot}" not in notes.wanted
        if done or gone:
            draft.drop_standing(row)
        else:
            notes.pending = True
            draft.wake(row.at + ASKED_MS)


def _is_about(row: Moving, held: Held) -> bool:
    return (held.instance.component, held.instance.slot) == (row.component, row.slot)
