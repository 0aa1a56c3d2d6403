"""Sample: what a group of instances measured over a stretch of time, in counts that add up.

Counts and not quantiles, because those of a fleet cannot be had from those of its nodes.
"""

from __future__ import annotations

from itertools import accumulate
from typing import TYPE_CHECKING, Final

import msgspec

from batuta.kinds.base import Record

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

CONFIDENCE_BINS: Final = 20


class Sample(Record):
    """What a group of instances measured over a stretch of time. Adds up over instances and stretches."""

    answered: int = 0
    errors: int = 0
    latency: dict[int, int] = {}
    """Answers by bucket of their latency (`evidence.latency_bucket`)."""
    confidence: tuple[int, ...] = ()
    """Answers by the model's sureness, in twenty bins from 0 to 1."""
    inputs: tuple[int, ...] = ()
    """Inputs by the bins of the model's drift reference."""
    reference: tuple[int, ...] = ()
    """The drift reference itself, in the same bins."""
    compared: int = 0
    """In shadow: answers of both releases to the same input."""
    agreed: int = 0
    restarts: int = 0
    memory_bytes: int | None = None
    """The most of any instance."""
    temperature_c: float | None = None
    energy_j: float | None = None
    """For all that was answered."""
    instance_ms: int = 0
    """Time for which instances were ready, summed over them."""

    @property
    def asked(self) -> int:
        """Messages and requests, answered or not."""
        return self.answered + self.errors


def total(samples: Iterable[Sample]) -> Sample:
    """All of them together."""
    answered = errors = compared = agreed = restarts = instance_ms = 0
    latency: dict[int, int] = {}
    confidence: tuple[int, ...] = ()
    inputs: tuple[int, ...] = ()
    reference: tuple[int, ...] = ()
    memories, temperatures, energies = [], [], []
    for s in samples:
        answered, errors, compared = answered + s.answered, errors + s.errors, compared + s.compared
        agreed, restarts, instance_ms = agreed + s.agreed, restarts + s.restarts, instance_ms + s.instance_ms
        for bucket, count in s.latency.items():
            latency[bucket] = latency.get(bucket, 0) + count
        confidence, inputs = _added(confidence, s.confidence), _added(inputs, s.inputs)
        reference = reference or s.reference
        memories += [s.memory_bytes] if s.memory_bytes is not None else []
        temperatures += [s.temperature_c] if s.temperature_c is not None else []
        energies += [s.energy_j] if s.energy_j is not None else []
    return Sample(
        answered=answered, errors=errors, latency=latency, confidence=confidence, inputs=inputs, reference=reference,
        compared=compared, agreed=agreed, restarts=restarts, memory_bytes=max(memories, default=None),
        temperature_c=max(temperatures, default=None), energy_j=sum(energies) if energies else None,
        instance_ms=instance_ms,
    )  # fmt: skip


def _added(one: tuple[int, ...], other: tuple[int, ...]) -> tuple[int, ...]:
    if not one or not other:
        return one or other
    return tuple(a + b for a, b in zip(one, other, strict=True))


def mixed(of: Mapping[str, Sample], like: Mapping[str, Sample]) -> Sample:
    """All of them together in the proportions of others, by class of hardware.

    A baseline in which slow machines are rarer than among the updated ones would be quicker than it should: so of the
    classes that are too many, only a part counts. Nothing where a class has no counterpart.
    """
    answers = {name: sample.asked for name, sample in like.items()}
    here = {name: of[name].asked if name in of else 0 for name, n in answers.items() if n}
    if not here or not all(here.values()):
        return Sample()
    scale = min(here[name] / answers[name] for name in here)
    return total(_part(of[name], scale * answers[name] / n) for name, n in here.items())


def _part(sample: Sample, share: float) -> Sample:
    """So much of it; what does not add up stays whole."""
    if share >= 1:
        return sample
    buckets = sorted(sample.latency)
    latency = _thinned([sample.latency[b] for b in buckets], share)
    compared, agreed = round(sample.compared * share), round(sample.agreed * share)
    return msgspec.structs.replace(
        sample,
        answered=round(sample.answered * share),
        errors=round(sample.errors * share),
        latency={b: n for b, n in zip(buckets, latency, strict=True) if n},
        confidence=tuple(_thinned(sample.confidence, share)),
        inputs=tuple(_thinned(sample.inputs, share)),
        compared=compared,
        agreed=min(agreed, compared),
        energy_j=None if sample.energy_j is None else sample.energy_j * share,
        instance_ms=round(sample.instance_ms * share),
    )


def _thinned(counts: Sequence[int], share: float) -> list[int]:
    """Fewer in the same shape: it is their running total that is rounded, so that rare ones do not all vanish."""
    edges = [round(n * share) for n in accumulate(counts)]
    return [edge - before for before, edge in zip([0, *edges], edges, strict=False)]
