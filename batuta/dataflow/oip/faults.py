"""Why a request is not answered: a code for programs, a status for HTTP, a sentence for people.

`FAULTS` is the closed list. The body is the protocol's own, `{"error": "…"}`; the code is in the header `Batuta-Error`,
over HTTP and on the fabric alike, so that who calls can tell what to do without reading prose.
"""

from __future__ import annotations

from typing import Final, NamedTuple

import msgspec


class Entry(NamedTuple):
    """What a code means for who called."""

    status: int
    words: str
    again: bool = False
    """Another instance, or the same one later, may well answer."""


FAULTS: Final[dict[str, Entry]] = {
    "malformed": Entry(400, "the request is not one of the protocol"),
    "unfit": Entry(400, "the tensors are not what the model takes"),
    "unanswerable": Entry(400, "the answer cannot be given in the way that was asked for"),
    "forbidden": Entry(403, "who asks may not do this"),
    # Whoever asks after readiness is told by a 4xx: so says the protocol.
    "unready": Entry(400, "it is not ready, being asked whether it is"),
    "unknown": Entry(404, "there is no such model, version or path here"),
    "method_wrong": Entry(405, "this path is asked in another way"),
    "too_slow": Entry(408, "the request did not arrive in time"),
    "length_missing": Entry(411, "the request does not say how long it is"),
    "too_large": Entry(413, "the request is too large"),
    "encoding_unknown": Entry(415, "the body is encoded in a way that is not understood"),
    "head_too_large": Entry(431, "the request's head is too large"),
    "model_failed": Entry(500, "the model failed on these tensors"),
    "elsewhere": Entry(501, "not done here"),
    "overloaded": Entry(503, "there is more to do than can be done", again=True),
    "not_ready": Entry(503, "the model is not ready", again=True),
    "deadline_passed": Entry(504, "the deadline passed before there was an answer"),
}


class Fault(Exception):
    """A request that is not answered. `code` is one of FAULTS."""

    def __init__(self, code: str, message: str, retry_after_s: int = 0) -> None:
        super().__init__(message)
        self.code = code
        self.message = message
        self.retry_after_s = retry_after_s
        """When to try again; 0 when that is of no use."""

    @property
    def status(self) -> int:
        return FAULTS[self.code].status

    @property
    def body(self) -> bytes:
        return msgspec.json.encode({"error": self.message})
