"""Rollout: waves over a made-up fleet in which nodes come, go, refuse and dawdle."""

from __future__ import annotations

import random
from typing import TYPE_CHECKING

import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec.structs import replace

from batuta.core import rollout as rolling
from batuta.core.evidence import Interval
from batuta.core.gates import Judged
from batuta.core.reasons import CATALOGUE, Reason
from batuta.core.rollout import WHOLE, Plan, Rollout, Standing, advance, begin, may_have, order_of
from batuta.kinds.waves import EVERYTHING, Wave, wave, wave_problems, waves_of

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

APP = "default/eyes"
PLAN = Plan(waves_of(["1 node", "10%", "50%", "100%"]), soak_ms=10_000)


class Fleet:
    """Nodes that do what a rollout lets them, each in its own time."""

    def __init__(self, n: int, seed: int, classes: Sequence[str] = ("a", "b", "c"), refusing: str = "") -> None:
        self.chance = random.Random(seed)
        self.orders = {f"n{i}": order_of(APP, 2, f"n{i}") for i in range(n)}
        self.hardware = {name: classes[i % len(classes)] for i, name in enumerate(self.orders)}
        self.state: dict[str, str] = dict.fromkeys(self.orders, "old")
        self.away: set[str] = set()
        self.refusing = refusing
        self.ever: set[str] = set()

    def standings(self, updating_as: str = "updating") -> list[Standing]:
        return [
            Standing(name, order, self.hardware[name], self.state[name], name not in self.away)  # type: ignore[arg-type]
            for name, order in self.orders.items()
        ]

    def obey(self, rollout: Rollout) -> None:
        for name, order in self.orders.items():
            if name in self.away:
                continue
            allowed = may_have(rollout, order, self.hardware[name])
            if allowed and self.state[name] == "old":
                self.state[name] = "down" if self.hardware[name] == self.refusing else "updating"
            elif allowed and self.state[name] == "updating" and self.chance.random() < 0.7:
                self.state[name] = "new"
                self.ever.add(name)
            elif not allowed and self.state[name] != "down":
                self.state[name] = "old"

    def flap(self, share: float) -> None:
        self.away = {name for name in self.orders if self.chance.random() < share}


def held(gate: str = "errors.rate < 0.01") -> Callable[[Rollout], list[Judged]]:
    return lambda _: [Judged(gate, "held", {"errors.rate": Interval(0, 0, 0.001)})]


def play(
    fleet: Fleet,
    plan: Plan,
    *,
    steps: int = 400,
    away: float = 0.0,
    ask: Callable[[Rollout], list[Judged]] | None = None,
) -> list[Rollout]:
    now, rollout = 0, begin(APP, 2, 1, 0)
    seen = [rollout]
    for _ in range(steps):
        now += 1_000
        if away:
            fleet.flap(away)
        rollout = advance(rollout, plan, fleet.standings(), now, ask or held()).rollout
        seen.append(rollout)
        fleet.obey(rollout)
        if rollout.phase in ("done", "undone", "paused"):
            break
    return seen


def test_every_wave_is_through_before_the_next_begins_and_soaks_in_between() -> None:
    fleet, rollout, now = Fleet(200, 1), begin(APP, 2, 1, 0), 0
    most = {0: 1, 1: 20, 2: 100, 3: 200}
    soaked: dict[int, int] = {}
    while rollout.phase != "done":
        now += 1_000
        before = rollout
        rollout = advance(rollout, PLAN, fleet.standings(), now, held()).rollout
        if rollout.wave > before.wave:
            soaked[before.wave] = now - before.since
        fleet.obey(rollout)
        assert sum(s != "old" for s in fleet.state.values()) <= most[rollout.wave]
        assert now < 600_000
    assert set(fleet.state.values()) == {"new"}
    assert all(ms >= PLAN.soak_ms for ms in soaked.values())
    assert len(soaked) == 3


@given(st.integers(1, 60), st.integers(0, 10_000), st.floats(0, 0.4))
def test_nobody_waits_for_the_absent(n: int, seed: int, away: float) -> None:
    fleet = Fleet(n, seed)
    ended = play(fleet, PLAN, away=away)[-1]
    assert ended.phase == "done"
    assert ended.reach == WHOLE
    fleet.away = set()
    for _ in range(30):
        fleet.obey(ended)
    # Who was away follows the verdict when it is back.
    assert set(fleet.state.values()) == {"new"}


@given(st.integers(0, 10_000), st.integers(1, 5))
def test_no_more_change_at_one_time_than_agreed(seed: int, concurrency: int) -> None:
    fleet, rollout = Fleet(40, seed), begin(APP, 2, 1, 0)
    plan = PLAN._replace(concurrency=concurrency)
    for now in range(1_000, 400_000, 1_000):
        rollout = advance(rollout, plan, fleet.standings(), now, held()).rollout
        fleet.obey(rollout)
        assert sum(s == "updating" for s in fleet.state.values()) <= concurrency
    assert rollout.phase == "done"


def test_a_class_of_hardware_that_refuses_is_stopped_and_the_others_go_on() -> None:
    fleet = Fleet(300, 5, refusing="b")
    ended = play(fleet, PLAN)[-1]
    assert ended.phase == "done"
    assert ended.stopped == ("b",)
    down = [name for name, state in fleet.state.items() if state == "down"]
    assert {fleet.hardware[name] for name in down} == {"b"}
    # A wave gives several their turn at once, so a few more than three may have tried; never a whole class.
    assert 3 <= len(down) <= 12
    assert all(
        fleet.state[name] == ("old" if fleet.hardware[name] == "b" else "new")
        for name in fleet.state
        if name not in down
    )


@pytest.mark.parametrize("n", [1, 2, 3, 20])
def test_a_release_that_every_node_refuses_is_undone(n: int) -> None:
    fleet = Fleet(n, 3, classes=("a",), refusing="a")
    ended = play(fleet, PLAN)[-1]
    assert ended.phase == "undone"
    assert ended.reason is not None
    assert ended.reason.code == "release_turned_down"
    assert not fleet.ever
    assert len(ended.turned_down) <= 3


@pytest.mark.parametrize(("failing", "phase"), [("undo", "undone"), ("pause", "paused")])
def test_a_broken_gate_stops_it_in_its_wave(failing: str, phase: str) -> None:
    fleet = Fleet(100, 7)
    broken = Judged("errors.rate < 0.01", "broken", {"errors.rate": Interval(0.02, 0.03, 0.04)})
    ended = play(fleet, PLAN._replace(on_failure=failing, gates=("errors.rate < 0.01",)), ask=lambda _: [broken])[-1]  # type: ignore[arg-type]
    assert ended.phase == phase
    assert ended.reason is not None
    assert ended.reason.code == "gate_broken"
    assert "0.03 (0.02 to 0.04)" in ended.reason.detail
    assert len(fleet.ever) == 1
    if phase == "undone":
        assert set(fleet.state.values()) == {"old"}


def test_what_is_not_known_is_waited_for_and_then_paused() -> None:
    fleet = Fleet(20, 7)
    open_yet = Judged("errors.rate < 0.01", "open", {}, ("errors.rate",))
    plan = PLAN._replace(gates=("errors.rate < 0.01",), wave_deadline_ms=60_000)
    seen = play(fleet, plan, ask=lambda _: [open_yet])
    assert any(r.reason is not None and r.reason.code == "gate_undecided" for r in seen)
    assert seen[-1].phase == "paused"
    assert seen[-1].reason is not None
    assert seen[-1].reason.code == "wave_late"
    again = rolling.resumed(seen[-1], 100_000)
    assert again.phase == "soaking"
    assert advance(again, plan, fleet.standings(), 100_001, lambda _: [open_yet]).rollout.phase == "soaking"


def test_undoing_goes_in_reverse_order_as_many_at_a_time_as_agreed() -> None:
    fleet, plan = Fleet(30, 2), PLAN._replace(concurrency=4)
    fleet.state = dict.fromkeys(fleet.state, "new")
    rollout = rolling.undoing(play(Fleet(30, 2), PLAN)[-1], 0, Reason(code="gate_broken", subject="application/eyes"))
    went: list[str] = []
    for now in range(1_000, 60_000, 1_000):
        rollout = advance(rollout, plan, fleet.standings(), now, held()).rollout
        back = [name for name, state in fleet.state.items() if state == "new"]
        fleet.obey(rollout)
        now_back = [name for name in back if fleet.state[name] == "old"]
        assert len(now_back) <= 4
        went += sorted(now_back, key=lambda name: -fleet.orders[name])
    assert rollout.phase == "undone"
    assert went == sorted(fleet.orders, key=lambda name: -fleet.orders[name])


def test_approval_is_waited_for_before_every_wave_but_the_first() -> None:
    fleet, plan = Fleet(20, 4), PLAN._replace(approvals=True)
    waiting = play(fleet, plan, steps=60)[-1]
    assert (waiting.phase, waiting.wave) == ("soaking", 0)
    assert waiting.reason is not None
    assert waiting.reason.code == "rollout_unapproved"
    on = advance(rolling.approved(waiting), plan, fleet.standings(), 100_000, held()).rollout
    assert (on.phase, on.wave) == ("rolling", 1)


def test_a_newer_release_takes_over_and_touches_nobody_twice() -> None:
    half = next(r for r in play(Fleet(40, 1), PLAN) if r.wave == 2)
    newer = begin(APP, 3, 2, 50_000, superseded=half)
    assert (newer.previous, newer.tolerated) == (1, (2,))
    newest = begin(APP, 4, 3, 60_000, superseded=newer)
    assert (newest.previous, newest.tolerated) == (1, (2, 3))
    done = play(Fleet(4, 1), PLAN)[-1]
    assert begin(APP, 3, 2, 0, superseded=done).previous == 2


def test_a_hub_that_hears_nobody_yet_undoes_nothing() -> None:
    """After its restart nobody is reachable but, perhaps first of all, one that turned the release down."""
    fleet = Fleet(60, 5, refusing="b")
    half = next(r for r in play(fleet, PLAN) if r.wave == 2 and r.turned_down)
    for heard in ((), tuple(half.turned_down)):
        fleet.away = set(fleet.orders) - set(heard)
        went_on = advance(half, PLAN, fleet.standings(), half.since + 1_000, held()).rollout
        assert went_on.phase in ("rolling", "soaking")


def test_canaries_by_condition_have_their_turn_in_their_wave() -> None:
    plan = Plan(waves_of(['where node.labels.ring == "canary"', "100%"]))
    nodes = [
        Standing(f"n{i}", order_of(APP, 2, f"n{i}"), "a", "old", selected=0 if i in (3, 5) else None) for i in range(9)
    ]
    first = advance(begin(APP, 2, 1, 0), plan, nodes, 1_000, held()).rollout
    allowed = {n.node for n in nodes if may_have(first, n.order, n.hardware, n.selected)}
    assert {"n3", "n5"} <= allowed
    assert len(allowed) <= 2 + sum(n.order == 0 for n in nodes)
    nodes = [n._replace(state="new") if n.node in allowed else n for n in nodes]
    second = advance(first, plan, nodes, 2_000, held()).rollout
    assert (second.phase, second.wave) == ("rolling", 1)


def test_pausing_changes_nothing_and_aborting_keeps_what_is_there() -> None:
    fleet = Fleet(50, 9)
    half = next(r for r in play(fleet, PLAN) if r.wave == 2)
    why = Reason(code="rollout_paused", subject="application/eyes", detail="by anna")
    for stopped in (rolling.paused(half, 1, why), rolling.aborted(half, 1, why)):
        assert advance(stopped, PLAN, fleet.standings(), 10**9, held()).rollout == stopped
        assert stopped.reach == half.reach
    again = rolling.retried(rolling.aborted(half, 1, why), 5)
    assert (again.phase, again.reach, again.turned_down) == ("rolling", half.reach, {})  # where it stood


def test_all_words_of_rollouts_are_in_the_catalogue() -> None:
    codes = {"gate_broken", "gate_undecided", "wave_late", "release_turned_down", "rollout_waits", "rollout_unapproved"}
    assert codes <= CATALOGUE.keys()


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("1 node", Wave(nodes=1)),
        ("20 nodes", Wave(nodes=20)),
        ("12.5%", Wave(share=0.125)),
        ("100 %", EVERYTHING),
        ('where node.site == "b"', Wave(where='node.site == "b"')),
        ("0%", None),
        ("101%", None),
        ("some", None),
        ("0 nodes", None),
    ],
)
def test_waves_are_read(text: str, said: Wave | None) -> None:
    assert wave(text) == said


def test_waves_that_make_no_sense_are_refused_with_their_place() -> None:
    found = {
        p.path: p.code for p in wave_problems("w", ["10%", "5%", "all", 'where node.sitte == "b"', "100%", "1 node"])
    }
    assert found == {"w[1]": "value", "w[2]": "value", "w[3]": "unknown_field", "w[5]": "value"}
    assert list(wave_problems("w", ["1 node", "10%", "50%", "100%"])) == []


@given(st.integers(1, 10_000), st.floats(0.001, 1))
def test_a_share_is_rounded_up_and_never_nobody(of: int, share: float) -> None:
    target = Wave(share=share).target(of)
    assert 1 <= target <= of
    assert target >= share * of - 1e-6
    assert target - 1 < share * of


def test_one_that_was_through_and_that_no_node_runs_after_all_is_undone():
    orders = {name: order_of(APP, 2, name) for name in ("n1", "n2", "n3")}

    def standings(*states: str) -> list[Standing]:
        return [
            Standing(name, orders[name], f"class-{name}", state, detail="it ended")  # type: ignore[arg-type]
            for name, state in zip(orders, states, strict=True)
        ]

    plan = Plan(waves_of(["1 node", "100%"]))
    done = replace(begin(APP, 2, 1, 0), phase="done", reach=WHOLE)
    some = advance(done, plan, standings("down", "new", "old"), 1_000, held()).rollout
    assert (some.phase, some.turned_down) == ("done", {"n1": "class-n1"})
    none = advance(done, plan, standings("down", "down", "old"), 1_000, held()).rollout
    assert (none.phase, none.reason and none.reason.code) == ("undoing", "release_turned_down")
    over = advance(none, plan, standings("old", "old", "old"), 2_000, held()).rollout
    over = advance(over, plan, standings("old", "old", "old"), 3_000, held()).rollout
    assert over.phase == "undone"
    nobody = advance(done, plan, standings("old", "old", "old"), 1_000, held()).rollout
    assert nobody.phase == "done"
