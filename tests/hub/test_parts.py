"""The hub's smaller parts: ports, settings, full disks, writes that lost a race."""

from __future__ import annotations

import asyncio
import hashlib
import json
import resource
import socket
from typing import TYPE_CHECKING, Any

import pytest

from batuta.config import HubConfig, load_hub_config
from batuta.core.state import Change
from batuta.errors import ArtifactRefused, BatutaError, Refused, Stale
from batuta.fabric import identity
from batuta.fabric.memory import MemoryBroker
from batuta.hub.artifacts import ArtifactStore
from batuta.hub.authority import Authorities
from batuta.hub.bell import Bell
from batuta.hub.counters import Counters
from batuta.hub.secret_files import secret_in
from batuta.hub.supervisor import Supervisor
from batuta.kinds import manifest
from tests.hub.hubs import PROCESS_APP, Voice, join, running

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from pathlib import Path

    from batuta.fabric.base import Table


def test_later_settings_win_and_wrong_ones_are_named(tmp_path: Path) -> None:
    (tmp_path / "hub").mkdir()
    (tmp_path / "hub" / "hub.toml").write_text('httpPort = 1000\nhttpsPort = 2000\nlisten = "10.0.0.1"\n')
    config = load_hub_config(
        tmp_path, {"https_port": 3, "leaf_port": None}, {"BATUTA_HUB_HTTP_PORT": "4", "BATUTA_HUB_ADVERTISE": "a,b"}
    )
    assert (config.http_port, config.https_port, config.leaf_port) == (4, 3, None)
    assert config.names == ("a", "b", "10.0.0.1")
    (tmp_path / "hub" / "hub.toml").write_text("httPort = 1000\n")
    with pytest.raises(Refused, match="httPort"):
        load_hub_config(tmp_path, {}, {})
    (tmp_path / "hub" / "hub.toml").write_text("= 1\n")
    with pytest.raises(Refused):
        load_hub_config(tmp_path, {}, {})


def test_a_taken_port_gives_way_to_the_next_unless_it_was_asked_for(tmp_path: Path) -> None:
    said: list[str] = []
    (tmp_path / "hub").mkdir()
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        (tmp_path / "hub" / "ports.json").write_text(json.dumps({"http": port, "https": 0, "leaf": 0, "client": 0}))
        ports = Supervisor(HubConfig(state=str(tmp_path)), said.append)._ports()
        assert ports.http > port
        assert said[0] == f"port {port} is taken; http is on {ports.http}"
        assert len({ports.http, ports.https, ports.leaf, ports.client}) == 4
        with pytest.raises(BatutaError, match=f"port {port}") as caught:
            Supervisor(HubConfig(state=str(tmp_path), http_port=port), said.append)._ports()
        assert getattr(caught.value, "code", "") == "port_taken"


def files_in(directory: Path) -> list[Path]:
    return [p for p in directory.rglob("*") if p.is_file()]


async def test_a_full_disk_keeps_nothing_and_says_so(tmp_path: Path) -> None:
    store = ArtifactStore(tmp_path, counters := Counters(), bytes_max=1 << 30)
    store.open()
    data = b"x" * 100_000
    digest = f"sha256:{hashlib.sha256(data).hexdigest()}"

    async def chunks() -> AsyncIterator[bytes]:
        yield data

    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (4096, hard))
    try:
        with pytest.raises(ArtifactRefused) as caught:
            await store.put(digest, chunks())
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert caught.value.code == "disk_full"
    assert files_in(tmp_path) == []
    assert counters["artifacts_refused"] == 1
    await store.put(digest, chunks())
    assert store.held() == [digest]


async def test_what_was_half_received_is_gone_after_a_restart(tmp_path: Path) -> None:
    store = ArtifactStore(tmp_path, Counters(), bytes_max=1 << 30)
    store.open()
    (tmp_path / "incoming" / "half").write_bytes(b"x")
    store.open()
    assert list((tmp_path / "incoming").iterdir()) == []


def test_secrets_are_their_owners_alone(tmp_path: Path) -> None:
    secret = secret_in(tmp_path / "hub" / "admin.token")
    assert len(secret) >= 40
    assert secret_in(tmp_path / "hub" / "admin.token") == secret
    assert (tmp_path / "hub" / "admin.token").stat().st_mode & 0o777 == 0o600
    authorities = Authorities(tmp_path / "authority")
    files = authorities.prepare_listener(("a.example",), 1_790_000_000_000)
    authorities.site("berlin", 1_790_000_000_000)
    open_to_others = [p.name for p in (tmp_path / "authority").iterdir() if p.stat().st_mode & 0o077]
    assert sorted(open_to_others) == ["listener.names", "listener.pem", "root.pem"]
    before = files.chain.read_text()
    assert authorities.prepare_listener(("a.example",), 1_790_000_000_000).chain.read_text() == before
    # Another name, or an end that is near: made anew, under the same root.
    assert authorities.prepare_listener(("b.example",), 1_790_000_000_000).chain.read_text() != before
    late = 1_790_000_000_000 + 380 * identity.DAY_S * 1000
    renewed = Authorities(tmp_path / "authority").prepare_listener(("b.example",), late)
    assert identity.validity(renewed.chain.read_text())[1] > late + 300 * identity.DAY_S * 1000
    identity.check_chain(renewed.chain.read_text(), authorities.root(late).certificate_pem, late)


class Racing:
    """A table in which somebody else writes each assignment just before this hub does, once."""

    def __init__(self, table: Table) -> None:
        self.table = table
        self.raced: set[str] = set()

    def __getattr__(self, name: str) -> Any:
        return getattr(self.table, name)

    async def put(self, key: str, value: bytes, revision: int | None = None) -> int:
        there = await self.table.get(key)
        if key.startswith("assignment.") and key not in self.raced and there is not None:
            self.raced.add(key)
            await self.table.put(key, there.value or b"")
        return await self.table.put(key, value, revision)


async def test_a_write_that_lost_a_race_is_read_again_and_decided_again(tmp_path: Path) -> None:
    broker = MemoryBroker()
    async with running(tmp_path, broker) as hub:
        await join(hub, "pi-1")
        voice = Voice(broker, "pi-1")
        await voice.beat()
        await voice.report()
        racing = Racing(hub.store._tables["decided"])
        hub.store._tables["decided"] = racing
        await hub.declarations.apply(manifest.parse(PROCESS_APP.replace("NAME", "one")))
        async with asyncio.timeout(5):
            while "default/one" not in hub.loop.state.held:
                await hub.loop.turned.wait(hub.loop.turned.rings, hub.clock, hub.clock.now() + 50)
        assert racing.raced == {"assignment.pi-1"}
        assert hub.counters["commits_failed"] == 1


async def test_a_declaration_that_lost_a_race_says_so(tmp_path: Path) -> None:
    broker = MemoryBroker()
    async with running(tmp_path, broker) as hub:
        app = manifest.parse(PROCESS_APP.replace("NAME", "one"))
        await hub.declarations.apply(app)
        key = app[0].ref.key
        broker.rows("desired").write(key, broker.rows("desired").rows[key].value, None)
        changed = manifest.parse(PROCESS_APP.replace("NAME", "one").replace("1000", "2000"))
        with pytest.raises(Stale):
            await hub.declarations.apply(changed)
        await hub.declarations.apply(changed)


async def test_an_echo_of_what_was_before_brings_nothing_back(tmp_path: Path) -> None:
    broker = MemoryBroker()
    async with running(tmp_path, broker) as hub:
        app = manifest.parse(PROCESS_APP.replace("NAME", "one"))
        for _ in range(20):
            await hub.declarations.apply(app)
            await hub.declarations.delete(app[0].ref)
            assert hub.loop.state.get(app[0].ref) is None
        seen: list[Any] = []
        take = hub.store.take

        def watched() -> list[Change]:
            taken = take()
            seen.extend(c.value for c in taken if c.key == app[0].ref.key)
            return taken

        hub.store.take = watched  # type: ignore[method-assign]
        await asyncio.sleep(0.1)
        assert hub.loop.state.get(app[0].ref) is None
        assert not any(seen)


async def test_a_bell_is_not_missed(tmp_path: Path) -> None:
    async with running(tmp_path) as hub:
        bell = Bell()
        heard = bell.rings
        bell.ring()
        async with asyncio.timeout(1):
            await bell.wait(heard, hub.clock)
            waiting = [asyncio.create_task(bell.wait(bell.rings, hub.clock)) for _ in range(3)]
            await asyncio.sleep(0)
            bell.ring()
            await asyncio.gather(*waiting)
            await bell.wait(bell.rings, hub.clock, hub.clock.now() + 20)
