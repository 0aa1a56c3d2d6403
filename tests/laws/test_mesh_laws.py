"""Laws of a mesh call: whatever happens, in whatever order."""

from __future__ import annotations

from typing import TYPE_CHECKING

from hypothesis import given
from hypothesis import strategies as st

from batuta.core import mesh, mesh_breaker, mesh_budget, mesh_deadline
from batuta.core.mesh import NEARNESS, Candidate, choose
from batuta.core.mesh_breaker import Breaker
from batuta.core.mesh_budget import Budget
from batuta.core.mesh_deadline import Past
from batuta.core.mesh_gate import SHARES, Gate
from batuta.core.serving import CLASSES

if TYPE_CHECKING:
    from batuta.core.serving import Class

chances = st.floats(min_value=0, max_value=1, exclude_max=True)
candidates = st.lists(
    st.builds(
        Candidate,
        key=st.text("abcdef", min_size=1, max_size=3),
        nearness=st.sampled_from(NEARNESS),
        is_well=st.booleans(),
        in_flight=st.integers(0, 50),
        room=st.integers(0, 20),
        latency_ms=st.none() | st.floats(0, 10_000),
    ),
    max_size=12,
    unique_by=lambda c: c.key,
)
gaps = st.integers(0, 5_000)
urgencies = st.sampled_from(CLASSES)


# --- Choice ---


@given(candidates, st.tuples(chances, chances), st.sets(st.text("abcdef", min_size=1, max_size=3)))
def test_the_nearest_that_is_well_and_has_room_is_chosen(
    found: list[Candidate], chance: tuple[float, float], tried: set[str]
) -> None:
    fit = [c for c in found if c.is_well and not c.is_full and c.key not in tried]
    chosen = choose(found, chance, tried)
    if not fit:
        assert chosen is None
        return
    assert chosen in fit
    assert NEARNESS.index(chosen.nearness) == min(NEARNESS.index(c.nearness) for c in fit)
    equals = [c for c in fit if c.nearness == chosen.nearness]
    if len(equals) > 1:
        # Of two it takes the better one: the worst of all is never taken.
        unknown_ms = min((c.latency_ms for c in equals if c.latency_ms is not None), default=1.0)
        worst = max(equals, key=lambda c: (mesh.expected_ms(c, unknown_ms), c.key))
        assert chosen != worst


# --- Breaker ---


@given(st.lists(st.tuples(gaps, st.sampled_from(("ask", "well", "ill", "gone", "release", "heard")))))
def test_an_open_breaker_is_not_asked_and_asks_again_later(events: list[tuple[int, str]]) -> None:
    breaker, now, opened_at = Breaker(), 0, None
    for gap, what in events:
        now += gap
        before = mesh_breaker.state(breaker, now)
        match what:
            case "ask":
                if mesh_breaker.may_ask(breaker, now):
                    assert before != "open"
                    breaker = mesh_breaker.asked(breaker, now)
                    # A half-open one lets one through, not two.
                    assert before == "closed" or not mesh_breaker.may_ask(breaker, now)
            case "well":
                breaker = mesh_breaker.answered(breaker, now)
                # Late news of before it opened does not close it.
                assert mesh_breaker.state(breaker, now) == ("open" if before == "open" else "closed")
            case "heard":
                was_gone = breaker.is_gone
                breaker = mesh_breaker.heard(breaker, now)
                expected = "half-open" if before == "open" and was_gone else before
                assert mesh_breaker.state(breaker, now) == expected
            case "release":
                breaker = mesh_breaker.released(breaker)
                assert mesh_breaker.state(breaker, now) == before
            case _:
                breaker = mesh_breaker.failed(breaker, now, is_gone=what == "gone")
                if what == "gone" or before == "half-open":
                    assert mesh_breaker.state(breaker, now) == "open"
        if before != "open" and mesh_breaker.state(breaker, now) == "open":
            opened_at = now
            assert breaker.open_until is not None
            assert breaker.open_until - now <= mesh_breaker.LONGEST_OPEN_MS
        if mesh_breaker.state(breaker, now) == "open":
            assert opened_at is not None
            assert not mesh_breaker.may_ask(breaker, now)
        again_at = mesh_breaker.asks_again_at(breaker, now)
        assert mesh_breaker.may_ask(breaker, max(now, again_at))
        assert len(breaker.outcomes) <= mesh_breaker.WINDOW


@given(st.integers(1, 20))
def test_one_that_stays_ill_is_asked_ever_more_rarely(times: int) -> None:
    breaker, now, waits = Breaker(), 0, []
    for _ in range(mesh_breaker.IN_A_ROW - 1):
        breaker = mesh_breaker.failed(breaker, now)
        assert mesh_breaker.may_ask(breaker, now)
    for _ in range(times):
        breaker = mesh_breaker.failed(breaker, now)
        waits.append(mesh_breaker.asks_again_at(breaker, now) - now)
        now = mesh_breaker.asks_again_at(breaker, now)
        breaker = mesh_breaker.asked(breaker, now)
    assert waits == sorted(waits)
    assert waits[-1] == min(mesh_breaker.LONGEST_OPEN_MS, mesh_breaker.FIRST_OPEN_MS << (times - 1))


# --- Retry budget ---


@given(st.lists(st.tuples(gaps, st.booleans()), max_size=200))
def test_the_retry_budget_is_never_exceeded(events: list[tuple[int, bool]]) -> None:
    budget, now, requests, retries = Budget(), 0, 0, 0
    first = budget.saved
    for gap, is_request in events:
        now += gap
        if is_request:
            budget = mesh_budget.requested(budget, now)
            requests += 1
        elif (after := mesh_budget.spent(budget, now)) is not None:
            budget = after
            retries += 1
        earned = requests * mesh_budget.EARNED_BY_A_REQUEST + now * mesh_budget.TRICKLE_A_SECOND // 1_000
        assert retries * mesh_budget.TOKEN <= first + earned
        assert 0 <= budget.saved <= mesh_budget.MOST


def test_all_requests_failing_makes_a_fifth_more_load_not_a_multiple() -> None:
    budget, retries = Budget(), 0
    for now in range(0, 20_000, 2):  # 500 a second for twenty seconds, each of which wants to be retried
        budget = mesh_budget.requested(budget, now)
        if (after := mesh_budget.spent(budget, now)) is not None:
            budget, retries = after, retries + 1
    assert 0.19 < retries / 10_000 < 0.22


# --- Deadline ---

pasts = st.builds(
    Past,
    fastest_ms=st.none() | st.floats(0, 1_000),
    p50_ms=st.none() | st.floats(0, 10_000),
    p95_ms=st.none() | st.floats(0, 10_000),
    p99_ms=st.none() | st.floats(0, 10_000),
)


@given(st.none() | st.integers(-10, 10**9), st.lists(gaps), pasts)
def test_a_deadline_is_never_extended_by_whoever_carries_it(asked_ms: int | None, hops: list[int], past: Past) -> None:
    now = 1_000
    first = deadline = mesh_deadline.begins(asked_ms, now)
    for gap in hops:
        now += gap
        left = mesh_deadline.left_ms(deadline, now)
        # The next one begins anew with what is left, on its own clock, and never ends later than the first.
        deadline = mesh_deadline.begins(left, now)
        assert deadline <= max(first, now)
        if now >= first:
            assert not mesh_deadline.can_be_met(deadline, now, past)
        if mesh_deadline.can_be_met(deadline, now, past):
            assert left > 0
            assert past.fastest_ms is None or left + 1 > past.fastest_ms


@given(urgencies, pasts)
def test_only_critical_is_hedged_before_it_is_suspicious(urgency: Class, past: Past) -> None:
    patience = mesh_deadline.patience_ms(urgency, past)
    if urgency == "critical" and past.p95_ms is not None:
        assert patience >= past.p95_ms
    else:
        assert patience >= mesh_deadline.PATIENCE_LEAST_MS
        assert past.p99_ms is None or patience >= past.p99_ms


# --- Gate ---


@given(
    st.integers(1, 4),
    st.integers(0, 6),
    st.lists(st.tuples(st.sampled_from(("offer", "done")), urgencies, st.integers(0, 20)), max_size=80),
)
def test_the_gate_keeps_its_bounds_and_sheds_the_least_urgent(
    at_once: int, room: int, events: list[tuple[str, Class, int]]
) -> None:
    gate: Gate[tuple[int, Class]] = Gate(at_once, room)
    came, under_way, gone = 0, 0, 0
    for now, (what, urgency, patience) in enumerate(events):
        waited = {each: len(line) for each, line in gate.waiting.items()}
        if what == "offer":
            came += 1
            fate, left = gate.offer((came, urgency), urgency, now + patience)
            under_way += fate == "goes"
            gone += (fate == "shed") + (left is not None)
            below = CLASSES[CLASSES.index(urgency) + 1 :]
            if fate == "shed":
                # Nobody less urgent waits where a more urgent one was refused.
                assert not any(waited[each] for each in below)
                assert sum(waited.values()) >= room * SHARES[urgency]
            if left is not None:
                assert left[1] in below
                assert not any(waited[each] for each in below[below.index(left[1]) + 1 :])
        elif under_way:
            gate.done()
            under_way -= 1
            taken, late = gate.next(now)
            under_way += taken is not None
            gone += len(late)
            if taken is not None:
                more_urgent = CLASSES[: CLASSES.index(taken[1])]
                assert not any(gate.waiting[each] for each in more_urgent)
        assert gate.under_way == under_way <= at_once
        assert gate.length <= max(room, 0)
        # Nobody is forgotten: whoever came is under way, waits, has ended or was refused.
        ended = came - under_way - gate.length - gone
        assert ended >= 0
