"""Sampling: what a worker counts for the gates of a rollout, over all runs of its instance.

Latencies are counted for every answer. How sure the model was, and how far its inputs are from those that it was made
with, is looked at where batches run, whichever way they came, at most two hundred times a second and for no more than a
fiftieth of the time: nobody waits for it. A worker that is started again goes on from the last words of the one before
it, which are at most a second old.
"""

from __future__ import annotations

import time
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import msgspec

from batuta.core.evidence import latency_bucket
from batuta.core.sample import CONFIDENCE_BINS, Sample, total
from batuta.core.worker import PULSE_BYTES_MAX, Pulse
from batuta.dataflow.sensors import Sensors
from batuta.errors import ArtifactRefused
from batuta.kinds.base import decode_hook

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from batuta.dataflow.oip.datatypes import Array, Port
    from batuta.tuning.sketch import Sketch

LOOK_EVERY_S: Final = 0.005
LOOK_PART: Final = 0.02
"""Of the time, so much is spent on looking at most: what takes longer to look at is looked at less often."""
ROWS_MAX: Final = 256
"""Of a batch, so many are looked at."""
CLASSES_MAX: Final = 4096


class Sampling:
    """One worker's counts. Books of answers and errors are the tally's; what they mean together is in `sample`."""

    def __init__(self, before: Sample | None = None, clock: Callable[[], float] = time.monotonic) -> None:
        self.before = before or Sample()
        """What earlier runs of this instance counted."""
        self.sketch: Sketch | None = None
        self.sensors = Sensors()
        self.unseen = 0
        """Looks that came to nothing: outputs or inputs of a kind that says nothing."""
        self._latency: dict[int, int] = {}
        self._confidence = [0] * CONFIDENCE_BINS
        self._inputs = [0] * CONFIDENCE_BINS
        self._clock = clock
        self._look_at = 0.0
        self._ready_at: float | None = None

    def answered(self, latency_ms: float) -> None:
        bucket = latency_bucket(latency_ms)
        self._latency[bucket] = self._latency.get(bucket, 0) + 1

    def ready(self) -> None:
        """From now on it is."""
        if self._ready_at is None:
            self._ready_at = self._clock()

    def look(self, feeds: dict[str, Array], outputs: Sequence[Any], rows: int, ports: Sequence[Port]) -> None:
        """A batch was run; `rows` of it are somebody's. Never raises for what a model makes of its inputs."""
        begun = self._clock()
        if begun < self._look_at:
            return
        self._look(feeds, outputs, min(rows, ROWS_MAX), ports)
        self._look_at = begun + max(LOOK_EVERY_S, (self._clock() - begun) / LOOK_PART)

    def _look(self, feeds: dict[str, Array], outputs: Sequence[Any], rows: int, ports: Sequence[Port]) -> None:
        sure = sureness([each[:rows] if len(each) >= rows else each for each in outputs], rows, ports)
        if sure is None:
            self.unseen += 1
        else:
            for bin_of in sure:
                self._confidence[bin_of] += 1
        if self.sketch is None:
            return
        found = self.sketch.bins({name: value[:rows] for name, value in feeds.items()})
        if found is None:
            self.unseen += 1
            return
        self._inputs = [a + b for a, b in zip(self._inputs, found, strict=True)]

    def sample(self, answered: int, errors: int, compared: int = 0, agreed: int = 0) -> Sample:
        """All runs of the instance together. `restarts` are counted by who starts it."""
        ready_ms = int((self._clock() - self._ready_at) * 1000) if self._ready_at is not None else 0
        now = Sample(
            answered=answered, errors=errors, latency=self._latency, compared=compared, agreed=agreed,
            confidence=tuple(self._confidence) if any(self._confidence) else (),
            inputs=tuple(self._inputs) if any(self._inputs) else (),
            reference=self.sketch.counts if self.sketch is not None else (),
            memory_bytes=self.sensors.memory_bytes, temperature_c=self.sensors.temperature_c,
            energy_j=self.sensors.energy_j, instance_ms=ready_ms,
        )  # fmt: skip
        return total((now, self.before))


def sureness(outputs: Sequence[Any], rows: int, ports: Sequence[Port]) -> list[int] | None:
    """The bin of how sure the model is of its best class, for each row; None when it names no classes."""
    # Imported here because what only counts latencies needs no arrays.
    import numpy as np

    from batuta.dataflow.oip.datatypes import widened

    for output, port in zip(outputs, ports, strict=False):
        if isinstance(output, list) and len(output) == rows and rows and isinstance(output[0], dict):
            top = np.array([max(map(float, each.values()), default=np.nan) for each in output])
        elif isinstance(output, np.ndarray) and output.ndim == 2 and 2 <= output.shape[1] <= CLASSES_MAX:
            scores = widened(output) if port.datatype == "BF16" else output
            if scores.dtype.kind != "f" or len(scores) != rows:
                continue
            top = _best(scores)
        else:
            continue
        top = top[np.isfinite(top)]
        bins: list[int] = np.clip((top * CONFIDENCE_BINS).astype(np.int64), 0, CONFIDENCE_BINS - 1).tolist()
        return bins
    return None


def _best(scores: Any) -> Any:
    """The share of the best class: as it is where scores are shares already, else as softmax makes it of them."""
    import numpy as np

    best = scores.max(axis=1)
    if not (told := np.isfinite(best)).all():
        scores, best = scores[told], best[told]
    if not best.size or (best.max() <= 1.001 and scores.min() >= -0.001):
        return best
    with np.errstate(over="ignore", invalid="ignore"):
        return 1.0 / np.exp(scores.astype(np.float64) - best[:, None]).sum(axis=1)


def sample_before(path: Path) -> Sample | None:
    """What the last run of this instance said at the end: in its pulse, which lies there until the next begins."""
    try:
        with path.open("rb") as file:
            pulse = msgspec.json.decode(file.read(PULSE_BYTES_MAX), type=Pulse, dec_hook=decode_hook)
    except (OSError, ValueError):
        return None
    return pulse.measures.sample


def sketch_of(path: str, error: Callable[[str], None]) -> Sketch | None:
    """A version's drift reference, if it has one that can be read; without it, drift is not measured."""
    if not path:
        return None
    from batuta.tuning.sketch import read

    try:
        return read(Path(path))
    except ArtifactRefused as refused:
        error(refused.message)
        return None
