"""Flags on their way: a real hub and a node's real keeper of flags, over the memory fabric."""

from __future__ import annotations

import asyncio
import errno
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any

import msgspec

from batuta.agent import flags as agent_flags
from batuta.agent.flags import Flags
from batuta.agent.questions import Questions
from batuta.core.flags import PUSHED_BYTES_MAX, digest_of, read
from batuta.fabric import subjects
from batuta.fabric.memory import MemoryBroker
from batuta.fabric.tasks import end
from batuta.hub.audit_reading import Wanted, find
from batuta.kinds.base import Ref
from batuta.kinds.manifest import parse
from tests.hub.hubs import join, running

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from pathlib import Path

    import pytest

    from batuta.agent.news import Ailing
    from batuta.fabric.memory import MemoryFabric
    from batuta.hub.hub import Hub

FLAG = """
apiVersion: batuta.dev/v1
kind: Flag
metadata: {name: NAME}
spec:
  variants: {new: NEW, old: plain}
  default: old
  rules: [{when: 'site.name == "berlin"', variant: VARIANT}]
"""


def flag(name: str = "colour", new: str = "red", variant: str = "new") -> Any:
    return parse(FLAG.replace("NAME", name).replace("NEW", new).replace("VARIANT", variant))


class Keeper:
    """A node that keeps flags and says with each heartbeat what it has."""

    def __init__(self, broker: MemoryBroker, name: str, home: Path) -> None:
        self.fabric: MemoryFabric = broker.connect_node(name)
        self.said: list[Ailing] = []
        self.flags = Flags(self.fabric, home / name / "flags.json", self.said.append)
        self.flags.open()
        self.questions = Questions(self.fabric, home / name, dict)  # type: ignore[arg-type]
        self.questions.verbs["flags"] = self.flags.told
        self.beats = 0

    async def beat(self) -> bool:
        """Says that it is there; was it told that its flags are not the right ones?"""
        self.beats += 1
        said = {"boot": "b", "sequence": self.beats, "serial": 0, "machine": "m", "flags": self.flags.digest}
        heard = await self.fabric.request(subjects.alive(self.fabric.name), msgspec.json.encode(said), 5.0)
        stale = bool(msgspec.json.decode(heard).get("flags", False))
        if stale:
            self.flags.ask()
        return stale

    def values(self) -> dict[str, Any]:
        body = self.flags.path.read_bytes() if self.flags.path.exists() else b""
        return {order.name: next(iter(order.variants.values())) for order in read(body).flags}

    async def has(self, **values: Any) -> None:
        async with asyncio.timeout(60):
            while self.values() != values or self.flags.digest != digest_of(self.flags.path.read_bytes()):  # noqa: ASYNC110
                await asyncio.sleep(0.005)


@asynccontextmanager
async def keeping(broker: MemoryBroker, name: str, home: Path) -> AsyncIterator[Keeper]:
    made = Keeper(broker, name, home)
    await made.questions.open()
    asking = asyncio.create_task(made.flags.run())
    try:
        yield made
    finally:
        await end(asking)
        await made.questions.close()


async def settled(hub: Hub, *nodes: str) -> None:
    """Until the hub has worked out what these nodes should have."""
    async with asyncio.timeout(60):
        while not all(hub.flags.digest(node) for node in nodes):  # noqa: ASYNC110
            await asyncio.sleep(0.005)


async def test_a_change_is_told_to_those_for_whom_it_is_one_and_audited(tmp_path: Path) -> None:
    broker = MemoryBroker()
    async with running(tmp_path / "hub", broker) as hub:
        await join(hub, "pi")
        await join(hub, "far", "lyon")
        async with keeping(broker, "pi", tmp_path) as pi, keeping(broker, "far", tmp_path) as far:
            await hub.declarations.apply(flag())
            await pi.has(colour="red")
            await far.has(colour="plain")
            assert not await pi.beat()
            assert (pi.flags.kept, far.flags.kept) == (1, 1)
            await hub.declarations.apply(flag(new="blue"))
            await pi.has(colour="blue")
            assert (pi.flags.kept, far.flags.kept) == (2, 1)
            assert hub.counters["flags_told"] == 3
            await hub.declarations.delete(Ref("flags", "default", "colour"))
            await pi.has()
            assert not await pi.beat()
        kept = await find(hub.audit, Wanted(what="flags/default/colour"))
        assert [entry.verb for _, entry in kept.items] == ["create", "apply", "delete"]


async def test_who_missed_a_change_learns_it_from_the_next_heartbeat(tmp_path: Path) -> None:
    broker = MemoryBroker()
    async with running(tmp_path / "hub", broker) as hub:
        await join(hub, "pi")
        await hub.declarations.apply(flag())
        await settled(hub, "pi")
        async with keeping(broker, "pi", tmp_path) as pi:
            assert pi.values() == {}
            assert await pi.beat()
            await pi.has(colour="red")
            assert not await pi.beat()
            assert hub.loop.state.sightings["pi"].flags == hub.flags.digest("pi")
        # An older agent says nothing of flags, and is not told anything of them.
        said = msgspec.json.encode({"boot": "b", "sequence": 9, "serial": 0, "machine": "m"})
        assert b"flags" not in await pi.fabric.request(subjects.alive("pi"), said, 5.0)


async def test_what_is_kept_counts_without_a_hub_and_a_new_hub_tells_nobody_what_they_know(tmp_path: Path) -> None:
    broker = MemoryBroker()
    async with running(tmp_path / "hub", broker) as hub:
        await join(hub, "pi")
        async with keeping(broker, "pi", tmp_path) as pi:
            await hub.declarations.apply(flag())
            await pi.has(colour="red")
    again = Keeper(broker, "pi", tmp_path)
    assert again.values() == {"colour": "red"}
    assert again.flags.digest == pi.flags.digest
    async with running(tmp_path / "hub", broker) as hub, keeping(broker, "pi", tmp_path) as pi:
        assert not await pi.beat()
        assert hub.counters["flags_told"] == 0


async def test_a_sheet_that_is_too_large_to_be_sent_unasked_is_asked_for(tmp_path: Path) -> None:
    broker = MemoryBroker()
    async with running(tmp_path / "hub", broker) as hub:
        await join(hub, "pi")
        async with keeping(broker, "pi", tmp_path) as pi:
            long = "x" * 12_000
            names = [f"flag-{n}" for n in range(6)]
            await hub.declarations.apply([each for name in names for each in flag(name, long)])
            await pi.has(**dict.fromkeys(names, long))
            assert pi.flags.path.stat().st_size > PUSHED_BYTES_MAX


async def test_a_full_disk_keeps_the_flags_there_are_and_says_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    broker = MemoryBroker()
    async with running(tmp_path / "hub", broker) as hub:
        await join(hub, "pi")
        async with keeping(broker, "pi", tmp_path) as pi:
            await hub.declarations.apply(flag())
            await pi.has(colour="red")

            def full(*_: object) -> None:
                raise OSError(errno.ENOSPC, "No space left on device")

            with monkeypatch.context() as patch:
                patch.setattr(agent_flags, "write_private", full)
                await pi.flags.told(b'{"flags":[]}')
            assert pi.values() == {"colour": "red"}
            assert [(each.about, each.reason and each.reason.code) for each in pi.said] == [
                ("flags", None), ("flags", "disk_full"),
            ]  # fmt: skip
            assert not await pi.beat()


async def test_what_is_no_sheet_changes_nothing_and_is_counted(tmp_path: Path) -> None:
    broker = MemoryBroker()
    async with running(tmp_path / "hub", broker) as hub:
        await join(hub, "pi")
        async with keeping(broker, "pi", tmp_path) as pi:
            await hub.declarations.apply(flag())
            await pi.has(colour="red")
            for bad in (b"{", b'{"error":"verb_unknown","message":"x"}', b"x" * (1 << 20)):
                await pi.flags.told(bad)
            assert pi.values() == {"colour": "red"}
            assert pi.flags.unread == 3
            pi.flags.path.write_bytes(b"{")
    damaged = Keeper(broker, "pi", tmp_path)
    assert (damaged.flags.digest, damaged.flags.unread) == ("", 1)
    assert [each.reason and each.reason.code for each in damaged.said] == ["ledger_corrupt"]


async def test_a_stranger_is_told_nothing(tmp_path: Path) -> None:
    broker = MemoryBroker()
    async with running(tmp_path / "hub", broker) as hub:
        await hub.declarations.apply(flag())
        stranger = broker.connect_node("stranger")
        assert b"node_unknown" in await stranger.request(subjects.ask("stranger", "flags"), b"", 5.0)
