"""Care: what can be done for one component in one pass, and said of it. Deeds go to the draft, words become Reasons."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

import msgspec

from batuta.core.budget import in_the_way
from batuta.core.decided import Fence
from batuta.core.heal import LOCKED, UNLEASED_MS, gone_by
from batuta.core.load import load_of
from batuta.core.place import choose, refusals
from batuta.core.rank import Choice
from batuta.core.reasons import Reason

if TYPE_CHECKING:
    from batuta.core.decided import Instance
    from batuta.core.draft import Draft
    from batuta.core.heal import Rule
    from batuta.core.state import Held
    from batuta.core.wish import Ask, Slot, Wish


class Holder(NamedTuple):
    """A held instance, judged."""

    held: Held
    rule: Rule
    ready: bool
    late: bool
    """The hub itself has missed its node of late."""
    kept: bool = False
    """The owner of its node holds the node as it is."""

    @property
    def verdict(self) -> str:
        return self.rule.verdict

    @property
    def instance(self) -> Instance:
        return self.held.instance

    @property
    def node(self) -> str:
        return self.held.node


class Notes:
    """What is not as wished with one application, and whether it is at rest."""

    def __init__(self, draft: Draft) -> None:
        self.draft = draft
        self.reasons: list[Reason] = []
        self.wanted: set[str] = set()
        """Every slot that is wished for, as `component/slot`."""
        self.surging: set[str] = set()
        """Components that are being replaced one by one, and need room for one more."""
        self.unmet: int | None = None
        """Somebody was turned away who might fit once room is freed: how much had been freed by then."""
        self.pending = False

    def say(self, code: str, subject: str, detail: str = "") -> None:
        self.reasons.append(Reason(code=code, subject=subject, detail=detail))
        self.pending = True

    def is_kept(self, held: Held) -> bool:
        """Does the owner of its node hold it there, though nobody wants it any more? Then it is said, and it stays."""
        row = self.draft.fleet.row_of.get(held.node)
        if row is None or self.draft.fleet.held_until[row] <= self.draft.now:
            return False
        self.say("node_held", f"component/{held.instance.component}/{held.instance.slot}", f"on {held.node}")
        return True

    def turn_away(self) -> None:
        """Whatever is freed from now on, it looks again."""
        self.unmet = self.draft.freed if self.unmet is None else self.unmet

    def say_fenced(self, subject: str, fence: Fence, after_ms: int, more: str = "") -> None:
        due = gone_by(fence, self.draft, after_ms)
        if due is not None:
            self.draft.wake_for(fence.node, due)
        # Had the assignment not been written, its node would never answer for it; then it is written again.
        self.draft.insist(fence.node, fence.serial)
        self.say("may_be_alive", subject, f"{fence.node} has not yet said that it is gone{more}")


class Care:
    """One component of one application, in one pass."""

    def __init__(self, notes: Notes, ask: Ask, *, one_by_one: bool = True) -> None:
        self.notes = notes
        self.draft = notes.draft
        self.fleet = notes.draft.fleet
        self.ask = ask
        self.one_by_one = one_by_one
        """Nobody is replaced before the one before is ready: so it is where no waves say who may be."""
        self.other: Care | None = None
        """The same of the other release, while a rollout is under way: for what is nowhere and finds no place."""
        self.waits_for = ""
        """Whom replacing waits for; empty while somebody may be replaced."""
        self.sound: dict[str, Choice] = {}
        """By slot whose successor is awaited: its room, where that is known to be as good as ever."""
        self.next_one: Wish | None = None
        """The first of those that wait to be replaced, new before old."""
        self.in_flight = False
        """A new one and the old one that it is to replace are both there."""

    def subject(self, slot: Slot) -> str:
        return f"component/{self.ask.component.name}/{slot.name}"

    def row(self, holder: Holder) -> int | None:
        return self.fleet.row_of.get(holder.node)

    # --- Deeds ---

    def give(self, slot: Slot, found: Choice, epoch: int, before: Held | None = None) -> None:
        """`before`: whom it follows. Where that ran, the node may go back to it by itself."""
        node = self.fleet.names[found.row]
        instance = self.ask.instance(slot.name, epoch, found.variant, found.row)
        if before is not None and before.node == node and self.ask.probation_ms is not None:
            instance = _on_probation(instance, before.instance, self.ask.probation_ms)
        load = load_of(instance) if self.ask.needs else self.ask.load(found.variant, found.row)
        self.draft.give(node, instance, load)
        self.ask.here[found.row] += 1
        if self.ask.never_twice:
            self.draft.write_fence(fence_of(self.draft, node, instance))
        if not self.waits_for:
            self.take_turn(f"{instance.name} on {node}")

    def take(self, held: Held, *, fenced: bool = False) -> None:
        """Take an instance away; `fenced`: remember it until it is surely gone."""
        if fenced:
            self.draft.write_fence(fence_of(self.draft, held.node, held.instance, released_at=self.draft.now))
        self.draft.take(held)
        row = self.fleet.row_of.get(held.node)
        if row is not None:
            self.ask.here[row] -= 1

    def take_turn(self, who: str) -> None:
        """Nobody else is replaced before `who` is ready."""
        self.waits_for = self.waits_for or (who if self.one_by_one else "")

    def may_stop(self, slot: Slot, holder: Holder) -> bool:
        """Does its budget let it be stopped with nothing ready in its place? If not, that is said."""
        why = in_the_way(self.draft, holder.held)
        if why is not None:
            self.say("disruption_budget", slot, f"{holder.node}: {why}")
            # With more room it would need no leave: the new one could come before the old one goes.
            self.notes.turn_away()
        return why is None

    def choose_without(self, wish: Wish, old: Holder) -> Choice | None:
        """Where it would fit if the old one were gone."""
        row = self.row(old)
        if row is None:
            return choose(wish, self.fleet)
        load = load_of(old.instance)
        self.fleet.shift(row, load, -1)
        found = choose(wish, self.fleet)
        self.fleet.shift(row, load, 1)
        return found

    # --- Words ---

    def say(self, code: str, slot: Slot, detail: str = "") -> None:
        self.notes.say(code, self.subject(slot), detail)

    def say_silent(self, slot: Slot, holder: Holder) -> None:
        neighbour = self.draft.ears.cut_off(holder.node)
        detail = holder.node
        if neighbour is not None:
            detail += f", but {neighbour.name} hears it: it is cut from the hub, not dead"
        self.say("node_silent", slot, detail)

    def say_held(self, slot: Slot, holder: Holder) -> None:
        code = "update_locked" if holder.rule.sentence == LOCKED else "node_held"
        self.say(code, slot, f"on {holder.node}")

    def say_unfilled(self, wish: Wish, before: Holder | None) -> None:
        """Nobody can take it: a wait when its node is only silent, else for want of nodes or of room."""
        counts = refusals(wish, self.fleet)
        self.notes.turn_away()
        gave_way = self.draft.displacement(self.ask.app, self.ask.component.name, wish.slot.name)
        if gave_way is not None:
            self.say("gave_way", wish.slot, gave_way.said)
        if before is not None and before.verdict == "lost":
            if set(counts) <= {"node_offline"}:
                self.say_silent(wish.slot, before)
            else:
                self.say("no_substitute", wish.slot, f"{before.node} is silent; {counted(counts)}")
        elif not counts:
            self.say("no_node", wish.slot)
        else:
            self.say("nothing_fits", wish.slot, counted(counts))
            if before is None and wish.slot.is_free:
                self.ask.turned_away = counted(counts)


def _on_probation(instance: Instance, before: Instance, probation_ms: int) -> Instance:
    if before.revision == instance.revision:
        return instance
    fallback = msgspec.structs.replace(before, fallback=None, probation_ms=None, beside=None)
    return msgspec.structs.replace(instance, fallback=fallback, probation_ms=probation_ms)


def fence_of(draft: Draft, node: str, instance: Instance, released_at: int | None = None) -> Fence:
    return Fence(
        namespace=instance.namespace, application=instance.application, component=instance.component,
        slot=instance.slot, epoch=instance.epoch, node=node, serial=draft.serial(node),
        lease_ms=instance.lease_ms if instance.lease_ms is not None else UNLEASED_MS, released_at=released_at,
    )  # fmt: skip


def lift(draft: Draft, fence: Fence) -> Fence:
    """The same fence for a holder that no assignment names: nobody took it away properly, so it is waited for."""
    lifted = msgspec.structs.replace(fence, released_at=draft.now)
    draft.write_fence(lifted)
    return lifted


def counted(turned_away: dict[str, int]) -> str:
    return ", ".join(f"{count} {code}" for code, count in turned_away.items())
