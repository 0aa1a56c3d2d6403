"""What Kubernetes clients ask about themselves: `kubectl auth can-i` and `kubectl auth whoami`.

Newer kubectl posts these two in protobuf, whatever the server says it takes. Answers are always JSON, which it takes.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final, NamedTuple

import msgspec
from starlette.routing import Route

from batuta.kinds import API_VERSION
from batuta.web import rights
from batuta.web.access import LOCAL
from batuta.web.answers import Wrong, said
from batuta.web.bodies import body_of
from batuta.web.protobuf import PROTOBUF, fields, message_in

if TYPE_CHECKING:
    from starlette.requests import Request
    from starlette.responses import Response

    from batuta.web.access import Who

BODY_BYTES_MAX: Final = 64 * 1024
_METHODS: Final = {
    "get": "GET", "list": "GET", "watch": "GET", "create": "POST", "update": "PUT", "patch": "PATCH",
    "delete": "DELETE", "deletecollection": "DELETE",
}  # fmt: skip
_NAMES: Final = ("namespace", "verb", "group", "version", "resource", "subresource", "name")


def review_routes() -> list[Route]:
    return [
        Route("/apis/authorization.k8s.io/v1/selfsubjectaccessreviews", can_i, methods=["POST"]),
        Route("/apis/authentication.k8s.io/v1/selfsubjectreviews", who_am_i, methods=["POST"]),
    ]


async def can_i(request: Request) -> Response:
    who: Who = request.scope.get("batuta.who", LOCAL)
    asked = await _asked(request)
    allowed, reason = _may(who, asked)
    spec = {"resourceAttributes": asked.resource} if asked.resource else {"nonResourceAttributes": asked.other}
    status = {"allowed": allowed, "reason": reason}
    head = {"kind": "SelfSubjectAccessReview", "apiVersion": "authorization.k8s.io/v1"}
    return said({**head, "metadata": {"creationTimestamp": None}, "spec": spec, "status": status}, 201)


async def who_am_i(request: Request) -> Response:
    who: Who = request.scope.get("batuta.who", LOCAL)
    groups = [f"batuta:{who.role}", *(f"batuta:namespace:{each}" for each in who.namespaces)]
    head = {"kind": "SelfSubjectReview", "apiVersion": "authentication.k8s.io/v1"}
    user = {"username": who.name, "uid": who.id, "groups": groups}
    return said({**head, "metadata": {"creationTimestamp": None}, "status": {"userInfo": user}}, 201)


class Asked(NamedTuple):
    """The question of an access review: one of the two."""

    resource: dict[str, str]
    other: dict[str, str]


def _may(who: Who, asked: Asked) -> tuple[bool, str]:
    verb = (asked.resource or asked.other).get("verb", "")
    if not asked.resource:
        wanted = [(verb.upper(), asked.other.get("path", ""))]
    else:
        path = _path(asked.resource)
        if path is None:
            return False, f"nothing of group {asked.resource.get('group', '') or 'core'} is written or kept here"
        methods = list(_METHODS.values()) if verb == "*" else [_METHODS[verb]] if verb in _METHODS else []
        if not methods:
            return False, f"{verb[:40]!r} is no verb of this hub"
        wanted = [(method, path) for method in methods]
    for method, path in wanted:
        if why := rights.missing(who.role, who.namespaces, method, path):
            return False, why
    return True, ""


def _path(asked: dict[str, str]) -> str | None:
    """Where the resource would be asked for; None for groups that are not of this hub."""
    group, resource = asked.get("group", ""), asked.get("resource", "")
    base = "/api/v1" if not group and resource != "*" else rights.V1
    if group not in ("", "*", API_VERSION.partition("/")[0]):
        return None
    namespace, name, inner = asked.get("namespace", ""), asked.get("name", ""), asked.get("subresource", "")
    if resource in ("nodes", "sites"):
        namespace = ""
    return "/".join(part for part in (base, namespace and f"namespaces/{namespace}", resource, name, inner) if part)


async def _asked(request: Request) -> Asked:
    body = await body_of(request, BODY_BYTES_MAX)
    sort = request.headers.get("content-type", "").partition(";")[0].strip()
    if sort == PROTOBUF:
        return _from_protobuf(body)
    if sort not in ("", "application/json"):
        raise Wrong(415, f"{sort} cannot be read here", next_step="send application/json")
    try:
        spec = msgspec.json.decode(body, type=dict[str, Any]).get("spec") or {}
        resource = msgspec.convert(spec.get("resourceAttributes") or {}, dict[str, Any])
        other = msgspec.convert(spec.get("nonResourceAttributes") or {}, dict[str, Any])
    except (msgspec.DecodeError, AttributeError) as error:
        raise Wrong(400, f"the body is no access review: {error}") from None
    return Asked({k: str(resource[k]) for k in _NAMES if resource.get(k)}, {k: str(v) for k, v in other.items()})


def _from_protobuf(body: bytes) -> Asked:
    """An access review is {2: spec {1: resource, 2: nonResource}}."""
    spec = fields(fields(message_in(body)).get(2, b""))
    resource, other = fields(spec.get(1, b"")), fields(spec.get(2, b""))
    try:
        named = {name: resource[i].decode() for i, name in enumerate(_NAMES, 1) if resource.get(i)}
        return Asked(named, {name: other[i].decode() for i, name in ((1, "path"), (2, "verb")) if other.get(i)})
    except UnicodeDecodeError as error:
        raise Wrong(400, f"the body is no access review: {error}") from None
