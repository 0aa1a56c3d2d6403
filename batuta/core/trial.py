"""Trial: what stands beside the old release on nodes whose wave tries the new one.

The slot stays the old instance's; the new one is only attached to it (`Instance.newcomer`), so that whoever counts,
moves or heals slots sees one holder as ever. It is there as long as its node has its turn and is not switched, takes
room of its own, and claims neither port nor device: what is asked there still asks the old one. A component is tried
when it is a model before and after; never-twice ones are not, for two would be there.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

import msgspec

from batuta.core.decided import Beside
from batuta.core.place import choose
from batuta.core.rollout import trial_of
from batuta.core.wish import Ask, Slot, Wish

if TYPE_CHECKING:
    from batuta.core.care import Notes
    from batuta.core.decided import Instance, Released
    from batuta.core.draft import Draft
    from batuta.core.fleet import Bools
    from batuta.core.observed import InstanceReport
    from batuta.core.state import Held
    from batuta.core.turns import Place, Turns


def can_try(old: Released, new: Released) -> bool:
    """Is there anything to be tried beside what runs?"""
    is_twice = "never-twice" not in (old.component.runs, new.component.runs)
    return is_twice and old.component.model is not None and new.component.model is not None


class Tried(NamedTuple):
    """What is on trial at one node."""

    reports: tuple[InstanceReport | None, ...]
    """For each that is to be there, what the node says of it by now."""
    has_room: bool
    """All of them are there, or could be."""


class Trials:
    """What is on trial in one rollout, as the fleet is now."""

    def __init__(self, turns: Turns) -> None:
        self.turns = turns
        self.draft: Draft = turns.draft
        self.fleet = turns.fleet
        trial = trial_of(turns.rollout, turns.plan)
        self.beside = None if trial is None else Beside(mode=trial.mode, share=trial.share)
        """How it is tried now; None when nothing is."""
        self.rows: Bools = turns.has_turn() & ~turns.has_whole()
        """By row: has it its turn, and is it not switched?"""
        self.frozen = turns.frozen()
        self._asks: dict[str, Ask] = {}

    def tries(self, held: Held) -> bool:
        """Is this one of those that a new one is put beside?"""
        name, turns = held.instance.component, self.turns
        if name not in turns.changed or turns.is_new(held.instance) or held.instance.model is None:
            return False
        return can_try(turns.old[name], turns.new[name])

    def of(self, place: Place) -> Tried | None:
        """None where nothing is tried."""
        if not self.rows[place.row]:
            return None
        reports, has_room = [], True
        for held in place.held:
            if self.turns.is_new(held.instance):
                reports.append(self.draft.reported(place.node, held.instance))
            elif self.tries(held):
                reports.append(self.reported(held))
                has_room = has_room and (self._present(held) is not None or self.placed(held, place.row) is not None)
        return Tried(tuple(reports), has_room)

    def reported(self, held: Held) -> InstanceReport | None:
        """What the node says of the new one beside this, when that is the one that should be there."""
        newcomer, beside = held.instance.newcomer, self.beside
        if newcomer is None or newcomer.beside != beside or not self.turns.is_new(newcomer):
            return None
        return self.draft.reported(held.node, newcomer)

    def newcomer(self, held: Held) -> Instance | None:
        """What is to be beside it."""
        row, beside = self.fleet.row_of.get(held.node), self.beside
        if beside is None or row is None or not self.rows[row] or not self.tries(held):
            return None
        present = self._present(held)
        if present is not None and present.beside == beside:
            return present
        is_frozen = self.frozen is not None and bool(self.frozen[row])
        is_kept = bool(self.fleet.held_until[row] > self.draft.now) or is_frozen
        if is_kept or not self.fleet.fresh[row]:
            return present
        if present is not None:
            return _numbered(present, held, beside)
        return self.placed(held, row)

    def _present(self, held: Held) -> Instance | None:
        """What is there of the release that is tried now."""
        found = held.instance.newcomer
        return found if found is not None and self.turns.is_new(found) else None

    def placed(self, held: Held, row: int) -> Instance | None:
        """A new one there; None when there is no room for both."""
        slot = Slot(held.instance.slot)
        found = choose(Wish(self._ask(held.instance.component), slot, before=row, own=(row,), only=row), self.fleet)
        if found is None:
            return None
        made = self._ask(held.instance.component).instance(slot.name, held.instance.epoch, found.variant, found.row)
        return _numbered(made, held, self.beside)

    def lacks_room(self, held: Held) -> bool:
        """Of one that nothing is put beside: is that why?"""
        row = self.fleet.row_of.get(held.node)
        if self.beside is None or row is None or not self.rows[row] or not self.fleet.fresh[row]:
            return False
        is_frozen = self.frozen is not None and bool(self.frozen[row])
        return not is_frozen and self.tries(held) and self.placed(held, row) is None

    def _ask(self, component: str) -> Ask:
        """The new release's, without what only one instance can have."""
        found = self._asks.get(component)
        if found is None:
            released = self.turns.new[component]
            resources = msgspec.structs.replace(released.component.resources, ports=(), devices=())
            bare = msgspec.structs.replace(released.component, serve=None, resources=resources)
            bare_release = msgspec.structs.replace(released, component=bare)
            found = self._asks[component] = Ask(self.turns.app, bare_release, self.fleet)
        return found


def _numbered(instance: Instance, held: Held, beside: Beside | None) -> Instance:
    """Each way of trying has a number of its own, below that of whoever follows in the slot: what a node says of one is
    not taken for another."""
    epoch = held.instance.epoch if beside is not None and beside.mode == "shadow" else 0
    return msgspec.structs.replace(instance, beside=beside, epoch=epoch)


def settle_trials(notes: Notes, app: str, turns: Turns | None) -> None:
    """Puts beside every holder what is to be there, and takes away what is not, before anything else is decided."""
    draft = notes.draft
    trials = Trials(turns) if turns is not None and turns.plan.trials else None
    for held in tuple(draft.held(app)):
        wanted = trials.newcomer(held) if trials is not None else None
        if trials is not None and wanted is None and trials.lacks_room(held):
            notes.say("no_room_beside", f"component/{held.instance.component}/{held.instance.slot}", f"on {held.node}")
            notes.turn_away()
        if wanted != held.instance.newcomer:
            draft.take(held)
            draft.give(held.node, msgspec.structs.replace(held.instance, newcomer=wanted))
