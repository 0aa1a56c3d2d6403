"""What a model worker and those who call it say to each other, beyond the Open Inference Protocol itself.

Values only. A worker answers the protocol at a Unix socket in its own directory, at a port when its component says
`serve`, and on the fabric; its card, sent every second and at once when something changes, says where. Whoever calls
learns of workers from their cards alone, so calls need no hub. A card that was not heard for three seconds is void.
"""

from __future__ import annotations

from typing import Literal

from batuta.kinds.base import Record

SOCKET_FILE = "oip.sock"
"""In the instance's directory. Its whole path may be longer than a socket's may be: see `dataflow.unix`."""
CARD_EVERY_MS = 1_000
CARD_VOID_MS = 3_000
CARD_BYTES_MAX = 16 * 1024

Class = Literal["critical", "normal", "bulk"]
CLASSES: tuple[Class, ...] = ("critical", "normal", "bulk")
"""Most urgent first."""

HEADER_JSON_BYTES = "Inference-Header-Content-Length"
"""Of a body with binary tensors: how many bytes of JSON it begins with."""
HEADER_DEADLINE = "Batuta-Deadline-Ms"
"""How many milliseconds are left to answer: what takes longer need not be done."""
HEADER_CLASS = "Batuta-Class"
HEADER_PATH = "Batuta-Path"
"""On the fabric only: asks for something other than an inference, such as `/v2/models/digits`."""
HEADER_ERROR = "Batuta-Error"
"""A code of `dataflow.oip.faults`, such as `overloaded`; the body is the protocol's own error."""


class Card(Record, forbid_unknown_fields=False, omit_defaults=False):
    """One instance, as it says of itself. Unknown fields may pass: it may be of another release than its reader."""

    namespace: str
    application: str
    component: str
    instance: str
    """Its whole name: `default/meter-reader/read-1-berlin-0`."""
    node: str
    model: str
    version: str
    ready: bool
    """It answers. False while it loads, and as its last word."""
    socket: str = ""
    """Path of its Unix socket, for callers on its own node."""
    port: int | None = None
    """Its port on loopback, when it has one."""
    in_flight: int = 0
    """Requests taken and not yet answered."""
    room: int = 0
    """How many requests it may have at once; further ones are refused."""
    p50_ms: float | None = None
    """Half of the answers of the last minute came within this time."""
    signature: str = ""
    """Digest of what goes in and what comes out: instances that may stand in for each other have the same."""


def instance_token(name: str) -> str:
    """`default/reader/read-1-0` as one level of a subject: `default_reader_read-1-0`."""
    return name.replace("/", "_")
