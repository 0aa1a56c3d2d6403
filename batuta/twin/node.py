"""The node actor: a ledger, the real `step` and `heard`, and an actuator over simulated processes.

One loop: events are gathered, folded by `heard`, `step` plans, the ledger keeps, the actuator performs. A crash of the
node agent forgets all but the ledger; a crash of the machine ends its processes too.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from batuta.core.local import Failed, Fetch, Fetched, Gone, Ready, Start, Started, Stop, locals_for_report
from batuta.core.observed import Inventory, Report
from batuta.core.reasons import Reason
from batuta.kinds.base import Bytes, Millicores
from batuta.twin.chance import Chance
from batuta.twin.machine import Machine, Process
from batuta.twin.world import EPOCH_MS

if TYPE_CHECKING:
    from collections.abc import Callable

    from batuta.core.decided import Assignment
    from batuta.core.local import Action, Event, Local
    from batuta.twin import scenario
    from batuta.twin.hub import Broker
    from batuta.twin.laws import Laws
    from batuta.twin.rules import Rules
    from batuta.twin.world import Wire, World


class Ledger:
    """What the disk keeps."""

    def __init__(self) -> None:
        self.assignment: Assignment | None = None
        self.locals: dict[str, Local] = {}
        self.artifacts: frozenset[str] = frozenset()


class Node:
    """One machine and its node agent."""

    def __init__(
        self, world: World, plan: scenario.Machine, wire: Wire, broker: Broker, laws: Laws, *, rules: Rules
    ) -> None:
        self.world, self.plan, self.wire, self.broker, self.laws, self.rules = world, plan, wire, broker, laws, rules
        self.name = plan.name
        self.machine = Machine(plan.name, laws)
        self.ledger = Ledger()
        self.chance = Chance(world.seed, "node", plan.name)
        self.ahead_ms = plan.clock_ahead_ms
        self.is_powered = self.is_running = False
        self.boots = 0
        self.is_isolated = False
        """Cut from its neighbours too, not from the hub alone."""
        self.heard_at = world.now
        """When its neighbours last heard it."""
        self._forget()

    def _forget(self) -> None:
        """What lives in the agent's memory only."""
        self.contact_at: int | None = None
        self.events: list[Event] = []
        self.jobs: dict[str, list[Action]] = {}
        """The actuator's queue of each instance; the first is under way."""
        self.sequence = 0
        self.beats = 0
        self.reported_at = 0
        self.acknowledged = 0
        self.report_planned = False
        self.work_planned = False
        self.wake_token = 0
        self._steady_at, self._steady_from = self.world.now, self._wall()

    # --- Clocks ---

    def _wall(self) -> int:
        return self.world.now + self.ahead_ms + (self.world.now - EPOCH_MS) * self.plan.drift_ppm // 1_000_000

    def clock(self) -> int:
        """What the node agent takes for now."""
        if not self.world.physics.steady:
            return self._wall()
        passed = self.world.now - self._steady_at
        return self._steady_from + passed + passed * self.plan.drift_ppm // 1_000_000

    # --- Life and death ---

    def power_on(self) -> None:
        """The machine boots, then its node agent."""
        if not self.is_powered:
            self.is_powered = True
            self.start_agent()

    def power_off(self) -> None:
        self.stop_agent()
        self.is_powered = False
        self.machine.end_all()

    def stop_agent(self) -> None:
        if self.is_running:
            self.is_running = False
            self.boots += 1
            if self.world.physics.tied:
                for process in list(self.machine.processes.values()):
                    if process.instance.lease_ms is not None:
                        self.machine.end(process)

    def start_agent(self) -> None:
        """Ask the runtimes about all that the ledger names, then go on from there: no hub is needed for it."""
        if self.is_running or not self.is_powered:
            return
        self.is_running = True
        self.boots += 1
        self._forget()
        for name, local in sorted(self.ledger.locals.items()):
            copies = self.machine.called(name)
            if local.handle:
                process = next((p for p in copies if p.pid == local.handle["pid"]), None)
                self.hear(Gone(name) if process is None else Started(name, {"pid": process.pid}, adopted=True))
                if process is not None:
                    self._watch(process)
            elif local.phase in ("starting", "stopping"):
                # Nobody knows whether it began: make sure that it is gone before saying so.
                self.jobs[name] = [Stop(name, "unassigned")]
                self._stop(name, copies)
            else:
                self.hear(Gone(name))
        self._plan_work()
        self._beat(self.boots)

    # --- The loop ---

    def hear(self, event: Event) -> None:
        self.events.append(event)
        self._plan_work()

    def _plan_work(self) -> None:
        if not self.work_planned:
            self.work_planned = True
            self.world.after(0, self._if_same_boot, self.boots, self.work)

    def _if_same_boot(self, boot: int, do: Callable[[], None]) -> None:
        if self.is_running and boot == self.boots:
            do()

    def work(self) -> None:
        """Gather, fold, step, keep, act, sleep."""
        self.work_planned = False
        now = self.clock()
        here = dict(self.ledger.locals)
        for event in self.events:
            local = here.get(event.name)
            if local is None:
                self.world.count("events about nothing")
                continue
            after = self.rules.heard(local, event, now)
            if after is None:
                del here[event.name]
            else:
                here[event.name] = after
        self.events.clear()
        plan = self.rules.step(self.ledger.assignment, here, self.ledger.artifacts, now, self.contact_at)
        if plan.locals != self.ledger.locals:
            self._plan_report()
        self.ledger.locals = dict(plan.locals)
        for action in plan.actions:
            self.world.tell(f"{self.name} does {type(action).__name__} {action.name}")
            self.laws.acted(self.name, action)
            self._enqueue(action)
        self.wake_token += 1
        if plan.wake_at is not None:
            drift = 1_000_000 + self.plan.drift_ppm
            self.world.after((plan.wake_at - now) * 1_000_000 // drift + 1, self._wake, self.boots, self.wake_token)

    def _wake(self, boot: int, token: int) -> None:
        if token == self.wake_token:
            self._if_same_boot(boot, self.work)

    # --- The actuator: one queue an instance ---

    def _enqueue(self, action: Action) -> None:
        if isinstance(action, Fetch):
            self._fetch(action)
            return
        queue = self.jobs.setdefault(action.name, [])
        if isinstance(action, Stop) and any(isinstance(job, Stop) for job in queue):
            return  # It is being stopped already, and will be answered once.
        queue.append(action)
        if len(queue) == 1:
            self._perform(action)

    def _perform(self, action: Action) -> None:
        if isinstance(action, Start):
            process = self.machine.begin(
                action.instance, self.world.now, self.chance.happens(self.world.physics.stubborn_permille)
            )
            took_ms = self.world.physics.draw(self.world.physics.start_ms, self.chance)
            self.world.after(took_ms, self._started, self.boots, process)
        else:
            self._stop(action.name, self.machine.called(action.name))

    def _done(self, name: str, event: Event) -> None:
        """The job under way is over: say so, and take up the next."""
        queue = self.jobs[name]
        queue.pop(0)
        self.hear(event)
        if queue:
            self._perform(queue[0])
        else:
            del self.jobs[name]

    def _started(self, boot: int, process: Process) -> None:
        if boot != self.boots or not self.is_running:
            return
        name = process.instance.name
        if not process.alive or self.chance.happens(self.world.physics.start_fails_permille):
            self.machine.end(process)
            self._done(name, Failed(name, Reason(code="start_failed", subject=f"instance/{name}")))
            return
        self._done(name, Started(name, {"pid": process.pid}))
        self._watch(process)

    def _watch(self, process: Process) -> None:
        warm_ms = self.world.physics.draw(self.world.physics.warm_ms, self.chance)
        self.world.after(warm_ms, self._warm, self.boots, process)

    def _warm(self, boot: int, process: Process) -> None:
        if process.alive and boot == self.boots and self.is_running:
            process.ready = True
            self.hear(Ready(process.instance.name))

    def _stop(self, name: str, copies: list[Process]) -> None:
        longest_ms = 0
        for process in copies:
            grace_ms = self.rules.grace_ms(process.instance, self.clock(), self.contact_at)
            took_ms = min(grace_ms, self.world.physics.draw(self.world.physics.stop_ms, self.chance))
            if process.stubborn:
                # It waits for the last signal, and only a living agent sends that.
                took_ms = grace_ms
                self.world.after(took_ms, self._if_same_boot, self.boots, lambda p=process: self.machine.end(p))
            else:
                self.world.after(took_ms, self.machine.end, process)
            longest_ms = max(longest_ms, took_ms)
        self.world.after(longest_ms, self._if_same_boot, self.boots, lambda: self._done(name, Gone(name)))

    def exit(self, process: Process) -> None:
        """A process ends by itself, and the runtime notices."""
        self.machine.end(process)
        name = process.instance.name
        if self.is_running and not self.jobs.get(name):
            self.hear(Failed(name, Reason(code="exited", subject=f"instance/{name}")))

    def _fetch(self, action: Fetch) -> None:
        size = 0
        local = self.ledger.locals.get(action.name)
        if local is not None and local.instance.model is not None:
            size = int(local.instance.model.variant.size_bytes)
        took_ms = self.world.physics.transfer_ms(size) + 2 * self.world.physics.draw(
            self.world.physics.latency_ms, self.chance
        )
        self.world.after(took_ms, self._fetched, self.boots, action)

    def _fetched(self, boot: int, action: Fetch) -> None:
        if boot != self.boots or not self.is_running:
            return
        if self.wire.is_whole:
            self.ledger.artifacts |= frozenset(action.digests)
            self.hear(Fetched(action.name))
        else:
            reason = Reason(code="hub_unreachable", subject=f"instance/{action.name}")
            self.hear(Failed(action.name, reason))

    # --- Talking ---

    def _beat(self, boot: int) -> None:
        """Every second: say that it lives, repeat what was not acknowledged, now and then read the assignment again."""
        if not self.is_running or boot != self.boots:
            return
        physics = self.world.physics
        self.beats += 1
        if not self.is_isolated:
            self.heard_at = self.world.now
        serial = self.serial
        self.wire.send("up", self.broker.heartbeat, self, self.boots, self.beats, serial, self.clock())
        unheard_ms = self.world.now - self.reported_at
        if unheard_ms >= 30_000 or (unheard_ms >= 2_000 and self.acknowledged < self.sequence):
            self._plan_report()
        if self.beats % max(1, physics.reread_ms // physics.heartbeat_ms) == 1:
            self.read_assignment()
        self.world.after(physics.heartbeat_ms, self._beat, boot)

    @property
    def serial(self) -> int:
        return 0 if self.ledger.assignment is None else self.ledger.assignment.serial

    def heartbeat_answered(self, boot: int, sent_at: int, serial: int) -> None:
        if not self.is_running or boot != self.boots:
            return
        self.contact_at = self.rules.contacted(self.contact_at, sent_at, self.clock(), missed=serial > self.serial)
        if any(local.instance.lease_ms is not None for local in self.ledger.locals.values()):
            self._plan_work()
        if serial > self.serial:
            self.read_assignment()

    def read_assignment(self) -> None:
        """A direct get of the node's own row."""
        if self.is_running:
            self.wire.send("up", self.broker.read_assignment, self)

    def hear_assignment(self, assignment: Assignment | None) -> None:
        if not self.is_running or assignment is None or assignment.serial <= self.serial:
            return
        self.laws.adopted(self.name, assignment)
        self.world.tell(f"{self.name} adopts serial {assignment.serial}")
        self.ledger.assignment = assignment
        self._plan_work()

    def _plan_report(self) -> None:
        if not self.report_planned:
            self.report_planned = True
            self.world.after(self.world.physics.report_ms, self._if_same_boot, self.boots, self._report)

    def _report(self) -> None:
        self.report_planned = False
        self.sequence += 1
        self.reported_at = self.world.now
        report = Report(
            node=self.name,
            boot=f"{self.name}-{self.boots}",
            sequence=self.sequence,
            at=self.clock(),
            serial=self.serial,
            inventory=Inventory(
                architecture="x86_64",
                cpu_millis=Millicores(self.plan.cpu_millis),
                memory_bytes=Bytes(self.plan.memory_bytes),
                disk_bytes=Bytes(2**34),
                runtimes=self.plan.runtimes,
            ),
            instances=locals_for_report(self.ledger.locals, {}),
            artifacts=tuple(sorted(self.ledger.artifacts)),
            hears=self._hears(),
        )
        self.wire.send("up", self.broker.report, self, self.boots, report)

    def _hears(self) -> dict[str, int]:
        if self.is_isolated:
            return {}
        neighbours = [n for n in self.broker.nodes.values() if n.plan.site == self.plan.site and n is not self]
        return {n.name: self.world.now - n.heard_at for n in neighbours if n.boots}

    def report_kept(self, boot: int, sequence: int) -> None:
        if boot == self.boots:
            self.acknowledged = max(self.acknowledged, sequence)
