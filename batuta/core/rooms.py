"""Rooms: what is kept free for an instance to come, so that nobody takes it between two steps of one change.

Two things need it. What must never run twice is stopped first, and surely gone before its successor starts
(`core.standing.Awaited`). And a component that is replaced one by one, new before old, needs room for one more all the
while, also when it waits between two of them (`core.standing.Surge`).

Where room is kept is remembered: were it worked out anew each time, it would wander with whatever else is placed, and
deciding would never be done. As long as the instance to come fits there, it stays there. While an application is
tended, the rooms of others that are not below it lie on the fleet like instances; whoever is above takes what it needs,
and whoever had it is tended again in the same decision. A replica that was lost may also take room that is kept for a
change: that one can still stop the old before it starts the new.
"""

from __future__ import annotations

from contextlib import contextmanager
from typing import TYPE_CHECKING, TypeVar

import msgspec
import numpy as np

from batuta.core.constraints import FILTERS, fitting
from batuta.core.load import Load
from batuta.core.place import choose, choose_plainly
from batuta.core.preempt import priority_of
from batuta.core.rank import Choice
from batuta.core.standing import Awaited, Room, Surge
from batuta.core.wish import Slot, Wish
from batuta.kinds.base import Bytes, Millicores

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from batuta.core.care import Care, Notes
    from batuta.core.draft import Draft
    from batuta.core.load import Claim

Row = TypeVar("Row", bound=Room)
_PARTS = ("cpu_millis", "memory_bytes", "disk_bytes", "ports", "devices", "cards")


class Rooms:
    """The rooms of one draft, and which of them lie on the fleet just now."""

    def __init__(self, draft: Draft) -> None:
        self.draft = draft
        self.doubted: set[str] = set()
        """Applications on whose rooms somebody else was placed: they look again."""
        self._rooms: dict[str, Room] = dict(draft.state.rooms)
        self._laid: dict[str, tuple[int, Load]] = {}
        self._shown_to: int | None = None
        """Whose priority is this sees what is laid."""
        self._at: dict[str, set[str]] = {}
        for key, room in self._rooms.items():
            self._at.setdefault(room.node, set()).add(key)

    # --- What lies on the fleet ---

    def show_to(self, app: str) -> None:
        """From now on `app` is tended: its own rooms lie on the fleet, and those of others that are not below it."""
        if not self._rooms and not self._laid:
            return
        state = self.draft.state
        priority = priority_of(state, app)
        if priority == self._shown_to:
            return
        self._shown_to = priority
        for key, room in sorted(self._rooms.items()):
            if priority_of(state, room.app) >= priority:
                self._lay(key)
            else:
                self._lift(key)

    def clear(self) -> None:
        """Nothing of it lies on the fleet any more. Should a node fall silent, its rooms are kept elsewhere."""
        fleet = self.draft.fleet
        for node in {room.node for room in self._rooms.values()}:
            if (row := fleet.row_of.get(node)) is not None:
                self.draft.wake(int(fleet.heard[row]) + fleet.missed_ms)
        for key in list(self._laid):
            self._lift(key)
        self._shown_to = None

    @contextmanager
    def without(self, *keys: str) -> Iterator[None]:
        """As if these rooms were free."""
        gone = [key for key in keys if key in self._laid]
        for key in gone:
            self._lift(key)
        yield
        for key in gone:
            if key in self._rooms:
                self._lay(key)

    def surges(self) -> list[str]:
        """Rooms that are kept for changes."""
        return sorted(key for key, room in self._rooms.items() if isinstance(room, Surge))

    def doubt(self, node: str, app: str) -> None:
        """Somebody was placed on a node: whoever else keeps room there looks whether it is still there."""
        if there := self._at.get(node):
            self.doubted |= {room.app for key in there if (room := self._rooms[key]).app != app}

    # --- What is kept ---

    def put(self, room: Room) -> None:
        """Keep this room, in place of what was kept under its key."""
        key, draft = room.key, self.draft
        if draft.standing_row(room.app, key) == room:
            return
        self._forget(key)
        draft.write_standing(room)
        if room.node:
            self._rooms[key] = room
            self._at.setdefault(room.node, set()).add(key)
            self._lay(key)

    def drop(self, room: Room) -> None:
        """It is kept no more: what was turned away may fit now."""
        self._forget(room.key)
        self.draft.drop_standing(room)

    def _forget(self, key: str) -> None:
        known = self._rooms.get(key)
        if known is not None:
            self._lift(key)
            self._at[known.node].discard(key)
            del self._rooms[key]
            self.draft.freed += 1

    def _lay(self, key: str) -> None:
        room = self._rooms[key]
        row = self.draft.fleet.row_of.get(room.node)
        if key not in self._laid and row is not None:
            self._laid[key] = row, load_of_room(room)
            self.draft.fleet.shift(row, load_of_room(room), 1)

    def _lift(self, key: str) -> None:
        laid = self._laid.pop(key, None)
        if laid is not None:
            self.draft.fleet.shift(*laid, -1)


# --- Keeping room while a component is tended -------------------------------------------------------------------------


def keep_room(care: Care, wish: Wish, row: Row, found: Choice | None = None) -> Row:
    """Room for a wish is kept: where it was, as long as it fits there, else wherever it fits now. `row`: what is
    remembered with it; `found`: a place for it that is known already."""
    rooms, draft = care.draft.rooms, care.draft
    known = draft.standing_row(row.app, row.key)
    mark(care, known, -1)
    if found is None and isinstance(known, Room):
        found = care.sound.get(wish.slot.name)
        # Who was placed there since may be one that it must not be beside.
        if found is not None and care.ask.here[found.row]:
            found = None
    if found is None:
        with rooms.without(row.key):
            found = _fits_still(care, wish, known) if isinstance(known, Room) else None
            found = found or choose(wish, care.fleet)
    kept = _with_load(care, row, found)
    if kept.node or isinstance(known, Awaited):
        rooms.put(kept)
    mark(care, kept, 1)
    if not kept.node:
        care.notes.turn_away()
    return kept


def find_sound(care: Care, slots: Iterable[Slot]) -> dict[str, Choice]:
    """Of many slots whose successors are awaited, those whose rooms are as good as ever, asked all at once: one by one
    they are asked in `keep_room`, and nobody can tell the difference."""
    draft, ask, fleet = care.draft, care.ask, care.fleet
    alone: dict[int, tuple[Slot, str] | None] = {}
    for slot in slots:
        known = draft.awaited(ask.app, ask.component.name, slot.name)
        row = fleet.row_of.get(known.node) if known is not None else None
        if known is None or row is None:
            continue
        is_meant = slot.node in (None, known.node) and slot.site in (None, fleet.site_names[fleet.site[row]])
        alone[row] = (slot, known.key) if is_meant and row not in alone else None
    rooms = {row: found for row, found in alone.items() if found is not None and ask.here[row] == 1}
    if len(rooms) < 2:
        return {}
    wish, rows = Wish(ask, Slot("-")), np.array(sorted(rooms), np.int64)
    asked = rows
    ask.here[asked] -= 1
    with draft.rooms.without(*(key for _, key in rooms.values())):
        for each in FILTERS:
            rows = rows[each.mask(wish, fleet, rows)]
        variants = fitting(wish, fleet, rows)
    ask.here[asked] += 1
    return {
        rooms[row][0].name: Choice(row, variant) for row, variant in zip(rows.tolist(), variants.tolist(), strict=True)
    }


def mark(care: Care, room: object, count: int) -> None:
    """A successor that is awaited counts among the replicas of its component where its room is, or no more."""
    if isinstance(room, Awaited) and (row := care.fleet.row_of.get(room.node)) is not None:
        care.ask.here[row] += count


def choose_from_changes(care: Care, wish: Wish) -> Choice | None:
    """A place for what was lost, where room is kept for changes."""
    rooms = care.draft.rooms
    surges = rooms.surges()
    if not surges:
        return None
    with rooms.without(*surges):
        return choose(wish, care.fleet)


def give_up_room(care: Care, slot: str) -> None:
    """Whoever was awaited has a place: room is kept no more, and where it was is remembered until it is ready."""
    known = care.draft.awaited(care.ask.app, care.ask.component.name, slot)
    if known is not None and known.node:
        care.draft.rooms.put(_bare(known))


def settle_rooms(notes: Notes, app: str) -> None:
    """Rooms go when nobody needs them: no successor is awaited any more, or nothing is left to be replaced."""
    draft = notes.draft
    for surge in draft.standing(app, Surge):
        if surge.component not in notes.surging:
            draft.rooms.drop(surge)
    rows = draft.standing(app, Awaited)
    if not rows:
        return
    held: dict[tuple[str, str], list[bool]] = {}
    for h in draft.held(app):
        report = draft.reported(h.node, h.instance)
        is_ready = report is not None and report.phase == "ready"
        held.setdefault((h.instance.component, h.instance.slot), []).append(is_ready)
    for row in rows:
        holders = held.get((row.component, row.slot), [])
        if f"{row.component}/{row.slot}" not in notes.wanted or any(holders):
            draft.rooms.drop(row)
        elif holders and row.node:
            draft.rooms.put(_bare(row))
        elif row.node:
            notes.pending = True


def _fits_still(care: Care, wish: Wish, known: Room) -> Choice | None:
    row = care.fleet.row_of.get(known.node)
    return choose_plainly(wish._replace(only=row), care.fleet) if row is not None and row in wish.rows() else None


def _with_load(care: Care, row: Row, found: Choice | None) -> Row:
    if found is None:
        return _bare(row)
    load = care.ask.load(found.variant, found.row)
    return msgspec.structs.replace(
        row, node=care.fleet.names[found.row], cpu_millis=Millicores(load.cpu_millis),
        memory_bytes=Bytes(load.memory_bytes), disk_bytes=Bytes(load.disk_bytes),
        ports=tuple(int(c[1]) for c in load.claims if c[0] == "port"),
        devices=tuple(str(c[1]) for c in load.claims if c[0] == "device"),
        cards=tuple((int(c[1]), c[2]) for c in load.claims if len(c) == 3),
    )  # fmt: skip


def _bare(row: Row) -> Row:
    """The same without room."""
    return msgspec.structs.replace(
        row, node="", cpu_millis=Millicores(0), memory_bytes=Bytes(0), disk_bytes=Bytes(0), ports=(), devices=(),
        cards=(),
    )  # fmt: skip


def load_of_room(room: Room) -> Load:
    claims: list[Claim] = [("port", port) for port in room.ports]
    claims += [("device", device) for device in room.devices]
    claims += [("card", card, memory) for card, memory in room.cards]
    return Load(int(room.cpu_millis), int(room.memory_bytes), int(room.disk_bytes), tuple(claims))
