"""What the runtimes of processes share: keeping one process per instance, by name, through the whole contract.

A tenant says which program an order means and how a running one fares; the rest is the same for all.
"""

from __future__ import annotations

import asyncio
import errno
import os
from typing import TYPE_CHECKING, Generic, TypeVar

from batuta.errors import RuntimeFailure
from batuta.fabric.tasks import end
from batuta.runtimes.base import Condition, lock_of
from batuta.runtimes.kept import MARK, Kept, end_all, sessions_of

if TYPE_CHECKING:
    from batuta.runtimes.base import Handle, Order
    from batuta.runtimes.sandbox import Program

DEFAULT_PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"


class Run:
    """An instance that runs, or ran: its order, its process, and the tasks that ask after it."""

    def __init__(self, order: Order, program: Program, kept: Kept) -> None:
        self.order = order
        self.program = program
        self.kept = kept
        self.tasks: list[asyncio.Task[None]] = []

    async def close(self) -> None:
        await end(*self.tasks)
        self.tasks.clear()
        await self.kept.close()


RunT = TypeVar("RunT", bound=Run)


class Keeping(Generic[RunT]):
    """Everything of `Runtime` but what an order means and how a run fares."""

    name: str

    def __init__(self) -> None:
        self._runs: dict[str, RunT] = {}

    def available(self) -> bool:
        return os.path.isdir("/proc/self")

    # --- What a tenant says ---

    def program(self, order: Order) -> Program:
        """What to execute. Raises RuntimeFailure when the order cannot be met."""
        raise NotImplementedError

    def watch(self, order: Order, program: Program, kept: Kept) -> RunT:
        """Begins to ask after a process that was just started or found again."""
        raise NotImplementedError

    def fares(self, run: RunT) -> Condition:
        """How a run fares whose process is there."""
        raise NotImplementedError

    def ended(self, run: RunT) -> Condition:
        """What there is to say of a run whose process ended."""
        assert run.kept.exit is not None
        last = run.kept.logs.last_lines()
        words = run.kept.exit.words + (f": {last}" if last else "")
        return Condition(state="gone", detail=words, code=run.kept.exit.code)

    # --- The contract ---

    async def start(self, order: Order) -> Handle:
        name = order.instance.name
        run = self._runs.get(name)
        if run is not None:
            if not run.kept.ended.is_set():
                raise RuntimeFailure("start_failed", f"{name} runs already, as process {run.kept.pid}")
            await run.close()
            del self._runs[name]
        # What has a lease runs as long as somebody counts it, and no longer.
        program = self.program(order)._replace(tied=order.instance.lease_ms is not None)
        try:
            kept = await Kept.start(order.directory, program)
        except OSError as error:
            code = "disk_full" if error.errno == errno.ENOSPC else "start_failed"
            raise RuntimeFailure(code, f"{name} could not be started: {error}") from error
        self._runs[name] = self.watch(order, program, kept)
        return kept.handle

    async def recover(self, order: Order, handle: Handle) -> bool:
        name = order.instance.name
        if (run := self._runs.get(name)) is not None:
            return not run.kept.ended.is_set()
        program = self.program(order)
        # What has a lease ended with the node agent that started it. Found alive, it was not tied, and is not ours.
        is_leased = order.instance.lease_ms is not None
        kept = None if is_leased else Kept.find(order.directory, program.limits, handle)
        if kept is None:
            # What neither the ledger nor the note knows may still be there, begun in a node agent's last moment; and so
            # may be what a dead leader had begun.
            await end_all(order.directory, sessions=sessions_of(order.directory, handle), grace_s=0.0)
            return False
        self._runs[name] = self.watch(order, program, kept)
        return True

    async def inspect(self, name: str) -> Condition:
        run = self._runs.get(name)
        if run is None:
            return Condition(state="gone", detail="it was not started here")
        if run.kept.ended.is_set():
            return self.ended(run)
        return self.fares(run)

    async def update(self, order: Order) -> None:
        """A process reads its surroundings when it starts; there is nothing to tell it later."""
        if (run := self._runs.get(order.instance.name)) is not None:
            run.order = order

    async def stop(self, name: str, grace_ms: int) -> None:
        run = self._runs.get(name)
        if run is None:
            return
        await run.kept.end(grace_ms)
        await run.close()
        # Another stop may have been quicker, and a start may have followed it.
        if self._runs.get(name) is run:
            del self._runs[name]

    async def close(self) -> None:
        for run in self._runs.values():
            await run.close()
        self._runs.clear()


def environment(order: Order) -> dict[str, str]:
    """What every instance is told: where and what it is. Of the node agent's own environment it sees only PATH."""
    instance, broker = order.instance, order.broker
    return {
        "PATH": os.environ.get("PATH", DEFAULT_PATH),
        "LANG": "C.UTF-8",
        "HOME": str(order.directory),
        "BATUTA_INSTANCE": instance.name,
        "BATUTA_NAMESPACE": instance.namespace,
        "BATUTA_APPLICATION": instance.application,
        "BATUTA_COMPONENT": instance.component,
        "BATUTA_REVISION": str(instance.revision),
        "BATUTA_SLOT": instance.slot,
        "BATUTA_EPOCH": str(instance.epoch),
        "BATUTA_NODE": broker.get("node", ""),
        "BATUTA_NATS_URL": broker.get("url", ""),
        "BATUTA_NATS_CREDENTIALS": broker.get("credentials", ""),
        "BATUTA_NATS_DOMAIN": broker.get("domain", ""),
        "BATUTA_MQTT": broker.get("mqtt", ""),
        "BATUTA_INFERENCE_URL": broker.get("inference", ""),
        "BATUTA_FLAGS_URL": f"{gateway}/flags/{instance.namespace}" if (gateway := broker.get("inference", "")) else "",
        # Its own cards, as the node lists them: `nvidia:0`, or so many bytes of one, `nvidia:0=2147483648`.
        "BATUTA_ACCELERATORS": ",".join(
            f"{g.kind}:{g.card}" + (f"={int(g.memory_bytes)}" if g.memory_bytes is not None else "")
            for g in instance.accelerators
        ),
        "BATUTA_UPDATE_LOCK": str(lock_of(order.directory)),
        MARK: str(order.directory),
    }
