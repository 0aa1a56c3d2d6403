"""The agent's side of a tunnel: the child that speaks TLS for it, frames to it and from it.

See `tunnel`, which is never imported here: `ssl` costs four megabytes.
"""

from __future__ import annotations

import asyncio
import contextlib
import struct
import sys
from typing import TYPE_CHECKING, Any, Final, NamedTuple

import msgspec

from batuta.errors import FabricUnavailable
from batuta.fabric.tasks import end

if TYPE_CHECKING:
    from collections.abc import Callable

HEAD: Final = struct.Struct(">II")
FRAME_BYTES_MAX: Final = 4 << 20
STOP_S: Final = 5.0


class Credentials(NamedTuple):
    """Where this node's certificate and key are, and the root of its hub."""

    chain: str
    key: str
    trusts: str


class Event(msgspec.Struct, frozen=True):
    """What the child says of itself and of connections."""

    type: str
    conn: int = 0
    node: str = ""
    port: int = 0
    message: str = ""


class Tunnel:
    """One child. `heard` gets the frames of connections, `told` what happens to them."""

    def __init__(self, heard: Callable[[int, bytes], None], told: Callable[[Event], None]) -> None:
        self.heard = heard
        self.told = told
        self._child: asyncio.subprocess.Process | None = None
        self._reading: asyncio.Task[None] | None = None

    @property
    def is_open(self) -> bool:
        return self._reading is not None and not self._reading.done()

    @property
    def pid(self) -> int:
        return self._child.pid if self._child is not None and self.is_open else 0

    async def open(self) -> None:
        await self.close()
        self._child = await asyncio.create_subprocess_exec(
            sys.executable, "-P", "-m", "batuta.agent.tunnel",
            stdin=asyncio.subprocess.PIPE, stdout=asyncio.subprocess.PIPE,
            start_new_session=True,  # a Ctrl-C is for us, and it ends with our pipe
        )  # fmt: skip
        self._reading = asyncio.create_task(self._read(self._child))

    async def ended(self) -> None:
        """Returns when the child is gone."""
        if self._reading is not None:
            await asyncio.wait({self._reading})

    async def order(self, kind: str, credentials: Credentials | None = None, **order: Any) -> None:
        said = {"type": kind, **(credentials._asdict() if credentials is not None else {}), **order}
        await self.send(0, msgspec.json.encode(said))

    async def send(self, conn: int, data: bytes) -> None:
        """A frame to whoever is there. Raises FabricUnavailable when the child is gone."""
        if self._child is None or self._child.stdin is None or not self.is_open:
            raise FabricUnavailable("the tunnel has ended")
        try:
            self._child.stdin.write(HEAD.pack(len(data), conn) + data)
            await self._child.stdin.drain()
        except OSError as error:
            raise FabricUnavailable("the tunnel has ended") from error

    async def close(self) -> None:
        child, self._child = self._child, None
        if child is not None and child.returncode is None:
            with contextlib.suppress(ProcessLookupError):
                child.kill()  # it holds nothing: whoever is at the other ends asks somebody else
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(STOP_S):
                    await child.wait()
        if self._reading is not None:
            await end(self._reading)
            self._reading = None

    async def _read(self, child: asyncio.subprocess.Process) -> None:
        assert child.stdout is not None
        with contextlib.suppress(asyncio.IncompleteReadError):  # that is how it ends
            while True:
                length, conn = HEAD.unpack(await child.stdout.readexactly(HEAD.size))
                if length > FRAME_BYTES_MAX:
                    break
                data = await child.stdout.readexactly(length)
                if conn:
                    self.heard(conn, data)
                else:
                    self.told(msgspec.json.decode(data, type=Event))
        self.told(Event(type="ended"))
