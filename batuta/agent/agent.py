"""The agent's process: lock, enrolment, broker, connections, runtimes, loop; and how it ends.

SIGTERM and SIGINT stop the instances and the broker in order; the ledger keeps what was wanted, so the next start
brings it back. SIGHUP ends only this process, for an update, and so does any crash: broker and instances go on, and the
next agent adopts them. Only what must never run twice ends with the agent that counts its lease.
"""

from __future__ import annotations

import asyncio
import ctypes
import fcntl
import gc
import logging
import os
import re
import secrets
import signal
import socket
import sys
from contextlib import asynccontextmanager
from pathlib import Path
from typing import IO, TYPE_CHECKING, Final

import msgspec

from batuta.agent import neighbours, steady
from batuta.agent.abilities import Opsets
from batuta.agent.depot import Depot
from batuta.agent.door import Door
from batuta.agent.doubt import Doubt
from batuta.agent.engines import Engines
from batuta.agent.enrolling import Renewal, join
from batuta.agent.exchange import Exchange
from batuta.agent.gravity import Gravity
from batuta.agent.ledger import FULL, Ledger
from batuta.agent.neighbours import Neighbours
from batuta.agent.node import Node, Parts
from batuta.agent.probe import Probe
from batuta.agent.region import Region
from batuta.agent.station import Station
from batuta.agent.tunnelling import Credentials
from batuta.core.decided import CONTAINER
from batuta.core.proving import Bench
from batuta.dataflow.connect import connect
from batuta.dataflow.flows import Flows
from batuta.errors import BatutaError, FabricUnavailable
from batuta.fabric.nats import NatsFabric, connect_node
from batuta.fabric.tasks import hang_up
from batuta.runtimes.model import ModelRuntime, versions
from batuta.runtimes.process import ProcessRuntime

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable, Mapping

    from nats.aio.client import Client

    from batuta.agent.config import AgentConfig
    from batuta.agent.identity import Identity
    from batuta.agent.news import Ailing, Looked
    from batuta.core.decided import Assignment, Commons
    from batuta.runtimes.base import Runtime

SETTLED_S: Final = 2.0
ENDINGS: Final = {signal.SIGTERM: True, signal.SIGINT: True, signal.SIGHUP: False}
"""Signals, and whether they end everything or only this process."""

log = logging.getLogger("batuta.agent")


class AlreadyRunning(BatutaError):
    """Another agent has this state directory."""


async def run(config: AgentConfig) -> int:
    """One node, until it is told to end. Returns the process's exit status."""
    ending = Ending()
    ending.listen()
    with_lock = lock(config)
    try:
        identity = await join(config, config.name or default_name())
        log.info("this is node %s of site %s", identity.node, identity.site)
        return await _run(config, identity, ending)
    finally:
        with_lock.close()


async def _run(config: AgentConfig, identity: Identity, ending: Ending) -> int:
    said: list[Ailing | Looked] = []
    station = Station(config, identity, said.append)
    opened = Ledger(config.home, identity.node).open()
    birth = await station.open(neighbours.links(opened.page.assignment))
    log.info("broker %s, process %d; MQTT at %s", birth, station.broker.pid, station.mqtt)
    door = Door(config, identity.node, said.append)
    door.open()
    door.broker, door.far = station.for_instances(), station.for_gateway()

    async with _connections(identity.node, station) as (control, site, client):
        door.control = control
        clock = steady.Steady(steady.MachineClock())
        runtimes = _runtimes()
        probe = Probe(config.home, runtimes=runtimes, cpu_millis=config.cpu_millis, memory_bytes=config.memory_bytes)
        engines = Engines(config, identity.node, runtimes, said.append)
        await engines.open(is_needed=any(x.instance.runtime == CONTAINER for x in opened.page.locals))
        inventory, opsets = probe.inventory(), Opsets(config.home, runtimes)

        def credentials() -> Credentials:
            directory = config.identity
            return Credentials(*(str(directory / name) for name in (station.identity.chain, "key.pem", "root.pem")))

        flows, gravity = Flows(client, identity.node, _up(control)), Gravity(site)

        async def follow(assignment: Assignment) -> None:
            await station.follow(neighbours.links(assignment))

        def share(commons: Commons) -> None:
            flows.follow(commons.captures)
            gravity.follow(commons.watched)
            depot.follow(commons.depot_port)

        heard = Neighbours(site, clock, identity.node)
        exchange = Exchange(site, identity.node, heard.hears)
        depot = Depot(
            identity.node, exchange, credentials, listen=config.listen, advertise=config.advertise, tell=said.append
        )
        region = Region(control, config.home, credentials)
        node = Node(
            Parts(
                fabric=control,
                steady=clock,
                runtimes=runtimes,
                home=config.home,
                boot=secrets.token_hex(8),
                machine_boot=steady.machine_boot(),
                inventory=lambda: engines.beside(msgspec.structs.replace(inventory, opsets=opsets.found)),
                vitals=lambda: probe.vitals(station.broker.pid or None),
                broker={**station.for_instances(), "inference": door.url},
                neighbours=heard,
                exchange=exchange,
                region=region,
                depot=lambda: depot.address,
                flows=flows.books,
                topics=gravity.topics,
                topic_bytes=gravity.topic_bytes,
                places=lambda: (station.address, station.mqtt),
                inference=door.url,
                mesh=door.measures,
                follow=follow,
                share=share,
                doctor=lambda: {
                    "broker": {"pid": station.broker.pid, "restarts": station.restarts},
                    "gateway": door.doctor(),
                    "depot": depot.doctor(),
                    "region": region.doctor(),
                    "containers": engines.doctor(),
                },
                bench=Bench(inventory.hardware, {how: v for how, v in versions().items() if how in runtimes}),
                busy_percent_max=config.busy_percent_max,
                artifacts_bytes=config.artifacts_bytes,
                contact_every_ms=config.contact_every_ms,
                report_every_ms=config.report_every_ms,
            ),
            opened,
        )
        station.tell = door.tell = engines.tell = depot.tell = node.loop.tell
        for news in said:
            node.loop.tell(news)
        renewal = Renewal(config, identity, control, station.renew, node.loop.tell)
        doubt = Doubt(config, identity.node, lambda: node.loop.hub_is_silent, node.loop.tell)
        node.besides = {
            "broker": station.watch, "flows": flows.run, "gravity": gravity.run, "renewal": renewal.run,
            "gateway": door.run, "depot": depot.run, "region": region.run,
            "doubt": doubt.run, "engines": engines.run, "opsets": lambda: opsets.run(node.loop.tell),
            "settle": lambda: _settle(config),
        }  # fmt: skip
        ending.tell(node)
        try:
            await node.run()
        except BaseException:
            # A crash of ours must not take the instances along: leave them, and let the next agent adopt them.
            await node.leave()
            await door.leave()
            raise
        if ending.everything:
            await node.stop()
            await door.stop()
        else:
            await node.leave()
            await door.leave()
    if ending.everything:
        await station.close()
    log.info("node %s has ended%s", identity.node, "" if ending.everything else "; what runs goes on")
    return 0


@asynccontextmanager
async def _connections(node: str, station: Station) -> AsyncIterator[tuple[NatsFabric, NatsFabric, Client]]:
    """Clients of our own broker: CONTROL leads to the hub, SITE to the neighbours, and a bare one carries data."""
    place = station.place
    control = await connect_node(node, station.url, "agent", place.agent_password)
    try:
        site = await NatsFabric.open(node, station.url, "site", place.site_password, is_node=False)
        try:
            client = await connect(station.for_instances(), f"batuta {node} flows", asyncio.Event())
            assert client is not None, "it gives up only when told to"
            try:
                yield control, site, client
            finally:
                await hang_up(client)
        finally:
            await site.close()
    finally:
        await control.close()


def _up(control: NatsFabric) -> Callable[[str, bytes, Mapping[str, str], str], Awaitable[object]]:
    """How data goes to the hub: returns once the hub has it, under a name by which it is there once."""

    async def up(subject: str, data: bytes, headers: Mapping[str, str], name: str) -> object:
        return await control.store(subject, data, {**headers, "Nats-Msg-Id": name})

    return up


def _runtimes() -> dict[str, Runtime]:
    """Those that this machine can run."""
    tenants: tuple[Runtime, ...] = (ProcessRuntime(), ModelRuntime(), ModelRuntime("tflite"), ModelRuntime("pte"))
    return {runtime.name: runtime for runtime in tenants if runtime.available()}


class Ending:
    """How this process was told to end, and whom to tell. Listens from the first moment: an agent that is told to end
    while it starts still ends all that an earlier one left running."""

    def __init__(self) -> None:
        self.everything: bool | None = None
        """True: instances and broker too. False: only this process. None: not yet."""
        self._node: Node | None = None

    def listen(self) -> None:
        loop = asyncio.get_running_loop()
        for number, everything in ENDINGS.items():
            loop.add_signal_handler(number, self._end, everything)
        # What came while the modules were loaded was held back (see `__main__`), and comes now.
        signal.pthread_sigmask(signal.SIG_UNBLOCK, ENDINGS)

    def tell(self, node: Node) -> None:
        self._node = node
        if self.everything is not None:
            node.end()

    def _end(self, everything: bool) -> None:
        if self.everything is None:
            self.everything = everything
        if self._node is not None:
            self._node.end()


async def _settle(config: AgentConfig) -> None:
    """Once everything is loaded: give back what only the start needed, and say what is loaded if asked."""
    await asyncio.sleep(SETTLED_S)
    gc.collect()
    gc.freeze()
    try:
        ctypes.CDLL(None).malloc_trim(0)
    except AttributeError:
        log.debug("this C library cannot trim")  # musl
    if config.debug_modules:
        _tell_modules(Path(config.debug_modules))
    await asyncio.Event().wait()


def _tell_modules(path: Path) -> None:
    path.write_text("\n".join(sorted(name for name, module in sys.modules.items() if module is not None)), "utf-8")


def lock(config: AgentConfig) -> IO[str]:
    """Held for as long as this process lives, however it ends; no other agent can use the same state meanwhile."""
    config.home.mkdir(parents=True, exist_ok=True, mode=0o700)
    file = open(config.lock, "a+", encoding="ascii")  # noqa: SIM115  it stays open: closing it is unlocking
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        file.seek(0)
        who = file.read(32).strip() or "unknown"
        file.close()
        raise AlreadyRunning(
            f"another node agent (process {who}) uses {config.home}",
            next_step="stop it first, or give this node a directory of its own with --state",
        ) from None
    file.truncate(0)
    file.write(f"{os.getpid()}\n")
    file.flush()
    return file


def default_name() -> str:
    """The machine's host name, as far as it can be a node's."""
    name = re.sub(r"[^a-z0-9]+", "-", socket.gethostname().split(".")[0].lower()).strip("-")
    return name[:63].rstrip("-") or "node"


def main(config: AgentConfig) -> int:
    """Run in the foreground, saying what happens on standard error."""
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s", stream=sys.stderr)
    logging.getLogger("asyncio").setLevel(logging.WARNING)
    try:
        return asyncio.run(run(config))
    except (BatutaError, FabricUnavailable) as error:
        log.error("%s%s", error.message, f"\n  next: {error.next_step}" if error.next_step else "")  # noqa: TRY400
        return 1
    except OSError as error:
        if error.errno not in FULL:
            raise
        # A node that runs goes on when its disk fills up; one that begins needs a few kilobytes.
        log.error("the disk of %s is full: %s\n  next: free some space, and start the node again", config.home, error)  # noqa: TRY400
        return 1
