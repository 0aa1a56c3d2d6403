"""Actuator: Actions become calls of runtimes and of the artifact cache; what comes of them goes back as Events.

One lane per instance: a task that does one thing at a time for it, and watches it while it runs. Lanes know nothing
of each other and decide nothing. A Stop ends a fetch at once and waits for a start, because only what has begun can
be ended.
"""

from __future__ import annotations

import asyncio
import shutil
from typing import TYPE_CHECKING, Final, NamedTuple

from batuta.agent.books import Book
from batuta.core import local as core
from batuta.core.lease import grace_ms
from batuta.core.proving import NEVER_REMEMBERED, Proven
from batuta.core.reasons import CATALOGUE, Reason
from batuta.errors import ArtifactRefused, RuntimeFailure
from batuta.runtimes.base import Order, Sweeper, lock_of

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping
    from pathlib import Path

    from batuta.agent.artifacts import Artifacts
    from batuta.core.decided import Instance
    from batuta.core.observed import Measures
    from batuta.runtimes.base import Condition, Runtime

LOOK_EVERY_S: Final = 1.0
LOOK_EVERY_WHILE_STARTING_S: Final = 0.1
STARTING_S: Final = 10.0
UNTRUSTED: Final = frozenset(("digest_mismatch", "signature_invalid", "signature_missing", "signer_unknown"))
"""Codes of bytes that were not what somebody vouched for; each time is counted."""


class Surroundings(NamedTuple):
    """What every instance on this node is told of the node."""

    broker: Mapping[str, str]
    neighbours: tuple[str, ...]


class Actuator:
    """All lanes of one node."""

    def __init__(
        self,
        directory: Path,
        runtimes: Mapping[str, Runtime],
        artifacts: Artifacts,
        surroundings: Surroundings,
        *,
        tell: Callable[[core.Event], None],
        needed: Callable[[], frozenset[str]] = frozenset,
        stir: Callable[[], None] = lambda: None,
    ) -> None:
        self.directory = directory
        self.runtimes = runtimes
        self.artifacts = artifacts
        self.surroundings = surroundings
        self.tell = tell
        self.needed = needed
        """Digests that must not be removed to make room."""
        self.stir = stir
        """Something changed that is no event, and is worth a look."""
        self.faults: dict[str, str] = {}
        """By instance: the newest failure of a runtime that no event could carry."""
        self.untrusted: dict[str, int] = {}
        """By code: how often an instance was not run because its bytes were not to be trusted."""
        self.proofs: dict[str, int] = {}
        """How often a model was proved, by what came of it: `passed`, or the code of the Reason."""
        self._lanes: dict[str, _Lane] = {}

    def perform(self, action: core.Action, local: core.Local, now: int, contact_at: int | None) -> None:
        """Begin it; the answer comes through `tell`."""
        lane = self._lane(local.instance)
        match action:
            case core.Fetch(digests=digests):
                lane.fetch(digests)
            case core.Prove(instance=instance, key=key):
                lane.prove(instance, key)
            case core.Start(instance=instance):
                lane.start(instance, afresh=local.starts == 0)
            case core.Stop():
                lane.stop(grace_ms(local.instance, now, contact_at))

    async def recover(self, locals_: Iterable[core.Local], standby: Iterable[Instance] = ()) -> None:
        """Ask the runtimes about every Local of the ledger, before the first step; answers through `tell`. `standby`:
        what may have to run besides."""
        remembered = tuple(locals_)
        await asyncio.gather(*(self._lane(local.instance).recover(local) for local in remembered))
        await self.sweep((local.instance for local in remembered), standby)

    async def sweep(self, needed: Iterable[Instance], standby: Iterable[Instance] = ()) -> None:
        """Let runtimes that keep things outside of our directories remove what nobody remembers."""
        remembered, ready = tuple(needed), tuple(standby)
        for runtime in set(self.runtimes.values()):
            if isinstance(runtime, Sweeper):
                try:
                    await runtime.sweep(remembered, ready)
                except RuntimeFailure as error:
                    self.faults[runtime.name] = error.message
                else:
                    self.faults.pop(runtime.name, None)

    def keep_only(self, names: Iterable[str]) -> None:
        """End the lanes of what is not remembered any more: a fetch nobody waits for, a watch on nothing."""
        for name in self._lanes.keys() - set(names):
            self._lanes.pop(name).cancel()

    async def surround(self, surroundings: Surroundings) -> None:
        """Tell what runs that its surroundings changed."""
        if surroundings == self.surroundings:
            return
        self.surroundings = surroundings
        for lane in list(self._lanes.values()):
            await lane.update()

    @property
    def locked(self) -> frozenset[str]:
        """Instances that ask to be left as they are."""
        return frozenset(name for name, lane in self._lanes.items() if lane.is_locked)

    @property
    def measures(self) -> dict[str, Measures]:
        return {name: lane.measures for name, lane in self._lanes.items() if lane.measures is not None}

    async def stop_all(self, grace: Callable[[Instance], int], *, leased_only: bool = False) -> None:
        """The node goes down in order: stop everything at once and wait for it."""
        lanes = [lane for lane in self._lanes.values() if not leased_only or lane.instance.lease_ms is not None]
        await asyncio.gather(*(lane.stop_and_wait(grace(lane.instance)) for lane in lanes))

    async def close(self) -> None:
        """Stop watching; what runs goes on running."""
        for lane in self._lanes.values():
            lane.cancel()
            lane.book.keep()
        self._lanes.clear()
        for runtime in set(self.runtimes.values()):
            await runtime.close()

    def order(self, instance: Instance) -> Order:
        return Order(
            instance=instance,
            directory=instance_directory(self.directory, instance.name),
            artifacts={digest: self.artifacts.path(digest) for digest in instance.artifacts},
            broker=self.surroundings.broker,
            neighbours=self.surroundings.neighbours,
        )

    def _lane(self, instance: Instance) -> _Lane:
        lane = self._lanes.get(instance.name)
        if lane is None:
            lane = self._lanes[instance.name] = _Lane(self, instance)
        lane.instance = instance
        return lane


class _Lane:
    """What is being done about one instance."""

    def __init__(self, actuator: Actuator, instance: Instance) -> None:
        self.actuator = actuator
        self.instance = instance
        self.book = Book(instance_directory(actuator.directory, instance.name))
        self.measures = self.book.last()
        self.is_locked = False
        self._fetching: asyncio.Task[None] | None = None
        self._proving: asyncio.Task[None] | None = None
        self._starting: asyncio.Task[None] | None = None
        self._stopping: asyncio.Task[None] | None = None
        self._watching: asyncio.Task[None] | None = None
        self._looked = False
        """This run of the agent has asked whether it runs already, as only an earlier run can have left it."""

    @property
    def name(self) -> str:
        return self.instance.name

    @property
    def runtime(self) -> Runtime:
        runtime = self.actuator.runtimes.get(self.instance.runtime)
        if runtime is None:
            raise RuntimeFailure("runtime_missing", f"this node has no runtime {self.instance.runtime!r}")
        return runtime

    def fetch(self, digests: tuple[str, ...]) -> None:
        _cancel(self._fetching)
        self._fetching = asyncio.create_task(self._fetch(digests))

    def prove(self, instance: Instance, key: str) -> None:
        _cancel(self._proving)
        self._proving = asyncio.create_task(self._prove(instance, key, self._proving))

    def start(self, instance: Instance, *, afresh: bool) -> None:
        self.instance = instance
        self._starting = asyncio.create_task(self._start(instance, self._stopping, afresh))

    def stop(self, grace: int) -> None:
        _cancel(self._fetching)
        if self._stopping is None or self._stopping.done():
            self._stopping = asyncio.create_task(self._stop(grace, self._starting))

    async def stop_and_wait(self, grace: int) -> None:
        self.stop(grace)
        if self._stopping is not None:
            await self._stopping

    async def _fetch(self, digests: tuple[str, ...]) -> None:
        try:
            for digest in digests:
                await self.actuator.artifacts.fetch(digest, self.actuator.needed)
        except ArtifactRefused as error:
            self._failed(error.code, error.message)
        else:
            self.actuator.tell(core.Fetched(self.name))

    async def _prove(self, instance: Instance, key: str, before: asyncio.Task[None] | None) -> None:
        if before is not None:
            await asyncio.wait([before])
        from batuta.runtimes.proving import prove_instance  # late: most nodes prove a model once and never again

        try:
            if not await self._are_whole(instance):
                return
            proof = await prove_instance(self.actuator.order(instance))
        except RuntimeFailure as error:
            self._failed(error.code, error.message)
            return
        except (OSError, ValueError) as error:
            self._failed("proving_failed", str(error))
            return
        why = proof.reasons[0] if proof.reasons else None
        word = why.code if why is not None else "passed"
        self.actuator.proofs[word] = self.actuator.proofs.get(word, 0) + 1
        if why is not None and why.code in NEVER_REMEMBERED:
            self._failed(why.code, why.detail, final=True)
            return
        assert instance.model is not None, "only models are proved"
        reason = self._reason(why.code, why.detail) if why is not None else None
        proven = Proven(
            key=key, digest=instance.model.variant.digest, at=0, reason=reason, runtime=proof.runtime,
            measured=proof.measured,
        )  # fmt: skip
        self.actuator.tell(core.Proved(self.name, proven))

    async def _are_whole(self, instance: Instance) -> bool:
        """Bytes that lay on a disk through a loss of power are looked at before they are run."""
        await self.actuator.artifacts.verify(instance.artifacts)
        missing = set(instance.artifacts) - self.actuator.artifacts.held
        if missing:
            self._failed("digest_mismatch", f"{sorted(missing)[0][:19]}… was damaged on this disk")
        return not missing

    async def _start(self, instance: Instance, stopping: asyncio.Task[None] | None, afresh: bool) -> None:
        if stopping is not None:
            await asyncio.wait([stopping])
        try:
            if not await self._are_whole(instance):
                return
            order = self.actuator.order(instance)
            if not self._looked and await self.runtime.recover(order, {}):
                # The ledger was lost, or older than what it should have known. One copy is what was asked for.
                self._looked = True
                self.actuator.tell(core.Started(self.name, {}, adopted=True))
                self._watch()
                return
            self._looked = True
            if afresh:
                self.book.begin()
            unlock(order.directory)
            handle = await self.runtime.start(order)
        except RuntimeFailure as error:
            self._failed(error.code, error.message)
        except (OSError, ValueError) as error:
            self._failed("start_failed", str(error))
        else:
            self.actuator.tell(core.Started(self.name, handle))
            self._watch()

    async def recover(self, local: core.Local) -> None:
        if local.phase in ("waiting", "backoff", "refused"):
            return
        found = False
        if local.phase not in ("fetching", "proving"):  # what was proving ended with the agent that began it
            self._looked = True
            try:
                found = await self.runtime.recover(self.actuator.order(local.instance), dict(local.handle))
            except RuntimeFailure as error:
                self._failed(error.code, error.message)
                return
        if not found:
            self.actuator.tell(core.Gone(self.name))
            return
        self.actuator.tell(core.Started(self.name, local.handle, adopted=True))
        self._watch()
        if local.phase == "stopping":  # decided and written down before the crash; only carrying it out is left
            self.stop(grace_ms(local.instance, 0, None))

    async def _stop(self, grace: int, starting: asyncio.Task[None] | None) -> None:
        if starting is not None and not starting.done():
            await asyncio.wait([starting])
        try:
            await self.runtime.stop(self.name, grace)
        except RuntimeFailure as error:
            # Not gone, so not said to be: the core asks again after a while.
            self.actuator.faults[self.name] = error.message
            return
        _cancel(self._watching)
        self.book.keep()
        self.measures = self.book.last()
        self.actuator.faults.pop(self.name, None)
        self.actuator.tell(core.Gone(self.name))

    def _watch(self) -> None:
        _cancel(self._watching)
        self._watching = asyncio.create_task(self._look_again_and_again())

    async def _look_again_and_again(self) -> None:
        """Says what changed since the last look. The runtime is asked every second, more often while it starts."""
        said: tuple[str, str, str] = ("running", "", "")
        looks = 0
        while True:
            starting = said[0] == "running" and looks * LOOK_EVERY_WHILE_STARTING_S < STARTING_S
            looks += 1
            try:
                condition = await self.runtime.inspect(self.name)
            except RuntimeFailure as error:
                self.actuator.faults[self.name] = error.message
                await asyncio.sleep(LOOK_EVERY_S)
                continue
            self.measures = self.book.looked(condition, asyncio.get_running_loop().time())
            was, self.is_locked = self.is_locked, lock_of(self.book.path.parent).exists()
            if was != self.is_locked:
                self.actuator.stir()
            now_said = (condition.state, condition.code, condition.detail)
            if now_said != said:
                said = now_said
                self._say(condition)
            if condition.state == "gone":
                return
            await asyncio.sleep(LOOK_EVERY_WHILE_STARTING_S if starting else LOOK_EVERY_S)

    def _say(self, condition: Condition) -> None:
        if condition.state == "ready":
            self.actuator.tell(core.Ready(self.name))
        elif condition.state == "unready" or (condition.state == "running" and condition.code):
            reason = self._reason(condition.code or "not_ready", condition.detail)
            self.actuator.tell(core.Unready(self.name, reason))
        elif condition.state == "gone":
            self._failed(condition.code or "exited", condition.detail, final=condition.final)

    async def update(self) -> None:
        if self._watching is None or self._watching.done():
            return
        try:
            await self.runtime.update(self.actuator.order(self.instance))
        except RuntimeFailure as error:
            self.actuator.faults[self.name] = error.message

    def cancel(self) -> None:
        for task in (self._fetching, self._proving, self._starting, self._watching):
            _cancel(task)

    def _failed(self, code: str, detail: str, *, final: bool = False) -> None:
        if code in UNTRUSTED:
            self.actuator.untrusted[code] = self.actuator.untrusted.get(code, 0) + 1
        self.actuator.tell(core.Failed(self.name, self._reason(code, detail), final))

    def _reason(self, code: str, detail: str) -> Reason:
        if code not in CATALOGUE:
            code, detail = "start_failed", f"{code}: {detail}"
        return Reason(code=code, subject=f"instance/{self.name}", detail=detail[:500])


def unlock(directory: Path) -> None:
    """A run begins without a lock, whatever the one before it left behind. Containers may be somebody else inside."""
    lock = lock_of(directory)
    if lock.is_dir() and not lock.is_symlink():
        shutil.rmtree(lock, ignore_errors=True)
    else:
        lock.unlink(missing_ok=True)
    lock.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    lock.parent.chmod(0o777)  # nobody else comes this far: the directory around it is ours alone


def instance_directory(directory: Path, name: str) -> Path:
    """Where an instance lives. Its name comes from the hub, whose names hold no dots and one slash per level."""
    words = name.split("/")
    if len(words) != 3 or any(not word or word.startswith(".") or "\0" in word for word in words):
        raise ValueError(f"{name!r} is not the name of an instance")
    return directory.joinpath(*words)


def _cancel(task: asyncio.Task[None] | None) -> None:
    if task is not None:
        task.cancel()
