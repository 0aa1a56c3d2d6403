"""Books: what is known of one instance over all of its runs, for the gates of a rollout.

A model's worker counts for itself, over its own restarts too, and its word is taken. Of a process or a container the
node agent counts what it sees: for how long it was ready, and the most memory it had. Either is kept beside the
instance, so that it is there for the next node agent: when a run ends, when the agent goes, and once a minute. A first
start under a new order begins new books.
"""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING, Final

import msgspec

from batuta.core.observed import Measures
from batuta.core.sample import Sample
from batuta.core.worker import PULSE_FILE
from batuta.kinds.base import decode_hook, encode_hook

if TYPE_CHECKING:
    from pathlib import Path

    from batuta.runtimes.base import Condition

FILE: Final = "sample.json"
BYTES_MAX: Final = 64 * 1024
KEPT_EVERY_S: Final = 60.0
LOOK_LONGEST_S: Final = 5.0
"""A look later than this saw nothing of what was in between."""


class Book:
    """One instance's."""

    def __init__(self, directory: Path) -> None:
        self.path = directory / FILE
        self.sample = _read(self.path)
        self.faults = 0
        """Times that it could not be kept."""
        self._kept = self.sample
        self._kept_at = 0.0
        self._ready_since: float | None = None
        self._ready_ms = 0.0

    def begin(self) -> None:
        """A first start: whatever is known is of something else."""
        self.sample = self._kept = None
        self._ready_since, self._ready_ms = None, 0.0
        for path in (self.path, self.path.with_name(PULSE_FILE)):
            with contextlib.suppress(OSError):
                path.unlink()

    def looked(self, condition: Condition, now_s: float) -> Measures | None:
        """What is told of it after a look at how it is; of what has ended, its sample alone."""
        self.sample = self._with(condition, now_s)
        if condition.state == "gone" or now_s - self._kept_at >= KEPT_EVERY_S:
            self._kept_at = now_s
            self.keep()
        if condition.measures is not None and condition.state != "gone":
            return msgspec.structs.replace(condition.measures, sample=self.sample)
        return self.last()

    def last(self) -> Measures | None:
        """What is left of it while it does not run."""
        return Measures(sample=self.sample) if self.sample is not None else None

    def keep(self) -> None:
        if self.sample is None or self.sample == self._kept:
            return
        new = self.path.with_name(f".{FILE}.new")
        try:
            new.write_bytes(msgspec.json.encode(self.sample, enc_hook=encode_hook))
            new.replace(self.path)
        except OSError:
            self.faults += 1
        else:
            self._kept = self.sample

    def _with(self, condition: Condition, now_s: float) -> Sample | None:
        measures = condition.measures
        if measures is not None and measures.sample is not None:
            rss_bytes = measures.rss_bytes or 0
            return msgspec.structs.replace(
                measures.sample, memory_bytes=max(int(rss_bytes), measures.sample.memory_bytes or 0) or None
            )
        was, is_ready = self._ready_since, condition.state == "ready"
        self._ready_since = now_s if is_ready else None
        if was is not None and now_s - was <= LOOK_LONGEST_S:
            self._ready_ms += (now_s - was) * 1000
        rss_bytes = int(measures.rss_bytes or 0) if measures is not None else 0
        if self.sample is None and not is_ready and not rss_bytes:
            return None
        known = self.sample or Sample()
        whole_ms, self._ready_ms = divmod(self._ready_ms, 1)
        return msgspec.structs.replace(
            known, instance_ms=known.instance_ms + int(whole_ms),
            memory_bytes=max(rss_bytes, known.memory_bytes or 0) or None,
        )  # fmt: skip


def _read(path: Path) -> Sample | None:
    try:
        with path.open("rb") as file:
            return msgspec.json.decode(file.read(BYTES_MAX), type=Sample, dec_hook=decode_hook)
    except (OSError, ValueError):
        return None
