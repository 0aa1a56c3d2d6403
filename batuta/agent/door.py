"""Door: the node's inference gateway, as the agent keeps it.

The agent holds the listening socket; the gateway itself is a process of its own that runs only while somebody uses it.
The first caller's knock starts it, or the first call from another site, and it ends by itself after ten idle minutes,
so a small node whose programs ask nothing spends nothing on it. Killed, it starts again at the next knock: callers wait
in the socket's line meanwhile, and none is refused. It outlives the agent, and the next one adopts it.
"""

from __future__ import annotations

import asyncio
import socket
import sys
from typing import TYPE_CHECKING, Any, Final

import msgspec

from batuta.agent.news import Ailing
from batuta.core.gateway import GATEWAY_PORT, MEASURES_BYTES_MAX, MEASURES_FILE, GatewayOrder
from batuta.core.observed import Mesh
from batuta.core.reasons import Reason
from batuta.core.serving import HEADER_ERROR
from batuta.errors import FabricUnavailable, RuntimeFailure
from batuta.fabric import subjects
from batuta.fabric.tasks import end
from batuta.runtimes.kept import Kept
from batuta.runtimes.processes import until_readable
from batuta.runtimes.sandbox import Limits, Program

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from batuta.agent.config import AgentConfig
    from batuta.fabric.base import Fabric, Message

GATEWAY: Final = "batuta.dataflow.gateway"
BACKLOG: Final = 1_024
OPEN_FILES: Final = 16_384
MEMORY_BYTES: Final = 512 << 20
STOP_MS: Final = 8_000
SHORT_LIFE_S: Final = 10.0
WELL_AFTER_S: Final = 60.0
PORT_TRIES: Final = 100


class Door:
    """Where this node's programs ask models. `tell` hears what ails it."""

    def __init__(self, config: AgentConfig, node: str, tell: Callable[[Ailing], None]) -> None:
        self.directory = config.home / "gateway"
        self.node = node
        self.tell = tell
        self.port = 0
        self.starts = 0
        """How often this agent started the gateway."""
        self.broken = 0
        """How often it ended when nobody asked it to."""
        self.broker: Mapping[str, str] = {}
        """How instances reach the node's broker: as they do, so does the gateway."""
        self.far: Mapping[str, str] = {}
        """How the gateway reaches other sites."""
        self.control: Fabric | None = None
        """Where calls from other sites come; whoever calls while the gateway sleeps is told to call again."""
        self._instances = config.instances
        self._tied = config.tied
        # Who takes any port for devices shares the machine with other nodes: they need no race for the usual one.
        usual = GATEWAY_PORT if config.mqtt_port else 0
        self._wanted = usual if config.inference_port is None else config.inference_port
        self._is_chosen = bool(config.inference_port)
        self._limits = Limits(memory_bytes=MEMORY_BYTES, open_files=OPEN_FILES)
        self._listener: socket.socket | None = None
        self._kept: Kept | None = None
        self._woken = asyncio.Event()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    @property
    def pid(self) -> int:
        """Its process, or 0 while nobody uses it."""
        return self._kept.pid if self._kept is not None and not self._kept.ended.is_set() else 0

    def open(self) -> None:
        """From now on callers wait in line. A gateway that an earlier agent left is adopted, with its socket."""
        self.directory.mkdir(parents=True, exist_ok=True, mode=0o700)
        before = self._read_port()
        self._kept = Kept.find(self.directory, self._limits, {})
        if self._kept is not None and before:
            self.port = before
        else:
            self._listen(self._wanted if self._is_chosen else before or self._wanted)

    async def run(self) -> None:
        """Start it whenever somebody knocks, for ever."""
        while True:
            if self._kept is None:
                await self._knock()
                await self._start()
            await self._until_end()

    async def stop(self) -> None:
        """The node goes down in order."""
        if self._kept is not None:
            await self._kept.end(STOP_MS)
        await self.leave()

    async def leave(self) -> None:
        """Only this process goes; the gateway stays, for the next agent."""
        if self._kept is not None:
            await self._kept.close()
            self._kept = None
        if self._listener is not None:
            self._listener.close()
            self._listener = None

    def measures(self) -> Mesh | None:
        """What it counted; None when it has not run yet."""
        try:
            with (self.directory / MEASURES_FILE).open("rb") as file:
                return msgspec.json.decode(file.read(MEASURES_BYTES_MAX), type=Mesh)
        except (OSError, msgspec.MsgspecError):
            return None

    def doctor(self) -> dict[str, Any]:
        return {"url": self.url, "pid": self.pid, "starts": self.starts, "broken": self.broken}

    # --- The socket ---

    def _listen(self, wanted: int) -> None:
        for port in (0,) if wanted == 0 else range(wanted, min(wanted + PORT_TRIES, 65_536)):
            made = socket.socket()
            made.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                made.bind(("127.0.0.1", port))
                made.listen(BACKLOG)
            except OSError:
                made.close()
                continue
            made.setblocking(False)
            self._listener, self.port = made, made.getsockname()[1]
            (self.directory / "port").write_text(str(self.port), encoding="ascii")
            if self._wanted and self.port != self._wanted:
                detail = f"{self._wanted} is taken; models are asked at {self.url}"
                self._ails("port_taken", detail, about="inference")
            return
        detail = f"no port from {wanted} to {wanted + PORT_TRIES - 1} is free"
        self._ails("port_taken", f"{detail}: programs here cannot ask models", about="inference")

    def _read_port(self) -> int:
        try:
            return int((self.directory / "port").read_text(encoding="ascii")[:6])
        except (OSError, ValueError):
            return 0

    async def _knock(self) -> None:
        while self._listener is None:
            # The gateway that was adopted had the socket, and took it along.
            self._listen(self.port or self._wanted)
            if self._listener is None:
                await asyncio.sleep(SHORT_LIFE_S)
        self._woken.clear()
        knocking = asyncio.create_task(until_readable(self._listener.fileno()))
        calling = asyncio.create_task(self._until_called())
        try:
            await asyncio.wait({knocking, calling}, return_when=asyncio.FIRST_COMPLETED)
        finally:
            await end(knocking, calling)

    async def _until_called(self) -> None:
        """Until another site calls. It tries again by itself, and by then the gateway is there."""
        if (control := self.control) is None:
            await asyncio.Event().wait()
            return
        while True:
            try:
                subscription = await control.subscribe(subjects.far_calls_to(self.node), self._called)
                break
            except FabricUnavailable:
                await asyncio.sleep(SHORT_LIFE_S)
        try:
            await self._woken.wait()
        finally:
            await subscription.close()

    async def _called(self, message: Message) -> None:
        self._woken.set()
        asker = subjects.node_of(message.subject)
        if self.control is not None and message.reply.startswith(f"{subjects.far_answer(self.node, asker)}."):
            said = {HEADER_ERROR: "not_ready"}
            await self.control.publish(message.reply, b'{"error":"the gateway there is being started"}', said)

    # --- The process ---

    async def _start(self) -> None:
        assert self._listener is not None
        order = GatewayOrder(
            node=self.node, directory=str(self.directory), instances=str(self._instances),
            listener=self._listener.fileno(), broker=dict(self.broker), far=dict(self.far),
        )  # fmt: skip
        program = Program(
            command=(sys.executable, "-P", "-m", GATEWAY),
            env={"PATH": "/usr/bin:/bin", "LANG": "C.UTF-8", "PYTHONUNBUFFERED": "1"},
            directory=self.directory,
            limits=self._limits,
            stdin=msgspec.json.encode(order),
            tied=self._tied,
            inherited=(self._listener.fileno(),),
        )
        try:
            self._kept = await Kept.start(self.directory, program)
            self.starts += 1
        except (OSError, RuntimeFailure) as error:
            self._ails("gateway_failed", f"it could not be started: {error}")
            await asyncio.sleep(SHORT_LIFE_S)

    async def _until_end(self) -> None:
        if (kept := self._kept) is None:
            return
        began = asyncio.get_running_loop().time()
        ended = asyncio.create_task(kept.ended.wait())
        try:
            await asyncio.wait({ended}, timeout=WELL_AFTER_S)
            if not ended.done():
                self.tell(Ailing("gateway", None))
            await ended
        finally:
            ended.cancel()
        words = kept.exit.words if kept.exit is not None else "it ended"
        await kept.close()
        self._kept = None
        if words == "exit status 0":
            return  # nobody had used it for long
        self.broken += 1
        self._ails("gateway_failed", f"{words}; it starts again when somebody asks; {self.broken} times so far")
        if asyncio.get_running_loop().time() - began < SHORT_LIFE_S:
            await asyncio.sleep(min(SHORT_LIFE_S, 0.1 * 2 ** min(self.broken, 10)))

    def _ails(self, code: str, detail: str, about: str = "gateway") -> None:
        self.tell(Ailing(about, Reason(code=code, subject=f"node/{self.node}", detail=detail[:300])))
