"""Leniency: what becomes of fields that a kind has not, as a client asks by `fieldValidation`.

Strict, the default, refuses them. Warn leaves them out and says so in a `Warning` header for each, which kubectl
prints. Ignore leaves them out and only counts them. A field that does nothing is a lie, so nothing else is possible.
"""

from __future__ import annotations

import copy
from itertools import islice
from typing import TYPE_CHECKING, Any, Final

from batuta.kinds.shape import misfits, written
from batuta.web.answers import Wrong

if TYPE_CHECKING:
    from starlette.requests import Request
    from starlette.responses import Response

    from batuta.hub.counters import Counters
    from batuta.kinds.base import Resource

STRICT: Final = "Strict"
WARN: Final = "Warn"
VALIDATIONS: Final = (STRICT, WARN, "Ignore")
LEFT_OUT: Final = "batuta.left_out"
"""Where a request's scope keeps the fields that were left out."""
UNKNOWN_MAX: Final = 200
"""A document with more unknown fields than this is no slip, and refused whatever was asked for."""
WARNINGS_MAX: Final = 20
WARNING_CHARACTERS_MAX: Final = 200


def validation_of(request: Request) -> str:
    asked = request.query_params.get("fieldValidation") or STRICT
    if asked not in VALIDATIONS:
        raise Wrong(400, f"fieldValidation can be {', '.join(VALIDATIONS)}")
    return asked


def lenient(kind: type[Resource], document: dict[str, Any], request: Request) -> dict[str, Any]:
    """The document without fields that the kind has not, when the request asks for that. What was left out is noted."""
    if validation_of(request) == STRICT:
        return document
    body = {key: value for key, value in document.items() if key not in ("apiVersion", "kind")}
    unknown = [m.path for m in islice(misfits(kind, body), UNKNOWN_MAX + 1) if m.code == "unknown_field"]
    if not unknown or len(unknown) > UNKNOWN_MAX:
        return document
    document = copy.deepcopy(document)
    for path in unknown:
        around: Any = document
        for step in path[:-1]:
            around = around[step]
        del around[path[-1]]
    request.scope.setdefault(LEFT_OUT, {}).update(dict.fromkeys(map(written, unknown)))
    return document


def own_up(request: Request, response: Response, counters: Counters) -> Response:
    """The answer to a write, with all that was left out of it said or counted."""
    left_out = list(request.scope.get(LEFT_OUT, ()))
    if left_out and validation_of(request) != WARN:
        counters.add("fields_ignored", by=len(left_out))
    elif left_out:
        counters.add("fields_warned", by=len(left_out))
        for path in left_out[:WARNINGS_MAX]:
            response.headers.append("Warning", warning(f'unknown field "{path}" was left out'))
        if len(left_out) > WARNINGS_MAX:
            response.headers.append("Warning", warning(f"so were {len(left_out) - WARNINGS_MAX} more unknown fields"))
    return response


def warning(text: str) -> str:
    """A warning as RFC 7234 writes it: code, agent and quoted text, of characters that a header can carry."""
    plain = "".join(c if c.isprintable() and c.isascii() else "?" for c in text[:WARNING_CHARACTERS_MAX])
    quoted = plain.replace("\\", "\\\\").replace('"', '\\"')
    return f'299 - "{quoted}"'
