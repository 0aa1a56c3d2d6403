"""The node actor: a ledger, the real `step` and `heard`, and an actuator over simulated processes.

One loop: events are gathered, folded by `heard`, `step` plans, the ledger keeps, the actuator performs. A crash of the
node agent forgets all but the ledger; a crash of the machine ends its processes too.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from batuta.core.local import Failed, Fetch, Fetched, Gone, Ready, Start, Started, Stop, remembered
from batuta.core.proving import Bench
from batuta.core.reasons import Reason
from batuta.twin.chance import Chance
from batuta.twin.machine import Machine, Process
from batuta.twin.pulse import Pulse, inventory_of
from batuta.twin.truth import NO_TRUTHS
from batuta.twin.world import EPOCH_MS

if TYPE_CHECKING:
    from collections.abc import Callable

    from batuta.core.decided import Assignment
    from batuta.core.local import Action, Event, Fallen, Local
    from batuta.kinds.truth import Truth
    from batuta.twin import scenario
    from batuta.twin.broker import Broker
    from batuta.twin.laws import Laws
    from batuta.twin.rules import Rules
    from batuta.twin.world import Wire, World


class Ledger:
    """What the disk keeps."""

    def __init__(self) -> None:
        self.assignment: Assignment | None = None
        self.locals: dict[str, Local] = {}
        self.artifacts: frozenset[str] = frozenset()
        self.fallen: dict[str, Fallen] = {}
        """What was turned down in favour of what ran before."""


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
        self.index = len(broker.nodes)
        """Its place in the fleet."""
        self.place = 0
        """Its place among the nodes of its site."""
        self.trouble = 0
        """Faults that are at work on it, on a neighbour or on the hub."""
        self.calm_at = world.now
        """When what the last one left behind is over."""
        self.is_disk_full = False
        self.slower = 1
        """How many times slower than usual its disk is."""
        self.whole_since = world.now
        """Since when it runs and its own link is whole."""
        self.is_leased = False
        """Does it hold anything that must never run twice?"""
        self.inventory = inventory_of(self)
        self.bench = Bench(hardware=plan.hardware)
        self.pulse = Pulse(self)
        self.truths = NO_TRUTHS
        """What the versions that it runs are like."""
        self._forget()

    def _forget(self) -> None:
        """What lives in the agent's memory only."""
        self.pulse.forget()
        self.events: list[Event] = []
        self.jobs: dict[str, list[Action]] = {}
        """The actuator's queue of each instance; the first is under way."""
        self.work_planned = False
        self.wake_token = 0
        self._steady_at, self._steady_from = self.world.now, self._wall()

    # --- Clocks ---

    def _wall(self) -> int:
        return self.world.now + self.ahead_ms + (self.world.now - EPOCH_MS) * self.plan.drift_ppm // 1_000_000

    def clock(self, at: int | None = None) -> int:
        """What the node agent takes for now, or took for an instant of this life."""
        if not self.world.physics.steady:
            return self._wall()
        passed = (self.world.now if at is None else at) - self._steady_at
        return self._steady_from + passed + passed * self.plan.drift_ppm // 1_000_000

    def _due(self, clock: int) -> int:
        """The first instant at which its clock shows so much, whenever that is asked."""
        if not self.world.physics.steady:
            return self.world.now + (clock - self._wall()) * 1_000_000 // (1_000_000 + self.plan.drift_ppm) + 1
        due = self._steady_at + (clock - self._steady_from) * 1_000_000 // (1_000_000 + self.plan.drift_ppm) - 2
        while self.clock(due) < clock:
            due += 1
        return due

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
            self.pulse.wake()
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
        self.whole_since = self.world.now
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
        self.plan_work()
        self.pulse.beat_now()

    # --- The loop ---

    def hear(self, event: Event) -> None:
        self.events.append(event)
        self.plan_work()

    def plan_work(self) -> None:
        if not self.work_planned:
            self.work_planned = True
            self.world.in_turn(0, self.index, self._if_same_boot, self.boots, self.work)

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
        ledger, contact_at = self.ledger, self.pulse.contact_at
        plan = self.rules.step(
            ledger.assignment, here, ledger.artifacts, now, contact_at, bench=self.bench, fallen=ledger.fallen
        )
        ledger.fallen = remembered(ledger.fallen, plan.locals.values(), now)
        if plan.locals != self.ledger.locals:
            self.pulse.plan_report()
            was, self.is_leased = self.is_leased, any(x.instance.lease_ms is not None for x in plan.locals.values())
            if self.is_leased and not was and self.world.every_ms > self.world.physics.heartbeat_ms:
                self.world.after(0, self._if_same_boot, self.boots, self.pulse.beat_now)
        self.ledger.locals = dict(plan.locals)
        for action in plan.actions:
            self.world.tell(f"{self.name} does {type(action).__name__} {action.name}")
            self.laws.acted(self.name, action)
            self._enqueue(action)
        self.wake_token += 1
        if plan.wake_at is not None:
            due_ms = self._due(plan.wake_at) - self.world.now
            self.world.in_turn(due_ms, self.index, self._wake, self.boots, self.wake_token)

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
            took_ms = self.slower * self.world.physics.draw(self.world.physics.start_ms, self.chance)
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
        if refused := self._truth(process).refused:
            self.machine.end(process)
            reason = Reason(code="start_failed", subject=f"instance/{name}", detail=refused)
            self._done(name, Failed(name, reason, final=True))
            return
        self._done(name, Started(name, {"pid": process.pid}))
        self._watch(process)

    def _watch(self, process: Process) -> None:
        warm_ms = self.slower * self.world.physics.draw(self.world.physics.warm_ms, self.chance)
        self.world.after(warm_ms, self._warm, self.boots, process)

    def _warm(self, boot: int, process: Process) -> None:
        if process.alive and boot == self.boots and self.is_running:
            if not process.ready:
                process.ready, process.ready_at = True, self.world.now
                if fails_after_ms := self._truth(process).fails_after_ms:
                    self.world.after(int(fails_after_ms), self._fails, process)
            self.hear(Ready(process.instance.name))

    def _truth(self, process: Process) -> Truth:
        return self.truths.of(process.instance, self.plan.hardware)

    def _fails(self, process: Process) -> None:
        if process.alive and not self.truths.are_healed:
            self.exit(process)

    def _stop(self, name: str, copies: list[Process]) -> None:
        longest_ms = 0
        for process in copies:
            grace_ms = self.rules.grace_ms(process.instance, self.clock(), self.pulse.contact_at)
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
        bandwidth_bps = self.plan.bandwidth_bps or self.world.physics.bandwidth_bps
        took_ms = self.slower * size * 8_000 // bandwidth_bps + 2 * self.world.physics.draw(
            self.wire.latency_ms, self.chance
        )
        self.wire.bytes_down += size
        self.world.after(took_ms, self._fetched, self.boots, action)

    def _fetched(self, boot: int, action: Fetch) -> None:
        if boot != self.boots or not self.is_running:
            return
        if self.is_disk_full:
            self.hear(Failed(action.name, Reason(code="disk_full", subject=f"instance/{action.name}")))
        elif self.wire.is_whole:
            self.ledger.artifacts |= frozenset(action.digests)
            self.hear(Fetched(action.name))
        else:
            reason = Reason(code="hub_unreachable", subject=f"instance/{action.name}")
            self.hear(Failed(action.name, reason))

    # --- Following ---

    @property
    def boot(self) -> str:
        """What this life of the node agent is called."""
        return f"{self.name}-{self.boots}"

    @property
    def serial(self) -> int:
        return 0 if self.ledger.assignment is None else self.ledger.assignment.serial

    def hear_assignment(self, assignment: Assignment | None) -> None:
        if not self.is_running or assignment is None or assignment.serial <= self.serial:
            return
        self.laws.adopted(self.name, assignment)
        self.world.tell(f"{self.name} adopts serial {assignment.serial}")
        self.ledger.assignment = assignment
        self.plan_work()
        self.pulse.plan_report()

    def is_there(self, for_ms: int) -> bool:
        """Has it been running, with a whole link of its own, for so long? What breaks at the hub is not its own."""
        is_whole = self.wire.cuts == self.wire.cuts_at_hub
        return self.is_running and is_whole and self.world.now - self.whole_since >= for_ms

    def link_mended(self, *, own: bool = True) -> None:
        """Its connection is there again: whatever was missed is asked for at once."""
        if own:
            self.whole_since = self.world.now
        self.pulse.read_assignment()
        self.pulse.beat_now()
