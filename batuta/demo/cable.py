"""A cable that can be cut: a relay on loopback through which a whole site reaches its hub.

Cut means what it means outside: nothing is closed and nothing is refused, bytes just stop arriving. What was under way
goes on from there when the cable is mended. It may be as thin and as long as a real one: all connections share its
rate, in each direction, and every byte arrives so much later.
"""

from __future__ import annotations

import asyncio
import threading
from typing import Final

from batuta.fabric.tasks import end

PACKETS_BYTES: Final = 16 * 1024


class Cable:
    """Relays TCP from a port of its own to `target`, until cut. Runs in a thread of its own."""

    def __init__(
        self, target: tuple[str, int], *, bits_per_s: float = 0.0, delay_s: float = 0.0,
        at: tuple[str, int] = ("127.0.0.1", 0),
    ) -> None:  # fmt: skip
        self.target = target
        self.at = at
        """Where it listens; any port when that is 0."""
        self.bits_per_s = bits_per_s
        """0 for as fast as the machine can."""
        self.delay_s = delay_s
        """One way."""
        self.port = 0
        self.bytes_carried = 0
        self._free_at = {"up": 0.0, "down": 0.0}
        """By direction: when the last byte that is on its way has been sent."""
        self._whole: asyncio.Event | None = None
        self._loop = asyncio.new_event_loop()
        self._server: asyncio.Server | None = None
        self._tasks: set[asyncio.Task[None]] = set()
        self._thread = threading.Thread(target=self._loop.run_forever, name="cable", daemon=True)

    def start(self) -> int:
        """Begin to relay; returns the port to connect to."""
        self._thread.start()
        return asyncio.run_coroutine_threadsafe(self._listen(), self._loop).result(10)

    def cut(self) -> None:
        """From now on no byte passes, in either direction."""
        assert self._whole is not None
        self._loop.call_soon_threadsafe(self._whole.clear)

    def mend(self) -> None:
        """Bytes pass again, first those that were waiting."""
        assert self._whole is not None
        self._loop.call_soon_threadsafe(self._whole.set)

    def close(self) -> None:
        """End the relay and everything that passes through it."""
        if not self._thread.is_alive():
            return
        asyncio.run_coroutine_threadsafe(self._end(), self._loop).result(10)
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(10)
        self._loop.close()

    async def _listen(self) -> int:
        self._whole = asyncio.Event()
        self._whole.set()
        self._server = await asyncio.start_server(self._take, *self.at)
        self.port = self._server.sockets[0].getsockname()[1]
        return self.port

    def _take(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = self._loop.create_task(self._relay(reader, writer))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _relay(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            await self._passing()
            far_reader, far_writer = await asyncio.open_connection(*self.target)
            both = [
                asyncio.create_task(self._carry(reader, far_writer, "up")),
                asyncio.create_task(self._carry(far_reader, writer, "down")),
            ]
            try:
                await asyncio.wait(both, return_when=asyncio.FIRST_COMPLETED)
            finally:
                await end(*both)
                far_writer.close()
        except OSError:
            pass  # the hub is away: the caller sees its connection close, as it would on a real link
        finally:
            writer.close()

    async def _carry(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, way: str) -> None:
        if self.bits_per_s or self.delay_s:
            await self._carry_slowly(reader, writer, way)
            return
        while data := await reader.read(65_536):
            await self._passing()
            self.bytes_carried += len(data)
            writer.write(data)
            await writer.drain()

    async def _carry_slowly(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, way: str) -> None:
        """Read as fast as the rate allows, deliver so much later: what is in between is on its way."""
        under_way: asyncio.Queue[tuple[float, bytes]] = asyncio.Queue()
        delivering = asyncio.create_task(self._deliver(under_way, writer))
        loop = asyncio.get_running_loop()
        try:
            while data := await reader.read(PACKETS_BYTES):
                await self._passing()
                began = max(loop.time(), self._free_at[way])
                self._free_at[way] = sent_at = began + (len(data) * 8 / self.bits_per_s if self.bits_per_s else 0.0)
                under_way.put_nowait((sent_at + self.delay_s, data))
                # The next bytes are taken when these are through: so connections take turns, and wait at their ends.
                await asyncio.sleep(sent_at - loop.time())
            await under_way.join()
        finally:
            await end(delivering)

    async def _deliver(self, under_way: asyncio.Queue[tuple[float, bytes]], writer: asyncio.StreamWriter) -> None:
        loop = asyncio.get_running_loop()
        while True:
            arrives_at, data = await under_way.get()
            await asyncio.sleep(arrives_at - loop.time())
            await self._passing()
            self.bytes_carried += len(data)
            writer.write(data)
            await writer.drain()
            under_way.task_done()

    async def _passing(self) -> None:
        assert self._whole is not None
        await self._whole.wait()

    async def _end(self) -> None:
        if self._server is not None:
            self._server.close()
        await end(*self._tasks)
