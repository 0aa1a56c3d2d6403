"""Pace: how long starts and stops take. Learned from what nodes reported; what nobody knows is assumed, and said so."""

from __future__ import annotations

from statistics import median
from typing import TYPE_CHECKING, Final, NamedTuple

from batuta.kinds.base import Record

if TYPE_CHECKING:
    from collections.abc import Iterable

    from batuta.core.decided import Instance
    from batuta.core.state import State

ASSUMED_START_MS: Final = {"process": 1_000, "onnx": 3_000}
ASSUMED_OTHER_MS: Final = 5_000
"""Of a runtime that this table does not know."""
STOP_MS: Final = 200
HUB_MS: Final = 10
"""From news at the hub to the assignment that follows from it: deciding and writing."""
NODE_MS: Final = 10
"""From an order at the node to its first act: reading and writing down."""
REPORT_MS: Final = 200
"""Nodes let changes gather for so long before they report."""


class Guess(Record):
    """How long starts of a component take on a class of hardware, and how that is known."""

    app: str
    component: str
    hardware: str
    start_ms: int
    starts: int
    """So many were measured; none when it is assumed."""
    how: str


class _Known(NamedTuple):
    """What starts are told apart by, from narrow to wide."""

    app: str
    component: str
    runtime: str
    hardware: str

    def widenings(self) -> Iterable[tuple[tuple[str, ...], str]]:
        yield (self.app, self.component, self.hardware), "its own starts on this hardware"
        yield (self.app, self.component), "its own starts, on other hardware"
        yield (self.runtime, self.hardware), f"starts of other {self.runtime} components on this hardware"
        yield (self.runtime,), f"starts of other {self.runtime} components"


class Pace:
    """What a rehearsal takes for the duration of things."""

    def __init__(self, state: State) -> None:
        self._hardware = {name: hardware_of(state, name) for name in state.nodes}
        self._starts: dict[tuple[str, ...], list[int]] = {}
        self._guesses: dict[_Known, Guess] = {}
        for node, report in sorted(state.observed.items()):
            assignment = state.assignments.get(node)
            orders = {i.name: i for i in assignment.instances} if assignment is not None else {}
            for said in report.instances:
                instance = orders.get(said.name)
                if instance is not None and said.ready_after_ms is not None:
                    for key, _ in self._known(instance, node).widenings():
                        self._starts.setdefault(key, []).append(said.ready_after_ms)

    def start_ms(self, instance: Instance, node: str) -> int:
        """From the begin of its start until it is ready."""
        known = self._known(instance, node)
        guess = self._guesses.get(known)
        if guess is None:
            guess = self._guesses[known] = self._guess(known)
        return guess.start_ms

    @property
    def guesses(self) -> tuple[Guess, ...]:
        """What was asked, and what was answered."""
        return tuple(guess for _, guess in sorted(self._guesses.items()))

    def _known(self, instance: Instance, node: str) -> _Known:
        return _Known(instance.app, instance.component, instance.runtime, self._hardware.get(node, ""))

    def _guess(self, known: _Known) -> Guess:
        for key, how in known.widenings():
            if found := self._starts.get(key):
                return _told(known, round(median(found)), len(found), f"median of {how}")
        assumed_ms = ASSUMED_START_MS.get(known.runtime, ASSUMED_OTHER_MS)
        return _told(known, assumed_ms, 0, "assumed: nothing like it was started yet")


def _told(known: _Known, start_ms: int, starts: int, how: str) -> Guess:
    return Guess(
        app=known.app, component=known.component, hardware=known.hardware, start_ms=start_ms, starts=starts, how=how
    )


def hardware_of(state: State, node: str) -> str:
    """The class of hardware of a node: as people call it, as it reports, or else by its processor and cards."""
    resource, report = state.nodes.get(node), state.observed.get(node)
    if resource is not None and resource.spec.hardware:
        return resource.spec.hardware
    if report is None:
        return ""
    inventory = report.inventory
    if inventory.hardware:
        return inventory.hardware
    cards = sorted({card.kind for card in inventory.accelerators})
    return "-".join([inventory.architecture or "unknown", f"{int(inventory.cpu_millis)}m", *cards])
