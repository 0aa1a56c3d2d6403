"""Tables for liveness: one word for people, one number for failover."""

from __future__ import annotations

import msgspec
import pytest

from batuta.core.liveness import (
    HEARSAY_MS,
    LINK_RULES,
    MISSED_MS,
    RETURN_MS,
    Ears,
    every_ms,
    heard_at,
    link,
    missed_ms,
    sighted,
    silent_ms,
    witnesses,
)
from batuta.core.observed import Sighting
from batuta.core.state import Change, State
from tests.core.fleets import NOW, application, component, decided, heard, machines, node, state_of
from tests.core.fleets import holder as holder_of

SEEN = Sighting(last_seen=NOW, online_since=NOW - 60_000)


@pytest.mark.parametrize(
    ("sighting", "reported", "ago_ms", "word"),
    [
        (None, False, 0, "never"),
        (SEEN, True, 0, "online"),
        (SEEN, True, 2_999, "online"),
        (SEEN, True, 3_000, "late"),
        (SEEN, True, 9_999, "late"),
        (SEEN, True, 10_000, "offline"),
        (SEEN, False, 0, "online"),
        (msgspec.structs.replace(SEEN, disconnected_at=NOW), True, 0, "late"),
        (None, True, 0, "offline"),
    ],
)
def test_the_word_for_a_link(sighting, reported, ago_ms, word):
    state = state_of(machines("a")).with_changes([Change("sightings", "a", sighting)])
    if not reported:
        state = state.with_changes([Change("observed", "a", None)])
    assert link(state, "a", NOW + ago_ms) == word


def test_a_fresh_hub_waits_before_it_says_offline():
    state = state_of(machines("a")).listening_since(NOW)
    assert [link(state, "a", NOW + ms) for ms in (0, 12_000, 19_999, 20_000)] == ["late", "late", "late", "offline"]
    assert silent_ms(state, "a", NOW + 12_000) == 2_000


def test_nobody_has_been_silent_for_longer_than_the_hub_listens():
    state = state_of(machines("a"), heard("a", NOW - 60_000), hub_since=NOW - 1_000)
    assert silent_ms(state, "a", NOW) == 1_000


def test_nobody_is_silent_while_the_hub_cannot_listen():
    state = state_of(machines("a", "b")).with_changes([Change("observed", "b", None), Change("sightings", "b", None)])
    stalled = state.deaf_for(60_000)
    later = NOW + 61_000
    assert [silent_ms(s, "a", later) for s in (state, stalled)] == [61_000, 1_000]
    assert heard_at(stalled, "b") == heard_at(state, "b") + 60_000
    assert link(stalled, "a", later) == "online"
    again = sighted(stalled.sightings["a"], later, deaf_ms=60_000)
    assert again.online_since == stalled.sightings["a"].online_since
    heard_again = stalled.with_changes([Change("sightings", "a", again)])
    assert silent_ms(heard_again, "a", later + 2_500) == 2_500
    # A copy of the tables that is heard by somebody else knows nothing of that stall.
    assert silent_ms(heard_again.deaf_for(0), "a", later + 2_500) == 2_500


def test_silence_counts_only_while_somebody_at_the_site_is_heard():
    cut = state_of(machines("a", "b"))
    assert silent_ms(cut, "a", NOW + 60_000) == 60_000
    back = cut.with_changes([heard("b", NOW + 60_000, since=NOW + 59_000)])
    assert silent_ms(back, "a", NOW + 60_000) == 1_000 - RETURN_MS
    steady = cut.with_changes([heard("b", NOW + 60_000, since=NOW)])
    assert silent_ms(steady, "a", NOW + 60_000) == 60_000


def test_what_a_neighbour_heard_counts_from_when_it_said_so():
    state = state_of(machines("a", "b"))
    report = msgspec.structs.replace(state.observed["b"], hears={"a": 500, "b": 0})
    sighting = Sighting(last_seen=NOW + 60_000, online_since=NOW - 1, reported_at=NOW + 59_000)
    state = state.with_changes([Change("observed", "b", report), Change("sightings", "b", sighting)])
    assert silent_ms(state, "a", NOW + 60_000) == 1_500
    untold = state.with_changes([Change("sightings", "b", msgspec.structs.replace(sighting, reported_at=None))])
    assert silent_ms(untold, "a", NOW + 60_000) == 60_000


@pytest.mark.parametrize(
    ("later_ms", "told_ms_ago", "is_cut"),
    [
        (900, 0, False),  # The last word before it died: its neighbour heard it, the hub's was due a moment later.
        (MISSED_MS - 1, 0, False),
        (MISSED_MS, 0, True),
        (60_000, 0, True),
        (60_000, HEARSAY_MS - 1, True),
        (60_000, HEARSAY_MS, False),  # It was cut off, and nobody has heard it since.
    ],
)
def test_a_node_is_cut_off_while_a_neighbour_goes_on_hearing_it(later_ms, told_ms_ago, is_cut):
    heard_at = NOW + later_ms
    now = heard_at + told_ms_ago
    state = state_of(machines("a", "b"))
    report = msgspec.structs.replace(state.observed["b"], hears={"a": 0})
    sighting = Sighting(last_seen=now, online_since=NOW - 1, reported_at=heard_at)
    state = state.with_changes([Change("observed", "b", report), Change("sightings", "b", sighting)])
    assert Ears(state, now).cut_off("a") == (("b", heard_at) if is_cut else None)


def test_the_eldest_neighbours_of_a_missed_holder_are_asked():
    names = ("a", "b", "c", "d", "e")
    state, _ = decided(state_of(machines(*names), machines("z", at="paris"), application(component())))
    silent = dict.fromkeys((*names, "z"), 0)
    assert witnesses(state, silent.__getitem__) == frozenset()
    holder = holder_of(state)
    others = [name for name in names if name != holder]
    # Not yet out of the question itself, it may answer by its next heartbeat.
    late = witnesses(state, (silent | {holder: 1_251}).__getitem__)
    assert len(late) == 3
    assert late < set(names)
    assert witnesses(state, (silent | {holder: 2_000}).__getitem__) == set(others[:3])
    # Who holds nothing is nobody's business, and who is silent himself is not asked.
    assert witnesses(state, (silent | {others[0]: 60_000}).__getitem__) == frozenset()
    assert witnesses(state, (silent | {holder: 60_000, others[0]: 60_000}).__getitem__) == set(others[1:])


def test_a_gap_begins_a_new_presence():
    first = sighted(None, NOW)
    assert first == Sighting(last_seen=NOW, online_since=NOW)
    assert sighted(first, NOW + 1_999).online_since == NOW
    assert sighted(first, NOW + 2_000).online_since == NOW + 2_000
    closed = msgspec.structs.replace(first, disconnected_at=NOW + 1, reported_at=NOW)
    assert sighted(closed, NOW + 2) == Sighting(last_seen=NOW + 2, online_since=NOW + 2, drops=1, reported_at=NOW)


def test_a_large_fleet_beats_more_slowly_and_is_given_more_time():
    assert (every_ms(State()), missed_ms(State())) == (1_000, 2_000)
    large = state_of([node(f"n{k}") for k in range(3_000)], heard("n1", NOW), Change("observed", "n1", None))
    assert (every_ms(large), missed_ms(large)) == (3_000, 6_000)
    assert [link(large, "n1", NOW + ms) for ms in (8_999, 9_000, 30_000)] == ["online", "late", "offline"]


def test_the_last_rule_always_holds():
    assert LINK_RULES[-1].word == "online"


def test_a_site_that_is_cut_off_does_not_make_its_last_voice_a_survivor():
    """Heartbeats of a second apart: at two seconds of silence of the first, the others are not yet missed."""
    cut = state_of(machines("a", "b")).with_changes([heard("a", NOW, since=NOW - 60_000), heard("b", NOW + 900)])
    for now in range(NOW + MISSED_MS, NOW + 900 + MISSED_MS, 100):
        assert silent_ms(cut, "a", now) == 900
    # Then the site is silent as a whole, and has been for as long as it has.
    assert silent_ms(cut, "a", NOW + 900 + MISSED_MS) == 900 + MISSED_MS
    alone = cut.with_changes([heard("b", NOW + 5_000, since=NOW - 60_000)])
    assert silent_ms(alone, "a", NOW + 5_400) == 5_000
