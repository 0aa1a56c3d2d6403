"""Answers: JSON bytes as they are; refusals as Kubernetes `Status` objects, with every Problem and the next step."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

import msgspec
from starlette.exceptions import HTTPException
from starlette.responses import Response
from starlette.routing import Match

from batuta.errors import (
    ArtifactRefused,
    BatutaError,
    EnrolmentRefused,
    FabricUnavailable,
    NotFound,
    Refused,
    Stale,
)
from batuta.hub.declare import AlreadyThere
from batuta.hub.feed import TooOld

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from starlette.requests import Request

    from batuta.kinds.base import Problem

REASONS: Final[dict[int, str]] = {
    400: "BadRequest",
    401: "Unauthorized",
    403: "Forbidden",
    404: "NotFound",
    405: "MethodNotAllowed",
    408: "Timeout",
    409: "Conflict",
    410: "Expired",
    413: "RequestEntityTooLarge",
    415: "UnsupportedMediaType",
    422: "Invalid",
    429: "TooManyRequests",
    500: "InternalError",
    503: "ServiceUnavailable",
    507: "InsufficientStorage",
}
ABOUT: Final = "batuta.about"
"""Where a request's scope says what it is about, as `details` of a Status: clients print kind and name."""
_ARTIFACT_CODES: Final = {"disk_full": 507, "too_large": 413, "artifact_missing": 404}
_ENROLMENT_CODES: Final = {"name_taken": 409, "request_malformed": 400, "name_invalid": 422, "clock_wrong": 422}


class Wrong(BatutaError):
    """The request itself cannot be served; `status` is the HTTP status to say so with."""

    def __init__(self, status: int, message: str, *, next_step: str = "") -> None:
        super().__init__(message, next_step=next_step)
        self.status = status


def said(value: object, status: int = 200) -> Response:
    return raw(msgspec.json.encode(value), status)


def raw(body: bytes, status: int = 200) -> Response:
    return Response(body, status, media_type="application/json")


def refusal(
    code: int,
    message: str,
    *,
    reason: str = "",
    problems: Sequence[Problem] = (),
    next_step: str = "",
    details: Mapping[str, Any] | None = None,
) -> dict[str, Any]:
    """A `Status`. `details.causes` is for any Kubernetes client, `problems` for ours."""
    found: dict[str, Any] = dict(details or {})
    if problems:
        found["causes"] = [{"reason": p.code, "message": _with_hint(p), "field": p.path} for p in problems]
    answer: dict[str, Any] = {
        "kind": "Status",
        "apiVersion": "v1",
        "metadata": {},
        "status": "Failure",
        "message": message,
        "reason": reason or REASONS.get(code, ""),
        "code": code,
        "details": found,
    }
    if problems:
        answer["problems"] = [msgspec.to_builtins(p) for p in problems]
    if next_step:
        answer["nextStep"] = next_step
    return answer


def refused(error: BatutaError) -> dict[str, Any]:
    """The Status of one of our own errors."""
    if isinstance(error, Wrong):
        return refusal(error.status, error.message, next_step=error.next_step)
    if isinstance(error, AlreadyThere):
        return refusal(409, error.message, reason="AlreadyExists", problems=error.problems)
    if isinstance(error, Refused):
        return refusal(422, error.message, problems=error.problems)
    code, details = 500, dict[str, Any]()
    if isinstance(error, NotFound):
        code = 404
    elif isinstance(error, Stale):
        code = 409
    elif (causes := getattr(error, "causes", None)) is not None:
        # Only a conflict over fields names its causes itself.
        code, details = 409, {"causes": causes}
    elif isinstance(error, FabricUnavailable):
        code = 503
    elif isinstance(error, ArtifactRefused):
        code, details = _ARTIFACT_CODES.get(error.code, 422), {"code": error.code}
    elif isinstance(error, EnrolmentRefused):
        code, details = _ENROLMENT_CODES.get(error.code, 403), {"code": error.code}
    answer = refusal(code, error.message, next_step=error.next_step, details=details)
    # Those who enrol are no Kubernetes clients: `error` is the code that they act on.
    return {**answer, "error": details["code"]} if "code" in details else answer


def expired() -> dict[str, Any]:
    return refusal(410, "what happened since that resourceVersion is no longer known", next_step="list again")


async def on_error(request: Request, error: Exception) -> Response:
    """What Starlette calls for every exception that has an answer."""
    if isinstance(error, BatutaError):
        answer = refused(error)
        answer["details"] = {**request.scope.get(ABOUT, {}), **answer["details"]}
    elif isinstance(error, TooOld):
        answer = expired()
    elif isinstance(error, HTTPException):
        message = str(error.detail)
        if error.status_code == 404:
            message = f"there is nothing at {request.url.path}"
        elif error.status_code == 405:
            message = f"{request.method} is not possible on {request.url.path}"
        answer = refusal(error.status_code, message)
    else:
        answer = refusal(500, "the hub failed at this; its journal says how")
    response = said(answer, answer["code"])
    if isinstance(error, HTTPException) and error.headers:
        response.headers.update(error.headers)
    if response.status_code == 405:
        response.headers["Allow"] = ", ".join(_possible(request))
    return response


def _possible(request: Request) -> list[str]:
    """What can be done where this could not. Endpoints that are there to say no are in no schema."""
    here = [r for r in request.app.routes if r.include_in_schema and r.matches(request.scope)[0] != Match.NONE]
    # A place of its own is not also the name of something.
    here = [route for route in here if not route.param_convertors] or here
    found = set[str]().union(*(route.methods or {"GET"} for route in here))
    return sorted(found)


def _with_hint(problem: Problem) -> str:
    return f"{problem.message}, {problem.hint}" if problem.hint else problem.message
