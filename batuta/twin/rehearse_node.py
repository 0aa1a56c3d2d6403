"""One node's copy: a ledger made from its last report, the core's own `step` and `heard`, and modelled deeds."""

from __future__ import annotations

from typing import TYPE_CHECKING

import msgspec

from batuta.core.lease import grace_ms
from batuta.core.local import (
    Failed,
    Fetch,
    Fetched,
    Gone,
    Local,
    Ready,
    Start,
    Started,
    Stop,
    backoff_ms,
    heard,
    locals_for_report,
    step,
)
from batuta.core.reasons import Reason
from batuta.twin import rehearse_pace as pace

if TYPE_CHECKING:
    from collections.abc import Callable

    from batuta.core.decided import Assignment, Instance
    from batuta.core.local import Action, Event
    from batuta.core.observed import InstanceReport, Measures, Report
    from batuta.twin import rehearse_fetch
    from batuta.twin.rehearse_stage import Stage

FAILING_AGAIN_MS = 1_000
"""What failed today fails again after so long."""
FAILURES_ASSUMED = 4
"""In a row: reports do not say how often something failed that waits for its next try."""
HEARD_AGO_MS = 500
"""By neighbours, on average."""
_ALIVE = ("starting", "ready", "unready", "stopping")


class NodeCopy:
    """One machine and its node agent, as of the last report."""

    def __init__(self, stage: Stage, name: str, site: str, report: Report, *, linked: bool) -> None:
        self.stage, self.time = stage, stage.time
        self.name, self.site = name, site
        self.report = report
        self.powered = self.running = linked
        """Whoever is silent today stays so: nobody knows more."""
        self.cuts = 0 if linked else 1
        self.contact_at = self.time.now
        """The last instant at which the hub answered, while it does not."""
        self.slow = 1
        """How many times slower its disk makes starts and fetches."""
        self.disk_full = False
        self.boots = 1
        self.assignment: Assignment | None = None
        self.locals: dict[str, Local] = {}
        self.held = frozenset(report.artifacts)
        self.alive: dict[str, Instance] = {}
        """What runs, ready or not, whatever the node agent knows."""
        self.failing: set[str] = set()
        self._measures: dict[str, Measures] = {}
        self._leftovers: dict[str, InstanceReport] = {}
        """What it still ends and no assignment names any more."""
        self._events: list[Event] = []
        self._fetches: dict[str, rehearse_fetch.Fetch] = {}
        self._starts: dict[str, int] = {}
        """By instance: which of its starts is the present one."""
        self._working = self._reporting = False
        self.reported_at = self.time.now
        self._told = self._what_matters()

    # --- The begin ---

    def take_over(self, assignment: Assignment | None, apart_ms: int) -> None:
        """Its ledger, as far as its report tells. `apart_ms`: how far its clock is ahead of the hub's."""
        if not self.powered:
            return
        self.stage.books.powered(self)
        sighting = self.stage.state_before.sightings.get(self.name)
        if sighting is not None and sighting.reported_at is not None:
            self.reported_at = min(self.time.now, sighting.reported_at)
        orders = {i.name: i for i in assignment.instances} if assignment is not None else {}
        if assignment is not None and self.report.serial >= assignment.serial:
            self.assignment = assignment
        for said in self.report.instances:
            order = orders.get(said.name)
            if said.measures is not None:
                self._measures[said.name] = said.measures
            if order is None:
                self._leftovers[said.name] = said
                self.time.after(pace.STOP_MS, self._leftover_gone, said.name)
                continue
            since = min(self.time.now, said.since - apart_ms)
            instance = msgspec.structs.replace(order, epoch=said.epoch)
            # Machines of a rehearsal prove nothing: what is being proved is about to start.
            phase = "waiting" if said.phase == "proving" else said.phase
            self.locals[said.name] = Local(
                instance=instance, phase=phase, since=since, starts=said.starts, reason=said.reason,
                ready_after_ms=said.ready_after_ms, handle={"pid": 1} if phase in _ALIVE else {},
            )  # fmt: skip
            self._go_on(said.name)
        self._told = self._what_matters()

    def _go_on(self, name: str) -> None:
        """Whatever was under way goes on."""
        local = self.locals[name]
        if local.phase in _ALIVE:
            self.alive[name] = local.instance
            self.stage.books.began(self, local.instance, ready=local.phase == "ready")
        if local.phase == "backoff":
            self.failing.add(name)
            retry_at = max(self.time.now + 1, local.since + backoff_ms(name, FAILURES_ASSUMED))
            self.locals[name] = msgspec.structs.replace(local, retry_at=retry_at, failures=FAILURES_ASSUMED)
            self.time.at(retry_at, self._later, self.boots, self.work)
        elif local.phase == "starting":
            took_ms = self.time.now - local.since
            self._start(local.instance, max(1, self._start_ms(local.instance) - took_ms))
        elif local.phase == "fetching":
            self._fetch(Fetch(name, tuple(d for d in local.instance.artifacts if d not in self.held)))
        elif local.phase == "stopping":
            self.time.after(pace.STOP_MS, self._later, self.boots, self._gone, name)

    def _leftover_gone(self, name: str) -> None:
        if self.running and self._leftovers.pop(name, None) is not None:
            self.plan_report()

    # --- Life and death ---

    @property
    def linked(self) -> bool:
        return self.running and not self.cuts

    def cut(self) -> None:
        self.lose_contact()
        self.cuts += 1
        self._pause(paused=True)
        self.plan_lapses()
        self.stage.heard_less(self)

    def lose_contact(self) -> None:
        """From now on the hub does not answer: by its own fault, or by the link's."""
        if self._in_contact:
            self.contact_at = self.time.now

    def mend(self) -> None:
        self.cuts -= 1
        if self.linked:
            self._back()

    def stop_agent(self) -> None:
        """What has a lease ends with the node agent that counts it."""
        if not self.running:
            return
        self.lose_contact()
        self.running = False
        self.boots += 1
        self._events.clear()
        self._working = self._reporting = False
        for wish in self._fetches.values():
            self.stage.fetches.cancel(wish)
        self._fetches.clear()
        for name in [n for n, i in self.alive.items() if i.lease_ms is not None]:
            self._end(name)
        self.stage.heard_less(self)

    def power_off(self) -> None:
        self.stop_agent()
        self.powered = False
        for name in list(self.alive):
            self._end(name)
        self.stage.books.powered(self)

    def power_on(self) -> None:
        if not self.powered:
            self.powered = True
            self.stage.books.powered(self)
            self.start_agent()

    def start_agent(self) -> None:
        """Ask what still runs, then go on from the ledger."""
        if self.running or not self.powered:
            return
        self.running = True
        for name, local in sorted(self.locals.items()):
            if name in self.alive:
                self.hear(Started(name, {"pid": 1}, adopted=True))
                self._ready_after(local.instance, 1)
            elif local.phase != "refused":
                self.hear(Gone(name))
        if self.linked:
            self._back()
        self.plan_work()

    def _back(self) -> None:
        self._pause(paused=False)
        self._told = None
        self.plan_report()
        self.plan_work()
        self.stage.heard_again(self)

    def _pause(self, *, paused: bool) -> None:
        for wish in self._fetches.values():
            self.stage.fetches.pause(wish, paused=paused)

    # --- The loop ---

    def hear(self, event: Event) -> None:
        self._events.append(event)
        self.plan_work()

    def hear_assignment(self, assignment: Assignment) -> None:
        if self.running and (self.assignment is None or assignment.serial > self.assignment.serial):
            self.assignment = assignment
            self.plan_work(pace.NODE_MS)

    def plan_work(self, delay_ms: int = 0) -> None:
        if not self._working and self.running:
            self._working = True
            self.time.after(delay_ms, self._later, self.boots, self.work)

    def _later(self, boot: int, do: Callable[..., None], *args: object) -> None:
        if self.running and boot == self.boots:
            do(*args)

    @property
    def _in_contact(self) -> bool:
        return self.linked and self.stage.hub.answers

    @property
    def _contact_at(self) -> int:
        return self.time.now if self._in_contact else self.contact_at

    def work(self) -> None:
        """Fold, step, act."""
        self._working = False
        now, here = self.time.now, dict(self.locals)
        for event in self._events:
            local = here.get(event.name)
            after = heard(local, event, now) if local is not None else None
            if after is not None:
                here[event.name] = after
            else:
                here.pop(event.name, None)
        self._events.clear()
        plan = step(self.assignment, here, self.held, now, self._contact_at)
        self.locals = dict(plan.locals)
        for action in plan.actions:
            self._perform(action)
        for local in self.locals.values():
            if local.phase == "backoff" and local.retry_at is not None and local.retry_at > now:
                self.time.at(local.retry_at, self._later, self.boots, self.plan_work)
        self.plan_lapses()
        if self._what_matters() != self._told:
            self.plan_report()

    def plan_lapses(self) -> None:
        """While the hub answers leases are renewed; otherwise each ends at its instant."""
        if self._in_contact:
            return
        for local in self.locals.values():
            if local.instance.lease_ms is not None and local.phase in _ALIVE:
                lapses_at = self._contact_at + local.instance.lease_ms + 1
                if lapses_at > self.time.now:
                    self.time.at(lapses_at, self._later, self.boots, self.plan_work)

    # --- Deeds ---

    def _perform(self, action: Action) -> None:
        match action:
            case Fetch():
                self._fetch(action)
            case Start(instance=instance):
                self.alive[instance.name] = instance
                self.stage.books.began(self, instance)
                self.hear(Started(instance.name, {"pid": 1}))
                self._start(instance, self._start_ms(instance))
            case Stop(name=name):
                self._starts[name] = self._starts.get(name, 0) + 1
                if (wish := self._fetches.pop(name, None)) is not None:
                    self.stage.fetches.cancel(wish)
                local = self.locals[name]
                took_ms = min(pace.STOP_MS, grace_ms(local.instance, self.time.now, self._contact_at))
                self.time.after(took_ms, self._later, self.boots, self._gone, name)

    def _start_ms(self, instance: Instance) -> int:
        return self.stage.pace.start_ms(instance, self.name) * self.slow

    def _start(self, instance: Instance, took_ms: int) -> None:
        if instance.name in self.failing or self.disk_full:
            code = "disk_full" if self.disk_full else "start_failed"
            reason = Reason(code=code, subject=f"instance/{instance.name}", detail="as it did before")
            self.time.after(FAILING_AGAIN_MS, self._later, self.boots, self._failed, instance.name, reason)
        else:
            self._ready_after(instance, took_ms)

    def _ready_after(self, instance: Instance, took_ms: int) -> None:
        self._starts[instance.name] = start = self._starts.get(instance.name, 0) + 1
        self.time.after(took_ms, self._later, self.boots, self._ready, instance.name, start)

    def _ready(self, name: str, start: int) -> None:
        if self._starts.get(name) == start and name in self.alive:
            self.stage.books.ready(self, self.alive[name])
            self.hear(Ready(name))

    def _failed(self, name: str, reason: Reason) -> None:
        self._end(name)
        self.hear(Failed(name, reason))

    def exit(self, name: str) -> None:
        """A process ends by itself, and starts again."""
        if name in self.alive:
            self._end(name)
            if self.running:
                self.hear(Failed(name, Reason(code="exited", subject=f"instance/{name}")))

    def _gone(self, name: str) -> None:
        self._end(name)
        self.hear(Gone(name))

    def _end(self, name: str) -> None:
        instance = self.alive.pop(name, None)
        self._starts[name] = self._starts.get(name, 0) + 1
        if instance is not None:
            self.stage.books.ended(self, instance)

    def _fetch(self, action: Fetch) -> None:
        size = 0
        local = self.locals.get(action.name)
        if local is not None and local.instance.model is not None and action.digests:
            size = int(local.instance.model.variant.size_bytes)
        boot = self.boots
        self._fetches[action.name] = self.stage.fetches.fetch(
            self, action.digests, size, lambda: self._later(boot, self._fetched, action)
        )

    def _fetched(self, action: Fetch) -> None:
        if self._fetches.pop(action.name, None) is None:
            return  # it was stopped meanwhile
        if self.disk_full:
            self.hear(Failed(action.name, Reason(code="disk_full", subject=f"instance/{action.name}")))
            return
        self.held |= frozenset(action.digests)
        self.hear(Fetched(action.name))

    # --- Reporting ---

    def _what_matters(self) -> object:
        instances = locals_for_report(self.locals, {})
        return self.assignment.serial if self.assignment else 0, instances, self.held, tuple(self._leftovers)

    def plan_report(self, delay_ms: int = pace.REPORT_MS) -> None:
        if not self._reporting and self.running:
            self._reporting = True
            self.time.after(delay_ms, self._later, self.boots, self._report)

    def _report(self) -> None:
        self._reporting = False
        if not self.linked:
            return  # it is told when the link is back
        self.reported_at = self.time.now
        self._told = self._what_matters()
        serial = self.assignment.serial if self.assignment is not None else self.report.serial
        self.report = msgspec.structs.replace(
            self.report,
            sequence=self.report.sequence + 1,
            at=self.time.now,
            serial=serial,
            instances=(*locals_for_report(self.locals, self._measures), *self._leftovers.values()),
            artifacts=tuple(sorted(self.held)),
            hears={n.name: HEARD_AGO_MS for n in self.stage.neighbours(self)},
        )
        self.stage.sends_report(self)
