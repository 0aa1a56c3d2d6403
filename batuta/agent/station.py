"""Station: the node's own broker, as the agent keeps it.

Its ports and passwords are chosen once and kept, so that devices, instances and neighbours find it where it was,
whoever restarts it. It outlives the agent and is adopted. When it dies, or no longer says a word to whoever connects,
or its store has given up and there is room on the disk again, it is started again in the same place; if somebody took a
port meanwhile, in the next one, which is said.
"""

from __future__ import annotations

import asyncio
import secrets
import time
from typing import TYPE_CHECKING, Final

import msgspec
import psutil

from batuta.agent.identity import write_private
from batuta.agent.news import Ailing
from batuta.core.reasons import CATALOGUE, Reason
from batuta.fabric import subjects
from batuta.fabric.broker import (
    Broker,
    BrokerFailed,
    NodeBroker,
    TlsFiles,
    free_port,
    node_config,
    node_memory_limit,
)
from batuta.fabric.broker_config import GATEWAY_USER, HEALTH_USER
from batuta.fabric.broker_health import NO_SPACE, UNSAID, Mending, ask
from batuta.kinds.base import Record

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from batuta.agent.config import AgentConfig
    from batuta.agent.identity import Identity

SITE_PORT: Final = 7423
PORT_RACES_MAX: Final = 5
"""So often another program may take a port between our looking and our listening."""
LOOK_EVERY_S: Final = 1.0
FROZEN_AFTER: Final = 3
"""So many connections in a row without a greeting, and it is taken for frozen; without an answer, and that is said."""


class Place(Record):
    """Where the broker listens and what opens it. Only this user can read it."""

    client_port: int
    mqtt_port: int
    site_port: int
    agent_password: str
    site_password: str
    gateway_password: str = ""


class Station:
    """One node's broker. `tell` hears what ails it."""

    def __init__(self, config: AgentConfig, identity: Identity, tell: Callable[[Ailing], None]) -> None:
        self.config = config
        self.identity = identity
        self.tell = tell
        limit = node_memory_limit(config.memory_bytes or psutil.virtual_memory().total)
        self.broker = Broker(config.broker, memory_limit=limit, tied=config.tied)
        self.place: Place
        self.earlier: tuple[str, ...] = ()
        self.restarts = 0
        self._health = ""
        """What it last said of itself; nothing when it is well."""
        self._one_at_a_time = asyncio.Lock()

    # --- Where it is ---

    @property
    def url(self) -> str:
        return f"nats://127.0.0.1:{self.place.client_port}"

    @property
    def mqtt(self) -> str:
        return f"{self._seen_as}:{self.place.mqtt_port}"

    @property
    def address(self) -> str:
        """What neighbours are told."""
        return f"{self._seen_as}:{self.place.site_port}"

    @property
    def _seen_as(self) -> str:
        return self.config.advertise or self.config.listen

    def for_gateway(self) -> dict[str, str]:
        """How the inference gateway reaches other sites: the same broker, by a name with few rights."""
        return {"url": self.url, "credentials": str(self._gateway_credentials), "node": self.identity.node}

    def for_instances(self) -> dict[str, str]:
        """How instances reach it; the password is in a file that only this user can read."""
        return {
            "url": self.url,
            "credentials": str(self._credentials),
            "node": self.identity.node,
            "domain": subjects.node_domain(self.identity.node),
            "mqtt": f"127.0.0.1:{self.place.mqtt_port}",
        }

    # --- Its life ---

    async def open(self, earlier: tuple[str, ...]) -> str:
        """Adopt or start it; says which."""
        self.earlier = earlier
        self.place = self._placed()
        birth = await self._start()
        for path, user, password in (
            (self._credentials, "site", self.place.site_password),
            (self._gateway_credentials, GATEWAY_USER, self.place.gateway_password),
        ):
            write_private(path, msgspec.json.encode({"user": user, "password": password}))
        return birth

    async def _start(self) -> str:
        """Start it where it was, or on the next ports when others took them: more than once, for they may race us."""
        for _ in range(PORT_RACES_MAX):
            try:
                return await self.broker.start(self._text())
            except BrokerFailed as error:
                if error.code != "port_taken":
                    raise
                self._move()
        return await self.broker.start(self._text())

    async def follow(self, earlier: tuple[str, ...]) -> None:
        """Link to these earlier nodes, in this order. The broker is touched only when the list changed."""
        if earlier == self.earlier:
            return
        self.earlier = earlier
        await self._apply()

    async def renew(self, identity: Identity) -> None:
        self.identity = identity
        await self._apply()

    async def _apply(self) -> None:
        async with self._one_at_a_time:
            try:
                await self.broker.apply(self._text())
            except BrokerFailed as error:
                self._ails(error)
            else:
                self.tell(Ailing("broker-config", None))

    async def watch(self) -> None:
        """Look after it for ever."""
        silent, unsaid, mending = 0, 0, Mending(self.config.broker)
        while True:
            await asyncio.sleep(LOOK_EVERY_S)
            why = "it had died"
            if self.broker.is_running():
                words = await ask(self.place.client_port, HEALTH_USER, self.place.agent_password)
                silent = silent + 1 if words is None else 0
                unsaid = unsaid + 1 if words and words.startswith(UNSAID) else 0
                if words is not None and unsaid in (0, FROZEN_AFTER):
                    self._tell_health(words)
                if mending.is_due(words or "", time.monotonic()):
                    why = "its store had given up"
                elif silent < FROZEN_AFTER:
                    continue
                else:
                    why = "it had frozen"
            silent = 0
            await self._again(why)

    def _tell_health(self, words: str) -> None:
        """What is news of it. One that does not even greet is told of when it is restarted."""
        if words == self._health:
            return
        self._health, reason = words, None
        if words:
            code = "disk_full" if NO_SPACE in words else "broker_failed"
            detail = f"devices are told nothing and send again: {words}" if code == "disk_full" else words
            reason = Reason(code=code, subject=f"node/{self.identity.node}", detail=detail)
        self.tell(Ailing("broker-health", reason))

    async def _again(self, why: str) -> None:
        async with self._one_at_a_time:
            try:
                await self.broker.stop()
                await self._start()
            except BrokerFailed as error:
                self._ails(error)
                return
        self.restarts += 1
        self.tell(Ailing("broker-config", None))
        reason = Reason(
            code="broker_restarted", subject=f"node/{self.identity.node}", detail=f"{why}; {self.restarts} so far"
        )
        self.tell(Ailing("broker", reason))

    async def close(self) -> None:
        await self.broker.stop()

    # --- Its ports ---

    @property
    def _file(self) -> str:
        return "place.json"

    @property
    def _credentials(self) -> Path:
        return self.config.broker / "site.json"

    @property
    def _gateway_credentials(self) -> Path:
        return self.config.broker / "gateway.json"

    def _placed(self) -> Place:
        try:
            place = msgspec.json.decode((self.config.broker / self._file).read_bytes(), type=Place)
        except (OSError, msgspec.MsgspecError):
            # None yet, or damaged: then a broker that still runs gets the new passwords with its configuration.
            return self._choose(secrets.token_urlsafe(24), secrets.token_urlsafe(24))
        if not place.gateway_password:
            place = msgspec.structs.replace(place, gateway_password=secrets.token_urlsafe(24))
            write_private(self.config.broker / self._file, msgspec.json.encode(place))
        return place

    def _choose(self, agent_password: str, site_password: str) -> Place:
        listen = self.config.listen
        client = free_port("127.0.0.1")
        mqtt = free_port(listen, self.config.mqtt_port, taken=(client,))
        # Who takes any port for devices shares the machine with other nodes: they need no race for the usual one.
        site = free_port(listen, SITE_PORT if self.config.mqtt_port else 0, taken=(client, mqtt))
        if self.config.mqtt_port and mqtt != self.config.mqtt_port:
            detail = f"{self.config.mqtt_port} is taken; MQTT is at {listen}:{mqtt}"
            self.tell(Ailing("mqtt", Reason(code="port_taken", subject=f"node/{self.identity.node}", detail=detail)))
        place = Place(
            client_port=client, mqtt_port=mqtt, site_port=site,
            agent_password=agent_password, site_password=site_password, gateway_password=secrets.token_urlsafe(24),
        )  # fmt: skip
        write_private(self.config.broker / self._file, msgspec.json.encode(place))
        return place

    def _move(self) -> None:
        """Somebody has one of our ports: keep those that are free and take the next for the others."""
        before, listen = self.place, self.config.listen
        client = free_port("127.0.0.1", before.client_port)
        mqtt = free_port(listen, before.mqtt_port, taken=(client,))
        site = free_port(listen, before.site_port, taken=(client, mqtt))
        self.place = msgspec.structs.replace(before, client_port=client, mqtt_port=mqtt, site_port=site)
        write_private(self.config.broker / self._file, msgspec.json.encode(self.place))
        pairs = ((before.client_port, client), (before.mqtt_port, mqtt), (before.site_port, site))
        moved = ", ".join(f"{a} is taken, now {b}" for a, b in pairs if a != b)
        self.tell(Ailing("ports", Reason(code="port_taken", subject=f"node/{self.identity.node}", detail=moved)))

    def _text(self) -> str:
        here, credentials = self.place, self.config.identity
        return node_config(
            NodeBroker(
                node=self.identity.node,
                store=self.config.broker / "store",
                client_port=here.client_port,
                mqtt_port=here.mqtt_port,
                agent_password=here.agent_password,
                site_password=here.site_password,
                gateway_password=here.gateway_password,
                tls=TlsFiles(credentials / self.identity.chain, credentials / "key.pem", credentials / "root.pem"),
                hub_urls=(f"tls://{self.config.via}",) if self.config.via else self.identity.leafs,
                site_port=here.site_port,
                site_host=self.config.listen,
                site_trusts=credentials / "site.pem",
                earlier=self.earlier,
                mqtt_host=self.config.listen,
            )
        )

    def _ails(self, error: BrokerFailed) -> None:
        code = error.code if error.code in CATALOGUE else "broker_failed"
        reason = Reason(code=code, subject=f"node/{self.identity.node}", detail=error.message[:300])
        self.tell(Ailing("broker-config", reason))
