"""What the twin's hub hears: its own stalls are nobody's silence, and neighbours are asked for whom it misses."""

from __future__ import annotations

import msgspec
import pytest

from batuta.kinds.application import Application, ApplicationSpec, Component, Failover, ProcessUse, Replicas
from batuta.kinds.base import Metadata, Millis
from batuta.twin import hub
from batuta.twin.attention import Attention
from batuta.twin.run import Verdict, run
from batuta.twin.scenario import Edit, Fault, Machine, Scenario

NODES = 6


def fleet(*faults: Fault, runs: str = "at-least-once", after_ms: int = 2_000, lazy: bool = True) -> Scenario:
    component = Component(
        name="one",
        process=ProcessUse(command=("run",)),
        replicas=Replicas(count=NODES),
        runs=runs,
        failover=Failover(after_ms=Millis(after_ms)),
    )
    application = Application(metadata=Metadata(name="app"), spec=ApplicationSpec(components=(component,)))
    found = Scenario(
        name="hearing",
        machines=tuple(Machine(name=f"node-{k}", site=("berlin", "lyon")[k % 2]) for k in range(NODES)),
        edits=(Edit(at_ms=0, apply=application),),
        faults=faults,
        duration_ms=150_000,
    )
    # Starts that fail and connections that close visibly are other stories.
    physics = msgspec.structs.replace(
        found.physics, lazy=lazy, start_fails_permille=0, disconnect_seen_permille=0, latency_ms=(5, 20)
    )
    return msgspec.structs.replace(found, physics=physics)


def stalls(*spans_ms: int) -> list[Fault]:
    return [Fault(kind="hub_stall", at_ms=40_000 + 45_000 * k, for_ms=ms) for k, ms in enumerate(spans_ms)]


def well(verdict: Verdict) -> Verdict:
    assert verdict.ok, verdict.broken
    return verdict


# --- Neighbours -----------------------------------------------------------------------------------------------------


def cut(for_ms: int, isolated: int = 0) -> Fault:
    return Fault(kind="partition", at_ms=40_000, for_ms=for_ms, target="node-2", amount=isolated)


def test_a_node_that_is_cut_from_the_hub_alone_is_not_given_up():
    for seed in range(5):
        assert well(run(fleet(cut(60_000)), seed)).counts["moves"] == 0


def test_a_node_that_nobody_hears_is():
    assert well(run(fleet(cut(60_000, isolated=1)), 1)).counts["moves"] >= 1


def test_without_asking_the_cut_node_is_taken_for_dead(monkeypatch):
    monkeypatch.setattr(hub, "is_doubted", lambda *_: False)
    given_up = [run(fleet(cut(60_000)), seed).counts["moves"] for seed in range(5)]
    assert sum(given_up) > 0


def test_a_dead_node_is_found_though_its_neighbours_are_asked():
    crash = Fault(kind="node_crash", at_ms=40_000, for_ms=60_000, target="node-2")
    assert well(run(fleet(crash), 1)).counts["moves"] >= 1


# --- Stalls ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("runs", ["at-least-once", "never-twice"])
def test_a_stall_alone_moves_nothing(runs):
    for seed in range(3):
        verdict = well(run(fleet(*stalls(3_000, 30_000), runs=runs), seed))
        assert (verdict.counts["moves"], verdict.counts["dead verdicts"]) == (0, 0)


def test_a_hub_that_takes_its_stall_for_silence_is_caught(monkeypatch):
    monkeypatch.setattr(Attention, "deaf_ms", property(lambda _: 0, lambda *_: None), raising=False)
    verdicts = [run(fleet(*stalls(3_000, 30_000)), seed) for seed in range(3)]
    assert sum(v.counts["false dead verdicts"] for v in verdicts) > 0


def test_who_dies_in_a_stall_is_found_after_it():
    crash = Fault(kind="node_crash", at_ms=45_000, for_ms=200_000, target="node-2")
    verdict = well(run(fleet(*stalls(20_000), crash), 1))
    assert verdict.counts["dead verdicts"] == 1
    assert verdict.counts["false dead verdicts"] == 0


@pytest.mark.parametrize("seed", range(3))
def test_resting_through_stalls_and_cuts_is_playing_them(seed):
    faults = (*stalls(700, 12_000), cut(30_000), Fault(kind="hub_restart", at_ms=90_000, for_ms=4_000))
    lazy, eager = (run(fleet(*faults, lazy=lazy, runs="never-twice"), seed) for lazy in (True, False))
    for verdict in (lazy, eager):
        verdict.counts.pop("events")
    assert lazy == eager
