"""Gates: noise stops nothing, nothing bad passes, nothing unmeasured is taken for good."""

from __future__ import annotations

import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from batuta.core.evidence import latency_bucket
from batuta.core.gates import FALSE_STOP, judge
from batuta.core.sample import CONFIDENCE_BINS, Sample, mixed, total
from batuta.kinds import gate as gate_kind
from benchmarks.gates import BAD, HEALTHY, PLAN, STATED, play

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


def test_a_baseline_that_measured_too_little_is_none() -> None:
    """In the last wave nobody is left to compare with now: what is broken against before is broken."""
    chance = random.Random(3)
    before, slow = measured(chance, 8000), measured(chance, 8000, slower=1.6)
    for others in (Sample(), measured(chance, 150)):
        assert judge([GATES[1]], slow, (before, others), least=200, looks=1)[0].verdict == "broken"
    alone = judge([GATES[1]], slow, (Sample(), measured(chance, 150)), least=200, looks=1)[0]
    assert (alone.verdict, alone.missing) == ("open", ("baseline.latency.p99",))


def test_a_baseline_is_mixed_as_the_updated_ones_are() -> None:
    """One slow machine in two is updated, and one in ten is not: compared as they are, nobody got slower."""
    chance = random.Random(4)
    updated = {"quick": measured(chance, 4000), "slow": measured(chance, 4000, slower=2.0)}
    others = {"quick": measured(chance, 36_000), "slow": measured(chance, 4000, slower=2.0)}
    as_they_are = judge(["latency.p50 < baseline.latency.p50 * 1.2"], total(updated.values()),
                        (total(others.values()),), least=200, looks=1)  # fmt: skip
    assert as_they_are[0].verdict == "broken"
    alike = mixed(others, updated)
    assert (
        judge(["latency.p50 < baseline.latency.p50 * 1.2"], total(updated.values()), (alike,), least=200, looks=1)[
            0
        ].verdict
        == "held"
    )
    assert abs(alike.answered - 8000) < 100
    assert sum(alike.latency.values()) == sum(alike.confidence) == alike.answered
    assert mixed({"quick": others["quick"]}, updated) == Sample()
    assert mixed({}, {}) == mixed(others, {}) == Sample()
    assert mixed(others, {"quick": updated["quick"]}) == others["quick"]


@given(st.dictionaries(st.sampled_from("abc"), st.integers(0, 60)), st.integers(0, 1000))
def test_a_mixture_is_never_more_than_there_was(sizes: dict[str, int], seed: int) -> None:
    chance = random.Random(seed)
    of = {name: measured(chance, n) for name, n in sizes.items()}
    like = {name: measured(chance, chance.randint(0, 30)) for name in sizes}
    made = mixed(of, like)
    assert made.answered + made.errors <= sum(sizes.values()) + len(sizes)
    assert all(n >= 0 for n in (*made.latency.values(), *made.confidence))


# --- Whole rollouts: a few of those of `benchmarks/gates.py` ----------------------------------------------------------


def test_healthy_releases_get_through_and_bad_ones_do_not() -> None:
    for release in HEALTHY.values():
        assert {play(seed, release).phase for seed in range(6)} == {"done"}
    for kind, (_, releases) in BAD.items():
        ended = [play(seed, releases[STATED]) for seed in range(4)]
        stopped = [e for e in ended if e.phase == "undoing"]
        assert len(stopped) >= 3, kind
        assert all(e.phase in ("undoing", "paused") and e.nodes <= 3 for e in ended), kind
        assert all(e.gate.startswith(kind[:5]) for e in stopped), kind


def test_rollouts_that_nobody_judges_are_told_from_judged_ones() -> None:
    """The benchmark can fail: without gates every bad release gets through."""
    for _, releases in BAD.values():
        assert play(1, releases[STATED], PLAN._replace(gates=())).phase == "done"


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
