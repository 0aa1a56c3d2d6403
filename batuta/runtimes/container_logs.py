"""What a container prints, carried from its engine into the files that every instance has.

The engine is read along while the container runs, in frames that say which stream each line belongs to. Where a reader
left off is written down beside the logs, so that the next one goes on there: after a kill -9 of the node agent the last
seconds may be read twice. A container that prints faster than `BYTES_PER_S` is read at that pace, and what its engine
drops meanwhile is lost, as with any burst larger than the files.
"""

from __future__ import annotations

import asyncio
import os
import re
from datetime import datetime
from typing import TYPE_CHECKING, NamedTuple

import msgspec

from batuta.runtimes.kept import write_whole
from batuta.runtimes.logs import STREAMS, Logs

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from pathlib import Path

    from batuta.runtimes.container_http import EngineSocket

FRAME_BYTES_MAX = 1 << 20
HEADER_BYTES = 8
BYTES_PER_S = 1 << 20
ROTATE_AFTER_BYTES = 128 << 10
PLACE_EVERY_S = 2.0


class Place(NamedTuple):
    """Up to where a stream was read: the time stamp of the last line, and how many lines bore it. Engines stamp with a
    nanosecond or with a second; within one stream the stamps rise, and between the two nothing is promised."""

    stamp: str = ""
    lines: int = 0


class ContainerLogs:
    """The reader of one container's output."""

    def __init__(self, engine: EngineSocket, container: str, directory: Path) -> None:
        self.engine = engine
        self.container = container
        self.logs = Logs(directory)
        self.faults = 0
        """Lines that could not be written, and rotations that failed."""
        self._note = self.logs.directory / "place.json"
        self._places = self._read_places()
        self._placed_at = 0.0
        self._unrotated = 0

    async def follow(self) -> None:
        """Until the container's output ends. Raises RuntimeFailure when the engine goes away."""
        self.logs.make_room()
        query = {"follow": "1", "stdout": "1", "stderr": "1", "timestamps": "1"}
        before, alike = dict(self._places), dict.fromkeys(STREAMS, 0)
        if before:
            query["since"] = str(min(_seconds(place.stamp) for place in before.values()))
        loop = asyncio.get_running_loop()
        began, read = loop.time(), 0
        try:
            async with self.engine.open("GET", f"/containers/{self.container}/logs", query) as answer:
                async for stream, line in _frames(answer.pieces):
                    stamp, _, text = line.partition(b" ")
                    at, known = stamp.decode("ascii", "replace"), before.get(stream, Place())
                    alike[stream] += at == known.stamp
                    if at > known.stamp or (at == known.stamp and alike[stream] > known.lines):
                        # From here on everything is new, also when the clock is set back meanwhile.
                        before.pop(stream, None)
                        self._keep(stream, text, at)
                    read += len(line)
                    if read > BYTES_PER_S:
                        await asyncio.sleep(max(0.0, began + 1 - loop.time()))
                        began, read = loop.time(), 0
                    if loop.time() - self._placed_at > PLACE_EVERY_S:
                        self.write_place()
        finally:
            self.write_place()

    def _keep(self, stream: str, text: bytes, at: str) -> None:
        try:
            descriptor = self.logs.open(stream)
            try:
                os.write(descriptor, text)
            finally:
                os.close(descriptor)
            self._unrotated += len(text)
            if self._unrotated > ROTATE_AFTER_BYTES:
                self._unrotated = 0
                self.logs.rotate()
        except OSError:
            self.faults += 1
        place = self._places.get(stream, Place())
        self._places[stream] = Place(at, place.lines + 1 if at == place.stamp else 1)

    def write_place(self) -> None:
        self._placed_at = asyncio.get_running_loop().time()
        try:
            write_whole(self._note, msgspec.json.encode((self.container, self._places)).decode())
        except OSError:
            self.faults += 1

    def _read_places(self) -> dict[str, Place]:
        """Of this very container; another one begins anew."""
        try:
            container, places = msgspec.json.decode(self._note.read_bytes()[:4096], type=tuple[str, dict[str, Place]])
        except (OSError, msgspec.MsgspecError):
            return {}
        return places if container == self.container else {}


async def _frames(pieces: AsyncIterator[bytes]) -> AsyncIterator[tuple[str, bytes]]:
    """Stream and bytes of each frame: a type, three zeros, a length of four bytes, and so many bytes."""
    held = bytearray()
    async for piece in pieces:
        held += piece
        while len(held) >= HEADER_BYTES:
            size = int.from_bytes(held[4:HEADER_BYTES], "big")
            if size > FRAME_BYTES_MAX or held[0] > 2:
                raise ValueError("its log is not in frames")
            if len(held) < HEADER_BYTES + size:
                break
            yield STREAMS[1] if held[0] == 2 else STREAMS[0], bytes(held[HEADER_BYTES : HEADER_BYTES + size])
            del held[: HEADER_BYTES + size]
        # An engine that always has more to say must not keep everybody else waiting.
        await asyncio.sleep(0)


def _seconds(stamp: str) -> int:
    """The second of a time stamp such as 2026-11-21T08:03:05.123456789Z; 0, which is all, when it is none."""
    try:
        return int(datetime.fromisoformat(re.sub(r"\.[0-9]+", "", stamp)).timestamp())
    except ValueError:
        return 0
