"""A fleet whose nodes do as they are told in their own time, and an hour that goes by: rollouts are played on it."""

from __future__ import annotations

from typing import TYPE_CHECKING

import msgspec

from batuta.core import rollout as rolling
from batuta.core.decide import APPLICATION, decide
from batuta.core.fleet import Fleet
from batuta.core.observed import InstanceReport, Measures
from batuta.core.reasons import Reason
from batuta.core.sample import Sample
from batuta.core.state import Change, State
from batuta.core.touched import touched
from batuta.kinds.base import Millis
from batuta.kinds.rolling import Rollout
from tests.core.fleets import APP, NOW, application, beats, codes, component, machines, state_of

if TYPE_CHECKING:
    from collections.abc import Callable

    from batuta.core.decided import Instance

NAMES = tuple(f"n{i:02}" for i in range(10))
WAVES = Rollout(waves=("1 node", "50%", "100%"), soak_ms=Millis(10_000))
EVERYWHERE = component(count=None, every_node=True)


def rolled(*components, rollout=WAVES, name="app") -> Change:
    change = application(*components, name=name)
    spec = msgspec.structs.replace(change.value.spec, rollout=rollout)
    return change._replace(value=msgspec.structs.replace(change.value, spec=spec))


def release(command: str, rollout=WAVES, **more) -> Change:
    return rolled(component(command=command, **({"count": None, "every_node": True} | more)), rollout=rollout)


class World:
    """Nodes that do as they are told in their own time, and an hour that goes by."""

    def __init__(self, *rows: Change | list[Change], names: tuple[str, ...] = NAMES) -> None:
        self.names = names
        self.now = NOW
        self.state = state_of(machines(*names), *rows)
        self.away: set[str] = set()
        self.refuses: Callable[[str, Instance], bool] = lambda _node, _instance: False
        self.sample: Callable[[str, Instance], Sample | None] = lambda _node, _instance: None
        self.ran: set[tuple[str, str]] = set()
        """Who ever ran what command."""
        self.least_ready = len(names)
        self.fleet = Fleet()
        self._on, self._at, self._open = State(), NOW, frozenset[str]()

    def step(self, ms: int = 1_000) -> list[str]:
        self.now += ms
        self.state = beats(self.state, self.now, but=self.away)
        # What changed is decided, and then everything: both say the same, and then nothing more.
        subjects = touched(self._on, self.state, self._at, self.now, self.fleet) | self._open
        decision = decide(self.state, self.now, subjects, self.fleet)
        everything = decide(self.state, self.now)
        assert [(c.key, c.value) for c in decision.changes] == [(c.key, c.value) for c in everything.changes]
        self._on, self._at = self.state, self.now
        self._open = frozenset(APPLICATION + app for app in decision.pending)
        self.state = self.state.with_changes(decision.changes)
        again = decide(self.state, self.now)
        assert again.changes == (), [c.key for c in again.changes]
        self._obey()
        return codes(everything)

    def _obey(self) -> None:
        rows = []
        for name, assignment in self.state.assignments.items():
            before = self.state.observed.get(name)
            if before is None or name in self.away:
                continue
            known = {(i.name, i.epoch): i for i in before.instances}
            found = tuple(self._run(name, i, known.get((i.name, i.epoch))) for i in assignment.instances)
            rows.append(
                Change(
                    "observed", name, msgspec.structs.replace(before, serial=assignment.serial, instances=found)
                )
            )  # fmt: skip
        self.state = self.state.with_changes(rows)
        if self.names:
            ready = {
                i.name.rsplit("-", 1)[1]
                for r in self.state.observed.values()
                for i in r.instances
                if i.phase == "ready"
            }
            self.least_ready = min(self.least_ready, len(ready))

    def _run(self, name: str, instance: Instance, was: InstanceReport | None) -> InstanceReport:
        if self.refuses(name, instance):
            reason = Reason(code="probation_failed", subject="instance/x", detail="outputs differ")
            return InstanceReport(
                name=instance.name, epoch=instance.epoch, phase="refused", since=self.now, reason=reason
            )
        self.ran.add((name, command_of(instance)))
        phase = "ready" if was is not None else "starting"
        measures = Measures(sample=self.sample(name, instance))
        return InstanceReport(
            name=instance.name, epoch=instance.epoch, phase=phase, since=self.now, starts=1, measures=measures
        )

    def until(self, holds: Callable[[], bool], *, steps: int = 300, ms: int = 1_000) -> int:
        for i in range(steps):
            if holds():
                return i
            self.step(ms)
        raise AssertionError(f"never: {self.rollout}")

    def change(self, *rows: Change) -> None:
        self.state = self.state.with_changes(rows)

    def ask(self, record: rolling.Rollout) -> None:
        self.change(Change("decided", record.key, record))

    @property
    def rollout(self) -> rolling.Rollout:
        return self.state.rollouts[APP]

    def runs(self, command: str) -> set[str]:
        return {
            h.node
            for h in self.state.held[APP]
            if command_of(h.instance) == command and self._is_ready(h.node, h.instance)
        }

    def _is_ready(self, name: str, instance: Instance) -> bool:
        said = self.state.observed[name].instances
        return any(i.name == instance.name and i.epoch == instance.epoch and i.phase == "ready" for i in said)

    def is_(self, phase: str) -> Callable[[], bool]:
        return lambda: self.state.rollouts.get(APP) is not None and self.rollout.phase == phase


def command_of(instance: Instance) -> str:
    assert instance.process is not None
    return instance.process.command[0]


def started(rollout=WAVES, **more) -> World:
    world = World(release("old", rollout, **more))
    for _ in range(4):
        world.step()
    assert APP not in world.state.rollouts
    world.least_ready = len(world.names)
    return world


def refusing(command: str, *nodes: str) -> Callable[[str, Instance], bool]:
    return lambda name, i: command_of(i) == command and (not nodes or name in nodes)
