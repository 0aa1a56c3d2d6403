"""Rehearsals of small fleets whose figures can be worked out by hand, and the laws that hold for all of them."""

from __future__ import annotations

import msgspec
import pytest

from batuta.core.delivery import GATHER_MS
from batuta.core.foresee import foresee
from batuta.core.observed import Measures
from batuta.core.state import Change, State
from batuta.kinds.application import Slo
from batuta.kinds.base import BitsPerSecond, Millis
from batuta.kinds.node import Power
from batuta.kinds.scenario import Fault
from batuta.kinds.site import Uplink
from batuta.twin.rehearse import Course, Rehearsal, rehearse
from batuta.twin.rehearse_fetch import RECIPE_PER_MILLION, SITE_BPS
from batuta.twin.rehearse_pace import HUB_MS, NODE_MS, REPORT_MS, STOP_MS
from tests.core.fleets import (
    APP,
    MIB,
    NOW,
    application,
    component,
    machines,
    model,
    no_application,
    settled,
    site,
    state_of,
)

HOUR_MS = 3_600_000
LATENCY_MS = 3
START_MS = 700
RECIPE = MIB * RECIPE_PER_MILLION // 1_000_000


def link(bandwidth_mbit: int = 8, latency_ms: int = LATENCY_MS) -> Uplink:
    return Uplink(bandwidth_bps=BitsPerSecond(bandwidth_mbit * 1_000_000), latency_ms=Millis(latency_ms))


def measured(state: State, start_ms: int = START_MS) -> State:
    """Every start that was reported took so long."""
    rows = []
    for name, report in state.observed.items():
        said = tuple(msgspec.structs.replace(i, ready_after_ms=start_ms) for i in report.instances)
        rows.append(Change("observed", name, msgspec.structs.replace(report, instances=said)))
    return state.with_changes(rows)


def fleet(*nodes: str, count: int = 3, **more) -> State:
    """A settled application of `count` processes on machines of one site."""
    app = application(component(count=count, spread="node", **more))
    return measured(settled(state_of(machines(*nodes), site("berlin", uplink=link()), app)))


def newer(count: int = 3, **more) -> list[Change]:
    return [application(component(count=count, spread="node", command="other", **more))]


def fault(word: str, at_ms: int, for_ms: int, **more) -> Fault:
    return Fault(fault=word, at_ms=Millis(at_ms), for_ms=Millis(for_ms), **more)


def moved(course: Course) -> list[tuple[str, str, str]]:
    return [(m.step.action, m.step.was_on, m.step.node) for m in course.moves]


def uplink_bytes(course: Course, site_name: str = "berlin") -> int:
    [found] = [u for u in course.links if u.site == site_name]
    return found.artifact_bytes


# --- Figures ---------------------------------------------------------------------------------------------------------


def test_replicas_are_replaced_one_after_the_other_and_the_time_adds_up() -> None:
    state = fleet("pi-1", "pi-2", "pi-3")
    found = rehearse(state, newer(), NOW, for_ms=HOUR_MS)
    assert [m.step.action for m in found.changed.moves] == ["replace"] * 3
    ready = [m.ready_ms for m in found.changed.moves]
    assert ready == sorted(ready)
    # Decided, sent, read, started, reported, sent: so long for each. A report gathers from the start on.
    one_ms = HUB_MS + LATENCY_MS + NODE_MS + START_MS + REPORT_MS + LATENCY_MS
    assert found.changed.done_ms == pytest.approx(3 * one_ms + HUB_MS, abs=3)
    assert found.changed.quiet_ms == pytest.approx(found.changed.done_ms + LATENCY_MS + NODE_MS + STOP_MS, abs=3)
    assert found.changed.outages == ()
    assert found.assumed == ("3 nodes draw 4 W at rest and 8 W at work: their spec.power is left out",)


def test_nothing_done_is_nothing_moved() -> None:
    found = rehearse(fleet("pi-1", "pi-2"), newer(), NOW, for_ms=HOUR_MS)
    assert found.nothing.moves == ()
    assert found.nothing.done_ms == 0
    assert uplink_bytes(found.nothing) == 0
    assert found.nothing.events < 20, "hours of rest cost nothing"


def test_what_is_foreseen_is_what_is_rehearsed() -> None:
    state = fleet("pi-1", "pi-2", "pi-3", "pi-4")
    for changes in (newer(), newer(count=5), newer(count=1), [application(component(every_node=True))]):
        seen = {(s.action, s.slot, s.node, s.instance) for s in foresee(state, changes, NOW).steps}
        played = rehearse(state, changes, NOW, for_ms=HOUR_MS).changed
        assert {(m.step.action, m.step.slot, m.step.node, m.step.instance) for m in played.moves} == seen


def test_an_artifact_comes_to_a_site_once_in_the_time_of_its_bytes() -> None:
    fleet_of_two = [machines("pi-1", "pi-2"), site("berlin", uplink=link(bandwidth_mbit=8, latency_ms=0)), model("1")]
    state = settled(state_of(*fleet_of_two))
    change = [application(component(model="1", per_site=None, every_node=True))]
    found = rehearse(state, change, NOW, for_ms=HOUR_MS).changed
    assert uplink_bytes(found) == MIB + 2 * RECIPE
    # 1 MiB over 8 Mbit/s is a second; both nodes bring in half of it, so both have it at the same instant.
    begun = {m.begun_ms for m in found.moves}
    assert len(begun) == 1
    assert begun.pop() == pytest.approx(MIB * 8 / 8_000 + GATHER_MS + HUB_MS + NODE_MS, abs=5)
    [used] = [u for u in found.links if u.site == "berlin"]
    assert used.busy_ms == pytest.approx(MIB * 8 / 8_000, abs=2)


def test_at_two_sites_it_comes_to_each() -> None:
    rows = [*machines("pi-1", "pi-2"), *machines("pi-3", "pi-4", at="lyon"), model("1")]
    state = settled(state_of(rows, site("berlin", uplink=link()), site("lyon", uplink=link())))
    change = [application(component(model="1", per_site=None, every_node=True))]
    found = rehearse(state, change, NOW, for_ms=HOUR_MS).changed
    assert uplink_bytes(found, "berlin") == uplink_bytes(found, "lyon") == MIB + 2 * RECIPE


def test_what_a_neighbour_has_costs_the_uplink_only_the_recipe() -> None:
    rows = [machines("pi-1", "pi-2"), site("berlin", uplink=link(bandwidth_mbit=1)), model("1")]
    state = settled(state_of(*rows, application(component(model="1"))))
    [held] = state.held[APP]
    said = msgspec.structs.replace(state.observed[held.node], artifacts=(_digest(state),))
    state = state.with_changes([Change("observed", held.node, said)])
    change = [application(component(model="1", count=2, spread="node"))]
    found = rehearse(state, change, NOW, for_ms=HOUR_MS).changed
    assert uplink_bytes(found) == RECIPE
    [move] = found.moves
    assert move.begun_ms == pytest.approx(MIB * 8_000 / SITE_BPS + GATHER_MS + HUB_MS + NODE_MS, abs=10)


def test_one_that_is_cut_off_gets_it_from_a_neighbour_that_is_not() -> None:
    rows = [machines("pi-1", "pi-2"), site("berlin", uplink=link(bandwidth_mbit=1, latency_ms=0)), model("1")]
    state = settled(state_of(*rows))
    change = [application(component(model="1", per_site=None, every_node=True))]
    cut = fault("partition", 2_000, 60_000, node=("pi-1",))
    found = rehearse(state, change, NOW, for_ms=HOUR_MS, faults=[cut]).changed
    assert uplink_bytes(found) == MIB + 2 * RECIPE
    begun = {m.step.node: m.begun_ms for m in found.moves}
    assert begun["pi-1"] == begun["pi-2"] == pytest.approx(MIB * 8 / 1_000 + GATHER_MS, abs=50)


def test_what_is_there_already_is_not_fetched_again() -> None:
    rows = [machines("pi-1", "pi-2"), site("berlin", uplink=link()), model("1"), application(component(model="1"))]
    state = settled(state_of(*rows))
    held = [
        Change("observed", name, msgspec.structs.replace(report, artifacts=(_digest(state),)))
        for name, report in state.observed.items()
    ]
    change = [application(component(model="1", count=2, spread="node"))]
    assert uplink_bytes(rehearse(state, change, NOW, for_ms=HOUR_MS).changed) == MIB + RECIPE
    assert uplink_bytes(rehearse(state.with_changes(held), change, NOW, for_ms=HOUR_MS).changed) == 0


def _digest(state: State) -> str:
    [held] = state.held[APP]
    assert held.instance.model is not None
    return held.instance.model.variant.digest


def test_starts_are_learned_by_component_and_hardware_and_else_assumed() -> None:
    state = fleet("pi-1", "pi-2", count=2)
    found = rehearse(state, newer(count=2), NOW, for_ms=HOUR_MS)
    [guess] = found.guesses
    assert (guess.start_ms, guess.starts, guess.how) == (START_MS, 2, "median of its own starts on this hardware")
    other = [application(component(name="new", count=1), name="other")]
    [guess] = rehearse(state, other, NOW, for_ms=HOUR_MS).guesses
    assert (guess.start_ms, guess.how) == (START_MS, "median of starts of other process components on this hardware")
    bare = settled(state_of(machines("pi-1"), site("berlin", uplink=link())))
    found = rehearse(bare, other, NOW, for_ms=HOUR_MS)
    assert found.guesses[0].starts == 0
    assert any("a start of default/other/new takes 1000 ms" in said for said in found.assumed)


def test_energy_is_watts_by_time_and_work() -> None:
    power = Power(idle_watts=2.0, full_watts=10.0)
    rows = [machines("pi-1", cpu=1000), site("berlin", uplink=link())]
    state = settled(state_of(*rows))
    powered = msgspec.structs.replace(
        state.nodes["pi-1"], spec=msgspec.structs.replace(state.nodes["pi-1"].spec, power=power)
    )
    state = state.with_changes([Change("desired", powered.ref.key, powered)])
    found = rehearse(state, [application(component(cpu=500))], NOW, for_ms=HOUR_MS)
    assert found.nothing.energy_wh == pytest.approx(2.0, abs=0.001)
    assert found.changed.energy_wh == pytest.approx(2.0 + 0.5 * 8.0, abs=0.01)


# --- Faults ----------------------------------------------------------------------------------------------------------


def test_a_crash_is_healed_elsewhere_in_both_runs_and_the_outage_is_told() -> None:
    state = fleet("pi-1", "pi-2", "pi-3", count=1)
    [(node, _)] = [(h.node, h) for h in state.held[APP]]
    crash = fault("crash", 5_000, HOUR_MS, node=(node,))
    found = rehearse(state, [], NOW, for_ms=HOUR_MS, faults=[crash])
    for course in (found.changed, found.nothing):
        [(action, was_on, to)] = moved(course)
        assert (action, was_on) == ("move", node)
        assert to != node
        [outage] = course.outages
        assert outage.from_ms == 5_000
        # Ten seconds of patience from the last beat, then a start.
        assert outage.to_ms == pytest.approx(5_000 + 10_000 - 500 + HUB_MS + LATENCY_MS + NODE_MS + START_MS, abs=600)


def test_a_short_cut_moves_nothing_and_what_was_missed_is_read_afterwards() -> None:
    state = fleet("pi-1", "pi-2", "pi-3")
    cut = fault("partition", 100, 6_000, site=("berlin",))
    found = rehearse(state, newer(), NOW, for_ms=HOUR_MS, faults=[cut]).changed
    assert {action for action, *_ in moved(found)} == {"replace"}
    assert found.outages == ()
    assert found.done_ms is not None
    assert found.done_ms > 6_000, "nobody is replaced while nobody can be heard"


def test_a_silent_node_stays_silent() -> None:
    state = fleet("pi-1", "pi-2", "pi-3")
    later = NOW + 60_000
    rows = [
        Change("sightings", name, msgspec.structs.replace(sighting, last_seen=later))
        for name, sighting in state.sightings.items()
        if name != "pi-2"
    ]
    found = rehearse(state.with_changes(rows), newer(), later, for_ms=HOUR_MS)
    assert found.silent == ("pi-2",)
    assert all(m.step.node != "pi-2" for m in found.changed.moves)


def test_a_hub_that_is_away_delays_and_loses_nothing() -> None:
    state = fleet("pi-1", "pi-2", "pi-3")
    away = fault("hubRestart", 500, 20_000)
    with_it = rehearse(state, newer(), NOW, for_ms=HOUR_MS, faults=[away]).changed
    without = rehearse(state, newer(), NOW, for_ms=HOUR_MS).changed
    assert sorted(m.step.instance for m in with_it.moves) == sorted(m.step.instance for m in without.moves)
    assert with_it.done_ms is not None
    assert without.done_ms is not None
    assert with_it.done_ms > without.done_ms + 15_000


def test_a_cut_from_the_hub_ends_what_must_never_run_twice_when_its_lease_does() -> None:
    state = fleet("pi-1", "pi-2", count=1, never_twice=True)
    [held] = state.held[APP]
    assert held.instance.lease_ms is not None
    cut = fault("partition", 1_000, HOUR_MS, node=(held.node,))
    found = rehearse(state, [], NOW, for_ms=HOUR_MS, faults=[cut]).nothing
    [outage] = found.outages
    assert outage.from_ms == pytest.approx(1_000 + held.instance.lease_ms + STOP_MS, abs=50)
    assert outage.to_ms is None
    [said] = found.reasons[APP]
    assert said["code"] == "node_silent"
    assert "hears it: it is cut from the hub, not dead" in said["sentence"]


def test_a_full_disk_is_said_as_the_reason_why_it_is_not_done() -> None:
    state = fleet("pi-1", count=1)
    found = rehearse(state, newer(count=1), NOW, for_ms=60_000, faults=[fault("fullDisk", 0, HOUR_MS)]).changed
    assert found.done_ms is None
    assert any(said["code"] for said in found.reasons[APP])


# --- Laws ------------------------------------------------------------------------------------------------------------


def test_one_seed_one_answer() -> None:
    state = fleet("pi-1", "pi-2", "pi-3", "pi-4")
    storm = [
        fault("crash", 0, 30_000, until_ms=Millis(60_000), nodes="50%"),
        fault("flapping", 0, 20_000, period_ms=Millis(4_000)),
    ]

    def play(seed: int) -> Rehearsal:
        return rehearse(state, newer(), NOW, for_ms=HOUR_MS, seed=seed, faults=storm)

    assert play(1) == play(1)
    assert play(1) != play(2)


def test_the_state_that_is_copied_is_left_as_it_was() -> None:
    state = fleet("pi-1", "pi-2", "pi-3")
    before = {table: dict(getattr(state, table)) for table in ("desired", "decided", "observed", "sightings")}
    rehearse(state, newer(), NOW, for_ms=HOUR_MS)
    assert before == {table: dict(getattr(state, table)) for table in before}


def test_an_answer_is_plain_data() -> None:
    found = rehearse(fleet("pi-1"), newer(count=1), NOW, for_ms=HOUR_MS)
    said = msgspec.json.encode(found)
    assert msgspec.json.decode(said, type=Rehearsal) == found


# --- Marks -----------------------------------------------------------------------------------------------------------


def test_a_place_that_is_slower_than_asked_is_told() -> None:
    read = component(model="1", per_site=1)
    rows = [machines("pi-1"), site("berlin", uplink=link()), model("1"), application(read)]
    state = settled(state_of(*rows))
    report = state.observed["pi-1"]
    slow = Measures(latency_p99_ms=80.0)
    inventory = msgspec.structs.replace(report.inventory, hardware="raspberry-pi-4-model-b")
    said = tuple(msgspec.structs.replace(i, measures=slow) for i in report.instances)
    measured_ = msgspec.structs.replace(report, inventory=inventory, instances=said)
    state = state.with_changes([Change("observed", "pi-1", measured_)])
    asked = msgspec.structs.replace(read, slo=Slo(p99_ms=Millis(50)))
    found = rehearse(state, [application(asked)], NOW, for_ms=HOUR_MS)
    [place] = found.changed.slow
    assert (place.node, place.hardware, place.asked_p99_ms, place.known_p99_ms) == (
        "pi-1",
        "raspberry-pi-4-model-b",
        50,
        80.0,
    )
    assert found.nothing.slow == (), "without the change nothing is asked"


def test_moves_that_pay_are_proposed_and_rehearsed_and_save_what_they_promise() -> None:
    state = settled(state_of(machines("hot"), site("berlin", uplink=link()), application(component(cpu=2000))))
    state = state.with_changes(machines("cool"))
    for name, idle, full in (("hot", 5.0, 100.0), ("cool", 1.0, 5.0)):
        node = state.nodes[name]
        power = Power(idle_watts=idle, full_watts=full)
        spec = msgspec.structs.replace(node.spec, power=power)
        state = state.with_changes([Change("desired", node.ref.key, msgspec.structs.replace(node, spec=spec))])
    state = measured(settled(state.with_changes([site("berlin", uplink=link())])))
    assert rehearse(state, [], NOW, for_ms=HOUR_MS).proposed == ()
    found = rehearse(state, [], NOW, for_ms=HOUR_MS, optimize=True)
    [proposed] = found.proposed
    assert (proposed.node, proposed.to) == ("hot", "cool")
    assert moved(found.changed) == [("move", "hot", "cool")]
    assert found.changed.done_ms is not None
    assert found.changed.outages == ()
    # Half of 95 W less at the one, half of 4 W more at the other, but for the second that the move takes.
    assert found.nothing.energy_wh - found.changed.energy_wh == pytest.approx(47.5 - 2.0, abs=0.1)


def test_what_is_taken_away_stops_and_is_not_missed() -> None:
    state = fleet("pi-1", "pi-2")
    found = rehearse(state, [no_application()], NOW, for_ms=HOUR_MS).changed
    assert {action for action, *_ in moved(found)} == {"stop"}
    assert len(found.moves) == 3
    assert found.outages == ()
    assert found.done_ms is not None
    node = Change("desired", "nodes.pi-1", None)
    found = rehearse(state, [node], NOW, for_ms=HOUR_MS).changed
    assert {m.step.node for m in found.moves} == {"pi-2"}
    assert found.done_ms is not None


def test_what_is_new_is_done_when_it_works() -> None:
    state = measured(settled(state_of(machines("pi-1", "pi-2"), site("berlin", uplink=link()), application())))
    found = rehearse(state, [application(component("new", count=2), name="other")], NOW, for_ms=HOUR_MS).changed
    assert found.done_ms == max(m.ready_ms or 0 for m in found.moves)
    assert found.done_ms == pytest.approx(HUB_MS + LATENCY_MS + NODE_MS + START_MS, abs=3)


@pytest.mark.parametrize("after_ms", [2_000, 10_000])
def test_a_node_that_is_cut_from_the_hub_and_not_from_its_neighbours_is_not_given_up(after_ms) -> None:
    """The hub asks them, and they hear it."""
    state = fleet("pi-1", "pi-2", "pi-3", count=1, after_ms=after_ms)
    [held] = state.held[APP]
    cut = fault("partition", 1_000, 600_000, node=(held.node,))
    found = rehearse(state, [], NOW, for_ms=HOUR_MS, faults=[cut]).nothing
    assert found.moves == ()
    dead = fault("crash", 1_000, 600_000, node=(held.node,))
    [move] = rehearse(state, [], NOW, for_ms=HOUR_MS, faults=[dead]).nothing.moves
    assert move.ordered_ms is not None
    assert move.ordered_ms == pytest.approx(500 + after_ms, abs=600)


def test_what_neighbours_say_counts_from_when_they_say_it() -> None:
    """All of a site is cut off, and comes back but for one: its neighbours say that they hear it."""
    state = fleet("pi-1", "pi-2", "pi-3", count=1)
    [held] = state.held[APP]
    cut = [
        fault("partition", 1_000, 60_000, site=("berlin",)),
        fault("partition", 1_000, 200_000, node=(held.node,)),
    ]
    assert rehearse(state, [], NOW, for_ms=HOUR_MS, faults=cut).nothing.moves == ()


def test_a_hub_that_is_held_up_takes_nobody_for_dead_and_decides_afterwards() -> None:
    state = fleet("pi-1", "pi-2", "pi-3")
    held_up = fault("hubStall", 500, 20_000)
    with_it = rehearse(state, newer(), NOW, for_ms=HOUR_MS, faults=[held_up]).changed
    without = rehearse(state, newer(), NOW, for_ms=HOUR_MS).changed
    assert sorted(moved(with_it)) == sorted(moved(without))
    assert with_it.done_ms is not None
    assert without.done_ms is not None
    assert with_it.done_ms > without.done_ms + 15_000


def test_a_hub_that_is_held_up_answers_no_lease() -> None:
    state = fleet("pi-1", "pi-2", count=1, never_twice=True)
    [held] = state.held[APP]
    assert held.instance.lease_ms is not None
    found = rehearse(state, [], NOW, for_ms=HOUR_MS, faults=[fault("hubStall", 1_000, 30_000)]).nothing
    [outage] = found.outages
    assert outage.from_ms == pytest.approx(1_000 + held.instance.lease_ms + STOP_MS, abs=50)
    assert outage.to_ms is not None
    assert outage.to_ms > 31_000
    assert found.moves == (), "it begins again where it was"


def test_who_dies_while_the_hub_is_held_up_is_found_afterwards() -> None:
    state = fleet("pi-1", "pi-2", "pi-3", count=1)
    [held] = state.held[APP]
    faults = [fault("hubStall", 1_000, 20_000), fault("crash", 5_000, HOUR_MS, node=(held.node,))]
    [move] = rehearse(state, [], NOW, for_ms=HOUR_MS, faults=faults).nothing.moves
    assert move.ordered_ms is not None
    assert 21_000 < move.ordered_ms < 40_000


def _fetching(*rows: Change, at_ms: int = 0, for_ms: int = 0) -> Course:
    """One node fetches 1 MiB, and is cut off meanwhile if asked for."""
    state = settled(state_of(machines("pi-1"), list(rows), model("1")))
    cuts = [fault("partition", at_ms, for_ms, node=("pi-1",))] if for_ms else []
    change = [application(component(model="1"))]
    return rehearse(state, change, NOW, for_ms=HOUR_MS, faults=cuts).changed


def test_the_narrowest_link_on_the_way_decides_and_each_counts_its_bytes() -> None:
    region = site("eu", uplink=link(bandwidth_mbit=2, latency_ms=0))
    found = _fetching(region, site("berlin", parent="eu", uplink=link(bandwidth_mbit=8, latency_ms=0)))
    assert uplink_bytes(found, "berlin") == uplink_bytes(found, "eu") == MIB + RECIPE
    [move] = found.moves
    assert move.begun_ms == pytest.approx(MIB * 8 / 2_000 + HUB_MS + NODE_MS, abs=5)


def test_a_transfer_that_is_cut_goes_on_where_it_was() -> None:
    here = site("berlin", uplink=link(bandwidth_mbit=1, latency_ms=0))
    whole, cut = _fetching(here), _fetching(here, at_ms=4_000, for_ms=5_000)
    assert uplink_bytes(whole) == uplink_bytes(cut) == MIB + RECIPE
    [without], [with_] = whole.moves, cut.moves
    assert without.begun_ms is not None
    assert with_.begun_ms == pytest.approx(without.begun_ms + 5_000, abs=5)


def test_what_is_lost_is_sent_again_and_takes_its_time() -> None:
    here = site("berlin", uplink=link(bandwidth_mbit=8, latency_ms=20))
    state = settled(state_of(machines("pi-1"), here, model("1")))
    change = [application(component(model="1"))]

    def begun_ms(percent: int) -> int:
        lossy = [fault("loss", 0, HOUR_MS, percent=percent, node=("pi-1",))] if percent else []
        found = rehearse(state, change, NOW, for_ms=HOUR_MS, faults=lossy).changed
        assert uplink_bytes(found) == MIB + RECIPE
        [move] = found.moves
        assert move.begun_ms is not None
        return move.begun_ms

    assert begun_ms(0) < begun_ms(1) < begun_ms(10) < begun_ms(60)
    # 1 MiB at 1460 * 1.22 / (40 ms * sqrt(0.1)) bytes a millisecond.
    assert begun_ms(10) == pytest.approx(MIB / 140.8, rel=0.1)
