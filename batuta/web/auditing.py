"""/audit: who did what. The newest entries that fit, or with `after` and `wait` what comes next."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

import msgspec
from starlette.routing import Route

from batuta.hub.audit_reading import LIMIT_MAX, Wanted, find, newest_sequence
from batuta.kinds.base import Millis
from batuta.web.answers import Wrong, said
from batuta.web.queries import is_number, number

if TYPE_CHECKING:
    from starlette.requests import Request
    from starlette.responses import Response

    from batuta.hub.audit import AuditEntry
    from batuta.hub.hub import Hub

WAIT_MAX_MS: Final = 30_000


def auditing_routes(hub: Hub) -> list[Route]:
    async def audit(request: Request) -> Response:
        query = request.query_params
        numbers = {name: number(query, name) for name in ("limit", "after", "wait")}
        wanted = Wanted(
            since=_since(query.get("since", ""), hub.clock.now()),
            who=query.get("who", ""),
            what=query.get("what", ""),
            name=query.get("name", ""),
            verb=query.get("verb", ""),
            limit=min(numbers["limit"] or 100, LIMIT_MAX),
            after=numbers["after"],
        )
        heard = hub.audit.appended.rings
        if numbers["wait"] and await newest_sequence(hub.audit) <= wanted.after:
            until = hub.clock.now() + min(numbers["wait"], WAIT_MAX_MS)
            await hub.audit.appended.wait(heard, hub.clock, until)
        found = await find(hub.audit, wanted)
        items = [_shown(sequence, entry) for sequence, entry in found.items]
        return said({"items": items, "last": found.last, "isWhole": found.is_whole})

    return [Route("/audit", audit, methods=["GET"])]


def _shown(sequence: int, entry: AuditEntry) -> dict[str, Any]:
    shown: dict[str, Any] = {"sequence": sequence, **msgspec.to_builtins(entry)}
    return {key: value for key, value in shown.items() if value not in (None, "", 0)}


def _since(text: str, now: int) -> int:
    """An instant in milliseconds, or a duration before now: `1h`."""
    if is_number(text):
        return int(text)
    if not text:
        return 0
    try:
        return now - int(Millis.parse(text))
    except ValueError as error:
        raise Wrong(400, f"since: {error}") from None
