"""Tend: bring one application from what is held to what is wished. Verdicts first, then deeds, slot by slot.

A change is carried out new before old, one replica of a component at a time, each ready before the next is touched, so
that a bad version never takes them all (`core.refill`). Where both do not fit, the old one goes first. A `never-twice`
slot is the other way round: taken away, surely gone, and only then given again (`core.never_twice`).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from batuta.core import heal
from batuta.core.at_rest import is_at_rest, note_rest
from batuta.core.autoscale import scale, scale_again, settle_scaled
from batuta.core.care import Care, Holder, Notes, counted, fence_of, lift
from batuta.core.fill import fill_new
from batuta.core.moves import expire_moves, settle_moving
from batuta.core.never_twice import refill_never_twice
from batuta.core.place import refusals
from batuta.core.preempt import settle_displaced
from batuta.core.refill import refill
from batuta.core.release import release
from batuta.core.roll import roll, say
from batuta.core.rooms import find_sound, keep_room, mark, settle_rooms
from batuta.core.sides import sides_of
from batuta.core.standing import Awaited, Surge
from batuta.core.talks import in_order, listen
from batuta.core.trial import settle_trials
from batuta.core.trusted import followed
from batuta.core.unasked import settle_moved
from batuta.core.wish import Ask, Slot, Wish, slots_of

if TYPE_CHECKING:
    from batuta.core.decided import Release, Released
    from batuta.core.draft import Draft
    from batuta.core.reasons import Reason
    from batuta.core.sides import Sides
    from batuta.core.state import Held
    from batuta.core.turns import Turns


class Tended(NamedTuple):
    """What came of one application."""

    reasons: tuple[Reason, ...]
    """What is not as wished, and why."""
    unmet: int | None
    """Somebody was turned away who might fit once more is freed than was by then (`Draft.freed`)."""
    pending: bool
    """Not at rest: look again when anything changes."""


def tend(draft: Draft, app: str) -> Tended:
    """Everything that one application needs now."""
    resolved = release(draft, app)
    expire_moves(draft, app)
    rollout = draft.rollout(app)
    is_rolling = rollout is not None and rollout.phase not in ("done", "undone")
    if not resolved.reasons and not is_rolling and is_at_rest(draft, app, followed(draft, app)):
        return Tended((), None, False)
    draft.rooms.show_to(app)
    notes = Notes(draft)
    turns = roll(notes, app) if rollout is not None else None
    settle_trials(notes, app, turns)
    before = draft.stirred.get(app, 0), dict(draft.fences(app))
    to_run = followed(draft, app)
    notes.reasons += resolved.reasons
    notes.pending = bool(resolved.reasons)
    held_by: dict[str, list[Held]] = {}
    for held in draft.held(app):
        held_by.setdefault(held.instance.component, []).append(held)
    wanted: set[str] = set()
    autoscaled: set[str] = set()
    components = _components(to_run, turns)
    for released in in_order(draft, app, components):
        if released.component.replicas.autoscale is not None:
            autoscaled.add(released.component.name)
        sides = sides_of(draft, scale(notes, app, released), app, turns)
        for ask in sides.both:
            listen(draft, ask)
        wanted |= _tend_component(notes, sides, held_by.pop(released.component.name, []))
    for component in sorted(held_by):
        for held in held_by[component]:
            if not notes.is_kept(held):
                _retire(draft, held)
    _settle_fences(notes, app, wanted)
    settle_displaced(draft, app, notes.wanted)
    for released in components if autoscaled else ():
        scale_again(notes, app, released)
    settle_scaled(draft, app, autoscaled)
    settle_moving(notes, app)
    settle_rooms(notes, app)
    settle_moved(draft, app, notes.wanted)
    if turns is not None and (draft.stirred.get(app, 0), draft.fences(app)) != before:
        # What was given and taken may take the rollout further, and another slot's turn may have come by it.
        draft.roll_again(app)
    if turns is not None:
        say(notes, turns)
    draft.watch_fences(app)
    if not (notes.reasons or notes.pending or notes.unmet is not None):
        note_rest(draft, app, to_run)
    return Tended(tuple(notes.reasons), notes.unmet, notes.pending)


def _components(to_run: Release | None, turns: Turns | None) -> tuple[Released, ...]:
    """What is to run. What a release leaves out goes when its rollout is through, where that comes in waves."""
    components = to_run.components if to_run is not None else ()
    if turns is None or turns.rollout.phase == "done" or turns.spec is None or turns.spec.waves is None:
        return components
    return (*components, *(released for name, released in turns.old.items() if name not in turns.new))


def _tend_component(notes: Notes, sides: Sides, held: list[Held]) -> set[str]:
    """Returns the slots, as `component/slot`, whose fences are looked after."""
    ask, draft, fleet = sides.new, notes.draft, notes.draft.fleet
    draft.asks[ask.app, ask.component.name] = ask
    rows = [row for h in held if (row := fleet.row_of.get(h.node)) is not None]
    np.add.at(ask.here, np.array(rows, np.int64), 1)
    slots = slots_of(ask, rows)
    application = draft.state.application(ask.app)
    one_by_one = application is None or application.spec.rollout.waves is None
    cares = {id(each): Care(notes, each, one_by_one=one_by_one) for each in sides.both}
    if sides.old is not None:
        cares[id(sides.old)].other, cares[id(ask)].other = cares[id(ask)], cares[id(sides.old)]
    care = cares[id(ask)]
    notes.wanted |= {f"{ask.component.name}/{slot.name}" for slot in slots}
    if not slots and ask.component.replicas.count is None:
        _say_nowhere(care)
    held_by: dict[str, list[Held]] = {slot.name: [] for slot in slots}
    for h in held:
        if h.instance.slot in held_by:
            held_by[h.instance.slot].append(h)
        elif not notes.is_kept(h):
            care.take(h, fenced=h.instance.lease_ms is not None)
    is_fenced = any(each.never_twice for each in sides.both)
    for room in draft.standing(ask.app, Awaited) if is_fenced else ():
        if room.component == ask.component.name:
            mark(care, room, 1)
    surge = Surge(namespace=ask.namespace, application=ask.application, component=ask.component.name)
    if sides.old is None:
        _tend_slots(care, slots, held_by, surge)
    else:
        mine: dict[int, list[Slot]] = {key: [] for key in cares}
        for slot in slots:
            mine[id(sides.of(draft, slot, held_by[slot.name]))].append(slot)
        for key, each_care in cares.items():
            _tend_slots(each_care, mine[key], held_by, surge)
    return {f"{ask.component.name}/{slot.name}" for slot in slots} if is_fenced else set()


def _tend_slots(care: Care, slots: list[Slot], held_by: dict[str, list[Held]], surge: Surge) -> None:
    """Those that follow one and the same release."""
    ask = care.ask
    ask.open = sum(1 for slot in slots if not held_by[slot.name])
    well = well_slots(care, slots, held_by)
    due = [s for s in slots if s.name not in well]
    is_new = not any(held_by[s.name] for s in due)
    judged = [(s, [] if is_new else judge_slot(care.draft, ask, s, held_by[s.name])) for s in due]
    if care.one_by_one and any(holder.verdict == "replace" for _, holders in judged for holder in holders):
        every = dict(judged) | {s: judge_slot(care.draft, ask, s, held_by[s.name]) for s in slots if s.name in well}
        care.waits_for = _unready(ask, [(slot, every[slot]) for slot in slots])
    fill = refill_never_twice if ask.never_twice else refill
    if ask.never_twice:
        care.sound = find_sound(care, (slot for slot in slots if not held_by[slot.name]))
    with care.draft.rooms.without(surge.key):
        if is_new:
            judged = judged[fill_new(care, due) :]
        later = [entry for entry in judged if not fill(care, *entry, may_replace=False)]
        # Those that do not work anyway cost nothing to replace: they go first, and a repaired version reaches them.
        for entry in sorted(later, key=lambda entry: any(h.ready for h in entry[1])):
            fill(care, *entry, may_replace=True)
        # Between two that are replaced: the room for one more is not for others.
        if care.next_one is not None and not care.in_flight and keep_room(care, care.next_one, surge).node:
            care.notes.surging.add(ask.component.name)


def well_slots(care: Care, slots: list[Slot], held_by: dict[str, list[Held]]) -> set[str]:
    """Slots with which nothing is the matter: one holder, as asked, on a node that was just heard and may keep it.

    Most are, in any fleet and at any time: judging them one by one would cost more than all the rest.
    """
    ask, fleet, draft = care.ask, care.fleet, care.draft
    asked = draft.asked_slots(ask.app, ask.component.name)
    alone = [(s, those[0]) for s in slots if len(those := held_by[s.name]) == 1 and s.name not in asked]
    if not alone:
        return set()
    good = fleet.fresh & ask.stays()
    going = (good & ~fleet.drained).tolist()
    bound = good.tolist()
    fences = draft.fences(ask.app)
    found: set[str] = set()
    for slot, held in alone:
        row, instance = fleet.row_of.get(held.node), held.instance
        if row is None or not (bound if slot.node is not None else going)[row]:
            continue
        if instance.revision != ask.revision and not ask.accepts(instance.revision, row):
            continue
        if slot.site is not None and fleet.site_names[fleet.site[row]] != slot.site:
            continue
        fence = fences.get(f"{ask.component.name}/{slot.name}") if fences else None
        if not ask.never_twice:
            is_fenced_well = fence is None
        else:
            is_fenced_well = (
                fence is not None
                and (fence.node, fence.epoch) == (held.node, instance.epoch)
                and fence.released_at is None
            )
        if is_fenced_well:
            found.add(slot.name)
    return found


def _unready(ask: Ask, judged: list[tuple[Slot, list[Holder]]]) -> str:
    """The first replica of the present revision that is not ready: nobody is replaced before it is."""
    for _, holders in judged:
        for holder in holders:
            if holder.verdict == "keep" and holder.instance.revision == ask.revision and not holder.ready:
                return f"{holder.instance.name} on {holder.node}"
    return ""


def judge_slot(draft: Draft, ask: Ask, slot: Slot, held: list[Held]) -> list[Holder]:
    """The holders of one slot, oldest placement first and those as asked for last, each with the rule that applies."""
    if not held:
        return []
    fleet, stays = draft.fleet, ask.stays()
    asked = draft.asked_move(ask.app, ask.component.name, slot.name)
    if asked is None and len(held) == 1 and _is_well(ask, slot, held[0]):
        report = draft.reported(held[0].node, held[0].instance)
        return [Holder(held[0], heal.WELL, report is not None and report.phase == "ready", late=False)]
    after_ms = max(int(ask.component.failover.after_ms), draft.missed_ms)
    judged: list[Holder] = []
    places = {h.node for h in held}
    superseded = False
    # What is asked for comes before what is not, whichever is newer: a release may have been undone.
    accepted = {id(h): _is_accepted(ask, h) for h in held}
    for h in sorted(held, key=lambda h: (not accepted[id(h)], -h.instance.epoch, h.node)):
        row = fleet.row_of.get(h.node)
        silent_ms = draft.silent_ms(h.node)
        late = row is not None and draft.unheard_ms(h.node) >= draft.missed_ms
        lease_ms = h.instance.lease_ms if h.instance.lease_ms is not None else heal.UNLEASED_MS
        grace_ms = heal.grace_ms(lease_ms) if ask.never_twice else 0
        elsewhere = row is not None and slot.site is not None and fleet.site_names[fleet.site[row]] != slot.site
        kept = row is not None and bool(fleet.held_until[row] > draft.now)
        report = draft.reported(h.node, h.instance)
        case = heal.Case(
            removed=row is None, wanted=True, superseded=superseded, silent_ms=silent_ms, late=late, after_ms=after_ms,
            grace_ms=grace_ms, old=not accepted[id(h)],
            forbidden=row is None or elsewhere or not stays[row], kept=kept,
            locked=report is not None and report.locked,
            drained=row is not None and slot.node is None and bool(fleet.drained[row]),
            asked=asked is not None and asked.node == h.node and (len(held) == 1 or asked.to in places),
        )  # fmt: skip
        ready = row is not None and silent_ms < after_ms and report is not None and report.phase == "ready"
        superseded = superseded or ready
        judged.append(Holder(h, heal.judge(case), ready, late, kept))
        if late:
            draft.wake_for(h.node, draft.now - silent_ms + after_ms)
            draft.wake_for(h.node, draft.now - silent_ms + after_ms + grace_ms)
    return judged[::-1]


def _is_accepted(ask: Ask, held: Held) -> bool:
    row = ask.fleet.row_of.get(held.node)
    return held.instance.revision == ask.revision if row is None else ask.accepts(held.instance.revision, row)


def _is_well(ask: Ask, slot: Slot, held: Held) -> bool:
    """Is it plain that the last of the rules applies? So it is with most, most of the time."""
    row = ask.fleet.row_of.get(held.node)
    if row is None or not ask.accepts(held.instance.revision, row) or not ask.calm()[row]:
        return False
    return slot.site is None or ask.fleet.site_names[ask.fleet.site[row]] == slot.site


def _say_nowhere(care: Care) -> None:
    """A component that follows the fleet, and nowhere to follow it to."""
    subject = f"component/{care.ask.component.name}"
    if care.fleet.row_of:
        turned_away = refusals(Wish(care.ask, Slot("-")), care.fleet)
        care.notes.say("nothing_fits", subject, counted(turned_away))
    else:
        care.notes.say("no_node" if care.ask.component.replicas.every_node else "no_site", subject)


def _retire(draft: Draft, held: Held) -> None:
    """Nobody wants its component any more; a leased one leaves its fence until it is surely gone."""
    if held.instance.lease_ms is not None:
        draft.write_fence(fence_of(draft, held.node, held.instance, released_at=draft.now))
    draft.take(held)


def _settle_fences(notes: Notes, app: str, wanted: set[str]) -> None:
    """Fences of slots that nobody wants any more go when what they stand for is surely gone."""
    draft = notes.draft
    for name, fence in sorted(draft.fences(app).items()):
        if name in wanted:
            continue
        left = fence if fence.released_at is not None else lift(draft, fence)
        if heal.is_gone(left, draft, 0):
            draft.drop_fence(left)
        else:
            notes.say_fenced(f"component/{name}", left, 0)
