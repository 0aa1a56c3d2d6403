"""Gates: noise stops nothing, nothing bad passes, nothing unmeasured is taken for good."""

from __future__ import annotations

import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from batuta.core.evidence import latency_bucket
from batuta.core.gates import FALSE_STOP, judge
from batuta.core.sample import CONFIDENCE_BINS, Sample, total
from batuta.kinds import gate as gate_kind

GATES = ("errors.rate < 0.01", "latency.p99 < baseline.latency.p99 * 1.2", "confidence.shift < 0.2")


def measured(
    chance: random.Random, n: int, *, slower: float = 1.0, errors: float = 0.002, unsure: float = 0.0
) -> Sample:
    latency: dict[int, int] = {}
    bins, wrong = [0] * CONFIDENCE_BINS, 0
    for _ in range(n):
        if chance.random() < errors:
            wrong += 1
            continue
        bucket = latency_bucket(chance.lognormvariate(2, 0.3) * slower)
        latency[bucket] = latency.get(bucket, 0) + 1
        bins[int(min(0.999, max(0.0, chance.betavariate(8, 2) - unsure)) * CONFIDENCE_BINS)] += 1
    return Sample(answered=n - wrong, errors=wrong, latency=latency, confidence=tuple(bins), instance_ms=n * 100)


def rollout(seed: int, looks: int = 24, **ill: float) -> str:
    """What becomes of one wave, looked at after every five hundred answers."""
    chance = random.Random(seed)
    before, new, others = measured(chance, 5000), Sample(), Sample()
    for _ in range(looks):
        new = total((new, measured(chance, 500, **ill)))
        others = total((others, measured(chance, 500)))
        judged = judge(GATES, new, (before, others), least=200, looks=4)
        if any(j.verdict == "broken" for j in judged):
            return "broken"
        if all(j.verdict == "held" for j in judged):
            return "held"
    return "open"


def test_healthy_rollouts_are_not_stopped_and_get_through() -> None:
    ends = [rollout(seed) for seed in range(25)]
    assert ends.count("broken") == 0
    assert ends.count("held") >= 24


@pytest.mark.parametrize("ill", [{"slower": 1.5}, {"errors": 0.03}, {"unsure": 0.25}, {"slower": 10.0}], ids=str)
def test_bad_ones_are_stopped(ill: dict[str, float]) -> None:
    assert {rollout(seed, looks=30, **ill) for seed in range(6)} == {"broken"}


def test_what_is_just_beyond_a_limit_never_passes() -> None:
    assert "held" not in {rollout(seed, looks=12, slower=1.25) for seed in range(8)}


def test_what_was_not_measured_is_never_a_pass() -> None:
    chance = random.Random(1)
    new = measured(chance, 100)
    (few,) = judge(["errors.rate < 0.5"], new, (), least=200, looks=1)
    assert (few.verdict, few.missing) == ("open", ("errors.rate",))
    (none,) = judge(["energy.perInference < 0.5"], measured(chance, 500), (), least=200, looks=1)
    assert (none.verdict, none.missing) == ("open", ("energy.perInference",))
    (alone,) = judge([GATES[1]], measured(chance, 500), (), least=200, looks=1)
    assert (alone.verdict, alone.missing) == ("open", ("baseline",))


def test_a_hot_afternoon_is_not_the_new_releases_fault() -> None:
    chance = random.Random(2)
    before, others = measured(chance, 8000), measured(chance, 8000, slower=1.6)
    slow = measured(chance, 8000, slower=1.6)
    assert judge([GATES[1]], slow, (before, others), least=200, looks=1)[0].verdict == "open"
    assert judge([GATES[1]], slow, (before,), least=200, looks=1)[0].verdict == "broken"


def test_plain_measurements_are_compared_as_they_are() -> None:
    sample = Sample(
        answered=500, restarts=3, memory_bytes=100 << 20, temperature_c=61.0, energy_j=50.0, instance_ms=10_000
    )
    gates = {
        "restarts.count < 3": "broken", "restarts.count <= 3": "held", 'memory.max < quantity("200Mi")': "held",
        "temperature.max < 60.0": "broken",
        "energy.perInference < 0.2": "held", "throughput.perSecond > 60.0": "broken",
    }  # fmt: skip
    for one, verdict in gates.items():
        assert gate_kind.check("gates[0]", one) == []
        assert judge([one], sample, (), least=1, looks=1)[0].verdict == verdict, one


@given(st.lists(st.integers(0, 40), min_size=3, max_size=3), st.integers(0, 1000))
def test_samples_add_up_in_any_order(sizes: list[int], seed: int) -> None:
    chance = random.Random(seed)
    parts = [measured(chance, n) for n in sizes]
    assert total(parts) == total(parts[::-1]) == total((total(parts[:1]), total(parts[1:])))


@pytest.mark.parametrize(
    ("text", "code"),
    [
        ("latency.p98 < 3.0", "unknown_field"),
        ("latenci.p99 < 3.0", "unknown_name"),
        ("baseline.latency.p98 < 3.0", "missing_field"),
        ("1 < 2", "value"),
        ("errors.rate", "not_boolean"),
        ("errors.rate <", "syntax"),
        ('errors.rate < "1"', "wrong_type"),
    ],
)
def test_a_gate_that_makes_no_sense_is_refused(text: str, code: str) -> None:
    assert [p.code for p in gate_kind.check("gates[0]", text)] == [code]


def test_every_measurement_has_words() -> None:
    assert all(unit is not None and words for unit, words in gate_kind.MEASURED.values())
    assert 0 < FALSE_STOP <= 0.01
