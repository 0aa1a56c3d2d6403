"""What tests of more than one folder need: a hub's broker and nodes' brokers, joined as in production."""

from __future__ import annotations

import asyncio
import os
import shutil
import tempfile
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from hypothesis import settings

from batuta.fabric import broker, callout, identity, nats
from batuta.fabric.clock import SystemClock

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable

    from nats.aio.client import Client

HERE = "127.0.0.1"

# The same draws in every run, and as much time for each as a busy machine takes. Others: BATUTA_LAW_EXAMPLES=500.
settings.register_profile("suite", deadline=None, derandomize="BATUTA_LAW_EXAMPLES" not in os.environ)
settings.load_profile("suite")


@dataclass(slots=True)
class Town:
    """One hub, and the nodes that a test adds. Everything ends with the test, tied to it by the kernel besides."""

    directory: Path
    clock: SystemClock = field(default_factory=SystemClock)
    known: dict[str, callout.Known] = field(default_factory=dict)
    nodes: dict[str, broker.NodeBroker] = field(default_factory=dict)
    brokers: dict[str, broker.Broker] = field(default_factory=dict)
    clients: list[Client] = field(default_factory=list)
    sites: dict[str, identity.Authority] = field(default_factory=dict)
    serial: int = 1
    seed: str = ""
    root: identity.Authority = field(init=False)
    hub: broker.HubBroker = field(init=False)
    gate: callout.Callout = field(init=False)

    async def open(self) -> None:
        now = self.clock.now()
        self.seed = callout.make_issuer(os.urandom(32))
        self.root = identity.make_root("Batuta", now, 1)
        chain, key = identity.make_server(self.root, name="hub", addresses=(), now=now, serial=2, valid_s=3600)
        tls = self.write("hub", chain, key, self.root.certificate_pem)
        self.hub = broker.HubBroker(
            store=self.directory / "hub" / "store",
            client_port=broker.free_port(HERE),
            leaf_port=broker.free_port(HERE),
            tls=tls,
            hub_password="hub-secret",
            callout_password="callout-secret",
            system_password="system-secret",
            callout_issuer=callout.issuer_public(self.seed),
        )
        self.brokers["hub"] = broker.Broker(self.directory / "hub", tied=True)
        await self.brokers["hub"].start(broker.hub_config(self.hub))
        await self.open_gate()

    async def open_gate(self) -> None:
        authority = await self.client(self.hub.client_port, "callout", "callout-secret")
        system = await self.client(self.hub.client_port, "system", "system-secret")
        self.gate = callout.Callout(authority, system, self.seed, lambda: self.known, self.clock)
        await self.gate.start()

    async def close_gate(self) -> None:
        """The hub process dies: its broker stays, nobody answers it."""
        await self.gate.authority.close()
        await self.gate.system.close()

    async def node(
        self, name: str, site: str = "berlin", *, earlier: tuple[str, ...] = (), with_hub: bool = True
    ) -> broker.NodeBroker:
        """Starts the broker of a node that has joined."""
        chain, key = self.certify(name, site)
        made = broker.NodeBroker(
            node=name,
            store=self.directory / name / "store",
            client_port=broker.free_port(HERE),
            mqtt_port=broker.free_port(HERE),
            agent_password="agent-secret",
            site_password="site-secret",
            gateway_password="gateway-secret",
            tls=self.write(name, chain, key, self.root.certificate_pem),
            hub_urls=(f"tls://{HERE}:{self.hub.leaf_port}",) if with_hub else (),
            site_port=broker.free_port(HERE),
            site_trusts=self.directory / f"{site}.pem",
            earlier=tuple(f"{HERE}:{self.nodes[each].site_port}" for each in earlier),
        )
        self.nodes[name] = made
        self.brokers[name] = broker.Broker(self.directory / name, memory_limit=broker.NODE_MEMORY_LIMIT, tied=True)
        await self.brokers[name].start(broker.node_config(made))
        return made

    def certify(self, name: str, site: str, authority: identity.Authority | None = None) -> tuple[str, str]:
        """Chain and key of a node, and what the hub remembers of it."""
        if site not in self.sites:
            self.serial += 1
            made = identity.make_site_authority(self.root, site, self.clock.now(), self.serial)
            self.sites[site] = made
            (self.directory / f"{site}.pem").write_text(made.certificate_pem)
        self.serial += 1
        key = identity.make_key()
        request = identity.make_request(key, name)
        chain = identity.sign_request(
            authority or self.sites[site],
            request,
            node=name,
            now=self.clock.now(),
            serial=self.serial,
            valid_s=3600,
        )
        self.known[name] = callout.Known(identity.key_id_of_request(request))
        return chain, key

    def write(self, name: str, chain: str, key: str, trusts: str) -> broker.TlsFiles:
        files = [self.directory / f"{name}.{kind}.pem" for kind in ("chain", "key", "root")]
        for file, text in zip(files, (chain, key, trusts), strict=True):
            file.write_text(text)
        return broker.TlsFiles(*files)

    def allow(self, node: str) -> None:
        self.known[node] = replace(self.known[node], is_allowed=True)

    async def deny(self, node: str) -> int:
        self.known[node] = replace(self.known[node], is_allowed=False)
        return await self.gate.kick(node)

    async def hub_fabric(self) -> nats.NatsFabric:
        url = f"nats://{HERE}:{self.hub.client_port}"
        return await nats.connect_hub(url, "hub", "hub-secret", self.clock)

    async def node_fabric(self, node: broker.NodeBroker) -> nats.NatsFabric:
        return await nats.connect_node(node.node, f"nats://{HERE}:{node.client_port}", "agent", "agent-secret")

    async def client(self, port: int, user: str, password: str, inbox: str = "_INBOX") -> Client:
        """A plain client, to try what Batuta itself would not."""
        from nats.aio.client import Client

        made = Client()
        await made.connect(
            f"nats://{HERE}:{port}",
            user=user,
            password=password,
            inbox_prefix=inbox.encode(),
            max_reconnect_attempts=-1,
            reconnect_time_wait=0.1,
            error_cb=_quiet,
        )
        self.clients.append(made)
        return made

    async def site_client(self, node: str) -> Client:
        return await self.client(self.nodes[node].client_port, "site", "site-secret")

    async def kill(self, name: str) -> None:
        """kill -9, as a power switch would."""
        os.kill(self.brokers[name].pid, 9)
        await self.brokers[name].wait()

    async def revive(self, name: str) -> None:
        await self.brokers[name].start(self.brokers[name].config_file.read_text())

    async def close(self) -> None:
        for client in self.clients:
            if not client.is_closed:
                await client.close()
        await asyncio.gather(*(each.stop() for each in self.brokers.values()))
        assert not any(each.pid for each in self.brokers.values())


async def _quiet(_error: Exception) -> None:
    """Tests cut connections on purpose."""


@pytest.fixture
async def new_town() -> AsyncIterator[Callable[[], Awaitable[Town]]]:
    """Makes a town when a test wants one."""
    made: list[Town] = []
    # Not pytest's own directory: it keeps the last three, and brokers' stores are large.
    directory = Path(tempfile.mkdtemp(prefix="batuta-town-"))

    async def make() -> Town:
        town = Town(directory)
        made.append(town)
        await town.open()
        return town

    try:
        yield make
    finally:
        for town in made:
            await town.close()
        shutil.rmtree(directory, ignore_errors=True)
