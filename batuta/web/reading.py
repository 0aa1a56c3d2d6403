"""Reading, the same for every Source: lists with selectors and pages, single objects, watches; plain or as Tables."""

from __future__ import annotations

import base64
from typing import TYPE_CHECKING, Any

import msgspec

from batuta.errors import NotFound
from batuta.kinds.base import Ref
from batuta.web.answers import Wrong, raw, said
from batuta.web.selectors import selector
from batuta.web.tables import event_table, table, table_wanted
from batuta.web.watch import watch

if TYPE_CHECKING:
    from starlette.requests import Request
    from starlette.responses import Response

    from batuta.hub.hub import Hub
    from batuta.web.sources import Shown, Source


class Reading:
    """The endpoints that change nothing."""

    def __init__(self, hub: Hub, source: Source) -> None:
        self._hub = hub
        self._source = source

    async def list_or_watch(self, request: Request) -> Response:
        query, source = request.query_params, self._source
        chosen = selector(query.get("labelSelector", ""), query.get("fieldSelector", ""), source.selectable)
        namespace = request.path_params.get("namespace", "")
        as_table, included = table_wanted(request), query.get("includeObject", "")
        now = self._hub.clock.now
        if query.get("watch") in ("true", "1"):

            def row(body: bytes, headed: bool) -> bytes:
                return event_table(source, body, now(), version=as_table, included=included, headed=headed)

            return watch(self._hub, source, namespace, chosen, query, as_row=row if as_table else None)
        rows = [
            row
            for row in source.rows().values()
            if (not namespace or row.ref.namespace == namespace) and chosen.selects(row.ref, row.labels, row.body)
        ]
        rows, page = _page(rows, query.get("limit", ""), query.get("continue", ""))
        metadata = {"resourceVersion": str(source.version), **page}
        if as_table:
            documents = [msgspec.json.decode(row.body) for row in rows]
            return said(table(source, documents, now(), version=as_table, metadata=metadata, included=included))
        head = msgspec.json.encode(
            {"apiVersion": source.api_version, "kind": f"{source.kind}List", "metadata": metadata}
        )
        return raw(head[:-1] + b',"items":[' + b",".join(row.body for row in rows) + b"]}")

    async def get(self, request: Request) -> Response:
        body = self.row(self.ref(request)).body
        if as_table := table_wanted(request):
            included = request.query_params.get("includeObject", "")
            now = self._hub.clock.now()
            return raw(event_table(self._source, body, now, version=as_table, included=included, headed=True))
        return raw(body)

    def ref(self, request: Request) -> Ref:
        return Ref(self._source.plural, request.path_params.get("namespace", ""), request.path_params["name"])

    def row(self, ref: Ref) -> Shown:
        row = self._source.row(ref)
        if row is None:
            raise no_such(self._source, ref.name)
        return row


def no_such(source: Source, name: str) -> NotFound:
    group = source.api_version.rpartition("/")[0]
    what = f"{source.plural}.{group}" if group else source.plural
    return NotFound(f'{what} "{name[:80]}" not found', next_step=f"batuta get {source.plural}")


def _page(rows: list[Shown], limit: str, after: str) -> tuple[list[Shown], dict[str, Any]]:
    """Up to `limit` rows after the key that the last page ended with."""
    if after:
        try:
            key = base64.b64decode(after.encode(), altchars=b"-_", validate=True).decode()
        except ValueError:
            raise Wrong(400, "this continue token was not given out by this hub") from None
        rows = [row for row in rows if row.ref.key > key]
    if not limit:
        return rows, {}
    if not limit.isascii() or not limit.isdigit():
        raise Wrong(400, f"limit={limit[:20]} is not a number")
    size = int(limit)
    if not size or len(rows) <= size:
        return rows, {}
    token = base64.urlsafe_b64encode(rows[size - 1].ref.key.encode()).decode()
    return rows[:size], {"continue": token, "remainingItemCount": len(rows) - size}
