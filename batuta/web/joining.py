"""Tokens and enrolment over HTTP, and what a machine must know of the hub before it trusts it."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import TYPE_CHECKING, Annotated, Any, Final

import msgspec
from msgspec import Meta
from starlette.responses import Response
from starlette.routing import Route

from batuta import __version__
from batuta.errors import EnrolmentRefused
from batuta.hub.api_tokens import ApiTokenWanted
from batuta.hub.audit import ASKER
from batuta.hub.enrol import TOKEN_TTL_MS, EnrolRequest, fingerprint
from batuta.kinds.base import API_VERSION, Record
from batuta.web.answers import raw, said
from batuta.web.bodies import record_of

if TYPE_CHECKING:
    from starlette.requests import Request

    from batuta.hub.api_tokens import ApiToken
    from batuta.hub.enrol import TokenRow
    from batuta.hub.hub import Hub

ENROL_BYTES_MAX: Final = 64 * 1024


class TokenWanted(Record):
    """What a new token is for."""

    site: Annotated[str, Meta(max_length=63)] = "default"
    """Its nodes join this site; empty: the node says which."""
    name: Annotated[str, Meta(max_length=63)] = ""
    """Only a node of this name may use it."""
    ttl_ms: Annotated[int, Meta(ge=1_000, le=365 * 86_400_000)] = TOKEN_TTL_MS
    uses: Annotated[int, Meta(ge=1, le=100_000)] = 1
    approve: bool = False
    """Machines that come by it wait until an admin approves them."""


def joining_routes(hub: Hub) -> list[Route]:
    joining = Joining(hub)
    return [
        Route("/tokens", joining.create, methods=["POST"]),
        Route("/tokens", joining.list_all, methods=["GET"]),
        Route("/tokens/api", joining.create_api, methods=["POST"]),
        Route("/tokens/{id}", joining.revoke, methods=["DELETE"]),
        Route("/enrol", joining.enrol, methods=["POST"]),
        Route(f"/apis/{API_VERSION}/nodes/{{name}}/approve", joining.approve, methods=["POST"]),
        Route("/ca.pem", joining.authority, methods=["GET"]),
        Route("/hub", joining.hub, methods=["GET"]),
    ]


class Joining:
    """Endpoints by which machines become nodes."""

    def __init__(self, hub: Hub) -> None:
        self._hub = hub

    async def create(self, request: Request) -> Response:
        wanted = await record_of(request, TokenWanted)
        text, row = await self._hub.enrolment.create_token(
            site=wanted.site, node=wanted.name, ttl_ms=wanted.ttl_ms, uses=wanted.uses, approve=wanted.approve
        )
        return said({**_shown(row, self._hub.clock.now()), "token": text}, 201)

    async def create_api(self, request: Request) -> Response:
        asker = ASKER.get()
        wanted = await record_of(request, ApiTokenWanted)
        text, row = await self._hub.api_tokens.create(wanted, asker.name or asker.who)
        return said({**_shown_api(row, self._hub.clock.now()), "token": text}, 201)

    async def list_all(self, _request: Request) -> Response:
        """Tokens of both sorts, never a secret."""
        now = self._hub.clock.now()
        joins = [_shown(row, now) for row in await self._hub.enrolment.tokens()]
        return said({"items": [*joins, *(_shown_api(row, now) for row in self._hub.api_tokens.all())]})

    async def revoke(self, request: Request) -> Response:
        token_id = request.path_params["id"]
        if self._hub.api_tokens.knows(token_id):
            await self._hub.api_tokens.revoke(token_id)
        else:
            await self._hub.enrolment.revoke_token(token_id)
        return said({"kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Success"})

    async def enrol(self, request: Request) -> Response:
        asked = await record_of(request, EnrolRequest, ENROL_BYTES_MAX)
        try:
            return raw(msgspec.json.encode(await self._hub.enrolment.enrol(asked)))
        except EnrolmentRefused as error:
            if error.code != "approval_pending":
                raise
            # It asks every few seconds, and the audit has its first time.
            ASKER.get().kept += 1
            return said({"error": error.code, "message": error.message, "nextStep": error.next_step}, 202)

    async def approve(self, request: Request) -> Response:
        name = request.path_params["name"]
        key_id = await self._hub.enrolment.approve(name)
        details = {"kind": "nodes", "group": API_VERSION.partition("/")[0], "name": name, "key": fingerprint(key_id)}
        status = {"kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Success", "details": details}
        return said(status, 200)

    async def authority(self, _request: Request) -> Response:
        root = self._hub.authorities.root(self._hub.clock.now())
        return Response(root.certificate_pem, media_type="application/x-pem-file")

    async def hub(self, _request: Request) -> Response:
        """Where this hub is, for tools that run beside it."""
        leafs = [url.removeprefix("tls://") for url in self._hub.leafs]
        answer: dict[str, Any] = {
            "version": __version__,
            "epoch": self._hub.store.epoch,
            "leaf": leafs[0] if leafs else "",
        }
        answer["servers"] = self._hub.hubs
        return said({**answer, "leafs": leafs, "startedAt": self._hub.started_at})


def _shown(row: TokenRow, now: int) -> dict[str, Any]:
    record = row.record
    state = "expired" if now >= record.expires_at else "open" if record.uses_left > 0 else "used"
    return {
        "id": record.id,
        "sort": "join",
        "site": record.site,
        "name": record.node,
        "expires": _instant(record.expires_at),
        "usesLeft": record.uses_left,
        "usedBy": ", ".join(row.used_by),
        "state": state,
        **({"approval": "asked"} if row.asks_approval else {}),
    }


def _shown_api(row: ApiToken, now: int) -> dict[str, Any]:
    return {
        "id": row.id,
        "sort": "api",
        "name": row.name,
        "role": row.role,
        "namespaces": ", ".join(row.namespaces),
        "expires": _instant(row.expires_at),
        "createdBy": row.created_by,
        "lastUsed": _instant(row.used_at) if row.used_at else "",
        "lastUsedFrom": row.used_from,
        "state": "expired" if now >= row.expires_at else "open",
    }


def _instant(at: int) -> str:
    return datetime.fromtimestamp(at / 1000, UTC).isoformat(timespec="seconds")
