"""Proving: what a file is, on the very machine that is to run it, before anything depends on it.

The proving process (`batuta.dataflow.proving`) loads one variant, replays golden inputs, measures how fast it answers
and how much memory it takes, and says so in one document. Here are the values that it and whoever starts it agree on,
and what follows from them. Who starts it: a node agent before a variant is switched in for the first time on its
hardware and runtime, and in idle time when the hub asks; `batuta model optimize` for each variant that it makes.
"""

from __future__ import annotations

import msgspec

from batuta.core.reasons import Reason
from batuta.core.worker import WorkerOrder
from batuta.kinds.base import Bytes, Record
from batuta.kinds.model import Format, Signature

ORDER_BYTES_MAX = 1 << 20
RESULT_BYTES_MAX = 256 * 1024
GOLDEN_BYTES_MAX = 64 << 20
"""Of golden inputs and outputs, unpacked."""
MEASURE_MS = 2_000
"""So long is measured at most, whatever the model."""
SAMPLES_MAX = 2_000
SAMPLES_MIN = 20
"""Fewer runs say nothing of ninety-nine in a hundred; a slow model is run so often all the same, within reason."""


class ProvingOrder(Record):
    """All that the proving process must know, on its standard input."""

    artifact: str
    """Path of the file."""
    format: Format
    result: str
    """Path of the document that it writes when it is done."""
    signature: Signature | None = None
    """What the version declares."""
    golden: str = ""
    """Path of golden inputs and outputs; without any it is only measured."""
    tolerance: float = 0.001
    p99_ms_max: float | None = None
    memory_bytes_max: Bytes | None = msgspec.field(default=None, name="memoryMax")
    measure_ms: int = MEASURE_MS
    vouching: WorkerOrder | None = None
    """Whose signers must have signed the file, before it is loaded."""


class Measured(Record):
    """How a variant fared: one item a run, one thread, nothing beside it."""

    p50_us: int
    p99_us: int
    memory_bytes: Bytes = msgspec.field(name="memory")
    """The most that its process took, interpreter and runtime included."""
    samples: int = 0


class Proof(Record, forbid_unknown_fields=False):
    """What the proving process says. No reasons: it is as it should be."""

    reasons: tuple[Reason, ...] = ()
    runtime: str = ""
    """What it was loaded with: `onnxruntime 1.31.1`."""
    measured: Measured | None = None
    cases: int = 0
    """Golden cases that were replayed."""
    furthest: float = 0.0
    """The largest difference from a golden output, as a share of what is tolerated."""
