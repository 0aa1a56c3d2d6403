"""Measuring in idle time: the hub asks how fast a variant is on hardware like this, and this machine finds out.

batuta.tell.<node>.measure   MeasureWanted -> MeasureAnswer: whether it is taken on; the figures come with a report

One at a time, and only while the machine has nothing else to do. Nothing is remembered of a question that was not
answered: as long as the hub does not know, it asks again.
"""

from __future__ import annotations

import asyncio
import logging
from typing import TYPE_CHECKING, Final

import msgspec

from batuta.agent.news import Measured
from batuta.core.decided import Instance
from batuta.core.proving import MeasureAnswer, MeasureWanted, Proven, measure_key, why_not_measure
from batuta.errors import BatutaError
from batuta.fabric.tasks import end
from batuta.kinds.base import Bytes, decode_hook
from batuta.runtimes.base import Order

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from pathlib import Path

    from batuta.agent.artifacts import Artifacts
    from batuta.core.local import Local
    from batuta.core.observed import Vitals
    from batuta.core.proving import Bench

BUSY_PERCENT_MAX: Final = 50.0
FACTOR: Final = 8
"""A model may take so many times its file of memory before measuring it is given up."""
LEAST_BYTES: Final = 512 << 20

log = logging.getLogger(__name__)


class Measuring:
    """Does what the hub asks, when there is time."""

    def __init__(
        self,
        directory: Path,
        artifacts: Artifacts,
        bench: Bench,
        *,
        locals_: Callable[[], Mapping[str, Local]],
        vitals: Callable[[], Vitals],
        needed: Callable[[], frozenset[str]],
        tell: Callable[[Measured], None],
        busy_percent_max: float = BUSY_PERCENT_MAX,
    ) -> None:
        self.directory = directory
        self.artifacts = artifacts
        self.bench = bench
        self.locals = locals_
        self.vitals = vitals
        self.needed = needed
        self.tell = tell
        self.busy_percent_max = busy_percent_max
        self.counts: dict[str, int] = {}
        """By what came of it: `measured`, `not_now`, or the code of what went wrong."""
        self._task: asyncio.Task[None] | None = None

    async def ask(self, data: bytes) -> bytes:
        """Answers a question at once."""
        wanted = msgspec.json.decode(data, type=MeasureWanted, dec_hook=decode_hook)
        key, why = measure_key(wanted.model, self.bench), ""
        if not key:
            why = f"nothing here can measure {wanted.model.variant.format} files"
        elif self._task is not None and not self._task.done():
            why = "it is measuring already"
        else:
            why = why_not_measure(wanted.model, self.locals().values(), self.vitals(), self.busy_percent_max)
        if why:
            self._count("not_now")
        else:
            self._task = asyncio.create_task(self._measure(wanted, key), name="measure")
        return msgspec.json.encode(MeasureAnswer(taken=not why, why=why))

    async def close(self) -> None:
        await end(self._task)

    async def _measure(self, wanted: MeasureWanted, key: str) -> None:
        from batuta.runtimes.proving import prove_instance  # late: it is rarely needed

        model = wanted.model
        memory = Bytes(max(LEAST_BYTES, FACTOR * int(model.variant.size_bytes)))
        instance = Instance(
            namespace="idle", application="time", component="measure", revision=1, slot="0", epoch=0, model=model,
            memory_bytes=memory,
        )  # fmt: skip
        try:
            for digest in instance.artifacts:
                await self.artifacts.fetch(digest, lambda: self.needed() | set(instance.artifacts))
            paths = {digest: self.artifacts.path(digest) for digest in instance.artifacts}
            proof = await prove_instance(Order(instance, self.directory, paths, {}))
        except (BatutaError, OSError, ValueError) as error:
            log.warning("%s %s could not be measured: %s", model.name, model.version, error)
            self._count(getattr(error, "code", "failed"))
            return
        if proof.measured is None:
            why = proof.reasons[0] if proof.reasons else None
            log.warning("%s %s could not be measured: %s", model.name, model.version, why)
            self._count(why.code if why is not None else "failed")
            return
        self._count("measured")
        self.tell(
            Measured(Proven(key=key, digest=model.variant.digest, at=0, runtime=proof.runtime, measured=proof.measured))
        )

    def _count(self, what: str) -> None:
        self.counts[what] = self.counts.get(what, 0) + 1
