"""Nodes joining: tokens, enrolment, renewal, removal.

A token is spent once and kept only as a hash. Whoever brings it with a signing request gets a certificate, and
becomes a Node of the desired table; from then on the key is the identity. The same machine may ask again with the
same key, because answers get lost; another machine may not take its name. By a token that asks for approval a machine
only gets as far as being seen: it has no certificate, and asks again and again, until an admin approves or removes it.

    POST /enrol                       EnrolRequest -> EnrolAnswer
    batuta.ask.<node>.renew           RenewRequest -> EnrolAnswer, or {"error", "message", "nextStep"}
"""

from __future__ import annotations

import asyncio
import re
import secrets
from typing import TYPE_CHECKING, Annotated, Final, Literal

import msgspec
from msgspec import Meta

from batuta.core.reasons import CATALOGUE
from batuta.errors import EnrolmentRefused, NotFound, Refused
from batuta.fabric import identity
from batuta.fabric.identity import TokenRecord
from batuta.kinds.base import NAME_PATTERN, Metadata, Record, Ref
from batuta.kinds.node import Node, NodeSpec
from batuta.kinds.site import Site

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Sequence

    from batuta.core.state import State
    from batuta.fabric.base import Fabric, Table
    from batuta.fabric.clock import Clock
    from batuta.hub.authority import Authorities
    from batuta.hub.counters import Counters
    from batuta.hub.declare import Declarations
    from batuta.kinds.base import Resource

CLOCK_APART_MAX_MS: Final = identity.CLOCK_GRACE_S * 1000
TOKEN_TTL_MS: Final = 3_600_000
TOKENS_MAX: Final = 10_000
REFUSED_MAX: Final = 100
"""Of one token; whoever was refused longer ago may ask again, and is seen again."""
_Text = Annotated[str, Meta(max_length=256)]


class EnrolRequest(Record):
    """What a machine says when it wants to become a node."""

    token_id: _Text
    secret: _Text
    node: _Text
    request: Annotated[str, Meta(max_length=16_384)]
    """Its certificate signing request, PEM."""
    now: int
    """Its clock, milliseconds: certificates do not work between clocks that are far apart."""
    site: _Text = ""
    """Asked for only when the token leaves the site open."""
    addresses: Annotated[tuple[_Text, ...], Meta(max_length=16)] = ()
    """Where its neighbours may find it."""
    labels: dict[str, str] = {}


class RenewRequest(Record):
    """What a node says before its certificate ends."""

    request: Annotated[str, Meta(max_length=16_384)]
    addresses: Annotated[tuple[_Text, ...], Meta(max_length=16)] = ()


class EnrolAnswer(Record):
    """Who the machine now is, and where its hub is."""

    node: str
    site: str
    chain: str
    """Its certificate and its site's, PEM."""
    root: str
    """The authority that it trusts the hub by."""
    site_authority: str
    """The authority that it trusts its neighbours by."""
    leafs: tuple[str, ...]
    """`tls://10.0.0.5:7422`, in order of preference."""
    now: int


class TokenRow(Record):
    """A token as the hub keeps it: a hash, never the secret."""

    record: TokenRecord
    created_at: int
    used_by: tuple[str, ...] = ()
    asks_approval: bool = False
    refused: tuple[str, ...] = ()
    """Keys of machines that an admin removed instead of approving them."""


class Enrolled(Record):
    """A node and the key by which it is known."""

    key_id: str
    site: str
    at: int
    approval: Literal["", "waiting", "given"] = ""
    """Empty for those whose token was enough."""
    token_id: str = ""
    """Of those that needed approval: the token that they came with."""


class Enrolment:
    """Who may become a node, and who is one."""

    def __init__(
        self,
        fabric: Fabric,
        clock: Clock,
        counters: Counters,
        authorities: Authorities,
        declarations: Declarations,
        *,
        hubs: Sequence[str],
        leafs: Sequence[str],
        certificate_s: int,
    ) -> None:
        self._tokens: Table = fabric.table("tokens")
        self._nodes: Table = fabric.table("enrolled")
        self._clock = clock
        self._counters = counters
        self._authorities = authorities
        self._declarations = declarations
        self._hubs = tuple(hubs)
        self._leafs = tuple(leafs)
        self._certificate_s = certificate_s
        self._one_at_a_time = asyncio.Lock()
        self.known: dict[str, Enrolled] = {}
        """Every node by name; the broker asks by it who may connect."""
        self.waiting: dict[str, Enrolled] = {}
        """Machines that wait for approval, by the name that they ask for. They have no certificate."""
        self.on_known: Callable[[str], None] = lambda _node: None
        """Told when the keys of a node change, or when it is one no more."""
        self.keep: Callable[[str, str, object, object], Awaitable[None]] | None = None
        """Told of every write before it is done: verb, what, before, after. What it raises stops the write."""

    async def open(self) -> None:
        for node in await self._nodes.keys():
            entry = await self._nodes.get(node)
            if entry is not None and entry.value is not None:
                enrolled = msgspec.json.decode(entry.value, type=Enrolled)
                (self.waiting if enrolled.approval == "waiting" else self.known)[node] = enrolled

    # --- Tokens ---

    async def create_token(
        self, *, site: str, node: str, ttl_ms: int, uses: int, approve: bool = False
    ) -> tuple[str, TokenRow]:
        """A token and its row; the text is shown once and kept nowhere."""
        await self._forget_old_tokens()
        now = self._clock.now()
        for name in filter(None, (site, node)):
            _check_name(name)
        token, record = identity.make_token(
            hubs=self._hubs,
            pin=identity.pin_of(self._authorities.root(now).certificate_pem),
            chance=secrets.token_bytes(30),
            expires_at=now + ttl_ms,
            site=site,
            node=node,
            uses=uses,
        )
        row = TokenRow(record=record, created_at=now, asks_approval=approve)
        if self.keep is not None:
            await self.keep("create", f"tokens/{token.id}", None, _public(row))
        await self._tokens.put(token.id, msgspec.json.encode(row), 0)
        return identity.write_token(token), row

    async def tokens(self) -> list[TokenRow]:
        rows = [row for key in await self._tokens.keys() if (row := (await self._token(key))[0]) is not None]
        return sorted(rows, key=lambda row: (row.created_at, row.record.id))

    async def revoke_token(self, token_id: str) -> None:
        row, _ = await self._token(token_id)
        if row is None:
            raise NotFound(f"there is no token {token_id!r}")
        if self.keep is not None:
            await self.keep("revoke", f"tokens/{token_id}", _public(row), None)
        await self._tokens.delete(token_id)

    async def _token(self, token_id: str) -> tuple[TokenRow | None, int]:
        if not re.fullmatch(r"[0-9a-f]{1,64}", token_id):
            return None, 0
        entry = await self._tokens.get(token_id)
        if entry is None or entry.value is None:
            return None, 0
        return msgspec.json.decode(entry.value, type=TokenRow), entry.revision

    async def _forget_old_tokens(self) -> None:
        """Tokens that ended a day ago tell nobody anything."""
        rows = await self.tokens()
        for row in rows:
            if self._clock.now() - row.record.expires_at > identity.DAY_S * 1000:
                await self._tokens.delete(row.record.id)
        if len(rows) >= TOKENS_MAX:
            raise EnrolmentRefused("too_many_tokens", f"there are {len(rows)} tokens", next_step="revoke some")

    # --- Joining ---

    async def enrol(self, asked: EnrolRequest) -> EnrolAnswer:
        """Makes a node of whoever asks, or raises EnrolmentRefused with the reason."""
        async with self._one_at_a_time:
            try:
                return await self._enrol(asked)
            except EnrolmentRefused as refused:
                if refused.code != "approval_pending":
                    self._counters.add("enrolments_refused", refused.code)
                raise

    async def _enrol(self, asked: EnrolRequest) -> EnrolAnswer:
        now = self._clock.now()
        row, revision = await self._token(asked.token_id)
        known = self.known.get(asked.node) or self.waiting.get(asked.node)
        key_id = identity.key_id_of_request(asked.request)
        if known is not None and known.key_id == key_id and known.approval:
            # Its token was spent when it first asked, and may have ended since: from then on the admin's word counts.
            return self._approved(asked, known, now)
        if row is not None and key_id in row.refused:
            raise _refused("join_refused", asked.node)
        spent = identity.spend_token(
            row.record if row is not None else None,
            asked.secret,
            node=asked.node,
            now=now,
            key_id=key_id,
            known_key_id=known.key_id if known is not None else "",
        )
        assert row is not None
        if abs(asked.now - now) > CLOCK_APART_MAX_MS:
            raise _refused("clock_wrong", f"it is {(asked.now - now) / 1000:+.0f} s off the hub's")
        _check_name(asked.node)
        site = known.site if known is not None else row.record.site or asked.site or "default"
        _check_name(site)
        # The certificate is made before anything is written: a damaged request leaves no trace.
        answer = self._answer(asked.node, site, asked.request, asked.addresses, now)
        approval: Literal["", "waiting"] = "waiting" if row.asks_approval else ""
        if self.keep is not None:
            said = {"site": site, "by": f"tokens/{asked.token_id}", "key": key_id}
            await self.keep("enrol", f"nodes/{asked.node}", None, said | ({"approval": approval} if approval else {}))
        token_id = asked.token_id if approval else ""
        enrolled = Enrolled(key_id=key_id, site=site, at=now, approval=approval, token_id=token_id)
        await self._know(asked.node, enrolled)
        if asked.node not in row.used_by:
            used = msgspec.structs.replace(row, record=spent, used_by=(*row.used_by, asked.node))
            await self._tokens.put(asked.token_id, msgspec.json.encode(used), revision)
        await self._declare(asked, enrolled)
        if approval:
            self._counters.add("enrolments_waiting")
            raise _pending(asked.node, key_id)
        self._counters.add("enrolments")
        return answer

    def _approved(self, asked: EnrolRequest, known: Enrolled, now: int) -> EnrolAnswer:
        if known.approval == "waiting":
            raise _pending(asked.node, known.key_id)
        answer = self._answer(asked.node, known.site, asked.request, asked.addresses, now)
        self._counters.add("enrolments")
        return answer

    async def approve(self, node: str) -> str:
        """From now on a machine that waits gets its certificate when it asks. Returns its key; twice does no harm."""
        async with self._one_at_a_time:
            found = self.waiting.get(node) or self.known.get(node)
            if found is None:
                raise NotFound(f"no machine called {node!r} asks to join", next_step="`batuta get nodes` lists them")
            if found.approval == "waiting":
                if self.keep is not None:
                    said = {"site": found.site, "by": f"tokens/{found.token_id}", "key": found.key_id}
                    await self.keep(
                        "approve", f"nodes/{node}", said | {"approval": "waiting"}, said | {"approval": "given"}
                    )
                await self._know(node, msgspec.structs.replace(found, approval="given"))
            # Written after the right itself: what nobody may use yet is better not placed on.
            await self._declarations.settle(lambda state: _admitted(state, node, found.site))
            return found.key_id

    async def renew(self, node: str, asked: RenewRequest) -> EnrolAnswer:
        """A new certificate for the key that the node joined with.

        Were it for another one, a lost answer would lock the node out.
        """
        now = self._clock.now()
        async with self._one_at_a_time:
            known = self.known.get(node)
            if known is None:
                raise _refused("node_removed", f"{node} is not a node of this hub any more")
            if identity.key_id_of_request(asked.request) != known.key_id:
                raise _refused("name_taken", f"{node} joined with another key")
            answer = self._answer(node, known.site, asked.request, asked.addresses, now)
        self._counters.add("renewals")
        return answer

    async def remove(self, node: str) -> None:
        """From now on its certificate opens nothing."""
        async with self._one_at_a_time:
            waiting = self.waiting.get(node)
            if waiting is not None:
                await self._refuse(waiting)
            if self.known.pop(node, None) is not None or self.waiting.pop(node, None) is not None:
                await self._nodes.delete(node)
                self.on_known(node)

    async def _refuse(self, waiting: Enrolled) -> None:
        """It would ask again at once, and its token may be good for more machines than this."""
        row, revision = await self._token(waiting.token_id)
        if row is not None and waiting.key_id not in row.refused:
            refused = (*row.refused, waiting.key_id)[-REFUSED_MAX:]
            row = msgspec.structs.replace(row, refused=refused)
            await self._tokens.put(waiting.token_id, msgspec.json.encode(row), revision)

    def _answer(self, node: str, site: str, request: str, addresses: Sequence[str], now: int) -> EnrolAnswer:
        return EnrolAnswer(
            node=node,
            site=site,
            chain=self._authorities.sign(
                request, node, site, now=now, valid_s=self._certificate_s, addresses=addresses
            ),
            root=self._authorities.root(now).certificate_pem,
            site_authority=self._authorities.site(site, now).certificate_pem,
            leafs=self._leafs,
            now=now,
        )

    async def _know(self, node: str, enrolled: Enrolled) -> None:
        if node in self.known:
            return
        await self._nodes.put(node, msgspec.json.encode(enrolled))
        self.waiting.pop(node, None)
        (self.waiting if enrolled.approval == "waiting" else self.known)[node] = enrolled
        self.on_known(node)

    async def _declare(self, asked: EnrolRequest, enrolled: Enrolled) -> None:
        """The Node, and its Site when it is the first there. What people declared of either stays as it is."""
        pending = enrolled.approval == "waiting"

        def missing(state: State) -> list[Resource]:
            found = _site_of(state, enrolled.site)
            node = state.get(Ref("nodes", "", asked.node))
            if node is None:
                metadata = Metadata(name=asked.node, labels=asked.labels)
                found.append(Node(metadata=metadata, spec=NodeSpec(site=enrolled.site, pending=pending)))
            elif isinstance(node, Node) and pending:
                found.append(_with_pending(node, pending=True))
            return found

        try:
            await self._declarations.settle(missing)
        except Refused as refused:
            raise EnrolmentRefused("node_refused", str(refused)) from refused


def _site_of(state: State, site: str) -> list[Resource]:
    return [Site(metadata=Metadata(name=site))] if state.site(site) is None else []


def _admitted(state: State, name: str, site: str) -> list[Resource]:
    node = state.get(Ref("nodes", "", name))
    if node is None:
        node = Node(metadata=Metadata(name=name), spec=NodeSpec(site=site))
    assert isinstance(node, Node)
    return [*_site_of(state, node.spec.site), _with_pending(node, pending=False)]


def _with_pending(node: Node, *, pending: bool) -> Node:
    return msgspec.structs.replace(node, spec=msgspec.structs.replace(node.spec, pending=pending))


def _public(row: TokenRow) -> dict[str, object]:
    """What the audit keeps of a token: nothing by which one could be recognised."""
    record = row.record
    found = {"sort": "join", "site": record.site, "node": record.node, "expiresAt": record.expires_at}
    return found | ({"asksApproval": True} if row.asks_approval else {})


def _check_name(name: str) -> None:
    if not re.fullmatch(NAME_PATTERN, name) or len(name) > 63:
        raise _refused("name_invalid", repr(name[:80]))


def _pending(node: str, key_id: str) -> EnrolmentRefused:
    """With the key's fingerprint, so that who approves can tell that it is this machine and no other."""
    entry = CATALOGUE["approval_pending"]
    return EnrolmentRefused(
        "approval_pending",
        f"{node} waits for approval; its key is {fingerprint(key_id)}",
        next_step=entry.next_step.replace("NAME", node),
    )


def fingerprint(key_id: str) -> str:
    """The beginning of a key's hash, as people compare it."""
    return "-".join(key_id[at : at + 4] for at in range(0, 16, 4))


def _refused(code: str, detail: str) -> EnrolmentRefused:
    entry = CATALOGUE[code]
    return EnrolmentRefused(code, f"{entry.sentence}: {detail}", next_step=entry.next_step)
