"""Watching: what changed after a version, as JSON lines, for as long as somebody listens.

Each line follows from looking at the list, never from a message: a watcher that was slow sees the same as one that
was fast, or is told that it is too late. Whoever takes nothing of what it was sent is dropped; nothing is kept for it
but one piece.
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any, Final

import msgspec
from starlette.responses import Response

from batuta.hub.feed import TooOld
from batuta.web.answers import Wrong, expired
from batuta.web.lookout import PIECE_BYTES, refresh
from batuta.web.patience import HANG_UP
from batuta.web.queries import number, yes

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from starlette.datastructures import QueryParams
    from starlette.types import Receive, Scope, Send

    from batuta.web.lookout import Group, Lookout
    from batuta.web.sources import Shown, Source

BOOKMARK_EVERY_MS: Final = 20_000
INITIAL_END: Final = "k8s.io/initial-events-end"
STALL_S: Final = 20.0
"""Whoever has not taken what it was sent for so long is dropped."""


class Watch(Response):
    """One watch, as the answer to a request."""

    def __init__(self, lookout: Lookout, group: Group, query: QueryParams | Mapping[str, str]) -> None:
        """Raises TooOld at once when the version it should begin after is not known any more."""
        super().__init__(media_type="application/json")
        del self.headers["content-length"]
        said = number(query, "resourceVersion")
        # Asked for by name, what is there comes first whatever the version, and a bookmark says where it ends.
        self._shows_first = yes(query, "sendInitialEvents") if "sendInitialEvents" in query else None
        if self._shows_first is not None and query.get("resourceVersionMatch") != "NotOlderThan":
            raise Wrong(400, "sendInitialEvents needs resourceVersionMatch=NotOlderThan")
        self._after = 0 if self._shows_first else said
        if self._after:
            lookout.source.since(self._after, 1)
        self._hub, self._source = lookout.hub, lookout.source
        self._lookout, self._group = lookout, group
        self._is_first = True
        timeout_s = number(query, "timeoutSeconds")
        self._until = self._hub.clock.now() + timeout_s * 1000 if timeout_s else None
        self._bookmarks = yes(query, "allowWatchBookmarks")

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        await send({"type": "http.response.start", "status": self.status_code, "headers": self.raw_headers})
        saying = asyncio.create_task(self._say(send), name="watch")
        leaving = asyncio.create_task(_hung_up(receive), name="watcher hangs up")
        try:
            done, _ = await asyncio.wait((saying, leaving), return_when=asyncio.FIRST_COMPLETED)
            if saying in done:
                saying.result()
        except TimeoutError:
            # What it was sent is still on its way to it: it cannot even be told.
            self._hub.counters.add("watches_dropped", "not_read")
            if hang_up := scope.get("state", {}).get(HANG_UP):
                hang_up()
                await leaving
        finally:
            for task in (saying, leaving):
                task.cancel()
            await asyncio.gather(saying, leaving, return_exceptions=True)

    async def _say(self, send: Send) -> None:
        self._lookout.enter(self._group)
        try:
            for piece in await self._there():
                await _sent(send, piece)
            if self._shows_first and self._bookmarks:
                await _sent(send, _bookmark(self._source, self._after, annotations={INITIAL_END: "true"}))
            await self._follow(send)
        except TooOld:
            self._hub.counters.add("watches_dropped", "too_slow")
            await _sent(send, b'{"type":"ERROR","object":' + msgspec.json.encode(expired()) + b"}\n")
        finally:
            self._lookout.leave(self._group)
        await _sent(send, b"", is_last=True)

    async def _there(self) -> Iterator[bytes]:
        """Without a version to begin after, or with 0, whatever is there now comes first."""
        if self._after:
            return iter(())
        await refresh(self._source)
        if self._shows_first is False:
            self._after = self._source.version
            return iter(())
        rows = self._source.shown([each.key for each in self._source.named()])
        self._after = self._source.version
        return self._pieces(rows)

    def _pieces(self, rows: Sequence[Shown]) -> Iterator[bytes]:
        group, lines, size = self._group, list[bytes](), 0
        for row in rows:
            body = row.body
            if not group.means(row.ref, row.labels, body):
                continue
            lines.append(group.line(b"ADDED", body, is_first=self._is_first))
            self._is_first = False
            size += len(lines[-1])
            if size >= PIECE_BYTES:
                yield b"".join(lines)
                lines, size = [], 0
        if lines:
            yield b"".join(lines)

    async def _follow(self, send: Send) -> None:
        clock = self._hub.clock
        bookmark_at = clock.now() + BOOKMARK_EVERY_MS
        while self._until is None or clock.now() < self._until:
            piece, reached = self._group.piece(self._after, is_first=self._is_first)
            if piece:
                self._is_first = False
                await _sent(send, piece)
            if reached != self._after:
                self._after = reached
                continue
            if clock.now() >= bookmark_at:
                bookmark_at = clock.now() + BOOKMARK_EVERY_MS
                if self._bookmarks:
                    # Everything of this list up to here was told.
                    self._after = self._source.version
                    await _sent(send, _bookmark(self._source, self._after))
                    continue
            await self._lookout.news()


async def _sent(send: Send, piece: bytes, *, is_last: bool = False) -> None:
    async with asyncio.timeout(STALL_S):
        await send({"type": "http.response.body", "body": piece, "more_body": not is_last})


async def _hung_up(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass


def _bookmark(source: Source, version: int, **more: Any) -> bytes:
    metadata = {"resourceVersion": str(version), "creationTimestamp": None, **more}
    bookmark = {"apiVersion": source.api_version, "kind": source.kind, "metadata": metadata}
    return b'{"type":"BOOKMARK","object":' + msgspec.json.encode(bookmark) + b"}\n"
