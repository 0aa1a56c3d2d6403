"""Flags as the node keeps them: a file that its gateway reads, and that outlives every restart and every lost link.

The hub sends a new sheet when it changes; its answer to a heartbeat says when ours is not the one we should have, and
then we ask. Nothing of a sheet stays in this process but its digest.
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Final

from batuta.agent.identity import write_private
from batuta.agent.ledger import FULL
from batuta.agent.news import Ailing
from batuta.core.flags import SHEET_BYTES_MAX, digest_of, read
from batuta.core.reasons import Reason
from batuta.fabric import subjects

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from batuta.fabric.base import Fabric

AGAIN_AFTER_S: Final = 10.0
"""So long after the disk would not take a sheet, it is asked for again."""


class Flags:
    """One node's sheet. `tell` hears when it cannot be kept."""

    def __init__(self, fabric: Fabric, path: Path, tell: Callable[[Ailing], None], *, apart: bool = True) -> None:
        self.fabric = fabric
        self.path = path
        self.tell = tell
        self.apart = apart
        self.digest = ""
        """Of what is on the disk; the heartbeat carries it."""
        self.kept = 0
        """Sheets taken since this agent began."""
        self.unread = 0
        """Messages that were no sheet."""
        self._wanted = asyncio.Event()
        self._one_at_a_time = asyncio.Lock()

    def open(self) -> None:
        """What an earlier agent kept goes on to count, hub or no hub. What cannot be read is asked for anew."""
        try:
            body = self.path.read_bytes()
            read(body)
        except FileNotFoundError:
            return
        except (OSError, ValueError) as error:
            self.unread += 1
            detail = f"its flags: {error}"[:300]
            self.tell(Ailing("flags", Reason(code="ledger_corrupt", subject=f"node/{self.fabric.name}", detail=detail)))
            return
        self.digest = digest_of(body)

    def ask(self) -> None:
        """The hub has another sheet for us than ours."""
        self._wanted.set()

    async def run(self) -> None:
        while True:
            await self._wanted.wait()
            self._wanted.clear()
            # When nobody answers, the next heartbeat that is answered tells us to ask again.
            if not await self._keep(await self.fabric.request(subjects.ask(self.fabric.name, "flags"), b"")):
                await asyncio.sleep(AGAIN_AFTER_S)

    async def told(self, body: bytes) -> bytes:
        """The hub says that it changed, and as a rule what it is now."""
        if not body:
            self.ask()
        else:
            await self._keep(body)
        return b"{}"

    async def _keep(self, body: bytes) -> bool:
        async with self._one_at_a_time:
            digest = digest_of(body)
            if digest == self.digest:
                return True
            try:
                if len(body) > 2 * SHEET_BYTES_MAX:
                    raise ValueError(f"{len(body)} bytes")
                read(body)
            except ValueError:
                self.unread += 1
                return False
            try:
                if self.apart:
                    await asyncio.to_thread(write_private, self.path, body)
                else:
                    write_private(self.path, body)
            except OSError as error:
                code = "disk_full" if error.errno in FULL else "ledger_unwritable"
                detail = f"its flags stay as they were: {error.strerror}"
                self.tell(Ailing("flags", Reason(code=code, subject=f"node/{self.fabric.name}", detail=detail)))
                return False
            self.digest = digest
            self.kept += 1
            self.tell(Ailing("flags", None))
            return True
