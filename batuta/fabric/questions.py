"""What hub and node say to each other in questions and answers, once for both. A newer one may say more."""

from __future__ import annotations

from typing import Final

from batuta.kinds.base import Record

PIECE_BYTES_MAX: Final = 256 * 1024


class LogWanted(Record, forbid_unknown_fields=False):
    """A part of an instance's log: the last `tail` lines, or what came after `offset`."""

    instance: str
    tail: int = 100
    offset: int | None = None
    bytes_max: int = PIECE_BYTES_MAX


class LogPiece(Record, forbid_unknown_fields=False):
    """Text, and where the next piece begins; or why there is none."""

    text: str = ""
    offset: int = 0
    error: str = ""
    message: str = ""
