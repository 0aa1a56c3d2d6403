"""Rollouts in the twin: a class of hardware that refuses, a version that answers badly, and laws that can see."""

from __future__ import annotations

import msgspec
import pytest

from batuta.core.decide import decide
from batuta.core.state import Change
from batuta.kinds.application import Application
from batuta.kinds.truth import EFFECTS, Truth
from batuta.twin.play import Play
from batuta.twin.rules import RULES
from batuta.twin.run import run
from batuta.twin.scenario import Scenario
from batuta.twin.sketch import sketch
from benchmarks.rollout_fleet import APP, ARRIVES, arriving, told
from tests.laws.test_twin import keep

QUICK = (3, 4, 29, 61)
"""These are played always; 29 and 61 once found something."""
SWEPT = 60
OPEN = {
    24: "while a rollout is paused, a slot whose only node refused the release stays empty",
}
"""Seeds that break a law and are not mended yet: each must go from here when it is."""
ASKED = (Truth(model="eyes", per_second=5),)


def gated(scenario: Scenario, *gates: str, soak_ms: int = 20_000) -> Scenario:
    """The same, with gates."""
    edits = []
    for edit in scenario.edits:
        changed = edit
        if isinstance(edit.apply, Application):
            rollout = msgspec.structs.replace(edit.apply.spec.rollout, gates=gates)
            spec = msgspec.structs.replace(edit.apply.spec, rollout=rollout)
            changed = msgspec.structs.replace(edit, apply=msgspec.structs.replace(edit.apply, spec=spec))
        edits.append(changed)
    return msgspec.structs.replace(scenario, edits=tuple(edits))


def test_a_model_reaches_all_but_the_class_that_refuses_it():
    plan = arriving(60, 1)
    verdict = run(plan, 1)
    assert verdict.ok, verdict.broken[:5]
    found = told(plan, verdict)
    assert found["done_s"] < 600
    assert 0.04 < found["away_share"] < 0.16
    # No other node was left out but those whose own processes failed, as processes of the twin do now and then.
    assert found["of_the_other_classes"] == 48
    assert 45 <= found["updated"] <= 48


@pytest.mark.slow
def test_of_a_larger_fleet_too():
    plan = arriving(400, 2)
    verdict = run(plan, 2)
    assert verdict.ok, verdict.broken[:5]
    assert told(plan, verdict)["updated"] >= 310


@pytest.fixture(scope="module")
def small() -> Scenario:
    """Of sixty nodes, with nobody away, and less time."""
    plan = arriving(60, 1)
    return msgspec.structs.replace(plan, faults=(), expected=(), look_ms=0, duration_ms=600_000)


def phase_of(play: Play) -> tuple[str, str]:
    assert play.broker.hub is not None
    rollout = play.broker.hub.known().rollouts[APP]
    return rollout.phase, rollout.reason.code if rollout.reason is not None else ""


def ever_ran(play: Play, revision: int) -> set[str]:
    return {
        name
        for name, node in play.nodes.items()
        if any(x.instance.revision == revision and x.starts for x in node.ledger.locals.values())
    }


# --- Sketches: whatever fails, with rollouts --------------------------------------------------------------------------


@pytest.mark.parametrize("seed", QUICK)
def test_whatever_fails_the_laws_hold_for_rollouts_too(seed):
    holds(seed)


@pytest.mark.slow
@pytest.mark.parametrize("chunk", range(0, SWEPT, 10))
def test_whatever_fails_the_laws_hold_for_many_rollouts(chunk):
    for seed in range(chunk, chunk + 10):
        if seed not in OPEN:
            holds(seed)


def holds(seed):
    """A seed that breaks a law is kept for ever after."""
    scenario = sketch(seed, rollouts=True)
    verdict = run(scenario, seed)
    if not verdict.ok:
        kept = keep(scenario, seed, tuple(sorted({b.law for b in verdict.broken})))
        pytest.fail(f"seed {seed}, kept as {kept.name}:\n" + "\n".join((*map(str, verdict.broken), *verdict.story)))


def test_sketches_of_rollouts_try_everything():
    waves, asks, ills = set(), set(), set()
    for seed in range(150):
        scenario = sketch(seed, rollouts=True)
        for edit in scenario.edits:
            asks |= {edit.rollout.ask} if edit.rollout is not None else set()
            if isinstance(edit.apply, Application):
                said = edit.apply.spec.rollout
                waves |= {name for name in said.__struct_fields__ if getattr(said, name) not in (None, (), False)}
                assert list(edit.apply.problems()) == []
        ills |= {name for truth in scenario.truths for name in EFFECTS if getattr(truth, name) is not None}
    assert asks == {"pause", "resume", "approve", "abort", "undo", "retry"}
    assert waves >= {"waves", "gates", "soak_ms", "windows", "approvals", "jitter_ms", "concurrency", "disruption"}
    assert ills >= {"per_second", "errors", "latency_ms", "refused", "fails_after_ms"}


# --- Some that are made up --------------------------------------------------------------------------------------------


def test_a_healthy_version_passes_its_gates(small):
    scenario = msgspec.structs.replace(
        gated(small, "errors.rate < 0.05", "latency.p95 < baseline.latency.p95 * 1.5"), truths=(*small.truths, *ASKED)
    )
    play = Play(scenario, 1, RULES)
    play.run_to(600_000)
    assert phase_of(play) == ("done", "")
    assert not play.laws.broken


def test_a_version_that_answers_badly_is_stopped_in_its_first_wave_and_undone(small):
    bad = Truth(model="eyes", version="2", errors=20)
    scenario = msgspec.structs.replace(gated(small, "errors.rate < 0.05"), truths=(*small.truths, *ASKED, bad))
    play = Play(scenario, 1, RULES)
    ran: set[str] = set()
    for at_ms in range(120_000, 420_001, 1_000):
        play.run_to(at_ms)
        ran |= ever_ran(play, 2)
    assert phase_of(play)[0] == "undone"
    assert 1 <= len(ran) <= 2
    assert not play.laws.broken


def test_a_hub_that_gives_turns_to_everybody_is_caught(small):
    """It takes the whole fleet for its first wave."""

    def hasty(state, now, subjects=None, fleet=None):
        rollout = state.rollouts.get(APP)
        if rollout is not None and rollout.phase == "rolling" and rollout.reach < 1 << 31:
            wide = msgspec.structs.replace(rollout, reach=1 << 31)
            decision = decide(state.with_changes([Change("decided", rollout.key, wide)]), now, subjects)
            if not any(c.key == rollout.key for c in decision.changes):
                decision = decision._replace(changes=(Change("decided", rollout.key, wide), *decision.changes))
            return decision
        return decide(state, now, subjects, fleet)

    play = Play(small, 1, RULES._replace(decide=hasty))
    play.run_to(180_000)
    assert "waves" in {b.law for b in play.laws.broken}


def test_a_hub_that_forgets_whose_turn_it_is_is_caught(small):
    """What it decides by has everybody's turn, and what it writes does not."""

    def forgetful(state, now, subjects=None, fleet=None):
        rollout = state.rollouts.get(APP)
        if rollout is None or rollout.phase not in ("rolling", "soaking"):
            return decide(state, now, subjects, fleet)
        wide = msgspec.structs.replace(rollout, reach=1 << 32)
        decision = decide(state.with_changes([Change("decided", rollout.key, wide)]), now, subjects)
        return decision._replace(changes=tuple(c for c in decision.changes if c.key != rollout.key))

    play = Play(small, 1, RULES._replace(decide=forgetful))
    play.run_to(130_000)
    assert "turns" in {b.law for b in play.laws.broken}


def test_the_expectation_of_the_example_can_fail():
    """Where every class refuses it, it never arrives."""
    plan = arriving(40, 1)
    truths = tuple(msgspec.structs.replace(t, hardware=()) for t in plan.truths)
    verdict = run(msgspec.structs.replace(plan, truths=truths), 1)
    assert ARRIVES not in verdict.met
    assert any(ARRIVES in b.detail for b in verdict.broken)
