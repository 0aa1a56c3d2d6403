"""Refill: one slot of a component of which two may run at once. New before old, and one replica at a time."""

from __future__ import annotations

from typing import TYPE_CHECKING

from batuta.core.heal import ASKED, WELL
from batuta.core.moves import look_again_when_alone, towards, wait_for_room, who_asked
from batuta.core.place import choose
from batuta.core.preempt import make_way
from batuta.core.rearrange import rearrange
from batuta.core.rooms import choose_from_changes
from batuta.core.wish import Wish

if TYPE_CHECKING:
    from batuta.core.care import Care, Holder
    from batuta.core.wish import Slot


def refill(care: Care, slot: Slot, holders: list[Holder], *, may_replace: bool) -> bool:
    """Fill one slot; False when it has to be replaced and must wait for its turn."""
    draft, ask = care.draft, care.ask
    fence = draft.fence(ask.app, ask.component.name, slot.name)
    if fence is not None:
        # It used to be never-twice; by what people say now, running twice does no harm.
        draft.drop_fence(fence)
    if len(holders) == 1 and holders[0].rule is WELL:
        return True
    if len(holders) > 1:
        look_again_when_alone(care, slot)
    left = [h for h in holders if not _is_done_with(care, h)]
    for done in holders if not may_replace else ():
        if _is_done_with(care, done):
            care.take(done.held)
    serving = [h for h in left if h.verdict == "keep" and _is_as_asked(care, h)]
    if serving:
        _keep(care, slot, serving[-1], left)
        return True
    late = next((h for h in left if h.verdict == "keep"), None)
    if late is not None:
        care.say_silent(slot, late)
        return True
    if left and left[-1].verdict == "hold":
        care.say_held(slot, left[-1])
        return True
    before = _predecessor(left)
    if before is not None and before.verdict == "replace":
        if not may_replace:
            return False
        if care.waits_for:
            care.say("replacing", slot, f"waits for {care.waits_for}")
            care.next_one = care.next_one or _wish(care, slot, before, left)
            return True
    _fill(care, slot, before, left)
    return True


def _is_done_with(care: Care, holder: Holder) -> bool:
    return holder.verdict == "stop" or (holder.verdict == "lost" and holder.node not in care.draft.state.nodes)


def _keep(care: Care, slot: Slot, best: Holder, left: list[Holder]) -> None:
    """The slot has a holder that may stay. Others are on their way out: when it is ready, or when they are lost."""
    if best.late:
        care.say_silent(slot, best)
    for other in left:
        if other is best:
            continue
        if other.verdict == "lost":
            care.take(other.held)
        elif other.verdict == "hold":
            care.say_held(slot, other)
        else:
            code = "moving" if other.verdict == "move" else "replacing"
            care.in_flight = care.in_flight or other.verdict == "replace"
            until = f"until {best.instance.name} on {best.node} is ready"
            care.say(code, slot, f"{other.node}: {until}{who_asked(care, slot)}")


def _is_as_asked(care: Care, holder: Holder) -> bool:
    row = care.row(holder)
    return row is not None and care.ask.accepts(holder.instance.revision, row)


def _predecessor(left: list[Holder]) -> Holder | None:
    """Whom the new holder follows: one that is there rather than lost, one that works rather than not, the newest."""
    return max(left, key=lambda h: (h.verdict != "lost", h.ready, h.instance.epoch), default=None)


def _wish(care: Care, slot: Slot, before: Holder | None, left: list[Holder]) -> Wish:
    rows = tuple(row for h in left if (row := care.row(h)) is not None)
    row_before = care.row(before) if before is not None else None
    return Wish(care.ask, slot, before=row_before, own=rows, shun=row_before if care.ask.claims_port else None)


def _fill(care: Care, slot: Slot, before: Holder | None, left: list[Holder]) -> None:
    ask, fleet, draft = care.ask, care.fleet, care.draft
    if before is None and slot.is_free and ask.turned_away and care.other is None:
        # Another slot, with nothing to set it apart, was turned away everywhere: so would this one be.
        care.say("nothing_fits", slot, ask.turned_away)
        return
    wish = _wish(care, slot, before, left)
    rollout = draft.rollout(ask.app)
    epoch = 1 + max((h.instance.epoch for h in left), default=0) + (rollout.tries if rollout is not None else 0)
    asked = before is not None and before.rule.sentence == ASKED
    pinned = towards(care, wish)
    found = choose(pinned, fleet) if pinned.only is not None else None
    if found is None and not asked:
        found = choose(wish, fleet)
    giver = care
    if found is None and care.other is not None and (before is None or before.verdict == "lost"):
        giver, found = care.other, choose(wish._replace(ask=care.other.ask), fleet)
    if found is None and before is not None and before.verdict == "lost":
        giver, found = care, choose_from_changes(care, wish)
    keeps = before if before is not None and before.verdict in ("replace", "move") else None
    if found is None and keeps is not None and keeps.verdict == "replace":
        found = care.choose_without(wish._replace(shun=None), keeps)
        if found is not None:
            if not care.may_stop(slot, keeps):
                return
            care.say("making_room", slot, keeps.node)
            keeps = None
    elif found is not None and keeps is not None:
        code = "replacing" if keeps.verdict == "replace" else "moving"
        until = f"until the new one on {fleet.names[found.row]} is ready"
        care.say(code, slot, f"{keeps.node}: {until}{who_asked(care, slot)}")
    if found is None and asked:
        wait_for_room(care, pinned)
        return
    if found is None and keeps is None and not left:
        giver, found = care, rearrange(care, wish)
    if found is None and keeps is None:
        giver, found = care, make_way(care, wish)
    if found is None:
        care.say_unfilled(wish, before)
        return
    for holder in left:
        if holder.verdict == "hold":
            care.say_held(slot, holder)
        elif holder is not keeps:
            care.take(holder.held)
    giver.give(slot, found, epoch, before.held if before is not None else None)
    care.in_flight = care.in_flight or (keeps is not None and keeps.verdict == "replace")
    if not left and slot.node is None:
        draft.note_fresh(giver.ask, slot, found.row)
