"""What a call is made of: what is asked, what comes back, and the ways in which nothing does."""

from __future__ import annotations

import secrets
from typing import TYPE_CHECKING, Final, Literal, NamedTuple

import msgspec

from batuta.core.beside import ANY_VERSION, HEADER_KEY, HEADER_VERSION
from batuta.dataflow.oip.faults import FAULTS

if TYPE_CHECKING:
    from collections.abc import Mapping

    from batuta.core.serving import Class

Verb = Literal["infer", "metadata", "ready"]

JSON = "application/json"

OWN: Final[Mapping[str, int]] = {
    "model_unknown": 404,
    "not_allowed": 403,
    "nobody_well": 503,
    "retries_spent": 503,
    "placed_by_applications": 400,
}
"""Errors that only the mesh knows, and the HTTP status that each is; all others are those of an instance."""


class Ask(NamedTuple):
    """One call, as it came to the door."""

    namespace: str
    model: str
    version: str
    """"" for any."""
    application: str
    """"" for any."""
    verb: Verb
    urgency: Class
    deadline: int
    """Instant of the process's own clock, in milliseconds."""
    body: bytes = b""
    json_bytes: str = ""
    """Of a body with binary tensors: how many bytes of JSON it begins with."""
    content_type: str = JSON
    traceparent: str = ""
    tracestate: str = ""
    key: str = ""
    """What it is about: see `core.beside`."""
    reach: Literal["local", "any"] = "any"
    """How far it may go: a call that came from another site stays on this node."""


class Reply(NamedTuple):
    """What an instance answered, or the mesh in its stead."""

    status: int
    body: bytes = b""
    json_bytes: str = ""
    content_type: str = JSON
    code: str = ""
    """Of an error: a stable word."""
    headers: tuple[tuple[str, str], ...] = ()
    by: str = ""
    """The instance that answered, where that is not the one that was asked."""


class Unreached(Exception):
    """Nobody is there to ask: nothing was sent, or nobody heard it."""


class Broken(Exception):
    """It was sent, and the connection ended before the answer was whole."""


class TooLarge(Exception):
    """The body does not fit through this path."""


def refusal(code: str, message: str, *headers: tuple[str, str]) -> Reply:
    """The protocol's own error, with a code of the mesh."""
    return Reply(status_of(code), msgspec.json.encode({"error": message}), code=code, headers=headers)


def path_of(ask: Ask, version: str) -> str:
    """Where an instance takes it."""
    return f"/v2/models/{ask.model}/versions/{version}" + ("" if ask.verb == "metadata" else f"/{ask.verb}")


def of_release(ask: Ask, *, path: bool) -> list[tuple[str, str]]:
    """What decides which of two releases on trial answers, for an instance that has another beside it."""
    said = [(HEADER_KEY, ask.key)] if ask.key else []
    if ask.version and not path:
        said.append((HEADER_VERSION, ask.version))
    if not ask.version and path:
        # The path names the version of whoever is asked; the caller did not.
        said.append((HEADER_VERSION, ANY_VERSION))
    return said


def status_of(code: str) -> int:
    """Of an error's code; a code of another release is taken for the caller's fault, which is not tried again."""
    if code in OWN:
        return OWN[code]
    return FAULTS[code].status if code in FAULTS else 400


def carried(traceparent: str) -> str:
    """The caller's trace, with a span of its own for one attempt; a new trace where the caller brought none, or
    something else. See W3C Trace Context, version 00."""
    version, trace, parent, flags, *_ = (*traceparent.strip().lower().split("-"), "", "", "", "")
    sound = _is_hex(version, 2) and _is_hex(trace, 32) and _is_hex(parent, 16) and _is_hex(flags, 2)
    span = secrets.token_hex(8)
    if sound and version != "ff" and trace.strip("0") and parent.strip("0"):
        return f"00-{trace}-{span}-{flags}"
    return f"00-{secrets.token_hex(16)}-{span}-00"


def _is_hex(text: str, length: int) -> bool:
    return len(text) == length and all(c in "0123456789abcdef" for c in text)
