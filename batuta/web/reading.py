"""Reading, the same for every Source: lists with selectors and pages, single objects, watches; plain or as Tables."""

from __future__ import annotations

import base64
from functools import partial
from typing import TYPE_CHECKING, Any, NamedTuple

import msgspec

from batuta.errors import NotFound
from batuta.kinds.base import Ref
from batuta.web.answers import ABOUT, Wrong, raw, said
from batuta.web.lookout import ROWS_AT_ONCE, Lookout, refresh
from batuta.web.queries import number, yes
from batuta.web.selectors import selector
from batuta.web.tables import event_table, table, table_wanted
from batuta.web.watch import Watch

if TYPE_CHECKING:
    from collections.abc import Sequence

    from starlette.requests import Request
    from starlette.responses import Response

    from batuta.hub.hub import Hub
    from batuta.web.selectors import Selector
    from batuta.web.sources import Named, Shown, Source


class Reading:
    """The endpoints that change nothing."""

    def __init__(self, hub: Hub, source: Source) -> None:
        self._hub = hub
        self._source = source
        self._lookout = Lookout(hub, source)

    async def list_or_watch(self, request: Request) -> Response:
        query, source = request.query_params, self._source
        chosen = selector(query.get("labelSelector", ""), query.get("fieldSelector", ""), source.selectable)
        namespace = request.path_params.get("namespace", "")
        as_table, included = table_wanted(request), query.get("includeObject", "")
        if yes(query, "watch"):
            look = (as_table, included) if as_table else None
            write = partial(self._event_table, as_table, included) if as_table else None
            return Watch(self._lookout, self._lookout.group(namespace, chosen, look, write), query)
        size, after = number(query, "limit"), _key_in(query.get("continue", ""))
        if not size:
            await refresh(source)
        rows, page = _page(source, _Wanted(namespace, chosen, after), size)
        metadata = {"resourceVersion": str(source.version), **page}
        if as_table:
            documents = (msgspec.json.decode(row.body) for row in rows)
            now = self._hub.clock.now()
            return said(table(source, documents, now, version=as_table, metadata=metadata, included=included))
        head = msgspec.json.encode(
            {"apiVersion": source.api_version, "kind": f"{source.kind}List", "metadata": metadata}
        )
        return raw(head[:-1] + b',"items":[' + b",".join(row.body for row in rows) + b"]}")

    def _event_table(self, version: str, included: str, body: bytes, headed: bool) -> bytes:
        now = self._hub.clock.now()
        return event_table(self._source, body, now, version=version, included=included, headed=headed)

    async def get(self, request: Request) -> Response:
        body = self.row(self.ref(request)).body
        if as_table := table_wanted(request):
            included = request.query_params.get("includeObject", "")
            now = self._hub.clock.now()
            return raw(event_table(self._source, body, now, version=as_table, included=included, headed=True))
        return raw(body)

    def ref(self, request: Request) -> Ref:
        group = self._source.api_version.rpartition("/")[0]
        request.scope[ABOUT] = {"group": group, "kind": self._source.plural, "name": request.path_params["name"][:80]}
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


class _Wanted(NamedTuple):
    """What of a list is asked for."""

    namespace: str
    chosen: Selector
    after: str
    """The key that the last page ended with."""

    def may_be(self, each: Named) -> bool:
        """As far as it can be told without computing how it looks."""
        if each.key <= self.after or (self.namespace and each.ref.namespace != self.namespace):
            return False
        return self.chosen.asks_body or self.chosen.selects(each.ref, each.labels)


def _page(source: Source, wanted: _Wanted, size: int) -> tuple[Sequence[Shown], dict[str, Any]]:
    """Up to `size` rows, 0 for all, and how to go on. What is not on the page is not computed."""
    keys = [each.key for each in source.named() if wanted.may_be(each)]
    if not wanted.chosen.asks_body:
        rows = source.shown(keys[:size] if size else keys)
        if not size or len(keys) <= size:
            return rows, {}
        return rows, {"continue": _token(keys[size - 1]), "remainingItemCount": len(keys) - size}
    found: list[Shown] = []
    for start in range(0, len(keys), ROWS_AT_ONCE):
        for row in source.shown(keys[start : start + ROWS_AT_ONCE]):
            if wanted.chosen.selects(row.ref, row.labels, row.body):
                if size and len(found) == size:
                    # How many more there are is not known, and need not be said.
                    return found, {"continue": _token(found[-1].ref.key)}
                found.append(row)
    return found, {}


def _token(key: str) -> str:
    return base64.urlsafe_b64encode(key.encode()).decode()


def _key_in(token: str) -> str:
    try:
        return base64.b64decode(token.encode(), altchars=b"-_", validate=True).decode()
    except ValueError:
        raise Wrong(400, "this continue token was not given out by this hub") from None
