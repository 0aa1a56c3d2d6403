"""Questions: what the hub asks a node on behalf of people, answered from what is here.

    batuta.tell.<node>.log      LogWanted -> LogPiece: the last lines of an instance, or what came after an offset
    batuta.tell.<node>.doctor   {} -> the node's checks of itself
    batuta.tell.<node>.ping     anything, back again
    batuta.tell.<node>.measure  MeasureWanted -> MeasureAnswer (`agent.measuring`)
    batuta.tell.<node>.flags    the node's flags as they are from now on (`agent.flags`); nobody waits for an answer

Every answer is bounded, whatever was asked for. A question that cannot be answered says so.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

import msgspec

from batuta.agent.actuator import instance_directory
from batuta.errors import BatutaError, NotFound
from batuta.fabric import subjects
from batuta.fabric.questions import PIECE_BYTES_MAX, LogPiece, LogWanted
from batuta.kinds.base import encode_hook
from batuta.runtimes.logs import STREAMS, Logs

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Mapping
    from pathlib import Path

    from batuta.fabric.base import Fabric, Message, Subscription

QUESTION_BYTES_MAX: Final = 64 * 1024
PLACE_BITS: Final = 31
PLACE_MASK: Final = (1 << PLACE_BITS) - 1
"""An instance's log files are cut at a megabyte, so a place in one never comes near this."""


class Questions:
    """Answers for one node. `verbs` is the whole list of what may be asked."""

    def __init__(self, fabric: Fabric, instances: Path, doctor: Callable[[], Awaitable[Mapping[str, Any]]]) -> None:
        self.fabric = fabric
        self.instances = instances
        self.doctor = doctor
        self.refused = 0
        self._subscription: Subscription | None = None
        self.verbs: dict[str, Callable[[bytes], Awaitable[bytes]]] = {
            "log": self._log,
            "doctor": self._doctor,
            "ping": self._ping,
        }

    async def open(self) -> None:
        self._subscription = await self.fabric.subscribe(subjects.all_tells(self.fabric.name), self._hear)

    async def close(self) -> None:
        if self._subscription is not None:
            await self._subscription.close()

    async def _hear(self, message: Message) -> None:
        try:
            verb = subjects.verb_of(message.subject)
            answer = self.verbs.get(verb)
            if answer is None:
                raise NotFound(f"this node does not answer {verb!r}")
            if len(message.data) > QUESTION_BYTES_MAX:
                raise NotFound("the question is too long")
            said = await answer(message.data)
        except (BatutaError, msgspec.MsgspecError, ValueError, OSError) as error:
            self.refused += 1
            code = "not_found" if isinstance(error, NotFound) else "failed"
            said = msgspec.json.encode({"error": code, "message": str(error)[:1000]})
        if message.reply:
            await message.respond(said)

    async def _log(self, data: bytes) -> bytes:
        wanted = msgspec.json.decode(data, type=LogWanted)
        return msgspec.json.encode(log_piece(instance_directory(self.instances, wanted.instance), wanted))

    async def _doctor(self, _data: bytes) -> bytes:
        return msgspec.json.encode(await self.doctor(), enc_hook=encode_hook)

    async def _ping(self, data: bytes) -> bytes:
        return data


def log_piece(directory: Path, wanted: LogWanted) -> LogPiece:
    """A piece of what an instance printed, what it complained about after what it said.

    One number stands for the place in both files. A place beyond a file's end means that the file was cut meanwhile:
    what is read then starts at its new beginning.
    """
    if not directory.is_dir():
        raise NotFound(f"nothing called {wanted.instance} has run on this node")
    most = max(1, min(wanted.bytes_max, PIECE_BYTES_MAX)) // len(STREAMS)
    logs, text, place = Logs(directory), b"", 0
    for n, stream in enumerate(STREAMS):
        after = None if wanted.offset is None else (wanted.offset >> (PLACE_BITS * n)) & PLACE_MASK
        data, end = _read(logs.path(stream), after, wanted.tail, most)
        text += data
        place |= (end & PLACE_MASK) << (PLACE_BITS * n)
    return LogPiece(text=text.decode(errors="replace"), offset=place)


def _read(path: Path, after: int | None, tail: int, most: int) -> tuple[bytes, int]:
    """Bytes and the place after them: from `after`, or else the last `tail` lines."""
    try:
        with path.open("rb") as file:
            end = file.seek(0, 2)
            start = max(0, end - most) if after is None else after if after <= end else 0
            file.seek(start)
            data = file.read(most)
    except FileNotFoundError:
        return b"", 0
    if after is not None:
        return data, start + len(data)
    return b"".join(data.splitlines(keepends=True)[-tail:] if tail > 0 else []), start + len(data)
