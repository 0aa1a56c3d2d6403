"""What the twin begins from: the live tables as of one instant, and the recording of what was decided."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Final

import msgspec
from starlette.responses import StreamingResponse
from starlette.routing import Route

from batuta.core.state import Change
from batuta.errors import NotFound, Refused
from batuta.kinds.base import API_VERSION
from batuta.twin.replay_rows import row_of, rows_of
from batuta.web.answers import Wrong, raw
from batuta.web.bodies import in_namespace, manifest_in, text_of

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Sequence
    from pathlib import Path

    from starlette.requests import Request
    from starlette.responses import Response

    from batuta.core.state import State
    from batuta.hub.hub import Hub

SNAPSHOT_BYTES_MAX: Final = 192 * 2**20
PIECE_BYTES: Final = 2**18


def rehearsing_routes(hub: Hub) -> list[Route]:
    alone = asyncio.Semaphore(1)

    async def rehearsal(request: Request) -> Response:
        """Body and query as for /apply, or nothing to declare. Answers all tables, and what would be declared."""
        resources, read = [], None
        if (text := await text_of(request)).strip():
            read = await manifest_in(request, text)
            resources = [in_namespace(r, request.query_params.get("namespace", "")) for r in read.resources]
        state, now = hub.loop.state, hub.clock.now()
        try:
            declared = await hub.declarations.apply(resources, dry_run=True)
        except Refused as refused:
            assert read is not None
            raise read.placed(refused.problems, [str(r.ref) for r in resources]) from None
        changes = [Change("desired", d.resource.ref.key, d.resource) for d in declared if d.action != "unchanged"]
        async with alone:  # of a large fleet it is many megabytes
            return raw(await asyncio.to_thread(_snapshot, state, now, changes))

    async def recording(_: Request) -> Response:
        """Every file of the ring, oldest first: one gzip file of JSON lines."""
        await hub.recording.flush()
        files = hub.recording.files()
        if not files:
            raise NotFound("nothing was recorded", next_step="set recordingBytesMax in hub.toml above 0")
        return StreamingResponse(_pieces(files), media_type="application/gzip")

    return [
        Route("/rehearsal", rehearsal, methods=["POST"]),
        Route("/recording", recording, methods=["GET"]),
    ]


def _snapshot(state: State, now: int, changes: Sequence[Change]) -> bytes:
    """JSON, row by row, so that nobody waits for all of it at once."""
    rows: list[bytes] = []
    size = 0
    for row in rows_of(state):
        rows.append(msgspec.json.encode(row))
        size += len(rows[-1])
        if size > SNAPSHOT_BYTES_MAX:
            raise Wrong(507, f"the tables are larger than the {SNAPSHOT_BYTES_MAX >> 20} MiB that are told at once")
    wished = [msgspec.json.encode(row_of(c.table, c.key, c.value)) for c in changes]
    about = {"at": now, "hubSince": state.hub_since, "deafMs": state.deaf_ms}
    head = msgspec.json.encode({"kind": "Rehearsal", "apiVersion": API_VERSION, **about})
    return b'%b,"rows":[%b],"changes":[%b]}' % (head[:-1], b",".join(rows), b",".join(wished))


async def _pieces(files: Sequence[Path]) -> AsyncIterator[bytes]:
    for path in files:
        try:
            file = await asyncio.to_thread(path.open, "rb")
        except FileNotFoundError:  # the ring went on meanwhile
            continue
        with file:
            while piece := await asyncio.to_thread(file.read, PIECE_BYTES):
                yield piece
