"""The new release beside a worker, as the worker sees it: found, shown what was answered, asked for its share.

Showing costs the worker next to nothing and waits for nothing: what is to be shown lies in a bounded queue, and what
has no room there is dropped and counted. Asking has an end: what the new one has not answered in time, or at all, the
worker answers itself; after some such times in a row it asks no more for a while.
"""

from __future__ import annotations

import asyncio
import itertools
from collections import deque
from typing import TYPE_CHECKING, Final

from batuta.core.beside import belongs, socket_name
from batuta.core.observed import Handover
from batuta.dataflow.beside import wire
from batuta.dataflow.beside.wire import Answer, Handed
from batuta.dataflow.beside.wire import Frame as Shown
from batuta.dataflow.unix import connect_unix

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from pathlib import Path
    from typing import Any

    from batuta.core.decided import Instance
    from batuta.dataflow.beside.wire import Back, Hello, Request

    Answered = Callable[[Sequence[Answer]], None]

LOOK_EVERY_S: Final = 1.0
HELLO_S: Final = 5.0
QUEUE_MAX: Final = 1_024
QUEUE_BYTES_MAX: Final = 8 << 20
"""Of what waits to be shown."""
AT_ONCE: Final = 128
GATHER_S: Final = 0.003
"""So long what is to be shown gathers: one message for many costs less than one for each."""
UNSENT_BYTES_MAX: Final = 16 << 20
"""Of what was asked and not read yet."""
PENDING_MAX: Final = 64
LATE_S: Final = 1.0
LATES: Final = 3
"""So often in a row, and it is left alone for a while."""
REST_FIRST_S: Final = 1.0
REST_LONGEST_S: Final = 30.0


class Newcomer:
    """Whoever listens at the meeting place of this worker's slot; nobody, most of the time."""

    def __init__(self, instance: Instance, directory: Path, complain: Callable[[str], None]) -> None:
        self.own = instance.name
        self.hello: Hello | None = None
        """None while nobody is there."""
        self._path = directory.parent / socket_name(instance)
        self._complain = complain
        self._loop = asyncio.get_running_loop()
        self._writer: asyncio.StreamWriter | None = None
        self._queue: deque[tuple[Shown | Request, int]] = deque()
        self._queued_bytes = 0
        self._sending: asyncio.TimerHandle | None = None
        self._numbers = itertools.count(1)
        self._pending: dict[int, tuple[int, Answered, asyncio.TimerHandle]] = {}
        self._lates = 0
        self._rests_until = 0.0
        self._rest_s = REST_FIRST_S
        self._known = ""
        self._shown = self._dropped = self._asked = self._answered = self._late = self._failed = self._lost = 0

    @property
    def books(self) -> Handover | None:
        """None as long as nobody was ever there."""
        if not self._known:
            return None
        return Handover(
            to=self._known, shown=self._shown, dropped=self._dropped, asked=self._asked, answered=self._answered,
            late=self._late, failed=self._failed, lost=self._lost,
        )  # fmt: skip

    @property
    def is_shown(self) -> bool:
        """What is answered is to be shown to it."""
        return self.hello is not None and self.hello.mode == "shadow"

    @property
    def is_asked(self) -> bool:
        """It answers a share."""
        return self.hello is not None and self.hello.mode == "split"

    # --- Showing ---

    def show(self, what: Shown | Request, size: int) -> None:
        """Something that was answered, with the answer. Never waits."""
        if len(self._queue) >= QUEUE_MAX or self._queued_bytes + size > QUEUE_BYTES_MAX:
            self._dropped += 1
            return
        self._queue.append((what, size))
        self._queued_bytes += size
        if self._sending is None:
            self._sending = self._loop.call_later(GATHER_S, self._send)

    def _send(self) -> None:
        self._sending = None
        if self._writer is None:
            return
        if self._writer.transport.get_write_buffer_size():
            # It has not read the last one yet.
            self._sending = self._loop.call_later(GATHER_S * 4, self._send)
            return
        frames: list[Shown] = []
        requests: list[Request] = []
        size = 0
        while self._queue and size < wire.PIECE_BYTES and len(frames) + len(requests) < AT_ONCE:
            what, bytes_ = self._queue.popleft()
            size += bytes_
            if isinstance(what, Shown):
                frames.append(what)
            else:
                requests.append(what)
        self._queued_bytes -= size
        try:
            self._writer.write(wire.packed(Handed(0, frames, requests)))
            self._shown += len(frames) + len(requests)
        except ValueError:
            self._dropped += len(frames) + len(requests)
        if self._queue:
            self._sending = self._loop.call_later(GATHER_S, self._send)

    # --- Asking ---

    def takes(self, key: str) -> bool:
        """Whether what bears this key is the new one's, and it can be asked now."""
        hello = self.hello
        if hello is None or hello.mode != "split" or not belongs(key, hello.salt, hello.share):
            return False
        assert self._writer is not None
        is_free = len(self._pending) < PENDING_MAX
        is_free = is_free and self._writer.transport.get_write_buffer_size() <= UNSENT_BYTES_MAX
        if is_free and self._loop.time() >= self._rests_until:
            return True
        self._late += 1
        return False

    def ask(self, frames: list[Shown], requests: list[Request], answered: Answered, within_s: float = LATE_S) -> None:
        """Calls `answered` once, later, with an answer for each; those with a fault are for the caller to give."""
        count = len(frames) + len(requests)
        number = next(self._numbers)
        self._asked += count
        timer = self._loop.call_later(min(within_s, LATE_S), self._too_late, number)
        self._pending[number] = (count, answered, timer)
        try:
            assert self._writer is not None
            self._writer.write(wire.packed(Handed(number, frames, requests)))
        except ValueError as error:
            self._complain(f"too large for the release beside this one: {error}")
            self._loop.call_soon(self._give_up, number)

    def _too_late(self, number: int) -> None:
        count, answered, _ = self._pending.pop(number)
        self._late += count
        self._lates += 1
        if self._lates >= LATES:
            self._rests_until = self._loop.time() + self._rest_s
            self._rest_s = min(self._rest_s * 2, REST_LONGEST_S)
            self._complain(f"{self._known} was late {self._lates} times in a row; it is not asked for a while")
        answered([Answer(fault="late")] * count)

    def _give_up(self, number: int) -> None:
        if number in self._pending:
            count, answered, timer = self._pending.pop(number)
            timer.cancel()
            self._lost += count
            answered([Answer(fault="lost")] * count)

    def _hear(self, back: Back) -> None:
        if back.number == 0:
            # It ends: what it has it still answers.
            self.hello = None
            return
        waiting = self._pending.pop(back.number, None)
        if waiting is None:
            return  # it was late, and counted as such
        count, answered, timer = waiting
        timer.cancel()
        if len(back.answers) != count:
            self._failed += count
            answered([Answer(fault="it did not answer what was asked")] * count)
            return
        self._lates, self._rest_s = 0, REST_FIRST_S
        failed = sum(bool(answer.fault) for answer in back.answers)
        self._failed += failed
        self._answered += count - failed
        answered(back.answers)

    # --- Meeting ---

    async def run(self) -> None:
        """Looks for it, for ever; one that is gone may come again."""
        while True:
            if self._path.exists():
                await self._meet()
            await asyncio.sleep(LOOK_EVERY_S)

    async def _meet(self) -> None:
        try:
            made = connect_unix(self._path)
        except OSError:
            return  # what a dead one left; or one that is only just beginning to listen
        reader, writer = await asyncio.open_unix_connection(sock=made, limit=wire.PIECE_BYTES)
        try:
            async with asyncio.timeout(HELLO_S):
                hello = wire.hellos.decode(await wire.read(reader, wire.HELLO_BYTES_MAX))
            if hello.format != wire.FORMAT or hello.instance == self.own:
                self._complain(f"{hello.instance} listens beside this, and cannot be spoken to")
                return
            self.hello, self._known, self._writer = hello, hello.instance, writer
            while True:
                self._hear(wire.backs.decode(await wire.read(reader)))
        except (EOFError, OSError, ValueError) as error:
            # It ended, it was killed, or what it says makes no sense: the worker is as if alone.
            if isinstance(error, ValueError):
                self._complain(f"the release beside this one cannot be understood: {error}")
        finally:
            self._part()
            writer.close()

    def _part(self) -> None:
        self.hello = self._writer = None
        self._dropped += len(self._queue)
        self._queue.clear()
        self._queued_bytes = 0
        if self._sending is not None:
            self._sending.cancel()
            self._sending = None
        for number in list(self._pending):
            self._give_up(number)


def shown(topic: str, data: bytes, age_ms: float = 0.0, said: Any = None) -> Shown:
    return Shown(topic, memoryview(data), age_ms, said)
