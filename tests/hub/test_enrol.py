"""Every way to become a node, and every way not to."""

from __future__ import annotations

from typing import TYPE_CHECKING

import msgspec
import pytest

from batuta.errors import EnrolmentRefused, NotFound
from batuta.fabric import identity
from batuta.fabric.memory import MemoryBroker
from batuta.kinds.base import Ref
from tests.hub.hubs import join, request_for, running

if TYPE_CHECKING:
    from pathlib import Path

    from batuta.hub.enrol import EnrolRequest
    from batuta.hub.hub import Hub


async def code_of(hub: Hub, asked: EnrolRequest) -> str:
    with pytest.raises(EnrolmentRefused) as caught:
        await hub.enrolment.enrol(asked)
    return caught.value.code


async def test_a_token_makes_a_node_and_its_site_once(tmp_path: Path) -> None:
    async with running(tmp_path) as hub:
        text, _ = await hub.enrolment.create_token(site="berlin", node="", ttl_ms=60_000, uses=1)
        asked = request_for(hub, text, "pi-1", key := identity.make_key())
        answer = await hub.enrolment.enrol(asked)
        now = hub.clock.now()
        identity.check_chain(answer.chain, answer.root, now)
        assert identity.node_in_certificate(answer.chain) == "pi-1"
        assert identity.pin_of(answer.root) == identity.read_token(text).pin
        assert (answer.site, answer.leafs) == ("berlin", ("tls://h:7422",))
        state = hub.loop.state
        assert state.nodes["pi-1"].spec.site == "berlin"
        assert state.get(Ref("sites", "", "berlin")) is not None

        # The answer got lost: the same machine asks again, and nothing changes.
        again = await hub.enrolment.enrol(request_for(hub, text, "pi-1", key))
        assert again.site == "berlin"
        assert hub.loop.state.nodes["pi-1"] == state.nodes["pi-1"]
        assert [row.used_by for row in await hub.enrolment.tokens()] == [("pi-1",)]
        assert await code_of(hub, request_for(hub, text, "pi-2")) == "token_used"


async def test_each_refusal_has_its_own_code_and_leaves_no_trace(tmp_path: Path) -> None:
    async with running(tmp_path) as hub:
        text, row = await hub.enrolment.create_token(site="berlin", node="", ttl_ms=60_000, uses=1)
        short, _ = await hub.enrolment.create_token(site="berlin", node="", ttl_ms=0, uses=1)
        mine, _ = await hub.enrolment.create_token(site="berlin", node="pi-9", ttl_ms=60_000, uses=1)
        good = request_for(hub, text, "pi-1")
        replace = msgspec.structs.replace
        assert await code_of(hub, replace(good, token_id="ffff")) == "token_unknown"
        assert await code_of(hub, replace(good, token_id="../../etc")) == "token_unknown"
        assert await code_of(hub, replace(good, secret="guess")) == "token_unknown"
        assert await code_of(hub, request_for(hub, short, "pi-1")) == "token_expired"
        assert await code_of(hub, request_for(hub, mine, "pi-1")) == "token_for_another"
        assert await code_of(hub, request_for(hub, text, "pi-1", apart_ms=-400_000)) == "clock_wrong"
        assert await code_of(hub, request_for(hub, text, "Pi_1")) == "name_invalid"
        assert await code_of(hub, replace(good, request="junk")) == "request_malformed"
        assert not hub.loop.state.nodes
        assert not hub.enrolment.known
        assert hub.counters["enrolments_refused"] == 8
        await hub.enrolment.revoke_token(row.record.id)
        assert await code_of(hub, good) == "token_unknown"
        with pytest.raises(NotFound):
            await hub.enrolment.revoke_token(row.record.id)


async def test_two_machines_cannot_have_one_name(tmp_path: Path) -> None:
    async with running(tmp_path) as hub:
        await join(hub, "pi-1")
        text, _ = await hub.enrolment.create_token(site="berlin", node="", ttl_ms=60_000, uses=1)
        assert await code_of(hub, request_for(hub, text, "pi-1")) == "name_taken"
        # The token was not spent by that.
        await hub.enrolment.enrol(request_for(hub, text, "pi-2"))
        assert sorted(hub.loop.state.nodes) == ["pi-1", "pi-2"]


async def test_the_hub_keeps_hashes_and_forgets_nothing_in_a_restart(tmp_path: Path) -> None:
    broker = MemoryBroker()
    async with running(tmp_path, broker) as hub:
        text, _ = await hub.enrolment.create_token(site="", node="", ttl_ms=60_000, uses=2)
        await hub.enrolment.enrol(request_for(hub, text, "pi-1"))
        secret = identity.read_token(text).secret
        kept = [row.value for rows in broker.tables.values() for row in rows.rows.values() if row.value]
        assert not any(secret.encode() in value for value in kept)
        known = dict(hub.enrolment.known)
    async with running(tmp_path, broker) as hub:
        assert hub.enrolment.known == known
        await hub.enrolment.enrol(request_for(hub, text, "pi-2"))
        assert await code_of(hub, request_for(hub, text, "pi-3")) == "token_used"
        # Both joined the site that a token without one means.
        assert {n.spec.site for n in hub.loop.state.nodes.values()} == {"default"}


async def test_nodes_are_ordered_by_when_they_joined(tmp_path: Path) -> None:
    async with running(tmp_path) as hub:
        for name in ("c", "a", "b"):
            await join(hub, name)
        assert hub.loop.state.nodes_of_site["berlin"] == ("c", "a", "b")


async def test_a_removed_node_is_kicked_and_known_no_more(tmp_path: Path) -> None:
    kicked: list[str] = []

    async def kick(node: str) -> None:
        # By now it must be unknown: else it is back in a second.
        assert node not in hub.enrolment.known
        kicked.append(node)

    async with running(tmp_path) as hub:
        hub._kick = kick
        await join(hub, "pi-1")
        await hub.declarations.delete(Ref("nodes", "", "pi-1"))
        assert kicked == ["pi-1"]
        assert "pi-1" not in hub.loop.state.nodes
        await join(hub, "pi-1")
