"""Who may connect to the hub's broker, decided for every link, every hour.

The broker asks, this answers. `authorize` is the whole rule and pure: a verified certificate that names a node the hub
knows, by the key the hub remembers, gets that node's rights until the hour is over or the certificate ends; everything
else is denied with a reason. `Callout` is the wire around it.

While the hub process is down, links that stand keep standing and new ones wait: the broker asks again when they try
again. Hub only. A node has no business here, and the library for the signatures is not installed there.
"""

from __future__ import annotations

import base64
import hashlib
import logging
from collections import Counter
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final

import msgspec
import nkeys
from nats.errors import Error as NatsError

from batuta.fabric import identity
from batuta.fabric.subjects import Rights, rights_of_node

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from nats.aio.client import Client
    from nats.aio.msg import Msg

    from batuta.fabric.clock import Clock

log = logging.getLogger(__name__)

REQUESTS: Final = "$SYS.REQ.USER.AUTH"
GRANT_LASTS_MS: Final = 3_600_000
KICK_TIMEOUT_S: Final = 5.0


@dataclass(frozen=True, slots=True)
class Request:
    """A wish to connect, as the broker put it."""

    server_id: str
    user_key: str
    """The key that the answer must be made out to."""
    kind: str
    """`Leafnode`, or `Client` for anyone who speaks to the client port without being one of the hub's own users."""
    host: str
    connection: int
    certificate_pem: str
    """The certificate that the broker verified down to its root; "" when there was none."""


@dataclass(frozen=True, slots=True)
class Known:
    """What the hub remembers of a node that has joined."""

    key_id: str
    is_allowed: bool = True
    """False once it was removed, or is held: its link is refused until that changes."""


@dataclass(frozen=True, slots=True)
class Grant:
    """This link is node `node`, may do `rights`, and must ask again at `expires_at`."""

    node: str
    rights: Rights
    expires_at: int
    namespaces: tuple[str, ...] = ()
    """In which it may call models at other sites."""


def no_namespaces(_node: str) -> tuple[str, ...]:
    return ()


@dataclass(frozen=True, slots=True)
class Denial:
    """Why not: a stable word to count by, and a sentence for the journal."""

    code: str
    message: str


def authorize(
    request: Request, nodes: Mapping[str, Known], now: int, namespaces: Callable[[str], Sequence[str]] = no_namespaces
) -> Grant | Denial:
    """What `request` gets. Rows in order; the first that fits is the answer. `namespaces` says in which a node may call
    models at other sites."""
    if request.kind != "Leafnode":
        return Denial(
            "not_a_node", f"a {request.kind or 'nameless'} connection from {request.host} is not a node's link"
        )
    if not request.certificate_pem:
        return Denial("no_certificate", f"{request.host} showed no certificate that the hub's root vouches for")
    node = identity.node_in_certificate(request.certificate_pem)
    if not node:
        return Denial("names_no_node", f"the certificate of {request.host} names no node")
    known = nodes.get(node)
    if known is None:
        return Denial("unknown_node", f"no node is called {node}: it never joined, or was removed")
    if not known.is_allowed:
        return Denial("revoked", f"node {node} may not connect")
    if identity.key_id_of_certificate(request.certificate_pem) != known.key_id:
        return Denial("other_key", f"{request.host} calls itself {node} with another key than {node} joined with")
    _, ends = identity.validity(request.certificate_pem)
    if now >= ends:
        return Denial("certificate_expired", f"the certificate of {node} has ended")
    may_call = tuple(namespaces(node))
    return Grant(node, rights_of_node(node, may_call), min(now + GRANT_LASTS_MS, ends), may_call)


# --- The wire: signed JSON, as the broker wants it ------------------------------------------------------------------


def make_issuer(chance: bytes) -> str:
    """The secret that signs answers, from 32 unpredictable bytes. `HubBroker.callout_issuer` is its public half."""
    return bytes(nkeys.encode_seed(chance, nkeys.PREFIX_BYTE_ACCOUNT)).decode()


def issuer_public(seed: str) -> str:
    return str(nkeys.from_seed(seed.encode()).public_key.decode()).rstrip("=")


def read_request(token: bytes) -> Request:
    """The request inside the broker's own signed envelope.

    The signature is not checked: only the broker's system account can speak on the subject that this is heard on.
    """
    body = msgspec.json.decode(_unb64(token.split(b".")[1]))["nats"]
    client, tls = body.get("client_info", {}), body.get("client_tls", {})
    chains = tls.get("verified_chains") or [[]]
    return Request(
        server_id=body["server_id"]["id"],
        user_key=body["user_nkey"],
        kind=client.get("kind", ""),
        host=client.get("host", ""),
        connection=int(client.get("id", 0)),
        certificate_pem=chains[0][0] if chains[0] else "",
    )


def write_answer(request: Request, verdict: Grant | Denial, seed: str, now: int) -> bytes:
    """The answer to `request`, signed."""
    content: dict[str, Any] = {"type": "authorization_response", "version": 2}
    if isinstance(verdict, Grant):
        content["jwt"] = _signed(_user(request, verdict, now), seed).decode()
    else:
        content["error"] = verdict.code
    claims = {"aud": request.server_id, "sub": request.user_key, "iat": now // 1000, "nats": content}
    return _signed(claims, seed)


def _user(request: Request, grant: Grant, now: int) -> dict[str, Any]:
    rights = {"pub": {"allow": grant.rights.publish}, "sub": {"allow": grant.rights.subscribe}}
    return {
        "aud": "CONTROL",
        "sub": request.user_key,
        "name": grant.node,
        "iat": now // 1000,
        "exp": grant.expires_at // 1000,
        "nats": {"type": "user", "version": 2, "subs": -1, "data": -1, "payload": -1, **rights},
    }


def _signed(claims: dict[str, Any], seed: str) -> bytes:
    claims = {**claims, "iss": issuer_public(seed)}
    claims["jti"] = hashlib.sha256(msgspec.json.encode(claims, order="sorted")).hexdigest()
    head = _b64(b'{"typ":"JWT","alg":"ed25519-nkey"}')
    signed = head + b"." + _b64(msgspec.json.encode(claims))
    return signed + b"." + _b64(nkeys.from_seed(seed.encode()).sign(signed))


def _b64(data: bytes) -> bytes:
    return base64.urlsafe_b64encode(data).rstrip(b"=")


def _unb64(data: bytes) -> bytes:
    return base64.urlsafe_b64decode(data + b"=" * (-len(data) % 4))


# --- The responder --------------------------------------------------------------------------------------------------


@dataclass(slots=True)
class Callout:
    """Answers the hub's broker. `authority` speaks to account AUTH, `system` to the system account."""

    authority: Client
    system: Client
    seed: str
    nodes: Callable[[], Mapping[str, Known]]
    clock: Clock
    namespaces: Callable[[str], Sequence[str]] = no_namespaces
    """In which a node may call models at other sites, this moment."""
    denied: Counter[str] = field(default_factory=Counter)
    """How often each code was the answer, since this process began."""
    granted: int = 0
    _links: dict[str, tuple[str, int]] = field(default_factory=dict)
    _may_call: dict[str, tuple[str, ...]] = field(default_factory=dict)

    async def start(self) -> None:
        await self.authority.subscribe(REQUESTS, cb=self._answer)
        await self.authority.flush()

    async def _answer(self, message: Msg) -> None:
        now = self.clock.now()
        try:
            request = read_request(message.data)
            verdict = authorize(request, self.nodes(), now, self.namespaces)
        except Exception:
            # No answer is a refusal too, after the broker's patience; a bug here must not let anyone in.
            log.exception("a request for authorisation could not be judged")
            self.denied["unreadable"] += 1
            return
        if isinstance(verdict, Denial):
            self.denied[verdict.code] += 1
            log.warning("refused a link: %s", verdict.message)
        else:
            self.granted += 1
            self._links[verdict.node] = (request.server_id, request.connection)
            self._may_call[verdict.node] = verdict.namespaces
        await message.respond(write_answer(request, verdict, self.seed, now))

    async def kick(self, node: str) -> int:
        """Ends the link of `node`; returns how many links were ended. Deny first, or it is back in a second.

        A responder that started after the link was made does not know which one it is. It then ends every link it did
        not grant itself: the innocent ones are back within a second, the other one is not.
        """
        if (link := self._links.pop(node, None)) is not None:
            return int(await self._end(*link))
        ours = set(self._links.values())
        ended = 0
        for link in await self._all_links():
            if link not in ours:
                ended += await self._end(*link)
        return ended

    def may_call(self, node: str, namespace: str) -> bool:
        """Whether the link of `node` was given this namespace. Of a link that an earlier process judged nothing is
        known."""
        return namespace in self._may_call.get(node, ())

    async def relink(self, node: str) -> int:
        """Ends the link of `node` so that it is made anew, with the rights of now. The name by which an unknown link is
        found is the node's own word; whoever lies about it ends another's link for a second, and may as well be
        removed."""
        if (link := self._links.pop(node, None)) is not None:
            return int(await self._end(*link))
        return sum([await self._end(*link) for link in await self._all_links(named=node)])

    async def _end(self, server_id: str, connection: int) -> bool:
        body = msgspec.json.encode({"cid": connection})
        try:
            answer = await self.system.request(f"$SYS.REQ.SERVER.{server_id}.KICK", body, timeout=KICK_TIMEOUT_S)
        except NatsError:
            return False
        return "error" not in msgspec.json.decode(answer.data)

    async def _all_links(self, named: str = "") -> list[tuple[str, int]]:
        answer = await self.system.request("$SYS.REQ.SERVER.PING.LEAFZ", b"", timeout=KICK_TIMEOUT_S)
        body = msgspec.json.decode(answer.data)
        leafs = body["data"].get("leafs") or ()
        return [(body["server"]["id"], int(leaf["id"])) for leaf in leafs if named in ("", leaf.get("name"))]
