"""Proving: what a file is, on the very machine that is to run it, before anything depends on it.

The proving process (`batuta.dataflow.proving`) loads one variant, replays golden inputs, measures how fast it answers
and how much memory it takes, and says so in one document. Here are the values that it and whoever starts it agree on,
and what follows from them. Who starts it: a node agent before a variant is switched in for the first time on its
hardware and runtime, and in idle time when the hub asks; `batuta model optimize` for each variant that it makes.
"""

from __future__ import annotations

import zlib
from typing import TYPE_CHECKING, NamedTuple

import msgspec

from batuta.core.decided import Instance, ModelOrder
from batuta.core.observed import Profiled, Vitals
from batuta.core.reasons import Reason
from batuta.core.worker import WorkerOrder
from batuta.kinds.base import Bytes, Record
from batuta.kinds.model import Format, Signature

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from batuta.core.local import Local

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
    p50_ms_max: float | None = None
    p99_ms_max: float | None = None
    memory_bytes_max: Bytes | None = msgspec.field(default=None, name="memoryMax")
    accelerators: tuple[str, ...] = ()
    """Kinds of those that it may use, as when it runs."""
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


class Bench(NamedTuple):
    """What a node proves models on: what was proved on another one says nothing here."""

    hardware: str = ""
    runtimes: Mapping[str, str] = {}
    """By format: what loads it, with its version: `onnxruntime 1.31.1`. What is not here cannot be proved here."""


class Proven(Record):
    """What a node remembers of a variant that it proved: until something changes, it need not be tried again."""

    key: str
    """As `proof_key` makes it."""
    digest: str
    """Of the variant."""
    at: int
    reason: Reason | None = None
    """Why it is not switched in; None: it is as it should be."""
    runtime: str = ""
    measured: Measured | None = None


PROVEN_MAX = 256
"""So much is remembered; what was proved longest ago goes first."""
NEVER_REMEMBERED = frozenset(
    ("digest_mismatch", "signature_invalid", "signature_missing", "signer_unknown", "artifact_missing")
)
"""What is wrong with an order rather than with a variant on this machine: another order asks anew."""


def proof_key(instance: Instance, bench: Bench) -> str:
    """Names what must be proved before an instance is switched in: these bytes, against these golden inputs and
    limits, on this hardware and runtime. Empty when nothing must be: there is nothing that it must answer, no limit to
    what it may take, or nothing else that would run meanwhile."""
    model, slo = instance.model, instance.slo_p99_ms
    if model is None or model.variant.format not in bench.runtimes:
        return ""
    golden, allowed = model.golden, int(instance.memory_bytes)
    if golden is None and slo is None and not (allowed and instance.fallback is not None):
        return ""
    cards = "+".join(grant.kind for grant in instance.accelerators)
    asked = ("", "", "", "") if golden is None else (
        golden.digest, f"{golden.tolerance:g}", str(golden.p99_ms or ""), str(golden.memory_bytes or ""),
    )  # fmt: skip
    limits = (str(allowed), cards, bench.runtimes[model.variant.format], bench.hardware)
    # What was proved before there were objectives, or with nothing around the file, keeps its name.
    said = (
        model.variant.digest, *asked, *limits, *((f"slo={slo}",) if slo is not None else ()),
        *((f"around={_around(model)}",) if golden is not None and _around(model) else ()),
    )  # fmt: skip
    return " ".join(word or "-" for word in said)


def _around(model: ModelOrder) -> str:
    """Names what is done before and after the file; empty where nothing is."""
    if model.transform is not None:
        return model.transform
    if model.before is None and model.after is None:
        return ""
    shaping = msgspec.json.encode((model.before, model.after, model.labels))
    return f"{zlib.crc32(shaping):08x}-{len(shaping)}"


def remembered(proven: Iterable[Proven], fresh: Proven) -> dict[str, Proven]:
    """All that is remembered with one more, by key; the newest of each, and no more than PROVEN_MAX."""
    found = {each.key: each for each in proven} | {fresh.key: fresh}
    newest = sorted(found.values(), key=lambda each: (-each.at, each.key))[:PROVEN_MAX]
    return {each.key: each for each in sorted(newest, key=lambda each: each.key)}


# --- In idle time -----------------------------------------------------------------------------------------------------

PROFILES_MAX = 64
"""So many are told with a report."""
SPARE_BYTES = 256 << 20
"""Must be left beside a model that is only measured."""
BATTERY_PERCENT_MIN = 50.0


class MeasureWanted(Record, forbid_unknown_fields=False):
    """The hub asks a node: how fast is this one on hardware like yours?"""

    model: ModelOrder


class MeasureAnswer(Record, forbid_unknown_fields=False):
    """What the node says at once; the figures come with a later report."""

    taken: bool = False
    why: str = ""
    """Why it does not, now."""


def measure_key(model: ModelOrder, bench: Bench) -> str:
    """Names what is measured; empty when it cannot be."""
    if model.variant.format not in bench.runtimes:
        return ""
    return f"{model.variant.digest} - {bench.runtimes[model.variant.format]} {bench.hardware or '-'}"


def why_not_measure(model: ModelOrder, locals_: Iterable[Local], vitals: Vitals, busy_percent_max: float) -> str:
    """Rows in order: why this machine does nothing besides now; empty when it may."""
    if any(local.phase in ("fetching", "proving", "starting", "stopping") for local in locals_):
        return "it is busy with what it runs"
    if vitals.cpu_percent is not None and vitals.cpu_percent >= busy_percent_max:
        return f"its processors are {vitals.cpu_percent:.0f} % busy"
    if vitals.battery_percent is not None and vitals.battery_percent < BATTERY_PERCENT_MIN:
        return f"its battery has {vitals.battery_percent:.0f} %"
    needed = SPARE_BYTES + 3 * int(model.variant.size_bytes)
    if vitals.memory_free_bytes is not None and vitals.memory_free_bytes < needed:
        return f"{vitals.memory_free_bytes >> 20}Mi of memory are free, {needed >> 20}Mi needed"
    return ""


def profiles_of(proven: Iterable[Proven]) -> tuple[Profiled, ...]:
    """What is told of what was measured: the newest of each variant. One that answers wrongly is not worth it."""
    newest: dict[str, Profiled] = {}
    for each in sorted(proven, key=lambda each: (each.at, each.key)):
        wrong = each.reason is not None and each.reason.code not in ("too_slow", "too_much_memory")
        if each.measured is None or wrong:
            continue
        newest[each.digest] = Profiled(
            digest=each.digest, at=each.at, p50_us=each.measured.p50_us, p99_us=each.measured.p99_us,
            memory_bytes=each.measured.memory_bytes, samples=each.measured.samples, runtime=each.runtime,
        )  # fmt: skip
    return tuple(sorted(newest.values(), key=lambda each: (-each.at, each.digest))[:PROFILES_MAX])
