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
    fleet = care.fleet
    ranking = ask.ranking(fleet)
    free = next((count for count, slot in enumerate(slots) if not slot.is_free), len(slots))
    done = 0
    while done < free and (run := ranking.choose_run(free - done)):
        rows = [found.row for found, _ in run]
        those = slots[done : done + len(run)]
        instances = [
            ask.instance(slot.name, 1, found.variant, found.row) for slot, (found, _) in zip(those, run, strict=True)
        ]
        fleet.shift_each([(found.row, load) for found, load in run])
        ask.here[rows] += 1
        for slot, row, instance in zip(those, rows, instances, strict=True):
            draft.give_laid(fleet.names[row], instance)
            draft.note_fresh(ask, slot, row)
        if not care.waits_for:
            care.take_turn(f"{instances[0].name} on {fleet.names[rows[0]]}")
        done += len(run)
    return done
