"""Frames: what a hub writes down of its deciding, one JSON line each, and how they are read back.

A stretch is a Begin, the rows of the tables as of then, and the Turns that follow. Every file of a recording starts a
stretch, so that the oldest may go.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import msgspec

from batuta.errors import BatutaError
from batuta.kinds.base import Record
from batuta.twin.replay_rows import Row

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

FORMAT = 1
LINE_BYTES_MAX = 64 * 2**20


class Begin(Record, tag_field="is", tag="begin"):
    """A stretch of deciding begins. The rows of the tables follow, `rows` of them."""

    at: int
    hub_since: int
    rows: int
    deaf_ms: int = 0
    open: tuple[str, ...] = ()
    """Subjects that the decision before left unfinished."""
    format: int = FORMAT
    version: str = ""
    """Of the batuta that decided."""


class There(Record, tag_field="is", tag="row"):
    """One row of the tables at the begin."""

    row: Row


class Turn(Record, tag_field="is", tag="turn"):
    """One decision: what had become known since the one before, and what was decided on all of it."""

    at: int
    deaf_ms: int = 0
    """For how long the hub could not listen since it began."""
    heard: tuple[Row, ...] = ()
    decided: tuple[Row, ...] = ()
    everything: bool = False
    """Everything was decided, not only what the news can touch."""


Frame = Begin | There | Turn

_decoder = msgspec.json.Decoder(Frame)
_encoder = msgspec.json.Encoder()


def to_line(frame: Frame) -> bytes:
    return _encoder.encode(frame) + b"\n"


def frames(lines: Iterable[bytes], name: str = "") -> Iterator[Frame]:
    """Read back what `to_line` wrote. A line that was torn off at the end is the end."""
    for number, line in enumerate(lines, 1):
        if not line.endswith(b"\n"):
            return
        try:
            frame = _decoder.decode(line)
        except msgspec.DecodeError as error:
            raise BatutaError(
                f"{name or 'the recording'}:{number} is no line of a recording: {error}",
                next_step="record again with `batuta twin record`",
            ) from error
        if isinstance(frame, Begin) and frame.format != FORMAT:
            raise BatutaError(
                f"{name or 'the recording'} has format {frame.format}, and this version reads {FORMAT}",
                next_step=f"replay it with batuta {frame.version}",
            )
        yield frame
