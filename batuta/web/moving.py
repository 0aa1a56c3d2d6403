"""POST /optimize: which moves would pay for themselves. POST /moves: make those that are named, or none. GET /moves:
what is being moved, and what policies have moved."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any, Final

import msgspec
from starlette.routing import Route

from batuta.core.asking import ask_for
from batuta.core.optimize import HORIZON_MS, MOVES_MAX, propose
from batuta.core.standing import Moved, Moving
from batuta.core.state import Change
from batuta.errors import Refused
from batuta.hub.audit import ASKER
from batuta.kinds.base import API_VERSION, Millis, Name, Problem, Record, encode_hook
from batuta.web.answers import Wrong, raw, said
from batuta.web.bodies import record_of
from batuta.web.queries import dry_run_of

if TYPE_CHECKING:
    from collections.abc import Iterator

    from starlette.requests import Request
    from starlette.responses import Response

    from batuta.core.state import State
    from batuta.hub.hub import Hub

MOVES_AT_ONCE: Final = 1_000
HORIZON_MAX_MS: Final = 30 * 86_400_000


class Wanted(Record):
    """One instance that is to be elsewhere."""

    namespace: Name
    application: Name
    component: Name
    slot: str
    node: Name
    """Where it is."""
    to: Name


class Moves(Record):
    """What a body of /moves says."""

    moves: tuple[Wanted, ...]


def moving_routes(hub: Hub) -> list[Route]:
    alone = asyncio.Semaphore(1)

    async def optimize(request: Request) -> Response:
        """`horizon`: within what time a move must pay; `limit`: at most so many; nothing is stored."""
        horizon_ms, limit = _horizon(request), _limit(request)
        state, now = hub.loop.state, hub.clock.now()
        async with alone:  # of a large fleet it takes seconds
            found = await asyncio.to_thread(propose, state, now, horizon_ms=horizon_ms, moves_max=limit)
        answer = {
            "kind": "Proposal", "apiVersion": API_VERSION, "horizon": Millis(horizon_ms).text(),
            "moves": found.moves, "lookedAt": found.looked_at, "isWhole": found.is_whole,
        }  # fmt: skip
        return raw(msgspec.json.encode(answer, enc_hook=encode_hook))

    async def moves(request: Request) -> Response:
        wanted = (await record_of(request, Moves)).moves
        dry_run = dry_run_of(request)
        if not wanted:
            raise Wrong(422, "there is no move in it")
        if len(wanted) > MOVES_AT_ONCE:
            raise Wrong(413, f"{len(wanted)} moves at once; {MOVES_AT_ONCE} are allowed")
        state, now = hub.loop.state, hub.clock.now()
        rows = [_row(move, now) for move in wanted]
        refused = await asyncio.to_thread(lambda: [ask_for(state, now, row) for row in rows])
        problems = [
            Problem(path=f"moves[{i}]", code=reason.code, message=str(reason), hint=reason.next_step)
            for i, reason in enumerate(refused)
            if reason is not None
        ]
        if problems:
            raise Refused(problems)
        if not dry_run:
            for row in rows:
                what = f"applications/{row.namespace}/{row.application}"
                await hub.audit.accepted("move", what, {"on": row.node}, {"on": row.to, "slot": _slot(row)})
                await hub.store.commit(Change("decided", row.key, row))
        items = [{"slot": f"{row.app}/{_slot(row)}", "node": row.node, "to": row.to} for row in rows]
        return said({"kind": "MovesResult", "apiVersion": API_VERSION, "items": items, "dryRun": dry_run})

    async def listed(request: Request) -> Response:  # noqa: ARG001
        return said({"kind": "MoveList", "apiVersion": API_VERSION, "items": [*_listed(hub.loop.known)]})

    return [
        Route("/optimize", optimize, methods=["POST"]),
        Route("/moves", moves, methods=["POST"]),
        Route("/moves", listed, methods=["GET"]),
    ]


def _listed(state: State) -> Iterator[dict[str, Any]]:
    """Those under way first; of those that policies made, what is remembered, the newest first."""
    rows = [row for rows in state.standing.values() for row in rows.values()]
    moving = sorted((r for r in rows if isinstance(r, Moving)), key=lambda r: (r.at, r.key))
    under_way = {(r.app, r.component, r.slot) for r in moving}
    moved = sorted((r for r in rows if isinstance(r, Moved)), key=lambda r: (-r.at, r.key))
    for row in moving:
        yield _told(row, by=row.by, state="moving")
    for past in moved:
        if (past.app, past.component, past.slot) not in under_way:
            there = any(
                h.node == past.to and (h.instance.component, h.instance.slot) == (past.component, past.slot)
                for h in state.held.get(past.app, ())
            )
            yield _told(past, by=f"policy/{past.policy}", state="moved" if there else "left")


def _told(row: Moving | Moved, *, by: str, state: str) -> dict[str, Any]:
    return {
        "namespace": row.namespace, "application": row.application, "component": row.component, "slot": row.slot,
        "node": row.node, "to": row.to, "state": state, "by": by, "why": row.why, "at": row.at,
    }  # fmt: skip


def _row(move: Wanted, now: int) -> Moving:
    asker = ASKER.get()
    return Moving(
        namespace=move.namespace, application=move.application, component=move.component, slot=move.slot[:256],
        node=move.node, to=move.to, by=asker.name or asker.who, at=now,
    )  # fmt: skip


def _slot(row: Moving) -> str:
    return f"{row.component}/{row.slot}"


def _horizon(request: Request) -> int:
    text = request.query_params.get("horizon") or ""
    try:
        horizon_ms = int(Millis.parse(text)) if text else HORIZON_MS
    except ValueError as error:
        raise Wrong(400, f"horizon: {error}") from None
    if not 0 < horizon_ms <= HORIZON_MAX_MS:
        raise Wrong(400, "horizon: between a moment and 30d")
    return horizon_ms


def _limit(request: Request) -> int:
    text: Any = request.query_params.get("limit") or str(MOVES_MAX)
    if not (text.isascii() and text.isdigit() and len(text) <= 4 and 0 < int(text) <= MOVES_AT_ONCE):
        raise Wrong(400, f"limit={text[:20]} is not a number from 1 to {MOVES_AT_ONCE}")
    return int(text)
