"""Node: the parts of an agent put together over whatever fabric, clock and runtimes it is given.

In production `agent` gives it NATS, the machine's clock and real processes; the rig gives it memory, virtual time and a
simulated machine. Nothing here knows which.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import shutil
import time
from typing import TYPE_CHECKING, Any, Final, NamedTuple

import msgspec

from batuta.agent import neighbours
from batuta.agent.actuator import Actuator, Surroundings
from batuta.agent.artifacts import Artifacts
from batuta.agent.asks import HubSource
from batuta.agent.contact import ContactNote
from batuta.agent.flags import Flags
from batuta.agent.ledger import Ledger
from batuta.agent.loop import Loop, Senses
from batuta.agent.measuring import BUSY_PERCENT_MAX, Measuring
from batuta.agent.news import Ailing, Looked, Ordered, Reconnected, Shared
from batuta.agent.pulse import Pulse, Refused
from batuta.agent.questions import Questions
from batuta.agent.report import Reporter
from batuta.core.flags import FLAGS_FILE
from batuta.core.lease import grace_ms
from batuta.core.proving import Bench
from batuta.core.reasons import CATALOGUE, Reason
from batuta.errors import FabricUnavailable
from batuta.fabric import subjects
from batuta.fabric.base import Entry
from batuta.fabric.tasks import end

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Mapping
    from pathlib import Path

    from batuta.agent.exchange import Exchange
    from batuta.agent.fetch import Source
    from batuta.agent.ledger import Opened
    from batuta.agent.neighbours import Neighbours
    from batuta.agent.pulse import Contact
    from batuta.agent.region import Region
    from batuta.agent.steady import Steady
    from batuta.core.decided import Assignment, Commons
    from batuta.core.local import Event
    from batuta.core.observed import Flow, Inventory, Mesh, Report, Vitals
    from batuta.fabric.base import Fabric, Message
    from batuta.runtimes.base import Runtime

REREAD_EVERY_S: Final = 180.0
AGAIN_AFTER_S: Final = 1.0
SWEEP_EVERY_S: Final = 3_600.0
ENDED_KEPT_S: Final = 86_400.0
"""So long the logs of an instance that is gone can still be read."""

log = logging.getLogger(__name__)


class Parts(NamedTuple):
    """What a node is made of. All of it can be something else in a test."""

    fabric: Fabric
    """CONTROL: leads to the hub."""
    steady: Steady
    runtimes: Mapping[str, Runtime]
    home: Path
    boot: str
    """Identity of this run of the agent."""
    machine_boot: str
    inventory: Callable[[], Inventory]
    vitals: Callable[[], Vitals]
    broker: Mapping[str, str] = {}
    """How instances reach this node's broker."""
    neighbours: Neighbours | None = None
    source: Source | None = None
    """Where artifacts come from; the hub, when left out."""
    exchange: Exchange | None = None
    """Artifacts from and for neighbours."""
    region: Region | None = None
    """Artifacts from other sites."""
    depot: Callable[[], str] = str
    """Where other sites get them here."""
    flows: Callable[[], tuple[Flow, ...]] = tuple
    topics: Callable[[], dict[str, int]] = dict
    topic_bytes: Callable[[], dict[str, int]] = dict
    places: Callable[[], tuple[str, str]] = lambda: ("", "")
    """Addresses of the SITE and MQTT listeners."""
    inference: str = ""
    """Address of the inference gateway."""
    mesh: Callable[[], Mesh | None] = lambda: None
    """What that gateway counted."""
    follow: Callable[[Assignment], Awaitable[None]] | None = None
    """What else follows each new assignment: the broker's links."""
    share: Callable[[Commons], None] = lambda _: None
    """What follows what the site's nodes share: the data flows."""
    doctor: Callable[[], dict[str, Any]] = dict
    bench: Bench = Bench()
    """What models are proved on."""
    busy_percent_max: float = BUSY_PERCENT_MAX
    """Busier than this, nothing is measured for the hub."""
    artifacts_bytes: int = 4 * 2**30
    contact_every_ms: int = 1_000
    report_every_ms: int = 15_000
    apart: bool = True
    """Disk work in threads; not in virtual time."""


class Node:
    """One node agent without its process."""

    def __init__(self, parts: Parts, opened: Opened | None = None) -> None:
        fabric, self.parts = parts.fabric, parts
        self.name = fabric.name
        self.ledger = Ledger(parts.home, self.name)
        self.opened = opened if opened is not None else self.ledger.open()
        assignment = self.opened.page.assignment
        self.artifacts = Artifacts(
            parts.home / "artifacts",
            parts.source or HubSource(fabric),
            node=self.name,
            machine_boot=parts.machine_boot,
            budget_bytes=parts.artifacts_bytes,
            apart=parts.apart,
            exchange=parts.exchange,
            region=parts.region,
        )
        self.artifacts.on_progress = lambda: self.loop.tell(Looked())
        self.actuator = Actuator(
            parts.home / "instances",
            parts.runtimes,
            self.artifacts,
            Surroundings(parts.broker, neighbours.served(assignment, self.name)),
            tell=self._tell,
            needed=self._needed,
            stir=lambda: self.loop.tell(Looked()),
        )
        self.reporter = Reporter(fabric, lambda: self.loop.tell(Looked()), every_ms=parts.report_every_ms)
        self.loop = Loop(
            node=self.name,
            boot=parts.boot,
            machine_boot=parts.machine_boot,
            steady=parts.steady,
            ledger=self.ledger,
            actuator=self.actuator,
            artifacts=self.artifacts,
            reporter=self.reporter,
            senses=Senses(parts.inventory, self._beside, self._rest),
            note=ContactNote(parts.home / "contact", parts.machine_boot),
            on_assignment=self._follow,
            bench=parts.bench,
            on_commons=parts.share,
            apart=parts.apart,
        )
        self.flags = Flags(fabric, parts.home / "gateway" / FLAGS_FILE, self.loop.tell, apart=parts.apart)
        self.pulse = Pulse(
            fabric, parts.steady, boot=parts.boot, machine_boot=parts.machine_boot, serial=lambda: self.loop.serial,
            tell=self._beaten, every_ms=parts.contact_every_ms,
            is_leased=lambda: any(local.instance.lease_ms is not None for local in self.loop.locals.values()),
            flags=lambda: self.flags.digest,
        )  # fmt: skip
        self.measuring = Measuring(
            parts.home / "measuring", self.artifacts, parts.bench, locals_=lambda: self.loop.locals,
            vitals=parts.vitals, needed=self._needed, tell=self.loop.tell,
            busy_percent_max=parts.busy_percent_max,
        )  # fmt: skip
        self.questions = Questions(fabric, parts.home / "instances", self._doctor)
        self.questions.verbs |= {"measure": self.measuring.ask, "flags": self.flags.told}
        self.faults: dict[str, int] = {}
        """How often each of our tasks failed in a way it should not have, and was begun again."""
        self.besides: dict[str, Callable[[], Awaitable[None]]] = {}
        """What else is kept going while the node runs."""
        self._tasks: list[asyncio.Task[None]] = []

    async def run(self) -> None:
        """Until `end`, or for ever. What runs on this node is not touched by our going."""
        self.artifacts.open()
        self.flags.open()
        await self.loop.open(self.opened)
        self.parts.fabric.on_reconnect(lambda: self.loop.tell(Reconnected()))
        self.parts.fabric.on_reconnect(self.artifacts.reconnected)
        for name, work in (
            ("pulse", self.pulse.run),
            ("orders", self._hear_orders),
            ("reread", self._reread),
            ("commons", self._hear_commons),
            ("flags", self.flags.run),
            ("questions", self._answer),
            ("sweep", self._sweep),
            *self.besides.items(),
            *((("neighbours", self.parts.neighbours.run),) if self.parts.neighbours is not None else ()),
            *((("exchange", self.parts.exchange.run),) if self.parts.exchange is not None else ()),
        ):
            self._tasks.append(asyncio.create_task(self._keep_going(name, work), name=name))
        try:
            await self.loop.run()
        finally:
            await end(*self._tasks)
            await self.questions.close()
            await self.measuring.close()

    def end(self) -> None:
        self.loop.end()

    async def leave(self) -> None:
        """After `run`: remember, and go. Instances go on, and the next agent adopts them; but those with a lease end
        with whoever counts it, and better in order than by the kernel."""
        now, contact_at = self.parts.steady.now(), self.loop.contact_at
        await self.actuator.stop_all(lambda instance: grace_ms(instance, now, contact_at), leased_only=True)
        await self.loop.close()
        await self.actuator.close()

    async def stop(self) -> None:
        """After `run`: stop every instance in order, remember what was wanted, tell the hub, and go."""
        now, contact_at = self.parts.steady.now(), self.loop.contact_at
        await self.actuator.stop_all(lambda instance: grace_ms(instance, now, contact_at))
        await self.loop.close()
        if self.parts.fabric.is_connected:
            now = self.parts.steady.now()
            await self.reporter.flush()
            self.reporter.send(self._rest(self._beside(self.loop.report(now))), now)
            await self.reporter.flush()
        await self.actuator.close()

    # The loop needs the actuator and the actuator tells the loop; these two close the circle.

    def _tell(self, event: Event) -> None:
        self.loop.tell(event)

    def _beaten(self, heard: Contact | Refused) -> None:
        if isinstance(heard, Refused):
            # A word of a newer hub is not ours to explain; that it was no contact is what counts.
            reason = Reason(code=heard.code, subject=f"node/{self.name}") if heard.code in CATALOGUE else None
            self.loop.tell(Ailing("refused", reason))
        else:
            if heard.flags:
                self.flags.ask()
            self.loop.tell(heard)

    def _needed(self) -> frozenset[str]:
        return self.loop.needed()

    # --- What the loop asks for ---

    async def _follow(self, assignment: Assignment) -> None:
        if self.parts.follow is not None:
            await self.parts.follow(assignment)
        await self.actuator.surround(Surroundings(self.parts.broker, neighbours.served(assignment, self.name)))

    def _beside(self, report: Report) -> Report:
        address, mqtt = self.parts.places()
        hears = self.parts.neighbours.hears() if self.parts.neighbours is not None else {}
        return msgspec.structs.replace(
            report, flows=self.parts.flows(), address=address, mqtt=mqtt, inference=self.parts.inference, hears=hears,
            depot=self.parts.depot(),
        )  # fmt: skip

    def _rest(self, report: Report) -> Report:
        parts = self.parts
        return msgspec.structs.replace(
            report, vitals=parts.vitals(), topics=parts.topics(), topic_bytes=parts.topic_bytes(), mesh=parts.mesh()
        )

    async def _doctor(self) -> dict[str, Any]:
        loop = self.loop
        return {
            "node": self.name,
            "serial": loop.serial,
            "contactAgeMs": None if loop.contact_at is None else self.parts.steady.now() - loop.contact_at,
            "rounds": loop.rounds,
            "staleOrders": loop.stale_orders,
            "ledgerWrites": self.ledger.writes,
            "reports": {"sent": self.reporter.sent, "unsent": self.reporter.unsent},
            "pulse": {"sent": self.pulse.sent, "unanswered": self.pulse.unanswered, "everyMs": self.pulse.every_ms},
            "artifacts": self._artifacts_told(),
            "flags": {"digest": self.flags.digest, "kept": self.flags.kept, "unread": self.flags.unread},
            "untrusted": dict(self.actuator.untrusted),
            "proofs": dict(self.actuator.proofs),
            "measuring": dict(self.measuring.counts),
            "faults": {**self.faults, **self.actuator.faults},
            "problems": [str(reason) for reason in loop.report(self.parts.steady.now()).problems],
            **self.parts.doctor(),
        }

    def _artifacts_told(self) -> dict[str, Any]:
        told, exchange = self.artifacts.books(), self.parts.exchange
        if exchange is None:
            return told
        return {**told, "givenBytes": exchange.given_bytes, "lies": exchange.lies, "unread": exchange.unread}

    # --- Tasks ---

    async def _keep_going(self, name: str, work: Callable[[], Awaitable[None]]) -> None:
        """A sense that fails is begun again, and counted; it must not take the node with it."""
        while True:
            try:
                await work()
            except FabricUnavailable:
                pass  # said by the loop, from the silence of the hub
            except Exception:  # whatever it was, the other senses and the instances must go on
                self.faults[name] = self.faults.get(name, 0) + 1
                log.exception("%s failed and is begun again", name)
            await asyncio.sleep(AGAIN_AFTER_S)

    async def _hear_orders(self) -> None:
        """Assignments as they are written; the table's watch goes on across lost connections."""
        async for change in self.parts.fabric.table("decided").watch(subjects.assignment_key(self.name)):
            if isinstance(change, Entry) and change.value is not None:
                self.loop.tell(Ordered(change.value))

    async def _reread(self) -> None:
        """Whatever was missed: at once after a reconnect or a newer serial, and every few minutes anyway."""
        while True:
            try:
                async with asyncio.timeout(REREAD_EVERY_S):
                    await self.loop.reread.wait()
            except TimeoutError:
                pass
            self.loop.reread.clear()
            try:
                entry = await self.parts.fabric.table("decided").get(subjects.assignment_key(self.name))
            except FabricUnavailable:
                self.loop.reread.set()
                await asyncio.sleep(AGAIN_AFTER_S)
                continue
            if entry is not None and entry.value is not None:
                self.loop.tell(Ordered(entry.value))

    async def _hear_commons(self) -> None:
        """What the nodes of the site share: asked for when the hub says that it changed, or that ours is not it."""
        site, subscription = "", None

        async def changed(_message: Message) -> None:
            self.loop.ask_commons.set()

        try:
            while True:
                assignment = self.loop.assignment
                if assignment is not None and assignment.site != site:
                    if subscription is not None:
                        await subscription.close()
                    site = assignment.site
                    subscription = await self.parts.fabric.subscribe(subjects.site_changed(site), changed)
                # When nobody answers, the next heartbeat that is answered tells us to ask again.
                with contextlib.suppress(FabricUnavailable):
                    self.loop.tell(Shared(await self.parts.fabric.request(subjects.ask(self.name, "commons"), b"")))
                await self.loop.ask_commons.wait()
                self.loop.ask_commons.clear()
        finally:
            if subscription is not None:
                await subscription.close()

    async def _answer(self) -> None:
        await self.questions.open()
        await asyncio.Event().wait()

    async def _sweep(self) -> None:
        """Files that nobody needs any more."""
        while True:
            await asyncio.sleep(SWEEP_EVERY_S)
            self.artifacts.collect(self.loop.needed())
            known = self.loop.instances()
            await self.actuator.sweep((local.instance for local in self.loop.locals.values()), known)
            remove_ended(self.parts.home / "instances", frozenset(instance.name for instance in known))


def remove_ended(directory: Path, present: frozenset[str], keep_s: float = ENDED_KEPT_S) -> int:
    """Directories of instances that ended long ago, with their logs; how many went."""
    gone = 0
    for path in sorted(directory.glob("*/*/*")):
        name = "/".join(path.relative_to(directory).parts)
        if name not in present and path.is_dir() and path.stat().st_mtime < time.time() - keep_s:
            shutil.rmtree(path, ignore_errors=True)
            gone += 1
    return gone
