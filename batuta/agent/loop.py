"""The node's loop: gather, fold, step, write down, act, report, sleep.

The only place of the agent that decides, and it decides by `core.local.step` alone. Everything else puts News into
one queue and wakes it. Nothing is done before the ledger has it, except when the disk is full: then the node goes on
from memory, says so, and tries again. Waiting is by the monotonic clock; `steady` keeps instants whole when the other
one jumps.
"""

from __future__ import annotations

import asyncio
from collections import deque
from typing import TYPE_CHECKING, Final, NamedTuple

import msgspec

from batuta.agent.ledger import Page
from batuta.agent.news import Ailing, Looked, Measured, News, Ordered, Reconnected, Shared
from batuta.agent.pulse import Contact
from batuta.agent.steady import DRIFT_MS, JUMP_MS
from batuta.core import local as core
from batuta.core.decided import Assignment, Commons
from batuta.core.lease import contacted
from batuta.core.observed import InstanceReport, Inventory, Report
from batuta.core.proving import Bench, Proven, profiles_of, remembered
from batuta.core.reasons import Reason
from batuta.kinds.base import decode_hook

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from batuta.agent.actuator import Actuator
    from batuta.agent.artifacts import Artifacts
    from batuta.agent.contact import ContactNote
    from batuta.agent.ledger import Ledger, Opened
    from batuta.agent.report import Reporter
    from batuta.agent.steady import Steady
    from batuta.core.decided import Instance
    from batuta.core.local import Fallen

WRITE_WITHIN_MS: Final = 1_000
"""What the ledger may lag behind when nothing is about to be done: several changes, one write."""
WRITE_AGAIN_AFTER_MS: Final = 10_000
SILENT_AFTER_MS: Final = 5_000
JUMP_TOLD_FOR_MS: Final = 600_000
RESTART_TOLD_FOR_MS: Final = 600_000
CORRUPT_TOLD_FOR_MS: Final = 3_600_000
LONGEST_SLEEP_MS: Final = 10_000
SHORTEST_SLEEP_MS: Final = 5
MOST_PROBLEMS: Final = 32
MOST_ASSIGNMENT_BYTES: Final = 8 * 2**20

_decoder = msgspec.json.Decoder(Assignment, dec_hook=decode_hook)
_commons_decoder = msgspec.json.Decoder(Commons, dec_hook=decode_hook)


class Senses(NamedTuple):
    """What the loop asks for when it reports. Each answers at once, from what is known."""

    inventory: Callable[[], Inventory]
    beside: Callable[[Report], Report]
    """Fills in what also brings a report near when it changes: flows, addresses, who is heard. Asked every round."""
    rest: Callable[[Report], Report]
    """Fills in what only rides along: vitals, topics. Asked when a report goes."""


class Loop:
    """One node's deciding. `run` until `end` is called."""

    def __init__(
        self, *, node: str, boot: str, machine_boot: str, steady: Steady, ledger: Ledger, actuator: Actuator,
        artifacts: Artifacts, reporter: Reporter, senses: Senses,
        note: ContactNote, on_assignment: Callable[[Assignment], Awaitable[None]],
        on_commons: Callable[[Commons], None] = lambda _: None, bench: Bench = core.NO_BENCH, apart: bool = True,
    ) -> None:  # fmt: skip
        self.node = node
        self.boot = boot
        self.machine_boot = machine_boot
        self.steady = steady
        self.ledger = ledger
        self.actuator = actuator
        self.artifacts = artifacts
        self.reporter = reporter
        self.senses = senses
        self.note = note
        self.on_assignment = on_assignment
        """Called with each new assignment once it is written down: neighbours follow it."""
        self.on_commons = on_commons
        """Called with what the site's nodes share, once it is written down: data flows follow it."""
        self.bench = bench
        """What models are proved on here."""
        self.proven: dict[str, Proven] = {}
        """What they proved to be, by key."""
        self.fallen: dict[str, Fallen] = {}
        """What was turned down in favour of what ran before, by key."""
        self.apart = apart
        """Write in a thread, so that a slow card stops nothing. In virtual time there are no threads."""
        self.assignment: Assignment | None = None
        self.commons: Commons | None = None
        self.locals: dict[str, core.Local] = {}
        self.contact_at: int | None = None
        self._answered_at: int | None = None
        """When the hub last answered at all, whatever it said of our assignment."""
        self.hub_epoch = 0
        self.reread = asyncio.Event()
        self.ask_commons = asyncio.Event()
        self.rounds = 0
        self.stale_orders = 0
        """Assignments older than the one we have: dropped, as they must be."""
        self._news: deque[News] = deque()
        self._changed = asyncio.Event()
        self._ending = False
        self._ailing: dict[str, Reason] = {}
        self._told_until: dict[str, int] = {}
        """Problems that are over but are told for a while."""
        self._dirty_since: int | None = None
        self._write_again_at = 0
        self._started_at = 0
        self._announce = False
        self._announce_commons = False
        self._urgent = False
        """Something began: by its handle the next agent finds it, so that is written down at once."""

    # --- From outside ---

    def tell(self, news: News) -> None:
        """Anything that happened. Wakes the loop; never works."""
        self._news.append(news)
        self._changed.set()

    def end(self) -> None:
        self._ending = True
        self._changed.set()

    @property
    def serial(self) -> int:
        return self.assignment.serial if self.assignment is not None else 0

    @property
    def hub_is_silent(self) -> bool:
        return "hub" in self._ailing

    def needed(self) -> frozenset[str]:
        """Artifacts that what is assigned or remembered needs: never to be removed."""
        return frozenset(digest for instance in self.instances() for digest in instance.artifacts)

    def instances(self) -> tuple[Instance, ...]:
        """Everything that runs or may have to run without asking anybody: what is assigned, what is remembered, and
        what stands by for either."""
        wanted = self.assignment.instances if self.assignment is not None else ()
        known = (*wanted, *(local.instance for local in self.locals.values()))
        beside = (each for instance in known for each in (instance.fallback, instance.newcomer) if each is not None)
        return (*known, *beside)

    # --- The loop ---

    async def run(self) -> None:
        while not self._ending:
            wake_at = await self.round()
            await self._sleep(wake_at)

    async def open(self, opened: Opened) -> None:
        """Remember, look at what is still here, and ask the runtimes what still runs."""
        now = self._started_at = self.steady.now()
        page = _brought_forward(opened.page, now, self.steady.monotonic_ms(), self.machine_boot)
        self.assignment, self.commons, self.hub_epoch = page.assignment, page.commons, page.hub_epoch
        if self.commons is None and self.assignment is not None and (order := self.assignment).captures:
            # The ledger is of an earlier version: it goes on storing until the hub says what to store.
            self.commons = Commons(site=order.site, serial=0, captures=order.captures, watched=order.watched)
        self.locals = {local.instance.name: local for local in page.locals}
        self.proven = {proven.key: proven for proven in page.proven}
        self.fallen = {fallen.key: fallen for fallen in page.fallen}
        if (sent_ms := self.note.read(self.steady.monotonic_ms())) is not None:
            self.contact_at = now - (self.steady.monotonic_ms() - sent_ms)
        for n, reason in enumerate(opened.problems):
            self._ailing[f"ledger-{n}"] = reason
            self._told_until[f"ledger-{n}"] = now + CORRUPT_TOLD_FOR_MS
        await self.artifacts.verify(sorted(self.needed()))
        if self.assignment is not None:
            await self.on_assignment(self.assignment)
        if self.commons is not None:
            self.on_commons(self.commons)
        await self.actuator.recover(self.locals.values(), self.instances())

    async def close(self) -> None:
        """Write down what is known now, so that the next run goes on from it."""
        now = self.steady.now()
        while self._news:
            self._fold(self._news.popleft(), now)
        await self._write(now)

    async def round(self) -> int:
        """Once around; returns when to come again if nothing happens."""
        self.rounds += 1
        self._changed.clear()
        self._follow_clock()
        now = self.steady.now()
        before = (self.assignment, self.commons, dict(self.locals))
        while self._news:
            self._fold(self._news.popleft(), now)

        plan = core.step(
            self.assignment, self.locals, self.artifacts.held, now, self.contact_at,
            proven=self.proven, bench=self.bench, fallen=self.fallen,
        )  # fmt: skip
        self.locals = dict(plan.locals)
        self.fallen = core.remembered(self.fallen, self.locals.values(), now)
        if (self.assignment, self.commons, self.locals) != before and self._dirty_since is None:
            self._dirty_since = now
        if plan.actions or self._announce or self._announce_commons or self._urgent or self._write_due(now):
            await self._write(now)
        self.actuator.keep_only(self.locals)
        for action in plan.actions:
            self.actuator.perform(action, self.locals[action.name], now, self.contact_at)
        if self._announce and self.assignment is not None:
            self._announce = False
            await self.on_assignment(self.assignment)
        if self._announce_commons and self.commons is not None:
            self._announce_commons = False
            self.on_commons(self.commons)
        self._report(self.steady.now())
        return min(
            (
                at
                for at in (plan.wake_at, self.reporter.wake_at(), self._write_at(), self._silent_at())
                if at is not None
            ),
            default=now + LONGEST_SLEEP_MS,
        )

    async def _sleep(self, wake_at: int) -> None:
        # Never in a spin, whatever an instant in the past may say.
        left_ms = max(SHORTEST_SLEEP_MS, min(LONGEST_SLEEP_MS, wake_at - self.steady.now()))
        try:
            async with asyncio.timeout(left_ms / 1000):
                await self._changed.wait()
        except TimeoutError:
            pass

    # --- Folding ---

    def _fold(self, news: News, now: int) -> None:
        match news:
            case Ordered(data=data):
                self._take(data)
            case Shared(data=data):
                self._share(data)
            case Contact(sent_ms=sent_ms, serial=serial, hub_epoch=epoch, is_asked=is_asked, commons=commons):
                sent_at = now - (self.steady.monotonic_ms() - sent_ms)
                self.contact_at = contacted(self.contact_at, sent_at, now, missed=serial > self.serial)
                self._answered_at = now
                self._well("hub")
                if serial <= self.serial and any(local.instance.lease_ms for local in self.locals.values()):
                    self.note.write(sent_ms)
                if serial > self.serial or epoch != self.hub_epoch:
                    self.reread.set()
                if commons != (self.commons.serial if self.commons is not None else 0):
                    self.ask_commons.set()
                self.hub_epoch = epoch
                if is_asked:
                    self.reporter.asked(now)
            case Reconnected():
                self.reread.set()
                self.reporter.again(now)
            case Ailing(about=about, reason=reason):
                if reason is None:
                    self._well(about)
                else:
                    self._ailing[about] = reason
                    if reason.code == "broker_restarted":  # it is over, and worth telling for a while
                        self._told_until[about] = now + RESTART_TOLD_FOR_MS
            case Looked():
                pass
            case Measured(proven=proven):
                self._remember(proven, now)
            case _:
                local = self.locals.get(news.name)
                if local is None:
                    return  # it was forgotten meanwhile, because nobody wants it and nothing of it runs
                self._urgent |= isinstance(news, (core.Started, core.Proved))
                if isinstance(news, core.Proved):
                    self._remember(news.proven, now)
                after = core.heard(local, news, now)
                if after is None:
                    del self.locals[news.name]
                else:
                    self.locals[news.name] = after

    def _remember(self, proven: Proven, now: int) -> None:
        self.proven = remembered(self.proven.values(), msgspec.structs.replace(proven, at=now))
        self._urgent = True

    def _take(self, data: bytes) -> None:
        """An assignment: taken when it is ours and newer. What cannot be read changes nothing, and is said."""
        problem = ""
        if len(data) > MOST_ASSIGNMENT_BYTES:
            problem = f"{len(data)} bytes"
        else:
            try:
                assignment = _decoder.decode(data)
                if assignment.node != self.node:
                    problem = f"it is for node {assignment.node[:63]!r}"
            except (msgspec.MsgspecError, ValueError) as error:
                problem = str(error)[:300]
        if problem:
            self._ailing["order"] = Reason(code="order_unreadable", subject=f"node/{self.node}", detail=problem)
            return
        self._well("order")
        if self.assignment is not None and assignment.serial <= self.assignment.serial:
            self.stale_orders += assignment.serial < self.assignment.serial
            return
        if self.assignment is None or self.assignment.site != assignment.site:
            self.ask_commons.set()
        self.assignment = assignment
        self._announce = True

    def _share(self, data: bytes) -> None:
        """What the site's nodes share. The hub answers with what holds now, so whatever differs is taken."""
        try:
            if len(data) > MOST_ASSIGNMENT_BYTES:
                raise ValueError(f"{len(data)} bytes")
            commons = _commons_decoder.decode(data)
        except (msgspec.MsgspecError, ValueError) as error:
            said = f"what the nodes of the site share: {str(error)[:300]}"
            self._ailing["commons"] = Reason(code="order_unreadable", subject=f"node/{self.node}", detail=said)
            return
        self._well("commons")
        if commons != self.commons and (commons.serial or self.commons is not None):
            self.commons = commons
            self._announce_commons = True

    def _well(self, about: str) -> None:
        self._ailing.pop(about, None)
        self._told_until.pop(about, None)

    def _follow_clock(self) -> None:
        """When the wall clock stepped, every instant kept here steps with it, so no interval changes."""
        apart = self.steady.apart_ms()
        if abs(apart) < DRIFT_MS:
            return
        self.steady.follow()
        self.locals = {name: core.shifted(local, apart) for name, local in self.locals.items()}
        self.contact_at = self.contact_at + apart if self.contact_at is not None else None
        self._answered_at = self._answered_at + apart if self._answered_at is not None else None
        self._dirty_since = self._dirty_since + apart if self._dirty_since is not None else None
        self._told_until = {about: at + apart for about, at in self._told_until.items()}
        self._write_again_at += apart
        self._started_at += apart
        self.reporter.shift(apart)
        if abs(apart) >= JUMP_MS:
            way = "ahead" if apart > 0 else "back"
            detail = f"{abs(apart) / 1000:.0f} s {way}; waits and leases were not touched"
            self._ailing["clock"] = Reason(code="clock_jumped", subject=f"node/{self.node}", detail=detail)
            self._told_until["clock"] = self.steady.now() + JUMP_TOLD_FOR_MS

    # --- Writing down ---

    def page(self, now: int) -> Page:
        return Page(
            assignment=self.assignment,
            commons=self.commons,
            locals=tuple(local for _, local in sorted(self.locals.items())),
            at=now,
            steady_ms=self.steady.monotonic_ms(),
            machine_boot=self.machine_boot,
            hub_epoch=self.hub_epoch,
            proven=tuple(self.proven.values()),
            fallen=tuple(self.fallen.values()),
        )

    def _write_at(self) -> int | None:
        return max(self._dirty_since + WRITE_WITHIN_MS, self._write_again_at) if self._dirty_since is not None else None

    def _write_due(self, now: int) -> bool:
        at = self._write_at()
        return at is not None and now >= at

    async def _write(self, now: int) -> None:
        page = self.page(now)
        written = await asyncio.to_thread(self.ledger.write, page) if self.apart else self.ledger.write(page)
        self._urgent = False
        if written:
            self._dirty_since = None
            self._write_again_at = 0
            self._well("ledger")
        elif self.ledger.problem is not None:
            self._ailing["ledger"] = self.ledger.problem
            self._dirty_since = now if self._dirty_since is None else self._dirty_since
            self._write_again_at = now + WRITE_AGAIN_AFTER_MS

    # --- Reporting ---

    def _silent_at(self) -> int | None:
        """When the present silence of the hub becomes worth telling."""
        if "hub" in self._ailing:
            return None
        return (self._answered_at if self._answered_at is not None else self._started_at) + SILENT_AFTER_MS

    def _report(self, now: int) -> None:
        silent_at = self._silent_at()
        if silent_at is not None and now >= silent_at:
            since = (
                "since the node agent started" if self.contact_at is None else f"{(now - self.contact_at) // 1000} s"
            )
            self._ailing["hub"] = Reason(code="hub_unreachable", subject=f"node/{self.node}", detail=f"silent {since}")
        for about in [about for about, until in self._told_until.items() if now >= until]:
            self._well(about)
        # Offered and sent must say the same of what matters; else each report would seem news and bring the next one.
        report = self.senses.beside(self.report(now))
        self.reporter.offer(report, now)
        if self.reporter.is_due(now):
            watched = any(core.is_watched(local, now) for local in self.locals.values())
            self.reporter.send(self.senses.rest(report), now, watched=watched)

    def report(self, now: int) -> Report:
        problems = [reason for _, reason in sorted(self._ailing.items())]
        problems += self.artifacts.problems
        return Report(
            node=self.node,
            boot=self.boot,
            sequence=0,
            at=now,
            serial=self.serial,
            inventory=self.senses.inventory(),
            instances=tuple(map(self._fetched_so_far, self._instances())),
            artifacts=tuple(sorted(self.artifacts.held)),
            problems=tuple(problems[:MOST_PROBLEMS]),
            profiles=profiles_of(self.proven.values()),
        )

    def _instances(self) -> tuple[InstanceReport, ...]:
        return core.locals_for_report(self.locals, self.actuator.measures, self.actuator.locked)

    def _fetched_so_far(self, said: InstanceReport) -> InstanceReport:
        """With how far its artifacts are, while they are on their way: that is no state, and no ledger keeps it."""
        found = self.artifacts.reason(self.locals[said.name].instance.artifacts) if said.phase == "fetching" else None
        if found is None:
            return said
        reason = Reason(code=found[0], subject=f"instance/{said.name}", detail=found[1])
        return msgspec.structs.replace(said, reason=reason)


def _brought_forward(page: Page, now: int, steady_ms: int, machine_boot: str) -> Page:
    """A page of an earlier run, with its instants in today's clock: exact within one boot of the machine."""
    if page.machine_boot and page.machine_boot == machine_boot:
        shift = (now - page.at) - (steady_ms - page.steady_ms)
    else:
        shift = min(0, now - page.at)  # the clock was set back while the machine was off: nothing lies in the future
    if abs(shift) < DRIFT_MS:
        return page
    return msgspec.structs.replace(page, locals=tuple(core.shifted(local, shift) for local in page.locals))
