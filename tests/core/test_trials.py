"""Trials: waves in which nodes have the new release beside the old one before they have it whole."""

from __future__ import annotations

import random
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from batuta.core.evidence import Interval
from batuta.core.gates import Judged
from batuta.core.rollout import (
    Plan,
    Rollout,
    Standing,
    Trial,
    advance,
    begin,
    gates_of,
    has_whole,
    may_have,
    order_of,
    paused,
    resumed,
    trial_of,
)
from batuta.kinds.waves import waves_of

if TYPE_CHECKING:
    pass

APP = "default/eyes"
AGREES, QUICK = "agreement.share >= 0.9", "latency.p99 < 50.0"
TRIALS = (Trial("shadow", 1.0, 60_000), Trial("split", 0.2, 30_000))
PLAN = Plan(waves_of(["1 node", "30%", "100%"]), soak_ms=10_000, gates=(AGREES, QUICK), trials=TRIALS)


class Fleet:
    """Nodes that have the new release in the way in which they may."""

    def __init__(self, n: int, seed: int = 0) -> None:
        self.chance = random.Random(seed)
        self.orders = {f"n{i}": order_of(APP, 2, f"n{i}") for i in range(n)}
        self.has: dict[str, str] = dict.fromkeys(self.orders, "old")
        """`old`, `shadow`, `split` or `whole`."""
        self.ready: set[str] = set()
        self.away: set[str] = set()
        self.bad: set[str] = set()
        self.selected: dict[str, int] = {}
        self.most_at_once = 0

    def way(self, rollout: Rollout, plan: Plan, node: str) -> str:
        order, selected = self.orders[node], self.selected.get(node)
        if not may_have(rollout, order, "pi", selected) or node in rollout.turned_down:
            return "old"
        if has_whole(rollout, plan, order, selected):
            return "whole"
        trial = trial_of(rollout, plan)
        return trial.mode if trial is not None else "old"

    def standings(self, rollout: Rollout, plan: Plan) -> list[Standing]:
        found = []
        for node, order in self.orders.items():
            way = self.way(rollout, plan, node)
            state: Any = "old"
            if way != "old" and self.has[node] == way:
                state = "new" if node in self.ready else "updating"
            elif self.has[node] == "whole":
                state = "new"  # it is on its way back
            if node in rollout.turned_down or (node in self.bad and self.has[node] != "old"):
                state = "down"
            found.append(Standing(node, order, "pi", state, node not in self.away, selected=self.selected.get(node)))
        return found

    def obey(self, rollout: Rollout, plan: Plan) -> None:
        changing = 0
        for node in self.orders:
            way = self.way(rollout, plan, node)
            if node in self.away or rollout.phase == "paused":
                continue
            if self.has[node] != way:
                self.has[node] = way
                self.ready.discard(node)
            elif self.chance.random() < 0.6:
                self.ready.add(node)
            changing += self.has[node] == "whole" and node not in self.ready
        self.most_at_once = max(self.most_at_once, changing)


def play(
    fleet: Fleet, plan: Plan = PLAN, *, steps: int = 600, breaks: tuple[str, str] = ("", ""), flapping: float = 0.0
) -> list[Rollout]:
    """`breaks`: the gate that is broken, and the trial in which that shows (`whole` for none)."""
    now, rollout, seen = 0, begin(APP, 2, 1, 0), []
    for _ in range(steps):
        now += 1_000
        fleet.away = {node for node in fleet.orders if fleet.chance.random() < flapping}

        def ask(r: Rollout) -> list[Judged]:
            trial = trial_of(r, plan)
            here = trial.mode if trial is not None else "whole"
            return [
                Judged(gate, "broken" if (gate, here) == breaks else "held", {"x": Interval(0, 0, 0)})
                for gate in gates_of(r, plan)
            ]

        rollout = advance(rollout, plan, fleet.standings(rollout, plan), now, ask).rollout
        fleet.obey(rollout, plan)
        seen.append(rollout)
    return seen


def test_each_wave_is_shown_the_inputs_then_answers_a_share_then_has_it_whole() -> None:
    fleet, plan = Fleet(10), PLAN
    seen = play(fleet)
    assert seen[-1].phase == "done"
    assert set(fleet.has.values()) == {"whole"}
    stages = [(r.wave, r.stage) for r in seen if r.phase != "done"]
    assert list(dict.fromkeys(stages)) == [(w, s) for w in range(3) for s in range(3)]
    for wave in range(3):
        for stage, least_ms in ((0, 60_000), (1, 30_000), (2, 10_000)):
            here = [r for r in seen if (r.wave, r.stage, r.phase) == (wave, stage, "soaking")]
            assert len(here) * 1_000 >= least_ms, "each is looked at for as long as it should be"
    assert {s.gate for r in seen if trial_of(r, plan) == TRIALS[0] for s in r.seen} == {AGREES, QUICK}
    assert {g for r in seen if r.stage > 0 for g in gates_of(r, plan)} == {QUICK}, "only in shadow there is agreement"
    assert {s.gate for r in seen if r.stage > 0 for s in r.seen} == {AGREES, QUICK}, "and it is told still"


@pytest.mark.parametrize(
    ("breaks", "ever"), [((AGREES, "shadow"), {"old", "shadow"}), ((QUICK, "split"), {"old", "shadow", "split"})]
)
def test_what_fails_on_trial_is_never_had_whole(breaks: tuple[str, str], ever: set[str]) -> None:
    fleet = Fleet(10)
    ways: set[str] = set()
    obey = fleet.obey

    def watched(rollout: Rollout, plan: Plan) -> None:
        obey(rollout, plan)
        ways.update(fleet.has.values())

    fleet.obey = watched  # type: ignore[method-assign]
    seen = play(fleet, breaks=breaks)
    assert seen[-1].phase == "undone"
    assert ways == ever
    assert set(fleet.has.values()) == {"old"}
    reason = next(r.reason for r in seen if r.phase == "undoing")
    assert reason is not None
    assert (reason.code, breaks[0] in reason.detail) == ("gate_broken", True)


def test_one_that_fails_when_it_is_switched_is_undone_also_where_it_is_only_on_trial() -> None:
    fleet = Fleet(10)
    plan = PLAN._replace(waves=waves_of(["1 node", "100%"]))
    seen = play(fleet, plan, breaks=(QUICK, "whole"))
    assert seen[-1].phase == "undone"
    assert set(fleet.has.values()) == {"old"}


def test_nodes_are_switched_as_many_at_a_time_as_may_change_at_once() -> None:
    fleet = Fleet(12)
    seen = play(fleet, PLAN._replace(waves=waves_of(["100%"]), concurrency=2), steps=1_200)
    assert seen[-1].phase == "done"
    assert fleet.most_at_once <= 2


def test_waves_of_a_condition_are_tried_as_all_others_are() -> None:
    fleet = Fleet(8)
    fleet.selected = {"n1": 0, "n5": 0}
    seen = play(fleet, PLAN._replace(waves=waves_of(["where true", "100%"])))
    first = [r for r in seen if r.wave == 0]
    assert list(dict.fromkeys(r.stage for r in first)) == [0, 1, 2]
    assert seen[-1].phase == "done"


def test_a_pause_in_a_trial_goes_on_with_the_trial() -> None:
    fleet, rollout = Fleet(4), begin(APP, 2, 1, 0)
    seen = play(fleet, steps=20)
    stopped = paused(seen[-1], 21_000, None)  # type: ignore[arg-type]
    assert trial_of(stopped, PLAN) == TRIALS[0]
    assert resumed(stopped, 22_000).stage == seen[-1].stage
    assert rollout.stage == 0


@given(
    n=st.integers(1, 12), seed=st.integers(0, 10_000), flapping=st.sampled_from([0.0, 0.3]),
    concurrency=st.sampled_from([None, 1, 3]), bad=st.integers(0, 2),
)  # fmt: skip
def test_laws(n: int, seed: int, flapping: float, concurrency: int | None, bad: int) -> None:
    """Whatever comes and goes: nobody has it whole that was not on trial by then, or came when its wave was through;
    it ends; and in the end all have the same."""
    fleet = Fleet(n, seed)
    fleet.bad = set(list(fleet.orders)[:bad]) if bad < n else set()
    plan = PLAN._replace(concurrency=concurrency)
    tried: set[int] = set()
    waves: set[int] = set()
    for r in play(fleet, plan, steps=900, flapping=flapping):
        tried |= {r.wave} if r.stage == 1 else set()
        waves |= {r.wave} if r.stage == 2 else set()
        assert waves <= tried, "no wave is switched before it was tried"
    assert r.phase in ("done", "undone")
    wanted = "whole" if r.phase == "done" else "old"
    fleet.away = set()
    fleet.obey(r, plan)
    assert {way for node, way in fleet.has.items() if node not in r.turned_down} <= {wanted}
    assert len(r.turned_down) <= len(fleet.bad)
