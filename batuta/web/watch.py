"""Watching: what changed after a version, as JSON lines, for as long as somebody listens.

Each line follows from looking at the feed, never from a message: a watcher that was slow sees the same as one that
was fast, or is told that it is too late.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

import msgspec
from starlette.responses import StreamingResponse

from batuta.hub.feed import TooOld
from batuta.web.answers import Wrong, expired

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Mapping

    from starlette.datastructures import QueryParams

    from batuta.hub.feed import FeedEvent
    from batuta.hub.hub import Hub
    from batuta.web.selectors import Selector
    from batuta.web.sources import Source

LOOK_EVERY_MS: Final = 1_000
"""Status also changes by the mere passing of time: a node that falls silent sends nothing."""
BOOKMARK_EVERY_MS: Final = 20_000


def watch(
    hub: Hub,
    source: Source,
    namespace: str,
    chosen: Selector,
    query: QueryParams | Mapping[str, str],
    *,
    as_row: Callable[[bytes, bool], bytes] | None = None,
) -> StreamingResponse:
    """The stream. Raises TooOld at once when the version it should begin after is not known any more.

    `as_row` makes a Table of an object, with its head or without.
    """
    said = query.get("resourceVersion", "")
    if not said.isascii() or (said and not said.isdigit()):
        raise Wrong(400, f"resourceVersion={said[:20]} was not given out by this hub")
    after = int(said or 0)
    if after:
        source.since(after)
    timeout = query.get("timeoutSeconds", "")
    until = hub.clock.now() + int(timeout) * 1000 if timeout.isascii() and timeout.isdigit() else None
    bookmarks = query.get("allowWatchBookmarks") in ("true", "1")
    events = _events(hub, source, namespace, chosen, after=after, until=until, bookmarks=bookmarks)
    return StreamingResponse(_lines(events, as_row), media_type="application/json")


async def _lines(
    events: AsyncIterator[tuple[str, bytes]], as_row: Callable[[bytes, bool], bytes] | None
) -> AsyncIterator[bytes]:
    headed = True
    async for word, body in events:
        if as_row is None or word in ("ERROR", "BOOKMARK"):
            yield _line(word, body)
        else:
            yield _line(word, as_row(body, headed))
            headed = False


async def _events(
    hub: Hub,
    source: Source,
    namespace: str,
    chosen: Selector,
    *,
    after: int,
    until: int | None,
    bookmarks: bool,
) -> AsyncIterator[tuple[str, bytes]]:
    if not after:
        # No version, or 0: whatever is there now comes first.
        rows = tuple(source.rows().values())
        after = source.version
        for row in rows:
            if (not namespace or row.ref.namespace == namespace) and chosen.selects(row.ref, row.labels, row.body):
                yield "ADDED", row.body
    bookmark_at = hub.clock.now() + BOOKMARK_EVERY_MS
    while until is None or hub.clock.now() < until:
        heard = hub.loop.turned.rings
        try:
            events = source.since(after)
            after = source.version
        except TooOld:
            yield "ERROR", msgspec.json.encode(expired())
            return
        for event in events:
            if namespace and event.ref.namespace != namespace:
                continue
            if (word := _word(event, chosen)) is not None:
                yield word, event.body
        now = hub.clock.now()
        if now >= bookmark_at:
            bookmark_at = now + BOOKMARK_EVERY_MS
            if bookmarks:
                yield "BOOKMARK", _bookmark(source, after)
        ends = (now + LOOK_EVERY_MS, bookmark_at, *(() if until is None else (until,)))
        await hub.loop.turned.wait(heard, hub.clock, min(ends))


def _word(event: FeedEvent, chosen: Selector) -> str | None:
    """What this event is to one who sees only what is chosen; None when it is nothing."""
    before = chosen.selects(event.ref, event.before, event.body)
    after = chosen.selects(event.ref, event.after, event.body)
    if before and after:
        return "MODIFIED"
    if after:
        return "ADDED"
    return "DELETED" if before else None


def _line(word: str, body: bytes) -> bytes:
    return b'{"type":"' + word.encode() + b'","object":' + body + b"}\n"


def _bookmark(source: Source, version: int) -> bytes:
    metadata = {"resourceVersion": str(version), "creationTimestamp": None}
    return msgspec.json.encode({"apiVersion": source.api_version, "kind": source.kind, "metadata": metadata})
