"""Rearrange: what fits nowhere may fit when something that was only just placed goes elsewhere.

Applications are placed one after the other, each as if it were the last; so one that could be anywhere may sit where
the next one must be. While a decision is made nothing of it runs yet, and to place it otherwise costs nobody anything.
What runs already is never moved for this, so it is done within one decision or not at all, and deciding again finds
nothing to do.

One instance goes elsewhere for one that comes. How many are tried is bounded; of those that would do, the one after
which the two together are best off.
"""

from __future__ import annotations

from contextlib import contextmanager
from typing import TYPE_CHECKING, NamedTuple

from batuta.core.load import load_of
from batuta.core.rank import Choice
from batuta.core.wish import Wish

if TYPE_CHECKING:
    from collections.abc import Iterator

    from batuta.core.care import Care
    from batuta.core.fleet import Fleet
    from batuta.core.load import Load
    from batuta.core.state import Held
    from batuta.core.wish import Ask, Slot

NODES_TRIED_MAX = 16
EACH_TRIED_MAX = 8


class Fresh(NamedTuple):
    """An instance that was placed in this decision, in a slot that nobody filled before."""

    ask: Ask
    slot: Slot
    held: Held


class Exchange(NamedTuple):
    """Somebody goes elsewhere, and the wish has its place. The greatest is the best."""

    gain: int
    """What the two get, less what the one had."""
    place: int
    """By name of the node, first first."""
    fresh: Fresh
    to: Choice
    here: Choice


def rearrange(care: Care, wish: Wish) -> Choice | None:
    """A place for a wish that has none, made by placing something else of this decision otherwise."""
    found: Exchange | None = None
    for fresh in _tried(care, wish):
        exchange = _exchange(care, wish, fresh)
        if exchange is not None and (found is None or exchange[:2] > found[:2]):
            found = exchange
    if found is None:
        return None
    draft, (ask, slot, held) = care.draft, found.fresh
    draft.take(held)
    draft.freed -= 1  # What became free is taken at once.
    ask.here[found.here.row] -= 1
    del draft.fresh[found.here.row][ask.app, ask.component.name, slot.name]
    instance = ask.instance(slot.name, held.instance.epoch, found.to.variant, found.to.row)
    draft.give(draft.fleet.names[found.to.row], instance)
    ask.here[found.to.row] += 1
    draft.note_fresh(ask, slot, found.to.row)
    return found.here


def _tried(care: Care, wish: Wish) -> Iterator[Fresh]:
    """Who might make room, on the nodes on which the wish could ever be: the best of them first."""
    draft, fleet = care.draft, care.fleet
    for row in wish.ask.ranking(fleet).possible(wish, list(draft.fresh))[:NODES_TRIED_MAX]:
        tried = 0
        for (app, component, name), slot in sorted(draft.fresh[row].items()):
            ask = draft.asks.get((app, component))
            if ask is None or ask is wish.ask or tried >= EACH_TRIED_MAX:
                continue
            ours = (h for h in draft.held(app) if (h.instance.component, h.instance.slot) == (component, name))
            held = next((h for h in ours if h.node == fleet.names[row]), None)
            if held is not None:
                tried += 1
                yield Fresh(ask, slot, held)


def _exchange(care: Care, wish: Wish, fresh: Fresh) -> Exchange | None:
    """What would come of it. Everything is put back."""
    fleet, ask, other = care.fleet, wish.ask, fresh.ask
    row = fleet.row_of[fresh.held.node]
    free = Wish(other, fresh.slot)
    with _moved(fleet, other, row, load_of(fresh.held.instance), -1):
        had, gets = other.ranking(fleet).at(row, free), ask.ranking(fleet).at(row, wish)
        if gets is None:
            return None
        with _moved(fleet, ask, row, ask.load(gets[1], row), 1):
            to = other.ranking(fleet).choose(free._replace(shun=row))
            then = other.ranking(fleet).at(to.row, free) if to is not None else None
    if to is None or then is None:
        return None
    gain = gets[0] + then[0] - (had[0] if had is not None else 0)
    return Exchange(gain, -int(fleet.rank[row]), fresh, to, Choice(row, gets[1]))


@contextmanager
def _moved(fleet: Fleet, ask: Ask, row: int, load: Load, count: int) -> Iterator[None]:
    """As if an instance were given (1) or taken (-1)."""
    fleet.shift(row, load, count)
    ask.here[row] += count
    yield
    ask.here[row] -= count
    fleet.shift(row, load, -count)
