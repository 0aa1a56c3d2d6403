"""Engines: whether this node has a Podman or Docker, and the runtime of containers for as long as it does.

A node without an engine imports nothing of this but the search for a socket. One that has an engine says so with its
version; when the engine stops answering it takes no new containers and says why, and what runs is left to run.
"""

from __future__ import annotations

import asyncio
import os
import stat
from typing import TYPE_CHECKING, Final

import msgspec

from batuta.agent.news import Ailing, Looked
from batuta.core.decided import CONTAINER
from batuta.core.reasons import Reason
from batuta.errors import RuntimeFailure

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from batuta.agent.config import AgentConfig
    from batuta.core.observed import Inventory
    from batuta.runtimes.base import Runtime
    from batuta.runtimes.container import ContainerRuntime

LOOK_EVERY_S: Final = 10.0
FAILURES_MAX: Final = 2
"""So many unanswered questions in a row, and the engine counts as away."""
NONE: Final = "none"
ROOTFUL: Final = ("/run/podman/podman.sock", "/run/docker.sock", "/var/run/docker.sock")
ROOTLESS: Final = ("podman/podman.sock", "docker.sock")


class Engines:
    """The one engine that a node agent uses. `runtimes` gets the runtime of containers as soon as there is one."""

    def __init__(
        self, config: AgentConfig, node: str, runtimes: dict[str, Runtime], tell: Callable[[Ailing | Looked], None]
    ) -> None:
        self.config = config
        self.node = node
        self.runtimes = runtimes
        self.tell = tell
        self.version = ""
        """`podman 4.3.1`; nothing while it does not answer."""
        self._runtime: ContainerRuntime | None = None
        self._failures = 0
        self._known: tuple[Inventory, str, Inventory] | None = None

    async def open(self, *, is_needed: bool) -> None:
        """Find it before anything is started or looked for. `is_needed`: the ledger remembers containers."""
        if self.config.engine == NONE:
            return
        # One that is named, or that runs something of ours, is away and not absent: whoever asks is told so.
        socket = find(self.config.engine) or self.config.engine or (ROOTFUL[0] if is_needed else "")
        if socket:
            self._register(socket)
            await self._look()

    async def run(self) -> None:
        """For ever: notice an engine that comes, goes and comes back."""
        if self.config.engine == NONE:
            await asyncio.Event().wait()
        while True:
            await asyncio.sleep(LOOK_EVERY_S)
            if self._runtime is None and (socket := find(self.config.engine)):
                self._register(socket)
            if self._runtime is not None:
                await self._look()

    def beside(self, inventory: Inventory) -> Inventory:
        """The inventory with what the engine adds to it; the same object while nothing changes."""
        if not self.version:
            return inventory
        if self._known is None or self._known[:2] != (inventory, self.version):
            with_engine = msgspec.structs.replace(
                inventory,
                runtimes=tuple(sorted({*inventory.runtimes, CONTAINER})),
                engines={**inventory.engines, CONTAINER: self.version},
            )
            self._known = (inventory, self.version, with_engine)
        return self._known[2]

    def doctor(self) -> dict[str, int | str]:
        return {"engine": self.version, **(self._runtime.doctor() if self._runtime is not None else {})}

    def _register(self, socket: str) -> None:
        from batuta.runtimes.container import ContainerRuntime
        from batuta.runtimes.container_order import Whose

        whose = Whose(str(self.config.home), self.node, self.config.mountable)
        self._runtime = ContainerRuntime(
            socket, whose, self.config.home / "containers", may_pull=self.config.pulls_images
        )
        self.runtimes[self._runtime.name] = self._runtime

    async def _look(self) -> None:
        assert self._runtime is not None, "there is one to look at"
        before = self.version
        try:
            self.version = await self._runtime.version()
        except RuntimeFailure as failure:
            self._failures += 1
            if self._failures >= FAILURES_MAX or not before:
                self.version = ""
                reason = Reason(code="engine_unreachable", subject=f"node/{self.node}", detail=failure.message)
                self.tell(Ailing("engine", reason))
        else:
            self._failures = 0
            self.tell(Ailing("engine", None))
        if self.version != before:
            self.tell(Looked())


def find(wanted: str, environ: Mapping[str, str] = os.environ, user: int | None = None) -> str:
    """The socket to use, if any: the one that is named, else the user's own engine, else the machine's."""
    if wanted == NONE:
        return ""
    if wanted:
        return wanted if _is_open(wanted) else ""
    places = [*ROOTFUL]
    if (os.geteuid() if user is None else user) != 0:
        own = environ.get("XDG_RUNTIME_DIR") or f"/run/user/{os.geteuid() if user is None else user}"
        places = [*(f"{own}/{name}" for name in ROOTLESS), *ROOTFUL]
    return next((place for place in places if _is_open(place)), "")


def _is_open(path: str) -> bool:
    try:
        return stat.S_ISSOCK(os.stat(path).st_mode) and os.access(path, os.R_OK | os.W_OK)
    except OSError:
        return False
