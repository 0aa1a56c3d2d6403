"""Gates: does what the updated nodes measured meet what a rollout asks, does it not, or is it too early to tell?

Each measurement is an interval that holds at every look (`core.evidence`). A gate is asked at the ends of all of its
intervals: where it is true at each of them, it is *held*; where it is false at each of them, it is *broken*; between
the two it is *open*, and more data will tell. So noise does not break a gate, nothing bad passes because nobody has
looked for long enough, and what was not measured is never a pass. Sound for conditions that are monotone in each
measurement, as comparisons, sums and products are.

Compared with two baselines, the same nodes before and other nodes now, it is broken only where it is broken against
both, and held where it is held against one and broken against none: a hot afternoon is not the new model's fault.
"""

from __future__ import annotations

import math
from itertools import product
from typing import TYPE_CHECKING, Any, Final, Literal, NamedTuple

from batuta.core.evidence import Interval, distance_within, mean_within, quantile_within, share_within
from batuta.core.sample import Sample
from batuta.kinds.condition import compile_condition, evaluate
from batuta.kinds.gate import BASELINE, measures_in

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

Verdict = Literal["held", "broken", "open"]
FALSE_STOP: Final = 0.01
"""How often at most a rollout with nothing wrong is stopped; and how often at most one beyond its limits passes."""
MEASURES_MAX: Final = 8
"""In one gate: each doubles the work."""


class Judged(NamedTuple):
    """One gate, asked."""

    gate: str
    verdict: Verdict
    values: Mapping[str, Interval]
    """By measurement, as `latency.p99` and `baseline.latency.p99`; the baseline that decided."""
    missing: tuple[str, ...] = ()
    """What was not measured, or not often enough."""


def judge(gates: Sequence[str], sample: Sample, baselines: Sequence[Sample], *, least: int, looks: int) -> list[Judged]:
    """Every gate, on what was measured since a wave was updated.

    `least`: answers below which nothing is decided. `looks`: into how many judgements the rollout's risk is divided,
    usually its number of waves.
    """
    alpha = FALSE_STOP / max(1, len(gates) * looks)
    return [_judge(gate, sample, baselines, alpha, least) for gate in gates]


def _judge(gate: str, sample: Sample, baselines: Sequence[Sample], alpha: float, least: int) -> Judged:
    wanted = measures_in(gate)
    # One that measured too little is none, unless there is no other: else nothing could be broken against both.
    enough = [b for b in baselines if b.asked >= least]
    against = (enough or list(baselines)) if _needs_baseline(wanted) else [Sample()]
    judged = [
        _answer(gate, _values(wanted, sample, baseline, alpha / len(against), least), wanted) for baseline in against
    ]
    verdicts = [j.verdict for j in judged]
    if not judged:
        return Judged(gate, "open", {}, (BASELINE,))
    if all(v == "broken" for v in verdicts):
        return judged[0]
    if "held" in verdicts and "broken" not in verdicts:
        return judged[verdicts.index("held")]
    # One says this and the other that, or neither can tell: more data will.
    return judged[verdicts.index("open") if "open" in verdicts else 0]._replace(verdict="open")


def _needs_baseline(wanted: Iterable[str]) -> bool:
    return any(name.startswith(f"{BASELINE}.") or name == "confidence.shift" for name in wanted)


def _values(wanted: Sequence[str], sample: Sample, baseline: Sample, alpha: float, least: int) -> dict[str, Interval]:
    """What was measured, and often enough."""
    values: dict[str, Interval] = {}
    for name in wanted:
        bare = name.removeprefix(f"{BASELINE}.")
        of = baseline if bare != name else sample
        found = _measured(bare, of, baseline, alpha / len(wanted))
        if found is not None and of.asked >= least:
            values[name] = found
    return values


def _answer(gate: str, values: Mapping[str, Interval], wanted: Sequence[str]) -> Judged:
    if missing := tuple(name for name in wanted if name not in values):
        return Judged(gate, "open", values, missing)
    answers: set[bool | None] = set()
    for corner in _corners(values.values()):
        answers.add(_asked(gate, dict(zip(values, corner, strict=True))))
        if len(answers) > 1 or None in answers:
            return Judged(gate, "open", values)
    return Judged(gate, "held" if True in answers else "broken", values)


def _corners(values: Iterable[Interval]) -> Iterable[tuple[float, ...]]:
    return product(*({value.low, value.high} for value in values))


def _asked(gate: str, values: Mapping[str, float]) -> bool | None:
    """The gate's answer for these values; None where it has none, such as when it divides by zero."""
    nested: dict[str, dict[str, Any]] = {}
    for name, value in values.items():
        *above, last = name.split(".")
        at: dict[str, Any] = nested
        for part in above:
            at = at.setdefault(part, {})
        at[last] = value
    answer = evaluate(compile_condition(gate), nested)
    return answer if isinstance(answer, bool) else None


def _measured(name: str, sample: Sample, baseline: Sample, alpha: float) -> Interval | None:
    """The truth behind one measurement; None when there is nothing to tell it by."""
    if name == "errors.rate":
        return share_within(sample.errors, sample.asked, alpha)
    if name.startswith("latency."):
        return (
            quantile_within(sample.latency, int(name.removeprefix("latency.p")) / 100, alpha)
            if sample.latency
            else None
        )
    if name == "agreement.share":
        return share_within(sample.agreed, sample.compared, alpha) if sample.compared else None
    if name == "confidence.mean":
        return _mean_of_bins(sample.confidence, alpha) if sum(sample.confidence) else None
    if name == "confidence.shift":
        both = sum(sample.confidence) and sum(baseline.confidence)
        return distance_within(sample.confidence, baseline.confidence, alpha) if both else None
    if name == "drift.score":
        both = sum(sample.inputs) and sum(sample.reference)
        return distance_within(sample.inputs, sample.reference, alpha) if both else None
    plain = {
        "restarts.count": sample.restarts,
        "memory.max": sample.memory_bytes,
        "temperature.max": sample.temperature_c,
        "energy.perInference": sample.energy_j / sample.answered if sample.energy_j and sample.answered else None,
        "throughput.perSecond": sample.answered * 1000 / sample.instance_ms if sample.instance_ms else None,
    }[name]
    return None if plain is None else Interval(float(plain), float(plain), float(plain))


def _mean_of_bins(bins: Sequence[int], alpha: float) -> Interval:
    middles = [(i + 0.5) / len(bins) for i in range(len(bins))]
    n = sum(bins)
    found = mean_within(
        n,
        sum(m * c for m, c in zip(middles, bins, strict=True)),
        sum(m * m * c for m, c in zip(middles, bins, strict=True)),
        alpha,
    )
    # A mean of numbers between 0 and 1 is one.
    return Interval(max(0.0, found.low), found.seen, min(1.0, found.high)) if not math.isnan(found.seen) else found
