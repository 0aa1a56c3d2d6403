"""Fill: slots that nobody fills yet, one after the other, while there is room. So it is with nearly all that is placed.

It does what `core.refill` would do with each of them; a law holds it to that. What finds no room is left to it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from batuta.core.care import Care
    from batuta.core.wish import Slot


def fill_new(care: Care, slots: list[Slot]) -> int:
    """How many of the slots were filled, from the first on."""
    ask, draft = care.ask, care.draft
    if ask.never_twice or draft.fences(ask.app) or draft.asked_slots(ask.app, ask.component.name):
        return 0
    ranking = ask.ranking(care.fleet)
    for count, slot in enumerate(slots):
        if not slot.is_free or (found := ranking.choose(ranking.plain)) is None:
            return count
        care.give(slot, found, 1)
        draft.note_fresh(ask, slot, found.row)
    return len(slots)
