"""Releases that arrive in the twin, step by step: every state they pass through, and what comes of a death in it."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

import msgspec

from batuta.kinds.base import Millis
from batuta.kinds.rolling import Deadline, Rollout
from batuta.kinds.truth import Truth
from batuta.twin import faults
from batuta.twin.physics import Physics
from batuta.twin.play import Play
from batuta.twin.rules import RULES
from batuta.twin.scenario import Edit, Fault, Machine, Scenario
from tests.core.fleets import application, component, model

if TYPE_CHECKING:
    from collections.abc import Iterator

    from batuta.core.decided import Instance
    from batuta.core.rollout import Rollout as Record
    from batuta.twin.machine import Process
    from batuta.twin.node import Node

CHANGED_MS = 12_000
"""The new release is declared at this instant, when the old one runs everywhere."""
TICK_MS = 2
PROBATION_MS = 6_000
NAMES = ("n0", "n1", "n2")

# Things take their time, always the same, so that each is a state of its own; nothing fails by itself.
PHYSICS = Physics(
    latency_ms=(20, 30), start_ms=(150, 300), warm_ms=(200, 500), stop_ms=(100, 200), stubborn_permille=0,
    start_fails_permille=0, write_ms=(8, 16), lazy=False, report_every_ms=2_000, full_pass_ms=5_000,
)  # fmt: skip


class Way(NamedTuple):
    """One way in which a release fares."""

    name: str
    rollout: Rollout
    ends: str
    """The phase of its rollout in the end."""
    truths: tuple[Truth, ...] = ()
    is_model: bool = False


ARRIVES = Rollout(waves=("1 node", "50%", "100%"), soak_ms=Millis(1_500), probation_ms=Millis(PROBATION_MS))
GATED = msgspec.structs.replace(
    ARRIVES, gates=("errors.rate < 0.05",), least_answers=100, concurrency=1, soak_ms=Millis(3_000)
)
TRIED = msgspec.structs.replace(ARRIVES, waves=("1 node", "100%"), shadow_ms=Millis(2_000), split="25%")
LIMITED = msgspec.structs.replace(ARRIVES, deadline=Deadline(node_ms=Millis(60_000)))
WAYS = (
    Way("arrives", ARRIVES, "done"),
    Way("is undone by a gate", GATED, "undone",
        (Truth(command="old", per_second=100), Truth(command="new", per_second=100),
         Truth(command="new", hardware=("slate",), errors=100))),
    Way("is tried beside the old one", TRIED, "done", (), is_model=True),
    Way("fails in its probation", LIMITED, "undone", (Truth(command="new", fails_after_ms=Millis(700)),)),
)  # fmt: skip


def scenario_of(way: Way) -> Scenario:
    """Three nodes of two sites; everybody runs the old release, then the new one is declared. What must never run twice
    comes along."""
    edits: list[Edit] = []
    for at_ms, which in ((3_000, "old"), (CHANGED_MS, "new")):
        if way.is_model:
            parts = [component("x", every_node=True, model={"old": "1", "new": "2"}[which])]
        else:
            parts = [
                component("x", every_node=True, command=which),
                component("y", count=1, command=which, never_twice=True),
            ]
        change = application(*parts)
        spec = msgspec.structs.replace(change.value.spec, rollout=way.rollout)
        edits.append(Edit(at_ms=at_ms, apply=msgspec.structs.replace(change.value, spec=spec)))
    if way.is_model:
        edits.insert(0, Edit(at_ms=2_500, apply=model("1", "2").value))
    machines = tuple(
        Machine(name=n, site=("berlin", "lyon")[i % 2], hardware=("slate", "slate", "birch")[i])
        for i, n in enumerate(NAMES)
    )
    return Scenario(
        name=way.name, machines=machines, edits=tuple(edits), truths=way.truths, physics=PHYSICS, duration_ms=200_000
    )


class Step(NamedTuple):
    """A state that the rollout came to, and when."""

    at_ms: int
    key: tuple[object, ...]
    moved: str
    """The node whose state made it another."""
    place: tuple[object, ...]
    """Phase, wave and trial."""


class Watched(Play):
    """A play in which somebody looks at the machines, whatever agents and hubs say."""

    def __init__(self, way: Way) -> None:
        super().__init__(scenario_of(way), 1, RULES)
        self.way = way
        self.wrong: list[str] = []

    # --- What there is ---

    @property
    def record(self) -> Record | None:
        found: Record | None = self.broker.store.get("decided", "rollout.default.app")
        return found

    @property
    def phase(self) -> str:
        return "" if self.record is None else self.record.phase

    @property
    def turned_down(self) -> tuple[str, ...]:
        """Nodes that turned it down."""
        return () if self.record is None else tuple(self.record.turned_down)

    @property
    def is_over(self) -> bool:
        return self.phase in ("done", "undone")

    def processes(self) -> Iterator[Process]:
        for node in self.nodes.values():
            yield from node.machine.processes.values()

    def releases(self) -> dict[str, tuple[str, ...]]:
        """By node: what runs there, ready."""
        return {
            name: tuple(sorted(said(p.instance) for p in node.machine.processes.values() if p.ready))
            for name, node in self.nodes.items()
        }

    def key(self) -> tuple[object, ...]:
        """Where it stands: what is written, and what each node made of that."""
        rollout = self.record
        stands = (
            None if rollout is None else (
                rollout.phase, rollout.wave, rollout.stage, rollout.reach, rollout.back, rollout.switched,
                tuple(rollout.turned_down), rollout.reason and rollout.reason.code,
            )
        )  # fmt: skip
        return (stands, *(self._key_of(node) for node in self.nodes.values()))

    def _key_of(self, node: Node) -> tuple[object, ...]:
        row = self.broker.row(node.name)
        ordered = tuple(sorted(ordered_as(i) for i in row.instances)) if row is not None else ()
        is_followed = row is None or node.serial == row.serial
        locals_ = tuple(sorted((said(x.instance), x.phase) for x in node.ledger.locals.values()))
        runs = tuple(sorted((said(p.instance), p.ready) for p in node.machine.processes.values()))
        return ordered, is_followed, locals_, runs

    def steps(self) -> list[Step]:
        """All states from the change on until nothing more happens, each when it was first seen; the rollout is played
        undisturbed."""
        self.run_to(CHANGED_MS - 50)
        found: dict[tuple[object, ...], Step] = {}
        last, news_ms = self.key(), self.at_ms
        while not (self.is_over and self.at_ms - news_ms > 8_000):
            if not self._went_on():
                continue
            key = self.key()
            if key not in found:
                moved = [name for name, was, now in zip(NAMES, last[1:], key[1:], strict=True) if was != now]
                rollout = self.record
                place = () if rollout is None else (rollout.phase, rollout.wave, rollout.stage)
                found[key] = Step(self.at_ms, key, (moved or list(NAMES))[0], place)
                news_ms = self.at_ms
            last = key
        return list(found.values())

    def play_on(self, for_ms: int = 0, limit_ms: int = 180_000) -> None:
        """For so long, and then until it is over and rests."""
        until, last, news_ms = self.at_ms + limit_ms, self.key(), self.at_ms + for_ms
        while self.at_ms < until and not (self.is_over and self.at_ms - news_ms > 5_000):
            if self._went_on() and (key := self.key()) != last:
                last, news_ms = key, max(news_ms, self.at_ms)

    def _went_on(self) -> bool:
        """Some milliseconds more, and a look at what runs. False when nothing happened in them."""
        events = self.world.events
        self.run_to(self.at_ms + TICK_MS)
        if self.world.events == events:
            return False
        self.look()
        return True

    # --- What must not be ---

    def look(self) -> None:
        """No copy of what is there already; no more than the old and the new of one slot, and both of them ready only
        while the one gives way to the other."""
        copies: dict[tuple[str, ...], list[Process]] = {}
        for process in self.processes():
            i = process.instance
            copies.setdefault((i.app, i.component, i.slot), []).append(process)
        for slot, those in copies.items():
            if len(those) == 1:
                continue
            names = sorted(f"{p.instance.name}@{p.node}" for p in those)
            if len(set(names)) < len(names) or len(those) > 2:
                self.wrong.append(f"{self.at_ms}: {' '.join(slot)} runs as {names}")
            elif all(p.ready for p in those) and not any(self._gives_way(p) for p in those):
                self.wrong.append(f"{self.at_ms}: of {' '.join(slot)} both answer: {names}")

    def _gives_way(self, process: Process) -> bool:
        """Is it tried beside the other, or on its way out? The node is told to have both until the hub knows that the
        new one is ready; and while its agent is away, it can be told nothing."""
        node = self.nodes[process.node]
        row, local = self.broker.row(node.name), node.ledger.locals.get(process.instance.name)
        if not node.is_running or local is None or row is None or node.serial != row.serial:
            return True
        slots = [(i.component, i.slot) for i in row.instances]
        is_changing = slots.count((process.instance.component, process.instance.slot)) > 1
        return is_changing or process.instance.beside is not None or local.phase in ("stopping", "starting")

    # --- Dying ---

    def kill(self, who: str, name: str, for_ms: int) -> None:
        """Kill -9; what is killed is started again after a while, a worker by its agent."""
        if who == "hub":
            faults.inflict(self, Fault(kind="hub_restart", at_ms=0, for_ms=for_ms))
        elif who == "agent":
            faults.inflict(self, Fault(kind="agent_crash", at_ms=0, for_ms=for_ms, target=name))
        elif who == "node":
            faults.inflict(self, Fault(kind="node_crash", at_ms=0, for_ms=for_ms, target=name))
        else:
            node = self.nodes[name]
            for process in list(node.machine.processes.values()):
                node.exit(process)


def said(instance: Instance) -> str:
    which = instance.process.command[0] if instance.process is not None else f"v{instance.model.version}"
    return f"{instance.component} {which} {instance.beside.mode if instance.beside is not None else ''}".strip()


def ordered_as(instance: Instance) -> tuple[str, ...]:
    found = [said(instance)]
    if instance.newcomer is not None:
        found.append(said(instance.newcomer))
    return tuple(found)
