"""Laws of moves that policies make unasked: they come to an end, nothing goes back, and who looks in turn sees all."""

from __future__ import annotations

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from batuta.core import looking
from batuta.core.standing import Moved, Moving
from batuta.core.unasked import LEFT_MAX
from batuta.kinds.base import Millis
from batuta.kinds.policy import Moves
from tests.core.fleets import application, component, node, policy
from tests.laws.worlds import NODES, World, applications, declarations, names, worlds

bounded = settings(max_examples=25, deadline=None, suppress_health_check=list(HealthCheck))
EAGER = Moves(every_ms=Millis(2_000), at_most=3, least_gain=1, again_ms=Millis(2_000))
growing = st.lists(
    st.one_of(
        st.tuples(st.just("declare"), declarations),
        st.tuples(st.just("apply"), applications),
        st.tuples(st.just("cut"), names),
        st.tuples(st.just("mend"), names),
        st.tuples(
            st.just("machine"), st.tuples(names, st.sampled_from([500, 2_000, 4_000]), st.sampled_from([40.0, 60.0]))
        ),
    ),
    max_size=6,
)


class Watched(World):
    """A world in which every move that a policy begins is looked at."""

    moved = 0

    def turn(self, *, full: bool = False):
        before = self.state
        decision = super().turn(full=full)
        for change in decision.changes:
            row = change.value
            if not isinstance(row, Moved):
                continue
            self.moved += 1
            known = before.decided.get(change.key)
            assert row.to not in {left.node for left in row.left}, "it went back"
            assert len(row.left) <= LEFT_MAX
            assert known is None or row.at - known.at >= self.moves(before).again_ms, "it was moved again too soon"
            assert row.to in before.nodes
            held = {h.node for h in before.held.get(row.app, ()) if h.instance.slot == row.slot}
            assert row.node in held
        return decision

    @staticmethod
    def moves(state):
        return next(p.spec.moves for p in state.policies if p.spec.moves is not None)

    def to_an_end(self) -> None:
        """Looks go on until two of them in a row have found nothing."""
        for name in NODES:
            self.step("mend", name)
        self.failing.clear()
        for _ in range(100):
            before = self.rows(), self.moved
            self.step("obey", set())
            self.step("wait", 7_000)
            self.step("obey", set())
            if (self.rows(), self.moved) == before:
                return
        raise AssertionError("moves without end")


@given(worlds, growing)
@bounded
def test_moves_of_policies_come_to_an_end_and_nothing_goes_back(history, then):
    world = Watched()
    for what, with_ in history:
        # What is counted anew every half minute never ends by itself.
        if what not in ("govern", "measure", "ask"):
            world.step(what, with_)
    world.step("govern", EAGER)
    for what, with_ in then:
        world.step(what, with_)
    world.to_an_end()
    rows = [row for rows in world.state.standing.values() for row in rows.values()]
    assert not any(isinstance(row, Moving) for row in rows)


def crowd(moves: Moves) -> Watched:
    """Three replicas and more on two nodes, and then two more nodes."""
    world = Watched()
    world.step("remove", "c")
    world.step("remove", "d")
    world.step("apply", application(*(component(name=n, count=4) for n in ("x", "y")), name="p"))
    world.step("obey", set())
    for name in ("c", "d"):
        world.step("declare", node(name, "berlin"))
    world.step("govern", moves)
    return world


def test_there_is_something_to_move():
    world = crowd(EAGER)
    world.to_an_end()
    assert world.moved >= 4


def test_looking_in_turns_comes_to_the_same_number_of_places(monkeypatch):
    whole = crowd(EAGER)
    whole.to_an_end()
    monkeypatch.setattr(looking, "LOOKED_AT_MAX", 3)
    monkeypatch.setattr(looking, "LEAST_LOOKED_AT", 3)
    monkeypatch.setattr(looking, "SOON_MS", 500)
    turns = crowd(EAGER)
    turns.to_an_end()
    assert turns.moved >= 4

    def spread(world):
        return sorted(len(a.instances) for a in world.state.assignments.values() if a.node in "abcd")

    assert spread(turns) == spread(whole)


def lured() -> Watched:
    """People prefer one node, then another, then the first again."""
    world = crowd(EAGER)
    world.to_an_end()
    for name in ("a", "b", "a", "b"):
        world.step("apply", policy("lure", prefer=f'node.name == "{name}"', weight=100))
        world.to_an_end()
    return world


def test_whoever_is_lured_to_and_fro_goes_and_stays():
    assert lured().moved >= 8


def test_a_policy_that_forgets_is_caught(monkeypatch):
    """The law can fail: were nothing remembered, they would go back."""
    monkeypatch.setattr(looking, "barred", lambda *_: frozenset())
    with pytest.raises(AssertionError, match="it went back"):
        lured()
