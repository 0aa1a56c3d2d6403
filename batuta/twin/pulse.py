"""Pulse: how a node and its hub hear from each other. Heartbeats, reports, and a look at the assignment now and then.

A node that is calm rests: its beats are not played but known (`twin.rest`). Whatever disturbs it wakes it first.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from batuta.core.local import locals_for_report
from batuta.core.observed import Accelerator, Inventory, Report
from batuta.kinds.base import Bytes, Millicores
from batuta.twin.load import NO_WORK
from batuta.twin.rest import Rest, may_rest
from batuta.twin.weights import ASK_BYTES, BEAT_BYTES, report_bytes
from batuta.twin.world import ASK, BEAT, LOOK, REPORT

if TYPE_CHECKING:
    from batuta.twin.node import Node

REPORT_AGAIN_MS: Final = 2_000
NEIGHBOURS_MAX: Final = 64


class Pulse:
    """What one life of a node agent says by itself. `boot` numbers the life."""

    def __init__(self, node: Node) -> None:
        self.node = node
        self.world = node.world
        self.rest: Rest | None = None
        self.heard_last = self.world.now
        """When its neighbours last heard it, unless it rests."""
        self.load = NO_WORK
        """The work that comes to what runs here."""
        self.forget()

    def forget(self) -> None:
        """What lives in the agent's memory only."""
        self.contact: int | None = None
        self.sequence = self.acknowledged = self.beats = 0
        self.reported_at = self.beaten_at = 0
        self.report_planned = False
        self.report_bytes = 0
        self._said: tuple[object, ...] = ()
        self._token = 0

    # --- Beating ---

    @property
    def every_ms(self) -> int:
        """As the hub asks; but whoever holds a lease renews it as often as leases need."""
        if self.node.is_leased:
            return self.world.physics.heartbeat_ms
        return self.world.every_ms

    def number(self, n: int) -> int:
        """The number of the n-th message of this life in its lane."""
        return (self.node.boots << 32) + n

    def beat_now(self) -> None:
        """At once, and in step with this from now on: as after a reconnect."""
        if self.node.is_running:
            self.wake()
            self._token += 1
            self._beat(self.node.boots, self._token)

    def _beat(self, boot: int, token: int) -> None:
        """Say that it lives, repeat what was not acknowledged, now and then look at the assignment."""
        node, world = self.node, self.world
        if not node.is_running or boot != node.boots or token != self._token:
            return
        if may_rest(self):
            self.rest = Rest(self)
            return
        physics = world.physics
        self.beats += 1
        self.beaten_at = world.now
        if not node.is_isolated:
            self.heard_last = world.now
        number = self.number(self.beats)
        node.wire.send(
            BEAT, BEAT_BYTES, node.broker.heartbeat, node, boot, self.beats, node.serial, node.clock(), number=number
        )
        unheard_ms = world.now - self.reported_at
        if unheard_ms >= physics.report_every_ms or (
            unheard_ms >= REPORT_AGAIN_MS and self.acknowledged < self.sequence
        ):
            self.plan_report()
        if self.looks(self.beats):
            node.wire.send(LOOK, ASK_BYTES, node.broker.look, node, number, number=number)
        world.first(self.every_ms, self._beat, boot, token)

    def looks(self, beat: int) -> bool:
        """Does it look at its assignment with this beat?"""
        every = self.looks_every
        return every == 1 or beat % every == 1

    @property
    def looks_every(self) -> int:
        return max(1, self.world.physics.reread_ms // self.every_ms)

    def go_on(self, in_ms: int) -> None:
        """The next beat, after a rest."""
        self.world.first(in_ms, self._beat, self.node.boots, self._token)

    def answered(self, boot: int, sent_at: int, serial: int, asks: bool = False) -> None:
        """`asks`: its report is wanted at once, because a neighbour is missed."""
        node = self.node
        if not node.is_running or boot != node.boots:
            return
        self.contact = node.rules.contacted(self.contact, sent_at, node.clock(), missed=serial > node.serial)
        if node.is_leased:
            node.plan_work()
        if serial > node.serial:
            self.read_assignment()
        if asks:
            self.plan_report()

    def wake(self) -> None:
        """Something is about to happen: from here on every beat is played again."""
        rest, self.rest = self.rest, None
        if rest is not None:
            rest.end()

    # --- What is known at an instant ---

    @property
    def contact_at(self) -> int | None:
        return self.contact if self.rest is None else self.rest.contact_at(self.world.now)

    def heard_at(self, at: int) -> int:
        """When neighbours had heard it last at an instant of this life."""
        if self.rest is not None:
            return self.rest.sent_at(self.rest.beat(at))
        behind = self.heard_last - at
        return self.heard_last if behind <= 0 else self.heard_last - -(-behind // self.every_ms) * self.every_ms

    # --- Reading and reporting ---

    def read_assignment(self) -> None:
        """A direct get of the node's own row."""
        if self.node.is_running:
            self.node.wire.send(ASK, ASK_BYTES, self.node.broker.read_assignment, self.node)

    def plan_report(self) -> None:
        self.wake()
        if not self.report_planned:
            self.report_planned = True
            self.world.first(self.world.physics.report_ms, self.report, self.node.boots)

    def report(self, boot: int) -> None:
        node, world = self.node, self.world
        if not node.is_running or boot != node.boots:
            return
        self.report_planned = False
        self.sequence += 1
        self.reported_at = world.now
        report = self.said_at(self.sequence, world.now)
        said = (report.serial, report.instances, report.artifacts)
        if said != self._said:
            self._said, self.report_bytes = said, report_bytes(report)
        number = self.number(self.sequence)
        node.wire.send(REPORT, self.report_bytes, node.broker.report, node, boot, report, number=number)

    def kept(self, boot: int, sequence: int) -> None:
        if boot == self.node.boots:
            self.acknowledged = max(self.acknowledged, sequence)

    def said_at(self, sequence: int, at: int) -> Report:
        """The report of this number, sent at this instant; between two that say something new only time goes by."""
        node = self.node
        return Report(
            node=node.name,
            boot=node.boot,
            sequence=sequence,
            at=node.clock(at),
            serial=node.serial,
            inventory=node.inventory,
            instances=locals_for_report(node.ledger.locals, self.load.measures(node, at)),
            artifacts=tuple(sorted(node.ledger.artifacts)),
            hears={n.name: at - n.pulse.heard_at(at) for n in self._neighbours() if n.boots},
        )

    def _neighbours(self) -> list[Node]:
        """All of the site; of a large one those next to it."""
        node = self.node
        if node.is_isolated:
            return []
        beside = node.broker.sites[node.plan.site]
        if len(beside) > NEIGHBOURS_MAX:
            begin = node.place - NEIGHBOURS_MAX // 2
            beside = [beside[k % len(beside)] for k in range(begin, begin + NEIGHBOURS_MAX + 1)]
        return [n for n in beside if n is not node]


def inventory_of(node: Node) -> Inventory:
    """What a machine reports of itself; it is made once and compared by identity."""
    plan = node.plan
    return Inventory(
        architecture=plan.architecture,
        cpu_millis=Millicores(plan.cpu_millis),
        memory_bytes=Bytes(plan.memory_bytes),
        disk_bytes=Bytes(plan.disk_bytes),
        accelerators=tuple(
            Accelerator(kind=a.kind, name=a.name, memory_bytes=Bytes(a.memory_bytes)) for a in plan.accelerators
        ),
        runtimes=plan.runtimes,
        hardware=plan.hardware,
    )
