"""How many replicas when: by windows, by the load, with patience, and never fewer for want of a measure."""

from __future__ import annotations

import msgspec
import pytest

from batuta.core import autoscale
from batuta.core.autoscale import SETTLED_MS, Reading, bounds, step
from batuta.core.decide import decide
from batuta.core.observed import Flow, Measures
from batuta.core.standing import Scaled
from batuta.core.state import Change
from batuta.core.touched import touched
from batuta.core.view import status
from batuta.core.why import why
from batuta.kinds.application import Replicas
from batuta.kinds.autoscale import Autoscale, Window
from batuta.kinds.base import Millis, Ref
from batuta.kinds.instants import Instant
from tests.core.fleets import NOW, application, beats, component, decided, machines, obeys, places, settled, state_of

S = 1_000
DAY = Window(opens="0 8 * * mon-fri", closes="0 18 * * mon-fri", zone="Europe/Berlin", min=4, max=10)


def at(text: str) -> int:
    return int(Instant.parse(text))


def scaling(load="latency.p99 / 50.0", *, windows=(), least=1, most=8, up=10, down=60, tolerance=10) -> Autoscale:
    return Autoscale(
        min=least, max=most, windows=tuple(windows), load=load,
        tolerance_percent=tolerance, up_after_ms=Millis(up * S), down_after_ms=Millis(down * S),
    )  # fmt: skip


def row(count=2, **more) -> Scaled:
    return Scaled(namespace="default", application="app", component="read", count=count, since=0, **more)


def reading(p99=None, *, ready=2, whole=True, taken_in=None, **more) -> Reading:
    values = {"latency": {} if p99 is None else {"p99": float(p99)}, **more}
    return Reading(values, whole, ready, taken_in)


def run(scale, begin, *moments):
    """Steps at seconds, each with a reading; gives the count after each."""
    counts = []
    for second, seen in moments:
        begin = step(begin, scale, NOW + second * S, seen)
        assert step(begin, scale, NOW + second * S, seen) == begin, "not idle"
        counts.append(begin.count)
    return counts


class TestPatience:
    def test_more_only_after_the_load_has_asked_for_it_long_enough(self):
        busy = reading(100)
        assert run(scaling(), row(2), (0, busy), (5, busy), (9, busy), (10, busy)) == [2, 2, 2, 4]

    def test_as_many_as_it_asked_for_all_that_time(self):
        peaks = [(0, reading(150)), (5, reading(100)), (9, reading(200)), (10, reading(200))]
        assert run(scaling(), row(2), *peaks) == [2, 2, 2, 4]

    def test_a_moment_of_rest_begins_anew(self):
        moments = [(0, reading(100)), (9, reading(50)), (10, reading(100)), (19, reading(100)), (20, reading(100))]
        assert run(scaling(), row(2), *moments) == [2, 2, 2, 2, 4]

    def test_fewer_only_after_a_longer_time_and_as_few_as_it_never_needed_more(self):
        idle = [(0, reading(10, ready=6)), (30, reading(25, ready=6)), (59, reading(5, ready=6))]
        assert run(scaling(), row(6), *idle, (60, reading(5, ready=6))) == [6, 6, 6, 3]

    @pytest.mark.parametrize(("p99", "moves"), [(45, False), (55, False), (44, True), (56, True)])
    def test_what_is_near_enough_is_right(self, p99, moves):
        after = step(row(4), scaling(), NOW, reading(p99, ready=20))
        assert (after.heading is not None) == moves

    def test_it_looks_again_exactly_when_it_must(self):
        heading = step(row(2), scaling(), NOW, reading(100))
        assert (heading.heading, heading.heading_to, heading.look_at) == ("up", 4, NOW + 10 * S)
        assert step(heading, scaling(), NOW + 10 * S - 1, reading(100)) == heading
        assert step(heading, scaling(), NOW + 10 * S, reading(100)).count == 4

    def test_bounds_hold_whatever_the_load_asks(self):
        assert run(scaling(most=5), row(2), (0, reading(5_000)), (10, reading(5_000))) == [2, 5]
        assert run(scaling(least=2), row(3), (0, reading(0, ready=3)), (60, reading(0, ready=3))) == [3, 2]

    def test_what_is_starting_was_asked_for_already(self):
        """Two bear twice what they should; with the two that are on their way it is enough."""
        assert run(scaling(), row(4), (0, reading(100, ready=2)), (60, reading(100, ready=2))) == [4, 4]

    def test_no_patience_at_all(self):
        assert run(scaling(up=0), row(2), (0, reading(100))) == [4]


class TestWhatIsNotMeasured:
    def test_never_scales_down(self):
        half = reading(5, ready=6, whole=False)
        assert run(scaling(), row(6), (0, half), (60, half), (600, half)) == [6, 6, 6]

    def test_may_scale_up(self):
        half = reading(200, ready=2, whole=False)
        assert run(scaling(), row(2), (0, half), (10, half)) == [2, 8]

    def test_nothing_known_changes_nothing(self):
        assert run(scaling(), row(6), (0, reading()), (600, reading())) == [6, 6]
        assert run(scaling("queue.stored / 100.0"), row(6), (0, reading(500)), (600, reading(500))) == [6, 6]

    def test_dividing_by_nothing_changes_nothing(self):
        odd = scaling("latency.p99 / latency.p50")
        seen = Reading({"latency": {"p50": 0.0, "p99": 3.0}}, True, 2, None)
        assert run(odd, row(2), (0, seen), (600, seen)) == [2, 2]


class TestRates:
    def test_messages_are_counted_at_intervals(self):
        scale = scaling("rate.received / (100.0 * replicas.ready)", up=0)
        first = step(row(2), scale, NOW, reading(taken_in=1_000))
        assert (first.rate, first.look_at) == (None, NOW + 30 * S)
        assert step(first, scale, NOW + 29 * S, reading(taken_in=9_000)) == first, "between two counts nothing changes"
        second = step(first, scale, NOW + 30 * S, reading(taken_in=13_000))
        assert second.rate == 400.0
        assert second.count == 4

    def test_a_count_that_began_anew_is_no_rate(self):
        scale = scaling("rate.received / 100.0", up=0, down=0)
        first = step(row(4), scale, NOW, reading(taken_in=1_000))
        second = step(first, scale, NOW + 30 * S, reading(taken_in=10))
        assert (second.rate, second.count) == (None, 4)

    def test_nobody_counts_what_nobody_asks(self):
        assert step(row(2), scaling(), NOW, reading(50, taken_in=1_000)).sampled_at is None


class TestWindows:
    def test_its_bounds_hold_while_it_is_open(self):
        scale = scaling(None, windows=[DAY], least=1, most=8)
        friday = at("2026-11-20T06:59:59Z")
        before = step(row(1), scale, friday, reading())
        assert (before.count, before.look_at) == (1, at("2026-11-20T07:00:00Z"))
        opened = step(before, scale, before.look_at, reading())
        assert (opened.count, opened.look_at) == (4, at("2026-11-20T17:00:00Z"))
        closed = step(opened, scale, opened.look_at, reading())
        assert (closed.count, closed.look_at) == (1, at("2026-11-23T07:00:00Z"))
        assert "0 8 * * mon-fri" in opened.because

    def test_summer_and_winter(self):
        scale = scaling(None, windows=[DAY])
        winter = bounds(scale, at("2027-03-26T12:00:00Z"))
        assert winter.edge == at("2027-03-26T17:00:00Z")
        assert bounds(scale, at("2027-03-29T00:00:00Z")).edge == at("2027-03-29T06:00:00Z"), "an hour earlier"

    def test_of_several_the_highest_holds(self):
        always = Window(opens="0 0 * * *", closes="1 0 1 1 *", min=6)
        found = bounds(scaling(None, windows=[DAY, always]), at("2026-11-20T12:00:00Z"))
        assert (found.min, found.max) == (6, 10)
        assert bounds(scaling(None, windows=[DAY, always]), at("2026-11-20T20:00:00Z")).min == 6

    def test_between_them_the_load_decides(self):
        scale = scaling(windows=[DAY])
        now = at("2026-11-20T12:00:00Z")
        busy = step(row(4), scale, now, reading(100, ready=4))
        assert step(busy, scale, now + 10 * S, reading(100, ready=4)).count == 8

    def test_after_a_window_the_load_decides_how_fast_it_shrinks(self):
        scale = scaling(windows=[DAY])
        shut = at("2026-11-20T17:00:00Z")
        assert step(row(4), scale, shut, reading(50, ready=4)).count == 4
        idle = step(row(4), scale, shut, reading(5, ready=4))
        assert (idle.count, idle.look_at) == (4, shut + 60 * S)
        assert step(idle, scale, shut + 60 * S, reading(5, ready=4)).count == 1


# --- In a fleet -------------------------------------------------------------------------------------------------------


def scaled_application(scale: Autoscale, **more) -> Change:
    part = msgspec.structs.replace(component(**more), replicas=Replicas(autoscale=scale))
    return application(part)


def measured(state, p99, at=NOW, *, but=()):
    """Every node says how slow its instances are, and its report arrives at `at`."""
    rows = []
    for name, report in state.observed.items():
        if name in but:
            continue
        said = tuple(msgspec.structs.replace(i, measures=Measures(latency_p99_ms=p99)) for i in report.instances)
        rows.append(Change("observed", name, msgspec.structs.replace(report, at=at, instances=said)))
        arrived = msgspec.structs.replace(state.sightings[name], reported_at=at)
        rows.append(Change("sightings", name, arrived))
    return state.with_changes(rows)


def ready_since(state, name, at):
    report = state.observed[name]
    said = tuple(msgspec.structs.replace(i, since=at) for i in report.instances)
    return state.with_changes([Change("observed", name, msgspec.structs.replace(report, instances=said))])


def of(state) -> Scaled:
    return next(r for r in state.standing["default/app"].values() if isinstance(r, Scaled))


class TestInAFleet:
    def test_it_grows_and_shrinks(self):
        state = settled(state_of(machines("a", "b", "c"), scaled_application(scaling(least=2))))
        assert len(places(state)) == 2
        state, decision = decided(measured(state, 100.0))
        assert decision.wake_at == NOW + 2 * S, "the next node could be missed first"
        later = NOW + 10 * S
        state, _ = decided(beats(state, later), later)
        assert of(state).count == 4
        assert len(places(state)) == 4
        state = measured(obeys(state), 1.0, later)
        state, _ = decided(state, later)
        state, _ = decided(beats(state, later + 60 * S), later + 60 * S)
        assert len(places(state)) == 4, "what was measured just when there came to be four may be of two"
        later += 60 * S
        state, _ = decided(measured(state, 1.0, later), later)
        state, _ = decided(beats(state, later + 60 * S), later + 60 * S)
        assert len(places(state)) == 2

    def test_scaling_restarts_nothing(self):
        state = settled(state_of(machines("a", "b"), scaled_application(scaling(least=2))))
        before = set(places(state))
        state, _ = decided(measured(state, 100.0))
        later = NOW + 10 * S
        state, decision = decided(beats(state, later), later)
        assert before < set(places(state))
        assert not any(c.key.startswith("release.") for c in decision.changes)

    def test_what_cannot_be_heard_keeps_its_number(self):
        state = settled(state_of(machines("a", "b"), scaled_application(scaling(least=1), after_ms=600_000)))
        state, _ = decided(measured(state, 400.0))
        state, _ = decided(beats(state, NOW + 10 * S), NOW + 10 * S)
        state = measured(settled(state, NOW + 10 * S), 1.0)
        count = of(state).count
        assert count > 2
        state = beats(state, NOW + 13 * S, but={"a"})
        for later in (13, 100, 500):
            state, decision = decided(beats(state, NOW + later * S, but={"a"}), NOW + later * S)
            assert of(state).count == count
            assert "default/app" in decision.pending

    def test_taken_over_from_a_count_it_begins_with_what_is_there(self):
        state = settled(state_of(machines("a", "b"), application(component(count=5))))
        state, _ = decided(state.with_changes([scaled_application(scaling())]))
        assert of(state).count == 5
        state, _ = decided(state.with_changes([application(component(count=2))]))
        assert "default/app" not in state.standing
        assert len(places(state)) == 2

    def test_an_edge_is_looked_at_though_nothing_happens(self):
        state = settled(state_of(machines("a", "b"), scaled_application(scaling(None, windows=[DAY]))), NOW)
        edge = of(state).look_at
        decision = decide(beats(state, edge - 1), edge - 1)
        assert decision.changes == ()
        assert decision.wake_at == edge
        quiet = beats(state, edge)
        assert "application/default/app" in touched(quiet, quiet, edge - 1, edge)
        assert "application/default/app" not in touched(quiet, quiet, edge - 2, edge - 1)

    def test_a_measure_touches_it_and_nobody_else(self):
        state = settled(state_of(machines("a", "b"), scaled_application(scaling()), application(component(), name="x")))
        assert touched(state, measured(state, 77.0), NOW, NOW) == {"application/default/app"}
        flows = msgspec.structs.replace(state.observed["b"], flows=(Flow(consumer="default_app_read", stored=9),))
        after = state.with_changes([Change("observed", "b", flows)])
        assert "application/default/app" in touched(state, after, NOW, NOW)

    def test_what_was_measured_of_more_says_nothing_of_fewer(self):
        """Those that are left were measured while there were others beside them: to decide again finds nothing, and
        they are followed again when they were measured anew. `decided` holds it to that."""
        state = settled(state_of(machines("a", "b", "c", "d"), scaled_application(scaling(least=1, up=0))))
        state = settled(measured(state, 200.0))
        count = of(state).count
        assert count == 4
        later = NOW + 240 * S
        state, _ = decided(measured(beats(state, later), 18.5, later), later)
        later = NOW + 300 * S
        state, _ = decided(beats(state, later), later)
        assert of(state).count == 2
        assert of(state).heading is None
        assert of(state).look_at == later + SETTLED_MS
        state, _ = decided(beats(state, of(state).look_at), of(state).look_at)
        later += 100 * S
        state, decision = decided(beats(state, later), later)
        assert (of(state).count, of(state).heading) == (2, None)
        assert "default/app" in decision.pending
        state, _ = decided(measured(state, 18.5, later), later)
        assert (of(state).count, of(state).heading, of(state).heading_to) == (2, "down", 1)

    def test_what_was_measured_of_fewer_asks_only_as_much_as_those_did(self):
        """A second is ready and was measured; the first was not measured since. Its measure is that of one."""
        state = settled(state_of(machines("a", "b"), scaled_application(scaling(least=1, up=0))))
        state = settled(measured(state, 70.0))
        assert of(state).count == 2
        later = NOW + 5 * S
        (_, first), (_, second) = places(state)
        state = ready_since(state, second, later)
        state, _ = decided(measured(beats(state, later), 35.0, later, but={first}), later)
        assert (of(state).count, of(state).heading) == (2, None)
        later = NOW + 15 * S
        state, _ = decided(measured(beats(state, later), 35.0, later), later)
        assert (of(state).count, of(state).heading) == (2, None)
        state, _ = decided(measured(state, 70.0, later), later)
        assert of(state).count == 3

    def test_what_was_just_given_asks_for_nothing_yet(self):
        """One is lost and given anew while the load asks for fewer: what is not measured never does, from the very
        decision on that gave it."""
        state = settled(state_of(machines("a", "b"), scaled_application(scaling(least=1, up=0))))
        state = settled(measured(state, 100.0))
        later = NOW + 5 * S
        state, _ = decided(measured(beats(state, later), 20.0, later), later)
        assert of(state).heading == "down"
        gone = state.with_changes([Change("desired", "nodes.b", None)])
        state, _ = decided(gone, later)
        assert of(state).heading is None

    def test_what_waits_in_all_inboxes_of_its_sites_counts(self):
        state = settled(state_of(machines("a", "b"), scaled_application(scaling("queue.stored / 100.0", up=0))))
        rows = [
            Change("observed", name, msgspec.structs.replace(
                state.observed[name], flows=(Flow(consumer="default_app_read", produced=200, stored=150),)))
            for name in ("a", "b")
        ]  # fmt: skip
        state, _ = decided(state.with_changes(rows))
        assert of(state).count == 3

    def test_it_is_shown(self):
        state = settled(state_of(machines("a", "b"), scaled_application(scaling(least=2))))
        state, _ = decided(measured(state, 100.0))
        shown = status(state, Ref("applications", "default", "app"), NOW)["components"][0]["autoscale"]
        assert (shown["count"], shown["min"], shown["max"], shown["load"]) == (2, 2, 8, 2.0)
        assert (shown["heading"], shown["headingTo"], shown["at"]) == ("up", 4, NOW + 10 * S)
        assert shown["says"] == "2 of 2 to 8 (as declared); load 2.00 asks for 4"
        asked = why(state, NOW, "default/app")[0]
        assert asked["autoscale"] == shown


def test_the_sum_of_what_is_read_is_what_loads_know():
    """Whatever a load may ask is read, and nothing else is."""
    from batuta.kinds.condition import MEASURES

    state = settled(state_of(machines("a"), application(component())))
    report = state.observed["a"]
    full = Measures(received=10, errors=1, latency_p50_ms=1.0, latency_p99_ms=2.0, rss_bytes=5)
    report = msgspec.structs.replace(
        report,
        instances=tuple(msgspec.structs.replace(i, measures=full) for i in report.instances),
        vitals=msgspec.structs.replace(report.vitals, cpu_percent=50.0),
        flows=(Flow(consumer="default_app_read", produced=5, stored=2),),
    )
    state = state.with_changes([Change("observed", "a", report)])
    from batuta.core.draft import Draft
    from batuta.core.fleet import fleet_of

    draft = Draft(state, fleet_of(state, NOW), NOW)
    found = autoscale.read(draft, "default/app", draft.releases("default/app")[-1].components[0])
    known = {name: tuple(fields) for name, fields in found.values.items()}
    assert known | {"rate": ("received",), "replicas": ("wanted", "ready")} == MEASURES
