"""A node writes only its own subjects: tried, with a client that is not Batuta's and a link that is not a broker's."""

from __future__ import annotations

import asyncio
import json
import ssl
import time
from contextlib import suppress
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import pytest
from nats.errors import Error as NatsError

from batuta.errors import FabricUnavailable
from batuta.fabric import broker, callout, identity, subjects

if TYPE_CHECKING:
    from collections.abc import Callable

    from batuta.fabric.base import Message

pytestmark = pytest.mark.e2e


async def until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(60):
        while not condition():  # noqa: ASYNC110  a journal cannot be awaited
            await asyncio.sleep(0.01)


# --- The rule by itself ---------------------------------------------------------------------------------------------

NOW = 1_790_000_000_000
ROOT = identity.make_root("Batuta", NOW, 1)
BERLIN = identity.make_site_authority(ROOT, "berlin", NOW, 2)
REQUEST = identity.make_request(identity.make_key(), "pi-4")
CERTIFICATE = identity.sign_request(BERLIN, REQUEST, node="pi-4", now=NOW, serial=3, valid_s=7200)
KEY_ID = identity.key_id_of_request(REQUEST)
WISH = callout.Request("S", "U", "Leafnode", "10.0.0.7", 12, CERTIFICATE)


def test_a_known_node_gets_its_rights_for_an_hour() -> None:
    nodes = {"pi-4": callout.Known(KEY_ID)}
    assert callout.authorize(WISH, nodes, NOW) == callout.Grant(
        "pi-4", subjects.rights_of_node("pi-4"), NOW + 3_600_000
    )
    late = callout.authorize(WISH, nodes, NOW + 7_000_000)
    assert isinstance(late, callout.Grant)
    assert late.expires_at == NOW + 7_200_000


@pytest.mark.parametrize(
    ("code", "wish", "nodes", "now"),
    [
        ("not_a_node", replace(WISH, kind="Client"), {"pi-4": callout.Known(KEY_ID)}, NOW),
        ("no_certificate", replace(WISH, certificate_pem=""), {"pi-4": callout.Known(KEY_ID)}, NOW),
        ("names_no_node", replace(WISH, certificate_pem=ROOT.certificate_pem), {"pi-4": callout.Known(KEY_ID)}, NOW),
        ("unknown_node", WISH, {}, NOW),
        ("revoked", WISH, {"pi-4": callout.Known(KEY_ID, is_allowed=False)}, NOW),
        ("other_key", WISH, {"pi-4": callout.Known("another")}, NOW),
        ("certificate_expired", WISH, {"pi-4": callout.Known(KEY_ID)}, NOW + 7_200_000),
    ],
)
def test_everything_else_is_denied_with_a_code(
    code: str, wish: callout.Request, nodes: dict[str, callout.Known], now: int
) -> None:
    verdict = callout.authorize(wish, nodes, now)
    assert isinstance(verdict, callout.Denial)
    assert verdict.code == code


def test_no_right_of_one_node_touches_another() -> None:
    one, other = subjects.rights_of_node("n1"), subjects.rights_of_node("n2")
    assert not set(one.publish) & set(other.publish)
    # What all may hear says nothing but that there is something to ask for.
    assert set(one.subscribe) & set(other.subscribe) == {subjects.HUB_ALIVE, "batuta.hub.site.*"}
    assert all(".n1" in subject for subject in one.publish)


# --- Tried ----------------------------------------------------------------------------------------------------------


async def test_a_node_writes_and_reads_only_what_is_its_own(new_town: Any) -> None:
    town = await new_town()
    hub = await town.hub_fabric()
    for each in ("n1", "n2"):
        await hub.table("decided").put(subjects.assignment_key(each), f"for {each}".encode())
    heard: list[str] = []

    async def hear(message: Message) -> None:
        heard.append(message.subject)

    for subject in (subjects.ALL_ALIVE, subjects.ALL_REPORTS, subjects.ALL_ASKS, "batuta.up.>"):
        await hub.subscribe(subject, hear)
    fabric = await town.node_fabric(await town.node("n1"))
    await fabric.wait_connected(10)
    rogue = await town.client(town.nodes["n1"].client_port, "agent", "agent-secret", inbox="_INBOX.n1")

    forbidden = (
        subjects.report("n2"),
        subjects.alive("n2"),
        subjects.ask("n2", "renew"),
        subjects.told("n2", "1234"),
        subjects.up("n2", "critical"),
        subjects.assignment("n2"),
        subjects.HUB_ALIVE,
        "$KV.decided.assignment.n1",
        "$KV.observed.report.n1",
        "$JS.hub.API.INFO",
        "$JS.hub.API.STREAM.DELETE.KV_decided",
        "$JS.hub.API.STREAM.MSG.GET.KV_decided",
        "$JS.hub.API.CONSUMER.CREATE.KV_decided",
        "$SYS.REQ.SERVER.PING",
        callout.REQUESTS,
        subjects.direct_get("hub", "decided", subjects.assignment_key("n2")),
        subjects.direct_get("hub", "desired", "models.default.secret"),
        "$JS.hub.API.DIRECT.GET.KV_decided",
    )
    for subject in forbidden:
        try:
            answer = await rogue.request(subject, b'{"last_by_subj":"$KV.decided.assignment.n2"}', timeout=0.15)
        except NatsError:
            continue
        # The broker beside it may answer for itself; what it must not do is answer for the hub.
        assert b"for n2" not in answer.data, subject
        assert json.loads(answer.data).get("error"), subject
    own = await rogue.request(subjects.report("n1"), b"mine", timeout=5)
    assert json.loads(own.data)["domain"] == "hub"
    assert [subject for subject in heard if "n2" in subject] == []
    assert await hub.table("observed").keys() == ["report.n1"]
    entry = await hub.table("decided").get(subjects.assignment_key("n1"))
    assert entry is not None
    assert entry.value == b"for n1"

    overheard: list[str] = []

    async def overhear(message: Any) -> None:
        overheard.append(message.subject)

    for subject in (">", "batuta.>", "batuta.assignment.*", "$KV.>", "_INBOX.>"):
        await rogue.subscribe(subject, cb=overhear)
    await rogue.flush()
    await hub.table("decided").put(subjects.assignment_key("n2"), b"for n2, again")
    await hub.table("decided").put(subjects.assignment_key("n1"), b"for n1, again")
    await until(lambda: subjects.assignment("n1") in overheard)
    assert [subject for subject in overheard if "n2" in subject] == []
    await fabric.close()
    await hub.close()


async def test_a_link_that_is_no_broker_is_held_to_the_same_rights(new_town: Any) -> None:
    """A node may run what it likes. Here it speaks the link's protocol by hand, with its own good certificate."""
    town = await new_town()
    hub = await town.hub_fabric()
    await hub.table("decided").put(subjects.assignment_key("n2"), b"for n2")
    chain, key = town.certify("n1", "berlin")
    files = town.write("n1", chain, key, town.root.certificate_pem)
    context = ssl.create_default_context(cafile=str(files.trusts))
    context.load_cert_chain(files.chain, files.key)
    words = {"name": "n1", "server_id": "N" * 56, "headers": True, "tls_required": True, "version": "2.15.1"}

    async def speak(*lines: bytes) -> bytes:
        """What the hub's broker says to these lines, until it hangs up or falls silent."""
        reader, writer = await asyncio.open_connection("127.0.0.1", town.hub.leaf_port)
        assert (await reader.readline()).startswith(b"INFO ")
        await writer.start_tls(context, server_hostname="127.0.0.1")
        writer.write(b"CONNECT " + json.dumps(words).encode() + b"\r\n")
        writer.write(b"LS+ _INBOX.n1.x\r\n" + b"".join(line + b"\r\n" for line in lines))
        said = b""
        with suppress(TimeoutError, ConnectionError):
            await writer.drain()
            while data := await asyncio.wait_for(reader.read(65536), 0.4):
                said += data
        writer.close()
        return said

    lies = [
        b"LMSG %s 3\r\nlie" % subject
        for subject in (
            b"batuta.report.n2",
            b"$KV.observed.report.n3",
            b"$KV.decided.assignment.n1",
            b"batuta.hub.alive",
        )
    ]
    get_other = subjects.direct_get("hub", "decided", subjects.assignment_key("n2")).encode()
    said = await speak(*lies, b"LMSG %s _INBOX.n1.x 0\r\n" % get_other)
    assert b"for n2" not in said
    assert await hub.table("observed").keys() == []
    assert await hub.table("decided").get(subjects.assignment_key("n1")) is None
    # It does speak the protocol: what is its own goes through.
    said = await speak(b"LMSG batuta.report.n1 _INBOX.n1.x 5\r\ntruth")
    assert b'"stream":"KV_observed"' in said
    assert await hub.table("observed").keys() == ["report.n1"]
    # To listen in is answered by hanging up; a wider wish stands, but carries only what is the node's own.
    assert b"Permissions Violation" in await speak(b"LS+ batuta.assignment.n2")
    wide = (b"_INBOX.hub.>", b"_INBOX.>", b"$KV.>", b"$KV.decided.>", b"batuta.>", b"batuta.assignment.*", b"*.>", b">")
    for subject in wide:
        listening = asyncio.create_task(speak(b"LS+ " + subject, b"PING"))
        await asyncio.sleep(0.2)
        await hub.table("decided").put(subjects.assignment_key("n2"), b"for n2, again")
        assert await hub.table("decided").get(subjects.assignment_key("n2")) is not None
        said = await listening
        assert b"PONG" in said
        assert b"for n2" not in said, subject
    await hub.close()


async def test_a_revoked_node_is_gone_at_once_and_may_come_back(new_town: Any) -> None:
    town = await new_town()
    hub = await town.hub_fabric()
    fabric = await town.node_fabric(await town.node("n1"))
    await fabric.wait_connected(10)
    started_s = time.monotonic()
    assert await town.deny("n1") == 1
    with pytest.raises(FabricUnavailable):
        await fabric.table("observed").put(subjects.report_key("n1"), b"still here?")
    assert time.monotonic() - started_s < 6
    await until(lambda: town.gate.denied["revoked"] > 0)
    await until(lambda: not fabric.is_connected)
    town.allow("n1")
    await fabric.wait_connected(10)
    # A hub process that has just started does not know which link is whose.
    await town.close_gate()
    await town.open_gate()
    assert await town.deny("n1") == 1
    await until(lambda: town.gate.denied["revoked"] > 0)
    await fabric.close()
    await hub.close()


async def test_another_root_another_key_or_no_certificate_is_refused(new_town: Any) -> None:
    town = await new_town()
    # Signed by somebody else's root, under the right names.
    other_root = identity.make_root("Batuta", town.clock.now(), 1)
    other_site = identity.make_site_authority(other_root, "berlin", town.clock.now(), 2)
    good = await town.node("n1", with_hub=False)
    good_chain, good_key = (town.directory / f"n1.{part}.pem" for part in ("chain", "key"))
    with_hub = replace(good, hub_urls=(f"tls://127.0.0.1:{town.hub.leaf_port}",))
    chain, key = town.certify("n1", "berlin", other_site)
    town.write("n1", chain, key, town.root.certificate_pem)
    await town.brokers["n1"].stop()
    await town.brokers["n1"].start(broker.node_config(with_hub))
    journal = town.brokers["hub"].log_file
    await until(lambda: "TLS leafnode handshake error" in journal.read_text())
    assert town.gate.granted == 0
    # The right root, but a key that this node did not join with: a second machine under the first one's name.
    remembered = callout.Known(identity.key_id_of_certificate(chain))
    chain, key = town.certify("n1", "berlin")
    town.known["n1"] = remembered
    town.write("n1", chain, key, town.root.certificate_pem)
    await town.brokers["n1"].stop()
    await town.brokers["n1"].start(broker.node_config(with_hub))
    await until(lambda: town.gate.denied["other_key"] > 0)
    assert town.gate.granted == 0
    assert good_chain.exists()
    assert good_key.exists()
    # A plain client at the hub's own port has to be one of the hub's own users.
    with pytest.raises((NatsError, OSError)):
        await asyncio.wait_for(town.client(town.hub.client_port, "somebody", "guess"), 3)
    assert town.gate.denied["not_a_node"] > 0


async def test_links_stand_while_the_hub_process_is_down(new_town: Any) -> None:
    town = await new_town()
    hub = await town.hub_fabric()
    first = await town.node_fabric(await town.node("n1"))
    await first.wait_connected(10)
    await town.close_gate()
    await first.table("observed").put(subjects.report_key("n1"), b"nobody decides, but the broker keeps this")
    late = await town.node_fabric(await town.node("n2"))
    with pytest.raises(FabricUnavailable):
        await late.wait_connected(3)
    assert first.is_connected
    await town.open_gate()
    await late.wait_connected(15)
    await late.table("observed").put(subjects.report_key("n2"), b"in")
    assert await hub.table("observed").keys("report.") == ["report.n1", "report.n2"]
    for fabric in (first, late, hub):
        await fabric.close()
