"""Every way to become a node, and every way not to."""

from __future__ import annotations

from typing import TYPE_CHECKING

import msgspec
import pytest

from batuta.core.view import status
from batuta.errors import EnrolmentRefused, NotFound, Refused
from batuta.fabric import identity
from batuta.fabric.clock import SystemClock
from batuta.fabric.memory import MemoryBroker
from batuta.kinds.base import Metadata, Ref
from batuta.kinds.node import Node, NodeSpec
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


# --- Approval ---


async def asking(hub: Hub, uses: int = 1) -> str:
    text, _ = await hub.enrolment.create_token(site="berlin", node="", ttl_ms=60_000, uses=uses, approve=True)
    return text


async def test_who_comes_by_a_token_that_asks_for_approval_is_seen_and_gets_nothing(tmp_path: Path) -> None:
    broker = MemoryBroker()
    async with running(tmp_path, broker) as hub:
        text, key = await asking(hub), identity.make_key()
        assert await code_of(hub, request_for(hub, text, "pi-1", key)) == "approval_pending"
        assert await code_of(hub, request_for(hub, text, "pi-1", key)) == "approval_pending"
        state, ref = hub.loop.state, Ref("nodes", "", "pi-1")
        declared = state.get(ref)
        assert isinstance(declared, Node)
        assert declared.spec.pending
        # Nobody places on it, nobody hears it, and the broker does not know it.
        assert not state.nodes
        assert not state.nodes_of_site
        assert not hub.enrolment.known
        said = status(state, ref, hub.clock.now())
        assert (said["state"], said["sync"]["word"]) == ("pending", "pending")
        assert "batuta node approve pi-1" in said["next"]
        # The token was spent by it, and its name is taken.
        assert await code_of(hub, request_for(hub, text, "pi-2")) == "token_used"
        assert await code_of(hub, request_for(hub, await asking(hub), "pi-1")) == "name_taken"
        assert hub.counters["enrolments_refused"] == 2
    async with running(tmp_path, broker) as hub:
        assert set(hub.enrolment.waiting) == {"pi-1"}
        assert not hub.enrolment.known
        assert await code_of(hub, request_for(hub, text, "pi-1", key)) == "approval_pending"


async def test_an_approved_machine_joins_with_the_same_key_though_its_token_has_ended(tmp_path: Path) -> None:
    clock = VirtualNow()
    async with running(tmp_path, clock=clock) as hub:
        text, key = await asking(hub), identity.make_key()
        assert await code_of(hub, request_for(hub, text, "pi-1", key)) == "approval_pending"
        clock.ahead_ms += 3_600_000
        assert await code_of(hub, request_for(hub, text, "pi-1", key)) == "approval_pending"
        found = await hub.enrolment.approve("pi-1")
        assert await hub.enrolment.approve("pi-1") == found
        assert hub.loop.state.nodes["pi-1"].spec.site == "berlin"
        assert set(hub.enrolment.known) == {"pi-1"}
        # Only the machine that was approved, never another that knows the token.
        assert await code_of(hub, request_for(hub, text, "pi-1")) == "token_expired"
        for _ in range(2):
            answer = await hub.enrolment.enrol(request_for(hub, text, "pi-1", key))
            assert identity.node_in_certificate(answer.chain) == "pi-1"
        with pytest.raises(NotFound):
            await hub.enrolment.approve("pi-9")


async def test_a_refused_machine_stays_out_though_its_token_is_good_for_more(tmp_path: Path) -> None:
    async with running(tmp_path) as hub:
        text, key = await asking(hub, uses=3), identity.make_key()
        assert await code_of(hub, request_for(hub, text, "pi-1", key)) == "approval_pending"
        await hub.declarations.delete(Ref("nodes", "", "pi-1"))
        assert not hub.enrolment.waiting
        assert await code_of(hub, request_for(hub, text, "pi-1", key)) == "join_refused"
        assert await code_of(hub, request_for(hub, text, "pi-2", key)) == "join_refused"
        assert hub.loop.state.get(Ref("nodes", "", "pi-1")) is None
        assert await code_of(hub, request_for(hub, text, "pi-1")) == "approval_pending"


async def test_nobody_approves_by_writing_a_manifest(tmp_path: Path) -> None:
    async with running(tmp_path) as hub:
        await code_of(hub, request_for(hub, await asking(hub), "pi-1"))
        ref = Ref("nodes", "", "pi-1")
        labelled = Node(metadata=Metadata(name="pi-1", labels={"line": "2"}), spec=NodeSpec(site="berlin"))
        await hub.declarations.apply([labelled])
        found = hub.loop.state.get(ref)
        assert isinstance(found, Node)
        assert (found.spec.pending, found.metadata.labels) == (True, {"line": "2"})
        assert await code_of(hub, request_for(hub, await asking(hub), "pi-1")) == "name_taken"
        made = Node(metadata=Metadata(name="pi-2"), spec=NodeSpec(site="berlin", pending=True))
        with pytest.raises(Refused, match=r"spec\.pending: only enrolment says"):
            await hub.declarations.apply([made])
        await hub.enrolment.approve("pi-1")
        assert hub.loop.state.nodes["pi-1"].metadata.labels == {"line": "2"}
        with pytest.raises(Refused):
            await hub.declarations.apply([msgspec.structs.replace(made, metadata=Metadata(name="pi-1"))])


class VirtualNow(SystemClock):
    """The machine's clock, put forward by a test."""

    def __init__(self) -> None:
        self.ahead_ms = 0

    def now(self) -> int:
        return super().now() + self.ahead_ms
