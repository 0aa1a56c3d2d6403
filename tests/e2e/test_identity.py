"""Certificates that real TLS accepts, and tokens that say why they are refused."""

from __future__ import annotations

import asyncio
import ssl
import time
from typing import TYPE_CHECKING

import pytest

from batuta.errors import EnrolmentRefused
from batuta.fabric import identity

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

pytestmark = pytest.mark.e2e

NOW = 1_790_000_000_000
CHANCE = bytes(range(32))


def refused(code: str, act: Callable[[], object]) -> EnrolmentRefused:
    with pytest.raises(EnrolmentRefused) as caught:
        act()
    assert caught.value.code == code
    return caught.value


def test_a_token_survives_a_chat_and_says_when_it_was_cut() -> None:
    token, record = identity.make_token(
        hubs=["https://10.0.0.5:8443", "https://hub:8443"], pin="ab" * 32, chance=CHANCE, expires_at=NOW, site="berlin"
    )
    text = identity.write_token(token)
    assert identity.read_token(text) == token
    assert identity.read_token(f"  {text[:40]}\n{text[40:]} ") == token
    assert token.secret not in repr(record)
    assert not set(text) & set(" '\"$`\\&;|<>()")
    refused("token_garbled", lambda: identity.read_token(text[:-9]))
    refused("token_garbled", lambda: identity.read_token("hello"))


def test_every_way_a_token_is_refused_has_its_own_code() -> None:
    token, record = identity.make_token(
        hubs=["https://h"], pin="", chance=CHANCE, expires_at=NOW + 1000, site="berlin", node="pi-4"
    )
    spent = identity.spend_token(record, token.secret, node="pi-4", now=NOW, key_id="k1")
    assert spent.uses_left == 0
    refused("token_used", lambda: identity.spend_token(spent, token.secret, node="pi-4", now=NOW, key_id="k1"))
    refused("token_unknown", lambda: identity.spend_token(None, token.secret, node="pi-4", now=NOW, key_id="k1"))
    refused("token_unknown", lambda: identity.spend_token(record, "guess", node="pi-4", now=NOW, key_id="k1"))
    refused(
        "token_expired", lambda: identity.spend_token(record, token.secret, node="pi-4", now=NOW + 1000, key_id="k1")
    )
    refused("token_for_another", lambda: identity.spend_token(record, token.secret, node="pi-5", now=NOW, key_id="k1"))
    # The answer got lost: the same machine asks again, and is not told that it came too late.
    again = identity.spend_token(spent, token.secret, node="pi-4", now=NOW, known_key_id="k1", key_id="k1")
    assert again == spent
    refused(
        "name_taken",
        lambda: identity.spend_token(record, token.secret, node="pi-4", now=NOW, key_id="k2", known_key_id="k1"),
    )


def test_a_chain_holds_only_under_its_root_and_in_its_time() -> None:
    root = identity.make_root("Batuta", NOW, 1)
    site = identity.make_site_authority(root, "berlin", NOW, 2)
    request = identity.make_request(identity.make_key(), "whatever-it-claims")
    chain = identity.sign_request(site, request, node="pi-4", now=NOW, serial=3, valid_s=3600, addresses=["10.0.0.7"])
    identity.check_chain(chain, root.certificate_pem, NOW)
    assert identity.node_in_certificate(chain) == "pi-4"
    assert identity.node_in_certificate(root.certificate_pem) == ""
    assert identity.key_id_of_certificate(chain) == identity.key_id_of_request(request)
    assert identity.serial_of(chain) == 3
    assert identity.validity(chain) == (NOW - 300_000, NOW + 3_600_000)

    other = identity.make_root("Batuta", NOW, 1)
    refused("wrong_authority", lambda: identity.check_chain(chain, other.certificate_pem, NOW))
    skew = refused("clock_wrong", lambda: identity.check_chain(chain, root.certificate_pem, NOW - 900_000))
    assert "600 s behind" in skew.message
    refused("certificate_expired", lambda: identity.check_chain(chain, root.certificate_pem, NOW + 3_600_000))
    identity.check_pin(root.certificate_pem, identity.pin_of(root.certificate_pem))
    refused("hub_not_trusted", lambda: identity.check_pin(other.certificate_pem, identity.pin_of(root.certificate_pem)))


def test_a_damaged_request_is_refused() -> None:
    root = identity.make_root("Batuta", NOW, 1)
    refused(
        "request_malformed", lambda: identity.sign_request(root, "nonsense", node="pi-4", now=NOW, serial=3, valid_s=60)
    )


async def test_tls_takes_neighbours_of_the_site_and_nobody_else(tmp_path: Path) -> None:
    now = time.time_ns() // 1_000_000
    root = identity.make_root("Batuta", now, 1)
    berlin = identity.make_site_authority(root, "berlin", now, 2)
    madrid = identity.make_site_authority(root, "madrid", now, 3)

    def context(purpose: ssl.Purpose, who: str, authority: identity.Authority, trusts: str) -> ssl.SSLContext:
        key = identity.make_key()
        chain = identity.sign_request(
            authority, identity.make_request(key, who), node=who, now=now, serial=9, valid_s=600
        )
        (tmp_path / f"{who}.key").write_text(key)
        (tmp_path / f"{who}.pem").write_text(chain)
        made = ssl.create_default_context(purpose, cadata=trusts)
        # Go, which the broker is written in, takes an intermediate as an anchor; OpenSSL wants to be told.
        made.verify_flags |= ssl.VERIFY_X509_PARTIAL_CHAIN
        made.verify_mode = ssl.CERT_REQUIRED
        made.load_cert_chain(tmp_path / f"{who}.pem", tmp_path / f"{who}.key")
        return made

    async def greet(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(await reader.read(1))
        await writer.drain()
        writer.close()

    listener = context(ssl.Purpose.CLIENT_AUTH, "pi-1", berlin, berlin.certificate_pem)
    server = await asyncio.start_server(greet, "127.0.0.1", 0, ssl=listener)
    port = server.sockets[0].getsockname()[1]

    async def echo(who: str, authority: identity.Authority) -> bytes:
        client = context(ssl.Purpose.SERVER_AUTH, who, authority, root.certificate_pem)
        reader, writer = await asyncio.open_connection("127.0.0.1", port, ssl=client)
        try:
            writer.write(b"!")
            return await reader.read(1)
        finally:
            writer.close()

    async with server:
        assert await echo("pi-2", berlin) == b"!"
        # TLS 1.3 tells a client that it is refused only after its first words, as an error or as an end.
        try:
            heard = await echo("pi-3", madrid)
        except (ssl.SSLError, ConnectionError):
            heard = b""
        assert heard == b""
