"""What must hold of the rooms that are kept: there is room for all of them, and nobody who may not takes one."""

from __future__ import annotations

from typing import TYPE_CHECKING

from batuta.core.standing import Awaited

if TYPE_CHECKING:
    from batuta.core.decided import Instance
    from batuta.core.state import State


def check(before: State, after: State) -> None:
    """One decision, from the state it was made on to the state it made."""
    for name, assignment in after.assignments.items():
        known = before.assignments.get(name)
        came = [i for i in assignment.instances if known is None or i not in known.instances]
        if came:
            _fits(name, assignment.instances, after)
            _awaited_are_kept(name, came, before, after)


def _fits(name: str, instances: tuple[Instance, ...], after: State) -> None:
    """Wherever something new is placed, there is room beside it for all that room is kept for."""
    rooms = [room for room in after.rooms.values() if room.node == name]
    inventory = after.observed[name].inventory
    cpu = sum(i.cpu_millis for i in instances) + sum(room.cpu_millis for room in rooms)
    memory = sum(i.memory_bytes for i in instances) + sum(room.memory_bytes for room in rooms)
    assert cpu <= inventory.cpu_millis, f"{name}: {rooms} taken"
    assert memory <= inventory.memory_bytes, f"{name}: {rooms} taken"


def _awaited_are_kept(name: str, came: list[Instance], before: State, after: State) -> None:
    """Nobody of its priority or below was placed where a successor was awaited, if there is no room for it now."""
    inventory, now = after.observed[name].inventory, after.assignments[name].instances
    was = before.assignments[name].instances if name in before.assignments else ()
    for room in before.rooms.values():
        if not isinstance(room, Awaited) or room.node != name or room.app not in after.declared:
            continue
        there = any(h.instance.slot == room.slot for h in after.held.get(room.app, ()))
        mine = after.declared[room.app].spec.priority
        others = [after.declared[i.app].spec.priority for i in came if i.app != room.app]
        had = inventory.cpu_millis - sum(i.cpu_millis for i in was) >= room.cpu_millis
        has = inventory.cpu_millis - sum(i.cpu_millis for i in now) >= room.cpu_millis
        if others and max(others) <= mine and had and not there:
            assert has, f"{room} was taken by {[i.name for i in came]}"
