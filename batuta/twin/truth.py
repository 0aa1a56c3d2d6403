"""Truths of a run: what each instance is like on its machine, and what it would have measured by an instant.

What is measured follows from the time for which an instance has been ready, so that it is known at any instant without
being played. The counts lie where they should, one answer more or less: how noise misleads, and how rarely, is not the
twin's to say (`benchmarks/gates.py`).
"""

from __future__ import annotations

import math
import zlib
from functools import lru_cache
from typing import TYPE_CHECKING, Final

import msgspec

from batuta.core.evidence import latency_bucket
from batuta.core.sample import CONFIDENCE_BINS, Sample
from batuta.kinds.truth import EFFECTS, Truth

if TYPE_CHECKING:
    from collections.abc import Sequence

    from batuta.core.decided import Instance
    from batuta.kinds.application import Component

LATENCY_MS, ERRORS, MEMORY_PERCENT = 10.0, 0.2, 50.0
NOTHING: Final = Truth()

# The shape of latencies: times the median, and the share that takes no longer. A lognormal one, sigma 0.3.
_LATENCY: Final = (
    (0.61, 0.05), (0.73, 0.15), (0.82, 0.25), (0.89, 0.35), (0.96, 0.45), (1.0, 0.5), (1.08, 0.6), (1.17, 0.7),
    (1.29, 0.8), (1.36, 0.85), (1.47, 0.9), (1.64, 0.95), (1.85, 0.98), (2.01, 0.99), (2.16, 0.995), (2.53, 1.0),
)  # fmt: skip


class Truths:
    """All of one run."""

    def __init__(self, truths: Sequence[Truth]) -> None:
        self.truths = truths
        self.are_healed = False
        """What failed time and again does so no more."""
        self._known: dict[tuple[str, ...], Truth] = {}

    def of(self, instance: Instance, hardware: str) -> Truth:
        """What is so of this instance on such a machine."""
        if not self.truths:
            return NOTHING
        order, program = instance.model, instance.process
        if order is not None:
            return self._known_of(hardware, order.name, order.version, ())
        return self._known_of(hardware, "", "", program.command if program is not None else ())

    def of_component(self, component: Component, hardware: str) -> Truth:
        """The same of what people wish for."""
        use, program = component.model, component.process
        if use is not None:
            return self._known_of(hardware, use.name, use.version, ())
        return self._known_of(hardware, "", "", program.command if program is not None else ())

    def _known_of(self, hardware: str, model: str, version: str, command: tuple[str, ...]) -> Truth:
        key = (hardware, model, version, *command)
        if key not in self._known:
            self._known[key] = self._merged(hardware, model, version, command)
        return self._known[key]

    def _merged(self, hardware: str, model: str, version: str, command: tuple[str, ...]) -> Truth:
        said: dict[str, object] = {}
        for truth in self.truths:
            if truth.hardware and hardware not in truth.hardware:
                continue
            if truth.command is not None and truth.command not in command:
                continue
            if truth.model is not None and (truth.model != model or truth.version not in (None, version)):
                continue
            said |= {name: value for name in EFFECTS if (value := getattr(truth, name)) is not None}
        return msgspec.structs.replace(NOTHING, **said)


NO_TRUTHS: Final = Truths(())


def measured(truth: Truth, instance: Instance, node: str, ready_ms: int, restarts: int) -> Sample | None:
    """What it counted in so much time; None where nothing is measured."""
    if truth.per_second is None:
        return None
    beside = instance.beside
    is_shadow = beside is not None and beside.mode == "shadow"
    came = int(truth.per_second * ready_ms / 1_000 * (beside.share if beside is not None else 1.0))
    # Each instance rounds in a way of its own: together they come to what is true.
    luck = zlib.crc32(f"{node}/{instance.name}".encode()) % 1_000 / 1_000
    errors = math.floor(came * (ERRORS if truth.errors is None else truth.errors) / 100 + luck)
    errors = min(errors, came)
    answered = came - errors
    agreed = math.floor(came * (100.0 if truth.agrees is None else truth.agrees) / 100 + luck) if is_shadow else 0
    buckets, shares = _latencies(truth.latency_ms or LATENCY_MS)
    latency = _spread(answered, shares, luck)
    memory = instance.memory_bytes * (MEMORY_PERCENT if truth.memory_percent is None else truth.memory_percent) / 100
    return Sample(
        answered=answered,
        errors=errors,
        latency={b: n for b, n in zip(buckets, latency, strict=True) if n},
        confidence=tuple(_spread(answered, _sureness(truth.unsure or 0.0), luck)),
        compared=came if is_shadow else 0,
        agreed=min(agreed, answered),
        restarts=restarts,
        memory_bytes=int(memory),
        instance_ms=ready_ms,
    )


def _spread(n: int, shares: Sequence[float], luck: float) -> list[int]:
    """So many over bins of which each has its share; `shares` adds up from bin to bin, to 1."""
    edges = [min(n, math.floor(n * share + luck)) for share in shares]
    edges[-1] = n
    return [edge - before for before, edge in zip([0, *edges], edges, strict=False)]


@lru_cache(256)
def _latencies(median_ms: float) -> tuple[tuple[int, ...], tuple[float, ...]]:
    return tuple(latency_bucket(median_ms * times) for times, _ in _LATENCY), tuple(share for _, share in _LATENCY)


@lru_cache(256)
def _sureness(unsure: float) -> tuple[float, ...]:
    """Running shares of the bins: sure of nearly all, but for what is unsure and lies below a third."""
    low = CONFIDENCE_BINS // 3
    sure = [0.0] * (CONFIDENCE_BINS - 6) + [0.05, 0.1, 0.15, 0.2, 0.25, 0.25]
    found, so_far = [], 0.0
    for k, share in enumerate(sure):
        so_far += share * (1 - unsure / 100) + (unsure / 100 / low if k < low else 0.0)
        found.append(so_far)
    return (*found[:-1], 1.0)
