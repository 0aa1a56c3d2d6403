"""Laws of placement, over histories in which it has much to mind. See `places` for what may happen.

Beside all that holds of every World at every step: no port, device, card or disk is given to more than it is there for;
nothing comes to a node that a policy, its processor or the home of its data rules out; and deciding what was touched is
deciding everything, also when only the hour has changed. A seed that fails is written down and replayed for ever after.
"""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from batuta.core import constraints, traits
from batuta.core.decide import decide
from batuta.core.fleet import Fleet
from batuta.core.state import Change, State
from tests.core.fleets import application, component, policy
from tests.laws.hash_seeds import told_under_hash_seeds
from tests.laws.places import Places, history
from tests.laws.worlds import NODES

SEEDS = Path(__file__).parent.parent / "seeds" / "placement.txt"
numbers = st.integers(0, 2**32 - 1)
bounded = settings(
    max_examples=int(os.environ.get("BATUTA_LAW_EXAMPLES", "12")),
    deadline=None,
    derandomize="BATUTA_LAW_EXAMPLES" not in os.environ,
    suppress_health_check=[HealthCheck.too_slow],
)


def played(seed: int) -> Places:
    world = Places()
    try:
        for what, with_ in history(seed):
            world.step(what, with_)
    except AssertionError:
        _write_down(seed)
        raise
    return world


def _write_down(seed: int) -> None:
    if seed not in known():
        SEEDS.write_text("".join(f"{each}\n" for each in (*known(), seed)))


def known() -> list[int]:
    return [int(line) for line in SEEDS.read_text().split()]


@pytest.mark.parametrize("seed", known())
def test_what_failed_once_does_not_fail_again(seed):
    played(seed)


@given(numbers)
@bounded
def test_whatever_happens_the_laws_hold(seed):
    played(seed)


@given(numbers, st.randoms(use_true_random=False))
@bounded
def test_the_order_in_which_things_were_learned_does_not_matter(seed, random):
    world = played(seed)
    world.change(Change("desired", "nodes.a", None))
    rows = [
        Change(table, key, value)
        for table in ("desired", "decided", "observed", "sightings")
        for key, value in getattr(world.state, table).items()
    ]
    random.shuffle(rows)
    shuffled = State(hub_since=world.state.hub_since)
    for row in rows:
        shuffled = shuffled.with_changes([row])
    assert decide(world.state, world.now, None, Fleet()) == decide(shuffled, world.now, None, Fleet())


@given(numbers, st.sampled_from(NODES))
@bounded
def test_a_node_that_holds_nothing_is_not_missed(seed, name):
    """Removing it changes nothing for what runs elsewhere."""
    world = played(seed)
    assignment = world.state.assignments.get(name)
    if assignment is None or assignment.instances or name not in world.state.nodes:
        return
    if any(fence.node == name for rows in world.state.fences.values() for fence in rows.values()):
        return
    before = {n: a.instances for n, a in world.state.assignments.items() if n != name}
    world.step("remove", name)
    after = {n: a.instances for n, a in world.state.assignments.items() if n != name}
    for node, instances in before.items():
        assert all(i in after.get(node, ()) for i in instances), "something was moved"


def test_the_same_history_gives_the_same_decisions_under_any_hash_seed():
    program = """
import hashlib
from tests.laws.places import state_with, history
digest = hashlib.sha256()
for seed in (3, 11, 1002):
    digest.update(repr(sorted(state_with(history(seed)).decided.items())).encode())
print(digest.hexdigest())
"""
    told = told_under_hash_seeds(program, 600)
    assert len(set(told.values())) == 1, told
    assert len(told["0"]) == 64


# --- The laws can see -------------------------------------------------------------------------------------------------


def test_a_policy_that_is_not_asked_is_caught(monkeypatch):
    monkeypatch.setattr(traits, "refused", lambda fleet, _: ~fleet.present & False)
    world = Places()
    world.step("policy", policy(forbid="true"))
    with pytest.raises(AssertionError, match="says True of"):
        world.step("apply", application(component(count=1), name="p"))


def test_a_port_that_is_given_twice_is_caught(monkeypatch):
    rows = tuple(f for f in constraints.FILTERS if f.code not in ("port_claimed", "already_here"))
    monkeypatch.setattr("batuta.core.rank.FILTERS", rows)
    world = Places()
    with pytest.raises(AssertionError, match="is taken twice"):
        world.step("apply", application(component(count=8, cpu=10, memory=1, port=8080), name="p"))


def test_an_hour_that_touches_nothing_is_caught(monkeypatch):
    monkeypatch.setattr("batuta.core.touched._by_hour", lambda *_: ())
    world = Places()
    for step in (("apply", application(component(count=1), name="p")), ("obey", set())):
        world.step(*step)
    world.step("policy", policy(forbid='now.time >= "22:14" && node.name in ["a", "b"]'))
    with pytest.raises(AssertionError, match="not deciding everything"):
        world.step("wait", 61_000)
