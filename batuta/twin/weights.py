"""Weights: what messages come to on the wire, in bytes: payload, subjects, NATS and TLS framing, TCP/IP headers."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

import msgspec

from batuta.kinds.base import encode_hook

if TYPE_CHECKING:
    from batuta.core.decided import Assignment
    from batuta.core.observed import Report

BEAT_BYTES: Final = 230
ANSWER_BYTES: Final = 190
ASK_BYTES: Final = 190
RECEIPT_BYTES: Final = 160
FRAME_BYTES: Final = 140
"""Around a report or an assignment."""
RECONNECT_UP_BYTES: Final = 2_600
RECONNECT_DOWN_BYTES: Final = 3_900
"""A new connection: mutual TLS with one certificate each way, CONNECT, INFO, subscriptions."""


def report_bytes(report: Report) -> int:
    return FRAME_BYTES + len(msgspec.json.encode(report, enc_hook=encode_hook))


def assignment_bytes(assignment: Assignment | None) -> int:
    return FRAME_BYTES + (0 if assignment is None else len(msgspec.json.encode(assignment, enc_hook=encode_hook)))
