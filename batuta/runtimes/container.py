"""Runs containers, through the REST socket of the node's Podman or Docker.

The engine is asked to make, start and stop; when is the node agent's to decide, as with every instance. A container
outlives the node agent, and the next one finds it by its name and its labels: it is never made anew because somebody
reconnected. What bears our labels and belongs to nobody is removed; what does not bear them is never touched.
"""

from __future__ import annotations

import asyncio
import errno
import math
from typing import TYPE_CHECKING, Any

from batuta.errors import RuntimeFailure
from batuta.runtimes import container_order
from batuta.runtimes.base import Condition
from batuta.runtimes.container_http import EngineRefused, EngineSocket, unreachable
from batuta.runtimes.container_images import UNUSED_KEPT_S, Images
from batuta.runtimes.container_run import NOT_FOUND, ContainerRun
from batuta.runtimes.kept import starts_so_far, write_whole

if TYPE_CHECKING:
    from collections.abc import Collection
    from pathlib import Path

    from batuta.core.decided import Instance
    from batuta.kinds.container import ContainerUse
    from batuta.runtimes.base import Handle, Order
    from batuta.runtimes.container_order import Whose

STOP_SLACK_S = 30.0
PING_TIMEOUT_S = 5.0
START_TIMEOUT_S = 120.0
LISTED_MAX = 1000


class ContainerRuntime:
    """Containers of one node agent, at one engine."""

    name = "container"

    def __init__(self, socket: str, whose: Whose, directory: Path, *, may_pull: bool = True) -> None:
        self.engine = EngineSocket(socket)
        self.whose = whose
        self.images = Images(self.engine, directory, may_pull=may_pull)
        self.removed = 0
        """Containers of ours that nobody remembered."""
        self.unswept = 0
        """Sweeps that the engine refused in part; they are tried again."""
        self._runs: dict[str, ContainerRun] = {}
        self._starting: set[str] = set()
        self._unswept: frozenset[str] | None = None
        """Names to keep, of a sweep that the engine was not there for."""

    def available(self) -> bool:
        """Whoever made this object has found a socket; whether it answers is asked again and again (`version`)."""
        return True

    async def version(self) -> str:
        """`podman 4.3.1`. Raises RuntimeFailure when nobody answers."""
        said = await self.engine.ask("GET", "/version", timeout_s=PING_TIMEOUT_S)
        parts = [str(part.get("Name", "")) for part in said.get("Components") or ()]
        name = "podman" if any("podman" in part.lower() for part in parts) else "docker"
        if self._unswept is not None:
            try:
                await self._sweep(self._unswept)
            except EngineRefused:
                self.unswept += 1
        return f"{name} {str(said.get('Version', ''))[:40]}"

    def doctor(self) -> dict[str, int]:
        return {
            "running": len(self._runs),
            "removed": self.removed,
            "unswept": self.unswept,
            "faults": sum(run.faults + run.logs.faults for run in self._runs.values()),
        }

    # --- The contract ---

    async def start(self, order: Order) -> Handle:
        name = order.instance.name
        run = self._runs.get(name)
        if run is not None:
            if not run.ended.is_set():
                raise RuntimeFailure("start_failed", f"{name} runs already, as container {run.container[:12]}")
            await run.close()
            del self._runs[name]
        self._starting.add(name)
        try:
            # Left by an agent that died before it could write it down, or when its engine was away: one is enough.
            if order.instance.lease_ms is not None:
                raise RuntimeFailure("start_failed", "a container outlives the node agent that would count its lease")
            if not await self.recover(order, {}):
                await self._make(order)
            return {"id": self._runs[name].container, "starts": starts_so_far(order.directory)}
        finally:
            self._starting.discard(name)

    async def _make(self, order: Order) -> None:
        use = container_order.use_of(order)
        image = await self.images.provide(order, use)
        starts = starts_so_far(order.directory) + 1
        wanted = container_order.body(order, image, self.whose, starts)
        try:
            order.directory.mkdir(parents=True, exist_ok=True, mode=0o700)
            write_whole(order.directory / "starts", str(starts))
        except OSError as error:
            raise RuntimeFailure("disk_full" if error.errno == errno.ENOSPC else "start_failed", str(error)) from error
        name = self.whose.name(order.instance.name)
        made = await self.engine.ask("POST", "/containers/create", {"name": name}, wanted)
        try:
            await self.engine.ask("POST", f"/containers/{made['Id']}/start", timeout_s=START_TIMEOUT_S)
            if use.cdi_devices:
                await self._has_devices(str(made["Id"]), use)
        except BaseException:
            await self._remove(str(made["Id"]))
            raise
        self._watch(order, str(made["Id"]))

    async def _has_devices(self, container: str, use: ContainerUse) -> None:
        """Podman before 5 says yes to names of the Container Device Interface, and gives nothing."""
        host = (await self.engine.ask("GET", f"/containers/{container}/json"))["HostConfig"]
        if not host.get("DeviceRequests") and not host.get("Devices"):
            raise RuntimeFailure("device_missing", f"the engine gave it no {', '.join(use.cdi_devices)}")

    async def recover(self, order: Order, handle: Handle) -> bool:
        name = order.instance.name
        if (run := self._runs.get(name)) is not None:
            return not run.ended.is_set()
        try:
            found = await self._find(name)
        except RuntimeFailure as failure:
            known = handle.get("id")
            if failure.code != "engine_unreachable" or not isinstance(known, str):
                raise
            # It runs for all that anybody knows. Whether it does is seen when the engine is back.
            self._watch(order, known).away(failure)
            return True
        if found is None:
            return False
        labels = found["Config"].get("Labels") or {}
        same = labels.get(container_order.ORDER_LABEL) == container_order.order_digest(order.instance)
        if same and order.instance.lease_ms is None and found["State"].get("Running"):
            self._watch(order, str(found["Id"]))
            return True
        await self._remove(str(found["Id"]))
        return False

    async def inspect(self, name: str) -> Condition:
        run = self._runs.get(name)
        return Condition("gone", "it was not started here") if run is None else run.fares()

    async def update(self, order: Order) -> None:
        """A container reads its surroundings when it starts; there is nothing to tell it later."""
        if (run := self._runs.get(order.instance.name)) is not None:
            run.order = order

    async def stop(self, name: str, grace_ms: int) -> None:
        run = self._runs.get(name)
        if run is None:
            if (found := await self._find(name)) is not None:
                await self._halt(str(found["Id"]), grace_ms)
                await self._remove(str(found["Id"]))
            return
        run.asked = True
        await self._halt(run.container, grace_ms)
        try:
            # It reads its last words, and then removes it.
            async with asyncio.timeout(STOP_SLACK_S):
                await run.ended.wait()
        except TimeoutError:
            raise unreachable(self.engine.path, f"it was told to end {name} and has not said so") from None
        await self._remove(run.container)
        await run.close()
        # Another stop may have been quicker, and a start may have followed it.
        if self._runs.get(name) is run:
            del self._runs[name]

    async def close(self) -> None:
        for run in self._runs.values():
            await run.close()
        self._runs.clear()

    # --- What nobody needs any more ---

    async def sweep(
        self, needed: Collection[Instance], standby: Collection[Instance] = (), keep_s: float = UNUSED_KEPT_S
    ) -> None:
        """Remove containers of ours that are not of these instances, and images that nobody needed for `keep_s`, not
        even on standby. Without an engine, once it is back."""
        self._unswept = frozenset(instance.name for instance in needed)
        try:
            await self._sweep(self._unswept)
            await self.images.collect((*needed, *standby), keep_s)
        except EngineRefused:
            self.unswept += 1
            raise
        except RuntimeFailure:
            pass  # said by whoever asks for its version; it is swept when it is back

    async def _sweep(self, names: frozenset[str]) -> None:
        labels = [f"{container_order.HOME_LABEL}={self.whose.mark}"]
        query = {"all": "1", "limit": str(LISTED_MAX), "filters": f'{{"label":["{labels[0]}"]}}'}
        refused: EngineRefused | None = None
        for found in await self.engine.ask("GET", "/containers/json", query) or ():
            labels_found = found.get("Labels") or {}
            instance = labels_found.get(container_order.INSTANCE_LABEL, "")
            if labels_found.get(container_order.HOME_LABEL) != self.whose.mark:
                continue  # an engine that filters badly must not cost anybody a container
            if instance not in names and instance not in self._runs and instance not in self._starting:
                try:
                    await self._halt(str(found["Id"]), 0)
                    await self._remove(str(found["Id"]))
                except EngineRefused as error:
                    refused = error  # the others are removed all the same
                else:
                    self.removed += 1
        if refused is not None:
            raise refused
        self._unswept = None

    # --- The engine ---

    def _watch(self, order: Order, container: str) -> ContainerRun:
        run = ContainerRun(self.engine, order, container, int(order.instance.memory_bytes))
        self._runs[order.instance.name] = run
        return run

    async def _find(self, name: str) -> dict[str, Any] | None:
        """Our container of this instance, in whatever state."""
        try:
            found: dict[str, Any] = await self.engine.ask("GET", f"/containers/{self.whose.name(name)}/json")
        except EngineRefused as error:
            if error.status == NOT_FOUND:
                return None
            raise
        labels = found["Config"].get("Labels") or {}
        if labels.get(container_order.HOME_LABEL) != self.whose.mark:
            raise RuntimeFailure("start_failed", f"somebody else's container is called {self.whose.name(name)}")
        return found

    async def _halt(self, container: str, grace_ms: int) -> None:
        grace_s = math.ceil(grace_ms / 1000)
        try:
            await self.engine.ask(
                "POST", f"/containers/{container}/stop", {"t": str(grace_s)}, timeout_s=grace_s + STOP_SLACK_S
            )
        except EngineRefused as error:
            if error.status != NOT_FOUND:
                raise

    async def _remove(self, container: str) -> None:
        try:
            await self.engine.ask("DELETE", f"/containers/{container}", {"force": "1", "v": "1"})
        except EngineRefused as error:
            # 409: it is being removed already.
            if error.status not in (NOT_FOUND, 409):
                raise
