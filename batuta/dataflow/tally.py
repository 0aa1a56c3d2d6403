"""A worker's counters, and the pulse that tells them to the node agent."""

from __future__ import annotations

import logging
import os
import time
from collections import deque
from typing import TYPE_CHECKING

import msgspec

from batuta.core.observed import Handover, Measures
from batuta.core.worker import ERROR_CHARACTERS_MAX, LAST_ERRORS, Pulse
from batuta.dataflow.measures import LastMinute
from batuta.dataflow.sampling import Sampling, sample_before
from batuta.kinds.base import encode_hook

if TYPE_CHECKING:
    from pathlib import Path
    from typing import Literal

    from batuta.core.sample import Sample

log = logging.getLogger("worker")
LOG_AGAIN_AFTER_S = 1.0


class Tally:
    """What happened so far."""

    def __init__(self, path: Path, start: int) -> None:
        self.received = 0
        self.answered = 0
        self.errors = 0
        """Frames that no run could answer."""
        self.duplicates = 0
        self.redelivered = 0
        self.passed_on = 0
        self.unsent = 0
        self.batches = 0
        self.compared = self.agreed = 0
        """On trial: answers that the old release gave to the same inputs, and those of them that are the same."""
        self.handover: Handover | None = None
        self.sampling = Sampling(sample_before(path))
        self.refused: dict[str, int] = {}
        """Requests that were not answered through no fault of the model, by code."""
        self.last_errors: deque[str] = deque(maxlen=LAST_ERRORS)
        self._path = path
        self._start = start
        self._sequence = 0
        self._latencies = LastMinute()
        self._logged_at = 0.0
        self._not_logged = 0

    @property
    def sample(self) -> Sample:
        """Of all runs of the instance, as far as earlier ones could say."""
        return self.sampling.sample(self.answered, self.errors, self.compared, self.agreed)

    def answered_after(self, latency_ms: float) -> None:
        self.answered += 1
        self.sampling.answered(latency_ms)
        self._latencies.add(latency_ms, _monotonic_ms())

    def p50_ms(self) -> float | None:
        return self._latencies.quantiles((0.5,), _monotonic_ms())[0]

    def unsent_because(self, why: str) -> None:
        self.unsent += 1
        self.error(why)

    def error(self, text: str) -> None:
        """Remembered, and logged once a second at most: a camera that sends nonsense must not fill the disk."""
        self.last_errors.append(text[:ERROR_CHARACTERS_MAX])
        now = time.monotonic()
        if now - self._logged_at < LOG_AGAIN_AFTER_S:
            self._not_logged += 1
            return
        more = f" (and {self._not_logged} more since)" if self._not_logged else ""
        log.warning("%s%s", text[:ERROR_CHARACTERS_MAX], more)
        self._logged_at, self._not_logged = now, 0

    def beat(
        self,
        state: Literal["loading", "ready", "failed", "stopping"],
        *,
        code: str = "",
        detail: str = "",
        final: bool = False,
        reached: tuple[str, ...] = (),
    ) -> None:
        """Writes the pulse, whole or not at all."""
        self._sequence += 1
        self.sampling.sensors.look()
        if state == "ready":
            self.sampling.ready()
        p50, p99 = self._latencies.quantiles((0.5, 0.99), _monotonic_ms())
        pulse = Pulse(
            start=self._start,
            sequence=self._sequence,
            at=time.time_ns() // 1_000_000,
            state=state,
            code=code,
            detail=detail,
            final=final,
            measures=Measures(
                received=self.received,
                answered=self.answered,
                errors=self.errors,
                latency_p50_ms=p50,
                latency_p99_ms=p99,
                sample=self.sample,
                handover=self.handover,
            ),
            batches=self.batches,
            duplicates=self.duplicates,
            redelivered=self.redelivered,
            passed_on=self.passed_on,
            unsent=self.unsent,
            refused=self.refused,
            reached=reached,
            last_errors=tuple(self.last_errors),
        )
        new = self._path.with_name(f".{self._path.name}.new")
        try:
            new.write_bytes(msgspec.json.encode(pulse, enc_hook=encode_hook))
            new.replace(self._path)
        except OSError as error:
            # A full disk takes no new pulse, but a worker that answers is alive: the old one is touched.
            self.error(f"the pulse could not be written: {error}")
            os.utime(self._path)


def _monotonic_ms() -> int:
    return time.monotonic_ns() // 1_000_000
