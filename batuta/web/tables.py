"""Tables: what `kubectl get` prints. The server chooses the columns; every kind's class says which."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

import msgspec

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from starlette.requests import Request

    from batuta.web.sources import Source

_VERSIONS: Final = ("v1", "v1beta1")


def table_wanted(request: Request) -> str:
    """The apiVersion of the Table that the client likes best; empty when it would rather have the objects."""
    for part in request.headers.get("accept", "").split(","):
        media, *said = (word.strip() for word in part.split(";"))
        if media not in ("application/json", "*/*"):
            continue
        parameters = dict(word.partition("=")[::2] for word in said)
        if "as" not in parameters:
            return ""
        if parameters["as"] == "Table" and parameters.get("v") in _VERSIONS:
            return f"meta.k8s.io/{parameters['v']}"
    return ""


def table(
    source: Source,
    documents: Iterable[Mapping[str, Any]],
    now: int,
    *,
    version: str,
    metadata: Mapping[str, Any],
    included: str = "",
    headed: bool = True,
) -> dict[str, Any]:
    """Rows of a source. `included` is how much of each object comes along: Metadata, Object or None."""
    columns = [
        {"name": c.name, "type": c.type, "format": c.format, "description": c.name, "priority": c.priority}
        for c in source.columns
    ]
    rows = [{"cells": source.cells(d, now), "object": _included(d, version, included)} for d in documents]
    answer = {"kind": "Table", "apiVersion": version, "metadata": metadata}
    # A watch says them once: rows after the first need no head.
    return {**answer, "columnDefinitions": columns if headed else [], "rows": rows}


def event_table(source: Source, body: bytes, now: int, *, version: str, included: str, headed: bool) -> bytes:
    """One object of a watch as a Table of one row."""
    document = msgspec.json.decode(body)
    metadata = {"resourceVersion": document["metadata"].get("resourceVersion", "")}
    return msgspec.json.encode(
        table(source, [document], now, version=version, metadata=metadata, included=included, headed=headed)
    )


def _included(document: Mapping[str, Any], version: str, included: str) -> Mapping[str, Any] | None:
    if included == "None":
        return None
    if included == "Object":
        return document
    return {"kind": "PartialObjectMetadata", "apiVersion": version, "metadata": document["metadata"]}
