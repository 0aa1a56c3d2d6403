"""Rollouts as they are decided: waves, refusals, the way back, those who are away, and what is given up."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from batuta.core import rollout as rolling
from batuta.core.reasons import Reason
from batuta.core.sample import Sample
from batuta.core.state import Change
from batuta.core.view import status
from batuta.core.view_rollout import rollout_status
from batuta.core.why import why
from batuta.kinds.base import Millis, Ref
from batuta.kinds.rolling import Deadline, Disruption, Rollout, UpdateWindow
from tests.core.fleets import APP, component, node, report
from tests.core.rolling_world import NAMES, World, command_of, refusing, release, rolled, started

if TYPE_CHECKING:
    pass


def test_a_release_comes_in_waves_and_each_is_watched():
    world = started()
    assert len(world.runs("old")) == 10
    world.change(release("new"))
    world.until(world.is_("soaking"))
    assert len(world.runs("new")) == 1
    assert len(world.runs("old")) == 9
    seen = []
    world.until(lambda: world.is_("done")() or seen.append((world.rollout.wave, len(world.runs("new")))))  # type: ignore[func-returns-value]
    assert max(many for wave, many in seen if wave == 0) == 1
    assert max(many for wave, many in seen if wave == 1) == 5
    assert world.runs("new") == set(NAMES)
    assert world.runs("old") == set()
    assert world.now - world.rollout.began_at >= 30_000
    assert world.least_ready == 10
    for _ in range(5):
        world.step()
    assert world.step() == []


def test_new_instances_know_what_ran_there_before():
    world = started()
    world.change(release("new"))
    world.until(world.is_("soaking"))
    [new] = [h.instance for h in world.state.held[APP] if command_of(h.instance) == "new"]
    assert new.fallback is not None
    assert command_of(new.fallback) == "old"
    assert new.fallback.fallback is None
    assert new.probation_ms == 60_000


def test_a_release_that_the_first_node_refuses_goes_to_others_until_its_class_is_stopped():
    world = started()
    world.refuses = refusing("new")
    world.change(release("new"))
    world.until(world.is_("undone"))
    assert len(world.rollout.turned_down) == 3
    assert world.rollout.stopped == ("",)
    assert world.rollout.reason is not None
    assert world.rollout.reason.code == "release_turned_down"
    assert "outputs differ" in world.rollout.reason.detail
    told = why(world.state, world.now, APP)[0]
    assert told["state"] == "undone"
    assert "outputs differ" in told["reasons"][0]["sentence"]
    world.step()
    world.step()
    assert world.runs("old") == set(NAMES)
    assert {h.instance.revision for h in world.state.held[APP]} == {1}
    assert world.least_ready == 10
    # It is not tried again until somebody asks.
    world.refuses = lambda _node, _instance: False
    for _ in range(30):
        world.step(60_000)
    assert world.runs("new") == set()
    found = status(world.state, Ref("applications", "default", "app"), world.now)
    assert (found["state"], found["ready"], found["release"]) == ("degraded", "10/10", 2)
    assert found["reasons"][0]["code"] == "release_turned_down"
    world.ask(rolling.retried(world.rollout, world.now))
    world.until(world.is_("done"))
    assert world.runs("new") == set(NAMES)


def test_three_refusals_stop_a_class_and_the_others_go_on():
    world = World(release("old"))
    for i, name in enumerate(NAMES):
        world.change(node(name, hardware=("pi-4", "pi-5", "jetson")[i % 3]))
    for _ in range(4):
        world.step()
    pies = {name for i, name in enumerate(NAMES) if i % 3 == 0}
    world.refuses = refusing("new", *pies)
    world.change(release("new"))
    world.until(world.is_("done"))
    world.step()
    world.step()
    assert world.rollout.stopped == ("pi-4",)
    assert len(world.rollout.turned_down) >= 3
    assert world.runs("new") == set(NAMES) - pies
    assert world.runs("old") == pies
    told = rollout_status(world.state, APP, world.now)
    assert told["stoppedClasses"] == ["pi-4"]
    assert told["nodes"]["done"] == 6


def test_who_is_away_is_deferred_and_follows_the_verdict():
    world = started()
    world.away = {"n03", "n07"}
    for _ in range(15):
        world.step()
    world.change(release("new"))
    world.until(world.is_("done"))
    assert world.runs("new") == set(NAMES) - world.away
    assert rollout_status(world.state, APP, world.now)["nodes"]["deferred"] == 2
    for _ in range(10):
        world.step()
    world.away = set()
    world.until(lambda: world.runs("new") == set(NAMES))
    assert world.is_("done")()


def test_who_comes_back_to_an_undone_release_keeps_what_it_had():
    world = started(Rollout(waves=("50%", "100%"), soak_ms=Millis(20_000)))
    world.change(release("new", Rollout(waves=("50%", "100%"), soak_ms=Millis(20_000))))
    world.until(world.is_("soaking"))
    [gone, *_] = world.runs("new")
    world.away = {gone}
    for _ in range(3):
        world.step()
    reason = Reason(code="rollout_undone", subject="application/app", detail="by anna")
    world.ask(rolling.undoing(world.rollout, world.now, reason))
    world.until(world.is_("undone"))
    assert world.runs("new") == {gone}
    world.away = set()
    world.until(lambda: world.runs("old") == set(NAMES) and not world.runs("new"))


def test_a_broken_gate_undoes_in_the_first_wave():
    gated = Rollout(waves=("1 node", "100%"), soak_ms=Millis(60_000), gates=("errors.rate < 0.05",), least_answers=100)
    world = started(gated)
    world.sample = lambda _node, i: (
        Sample(answered=500, errors=400) if command_of(i) == "new" else Sample(answered=1000, errors=1)
    )
    world.change(release("new", gated))
    world.until(world.is_("undone"))
    assert len({name for name, command in world.ran if command == "new"}) == 1
    assert world.rollout.reason is not None
    assert world.rollout.reason.code == "gate_broken"
    world.step()
    world.step()
    assert world.runs("old") == set(NAMES)


def test_a_gate_without_data_never_passes_and_pauses_by_its_deadline():
    gated = Rollout(waves=("1 node", "100%"), gates=("errors.rate < 0.05",), deadline=Deadline(wave_ms=Millis(120_000)))
    world = started(gated)
    world.change(release("new", gated))
    world.until(world.is_("paused"))
    assert len(world.runs("new")) == 1
    assert world.rollout.reason is not None
    assert world.rollout.reason.code == "wave_late"
    # Paused is paused: also for what would go back.
    for _ in range(20):
        world.step()
    assert len(world.runs("new")) == 1


def test_a_gate_that_holds_lets_it_through():
    gated = Rollout(
        waves=("1 node", "100%"), soak_ms=Millis(5_000), least_answers=100,
        gates=("errors.rate < 0.05", "latency.p50 < baseline.latency.p50 * 2.0"),
    )  # fmt: skip
    world = started(gated)
    world.sample = lambda _node, _i: Sample(answered=5000, errors=1, latency={90: 1000, 95: 1500, 100: 1500, 105: 1000})
    for _ in range(2):
        world.step()
    world.change(release("new", gated))
    world.until(world.is_("done"))
    assert world.rollout.before.answered == 50_000
    told = rollout_status(world.state, APP, world.now)
    assert [g["verdict"] for g in told["gates"]] == ["held", "held"]
    assert told["gates"][0]["values"]["errors.rate"]["most"] < 0.05


def test_a_past_too_short_to_tell_anything_keeps_no_gate_open():
    gated = Rollout(
        waves=("1 node", "100%"), least_answers=100, gates=("latency.p99 < baseline.latency.p99 * 2.0",)
    )  # fmt: skip
    world = started(gated)
    world.sample = lambda _node, _i: Sample(answered=150, latency={90: 150})
    for _ in range(2):
        world.step()
    world.change(release("new", gated))
    world.until(lambda: bool(world.runs("new")))
    assert world.rollout.before.answered == 150
    world.sample = lambda _node, i: Sample(
        answered=9_000, latency={200 if i.process.command == ("new",) else 90: 9_000}
    )  # fmt: skip
    world.until(world.is_("undone"))
    assert world.rollout.reason.code == "gate_broken"


def test_a_pause_keeps_everything_and_going_on_goes_on():
    world = started()
    world.change(release("new"))
    world.until(world.is_("soaking"))
    world.ask(rolling.paused(world.rollout, world.now, Reason(code="rollout_waits", subject="application/app")))
    for _ in range(30):
        world.step()
    assert (len(world.runs("new")), len(world.runs("old"))) == (1, 9)
    world.ask(rolling.resumed(world.rollout, world.now))
    world.until(world.is_("done"))
    assert world.runs("new") == set(NAMES)


def test_what_is_aborted_stays_as_it_is():
    world = started()
    world.change(release("new"))
    world.until(lambda: len(world.runs("new")) == 5)
    world.ask(rolling.aborted(world.rollout, world.now, Reason(code="rollout_waits", subject="application/app")))
    for _ in range(30):
        world.step()
    assert (len(world.runs("new")), len(world.runs("old"))) == (5, 5)


def test_a_newer_release_supersedes_one_that_is_under_way():
    world = started()
    world.change(release("new"))
    world.until(lambda: len(world.runs("new")) == 5)
    world.change(release("newer"))
    world.step()
    assert world.rollout.revision == 3
    assert world.rollout.previous == 1
    assert world.rollout.tolerated == (2,)
    world.until(world.is_("soaking"))
    assert len(world.runs("newer")) == 1
    assert len(world.runs("new")) >= 4
    world.until(world.is_("done"))
    assert world.runs("newer") == set(NAMES)
    assert world.least_ready == 10


def test_a_superseded_release_that_is_undone_goes_back_to_the_last_that_was_seen_through():
    world = started()
    world.change(release("new"))
    world.until(lambda: len(world.runs("new")) == 5)
    world.refuses = refusing("newer")
    world.change(release("newer"))
    world.until(world.is_("undone"))
    world.until(lambda: world.runs("old") == set(NAMES))
    world.step()
    assert world.runs("new") == set()


def test_declaring_the_old_one_again_takes_a_rollout_back():
    world = started()
    world.change(release("new"))
    world.until(lambda: len(world.runs("new")) == 5)
    before = {
        h.node: h.instance
        for h in world.state.held[APP]
        if command_of(h.instance) == "old" and h.node not in world.runs("new")
    }
    world.change(release("old"))
    world.until(world.is_("done"))
    world.step()
    world.step()
    assert world.runs("old") == set(NAMES)
    assert all(h.instance is before[h.node] for h in world.state.held[APP] if h.node in before)


def test_two_applications_roll_out_each_for_itself():
    world = started()
    other = rolled(component(command="a", every_node=True), name="other")
    world.change(other)
    for _ in range(4):
        world.step()
    world.refuses = refusing("new")
    world.change(release("new"), rolled(component(command="b", every_node=True), name="other"))
    world.step()
    world.until(lambda: world.state.rollouts["default/other"].phase == "done")
    assert world.is_("undone")()
    assert {h.instance.revision for h in world.state.held["default/other"]} == {2}


def test_without_waves_it_is_one_replica_at_a_time_and_can_be_undone():
    world = started(Rollout(), count=4, every_node=None)
    world.change(release("new", Rollout(), count=4, every_node=None))
    most = 0
    for _ in range(60):
        world.step()
        new = [h for h in world.state.held[APP] if h.instance.revision == 2]
        unready = [h for h in new if h.node not in world.runs("new")]
        most = max(most, len(unready))
        if world.is_("done")():
            break
    assert most <= 1
    assert world.is_("done")()
    world.ask(rolling.undoing(world.rollout, world.now, Reason(code="rollout_waits", subject="application/app")))
    world.until(world.is_("undone"))
    assert {h.instance.revision for h in world.state.held[APP]} == {1}


def test_scaling_while_it_is_under_way_does_not_begin_it_anew():
    world = started(count=6, every_node=None)
    world.change(release("new", count=6, every_node=None))
    world.until(world.is_("soaking"))
    before = world.rollout
    world.change(release("new", count=8, every_node=None))
    world.step()
    assert (world.rollout.revision, world.rollout.began_at) == (before.revision, before.began_at)
    world.until(world.is_("done"))
    assert len(world.state.held[APP]) == 8
    assert {h.instance.revision for h in world.state.held[APP]} == {2}


def test_a_node_that_is_not_done_by_its_deadline_has_turned_it_down():
    limited = Rollout(waves=("1 node", "100%"), deadline=Deadline(node_ms=Millis(30_000)))
    world = started(limited)
    stuck = {"n02"}
    run = World._run
    world._run = lambda name, i, was: run(world, name, i, None if name in stuck and command_of(i) == "new" else was)  # type: ignore[method-assign]
    world.change(release("new", limited))
    world.until(world.is_("done"))
    assert set(world.rollout.turned_down) == stuck
    world.step()
    world.step()
    assert world.runs("new") == set(NAMES) - stuck
    assert world.runs("old") == stuck


def test_nothing_changes_while_the_window_is_shut():
    # NOW is a Tuesday, 22:13 UTC.
    nightly = Rollout(waves=("1 node", "100%"), windows=(UpdateWindow(opens="0 23 * * *", closes="0 4 * * *"),))
    world = started(nightly)
    world.change(release("new", nightly))
    for _ in range(10):
        said = world.step(60_000)
    assert world.runs("new") == set()
    assert "rollout_waits" in said
    world.until(world.is_("done"), ms=60_000)
    assert world.runs("new") == set(NAMES)


def test_the_nodes_of_a_wave_do_not_all_begin_at_once():
    spread = Rollout(waves=("100%",), jitter_ms=Millis(60_000))
    world = started(spread)
    world.change(release("new", spread))
    counts = []
    world.until(lambda: world.is_("done")() or counts.append(len(world.runs("new"))))  # type: ignore[func-returns-value]
    assert len(set(counts)) > 4
    assert world.runs("new") == set(NAMES)


@pytest.mark.parametrize("concurrency", [1, 3])
def test_so_many_at_a_time_in_both_directions(concurrency):
    few = Rollout(waves=("100%",), concurrency=concurrency, soak_ms=Millis(5_000))
    world = started(few)
    world.change(release("new", few))

    def in_the_middle() -> int:
        slots: dict[str, int] = {}
        for h in world.state.held[APP]:
            slots[h.instance.slot] = slots.get(h.instance.slot, 0) + 1
        return sum(many > 1 for many in slots.values())

    most = 0
    for _ in range(100):
        world.step()
        most = max(most, in_the_middle())
        if world.is_("soaking")():
            break
    assert most == concurrency
    world.ask(rolling.undoing(world.rollout, world.now, Reason(code="rollout_waits", subject="application/app")))
    most = 0
    for _ in range(100):
        world.step()
        most = max(most, in_the_middle())
        if world.is_("undone")():
            break
    assert most == concurrency
    assert world.runs("old") == set(NAMES)


def test_a_budget_holds_where_old_and_new_do_not_fit_beside_each_other():
    few = Rollout(waves=("1 node", "100%"), disruption=Disruption(per_site=2))
    world = started(few, cpu=3000)
    world.change(release("new", few, cpu=3000))
    world.until(world.is_("done"))
    assert world.least_ready == 8
    assert world.runs("new") == set(NAMES)


def test_what_must_never_run_twice_comes_in_waves_too():
    world = started(never_twice=True)
    world.change(release("new", never_twice=True))
    world.until(world.is_("soaking"))
    assert len(world.runs("new")) == 1
    assert len(world.runs("old")) == 9
    world.until(world.is_("done"))
    world.until(lambda: world.runs("new") == set(NAMES))


def test_the_last_node_that_comes_after_everything_and_refuses_gets_back_what_it_had():
    world = started()
    world.away = {"n05"}
    for _ in range(15):
        world.step()
    world.change(release("new"))
    world.until(world.is_("done"))
    for _ in range(5):
        world.step()
    world.refuses = refusing("new", "n05")
    world.away = set()
    world.until(lambda: "n05" in world.rollout.turned_down)
    world.until(lambda: world.runs("old") == {"n05"})
    assert world.is_("done")()


def test_nodes_that_can_never_take_it_hold_nobody_up():
    world = World(release("old", cpu=100))
    for name in NAMES[:3]:
        small = report(name, cpu=500)
        world.change(Change("observed", name, small))
    for _ in range(4):
        world.step()
    world.change(release("new", cpu=1000))
    world.until(world.is_("done"))
    assert world.runs("new") == set(NAMES[3:])
    assert world.runs("old") == set(NAMES[:3])
    assert rollout_status(world.state, APP, world.now)["nodes"]["held"] == 3
