"""Never twice: one slot of a component of which two must never run. Taken away, surely gone, and only then given again.

The Fence of a slot remembers its last placement for as long as the slot is wanted, so epochs only rise. Released, it is
in force until its node says that nothing of it is left, or cannot hold the lease any more. Every step can be the last
one before a crash: what the tables say then is either what it was, or finished from here.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from batuta.core.budget import in_the_way
from batuta.core.care import fence_of, lift
from batuta.core.heal import ASKED, is_gone
from batuta.core.moves import towards, wait_for_room, who_asked
from batuta.core.place import choose
from batuta.core.preempt import make_way
from batuta.core.rooms import choose_from_changes, give_up_room, keep_room, mark
from batuta.core.standing import Awaited
from batuta.core.wish import Wish

if TYPE_CHECKING:
    from batuta.core.care import Care, Holder
    from batuta.core.decided import Fence
    from batuta.core.rank import Choice
    from batuta.core.wish import Slot


def refill_never_twice(care: Care, slot: Slot, holders: list[Holder], *, may_replace: bool) -> bool:
    """Fill one slot without ever letting two run; False when it has to be replaced and must wait for its turn."""
    draft, ask, after_ms = care.draft, care.ask, care.ask.component.failover.after_ms
    fence = draft.fence(ask.app, ask.component.name, slot.name)
    if fence is not None and not any(_stands_for(fence, h) for h in holders):
        # Given or taken by a commit that may have been cut short: whoever it names is waited for.
        if fence.released_at is None:
            fence = lift(draft, fence)
        if not is_gone(fence, draft, after_ms):
            wish = Wish(ask, slot, before=care.fleet.row_of.get(fence.node))
            kept = "" if holders else _await(care, wish, fence.node)
            care.notes.say_fenced(care.subject(slot), fence, after_ms, kept)
            care.take_turn(f"{fence.node} to say that {care.subject(slot)} is gone")
            return True
    if len(holders) > 1:
        # Left over from a time when two did no harm: one after the other, each surely gone before the next.
        first = next((h for h in holders if not h.kept), None)
        if first is None:
            care.say_held(slot, holders[0])
            return True
        if care.may_stop(slot, first):
            care.take(first.held, fenced=True)
            care.say("may_be_alive", slot, f"{first.node} is stopping it")
        return True
    if holders:
        return _tend_holder(care, slot, holders[0], fence, may_replace=may_replace)
    wish = Wish(ask, slot, before=care.fleet.row_of.get(fence.node) if fence is not None else None)
    epoch = fence.epoch + 1 if fence is not None else 1
    mark(care, draft.awaited(ask.app, ask.component.name, slot.name), -1)
    with draft.rooms.without(_awaited(care, wish, "").key):
        found, giver = choose(towards(care, wish), care.fleet) or choose(wish, care.fleet), care
        if found is None and care.other is not None:
            found, giver = choose(wish._replace(ask=care.other.ask), care.fleet), care.other
        if found is None:
            found, giver = make_way(care, wish), care
    give_up_room(care, slot.name)
    if found is None:
        care.say_unfilled(wish, None)
    else:
        giver.give(slot, found, epoch)
    return True


def _tend_holder(care: Care, slot: Slot, holder: Holder, fence: Fence | None, *, may_replace: bool) -> bool:
    draft, row = care.draft, care.row(holder)
    if holder.verdict in ("keep", "hold"):
        if holder.verdict == "hold":
            care.say_held(slot, holder)
        elif holder.late:
            care.say_silent(slot, holder)
        is_current = fence is not None and _stands_for(fence, holder) and fence.released_at is None
        if not is_current:
            draft.write_fence(fence_of(draft, holder.node, holder.instance))
        return True
    if holder.verdict == "wait":
        care.say("may_be_alive", slot, f"{holder.node} is silent")
        return True
    if row is None:
        care.take(holder.held, fenced=True)
        kept = _await(care, Wish(care.ask, slot), holder.node)
        care.say("may_be_alive", slot, f"{holder.node} was removed{kept}")
        return True
    if holder.verdict == "replace":
        if not may_replace:
            return False
        if care.waits_for:
            care.say("replacing", slot, f"waits for {care.waits_for}")
            return True
    wish = Wish(care.ask, slot, before=row, own=(row,))
    if holder.verdict == "lost":
        epoch = max(holder.instance.epoch, fence.epoch if fence is not None else 0) + 1
        found, giver = choose(wish, care.fleet), care
        if found is None and care.other is not None:
            found, giver = choose(wish._replace(ask=care.other.ask), care.fleet), care.other
        if found is None:
            found, giver = choose_from_changes(care, wish) or make_way(care, wish), care
        if found is None:
            care.say_unfilled(wish, holder)
        else:
            care.take(holder.held)
            giver.give(slot, found, epoch)
        return True
    if holder.rule.sentence == ASKED:
        wish = towards(care, wish)
        if wish.only is None or in_the_way(draft, holder.held) or care.choose_without(wish, holder) is None:
            wait_for_room(care, wish, in_the_way(draft, holder.held) or "")
            return True
    # Replaced or moved: taken away only when there will be a place for it, and that place is kept.
    found = care.choose_without(wish, holder)
    if found is None:
        care.say_unfilled(wish, holder)
    elif care.may_stop(slot, holder):
        care.take(holder.held, fenced=True)
        kept = _await(care, wish._replace(own=()), holder.node, found)
        care.take_turn(f"{holder.node} to say that {care.subject(slot)} is gone")
        care.say("may_be_alive", slot, f"{holder.node} is stopping it{kept}{who_asked(care, slot)}")
    return True


def _await(care: Care, wish: Wish, left: str, found: Choice | None = None) -> str:
    """Keep room for the successor of what was taken from a node; returns where, to be said after something else."""
    wish = wish._replace(only=None)
    row = keep_room(care, wish, _awaited(care, wish, left), found)
    return f"; room for it is kept on {row.node}" if row.node else ""


def _awaited(care: Care, wish: Wish, left: str) -> Awaited:
    ask = care.ask
    return Awaited(
        namespace=ask.namespace, application=ask.application, component=ask.component.name, slot=wish.slot.name,
        left=left,
    )  # fmt: skip


def _stands_for(fence: Fence, holder: Holder) -> bool:
    return (fence.node, fence.epoch) == (holder.node, holder.instance.epoch)
