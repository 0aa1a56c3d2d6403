"""Laws of deciding, over generated fleets, manifests and histories. See `worlds` for what may happen.

At every step of every history: deciding what was touched is deciding everything, deciding is idle when done, nothing
would have happened before `wake_at`, no capacity is exceeded, and what must never run twice never may.
"""

from __future__ import annotations

import os

import msgspec
import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from batuta.core.decide import decide
from batuta.core.fleet import Fleet
from batuta.core.state import Change, State
from batuta.kinds.application import Replicas
from batuta.kinds.autoscale import Autoscale
from tests.laws.hash_seeds import told_under_hash_seeds
from tests.laws.worlds import NODES, World, worlds

bounded = settings(
    max_examples=int(os.environ.get("BATUTA_LAW_EXAMPLES", "20")),
    deadline=None,
    derandomize="BATUTA_LAW_EXAMPLES" not in os.environ,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large],
)


def played(history) -> World:
    world = World()
    for what, with_ in history:
        world.step(what, with_)
    return world


def _autoscaled(load: str) -> Change:
    """An application that is scaled by its load, and whose messages are counted every so often."""
    from tests.core.fleets import application, component

    part = component(name="x")
    replicas = Replicas(autoscale=Autoscale(min=0, max=3, load=load))
    return application(msgspec.structs.replace(part, replicas=replicas), name="p")


COUNTED = [("apply", _autoscaled("rate.received / 5.0")), ("obey", set()), *[("wait", 1_000)] * 11]
"""Its messages are counted again, as they are every half minute, just when it has come to rest."""


def rows_of(state: State) -> list[Change]:
    return [
        Change(table, key, value)
        for table in ("desired", "decided", "observed", "sightings")
        for key, value in getattr(state, table).items()
    ]


@given(worlds)
@bounded
def test_whatever_happens_the_laws_hold(history):
    played(history)


@given(worlds)
@example(COUNTED)
@bounded
def test_whatever_happened_it_comes_to_rest(history):
    world = played(history)
    world.step("govern", None)  # That policies move things to an end is a law of its own.
    world.settle_for(5_000)
    before = world.rows()
    world.step("wait", 5_000)
    assert world.rows() == before


@given(worlds, st.randoms(use_true_random=False))
@bounded
def test_the_order_in_which_things_were_learned_does_not_matter(history, random):
    world = played(history)
    world.change(Change("desired", "nodes.a", None))  # something to decide, nearly always
    rows = rows_of(world.state)
    random.shuffle(rows)
    shuffled = State(hub_since=world.state.hub_since)
    for row in rows:
        shuffled = shuffled.with_changes([row])
    one, other = decide(world.state, world.now, None, Fleet()), decide(shuffled, world.now, None, Fleet())
    assert one == other


@given(worlds, st.sampled_from(NODES))
@bounded
def test_a_node_that_holds_nothing_is_not_missed(history, name):
    """Removing it changes nothing for what runs elsewhere."""
    world = played(history)
    world.step("govern", None)  # With a node less, others may be better off elsewhere.
    world.settle()
    assignment = world.state.assignments.get(name)
    idle = assignment is not None and not assignment.instances
    if not idle or any(f.node == name for rows in world.state.fences.values() for f in rows.values()):
        return
    held = dict(world.state.held)
    world.step("remove", name)
    kept = {app: tuple(h for h in rows if h.node != name) for app, rows in world.state.held.items()}
    for app, rows in held.items():
        assert all(row in kept.get(app, ()) for row in rows), "something was moved"


@given(worlds, st.sampled_from(NODES), st.sampled_from([500, 1_000, 1_500]))
@example(COUNTED, "a", 500)
@bounded
def test_a_fleet_at_rest_stays_so_when_a_node_is_gone_for_a_moment(history, name, ms):
    """Time alone may have something to decide: a window opens, messages are counted. So it is held against a fleet of
    which nobody was gone."""
    world = played(history)
    world.step("govern", None)  # Whoever looks for moves while a node is gone finds others.
    world.settle()
    other = world.copy()
    before, looks = world.rows(), world.next_look()
    world.step("cut", name)
    world.step("wait", ms)
    world.step("mend", name)
    world.step("wait", 1_000)
    other.step("wait", ms)
    other.step("wait", 1_000)
    assert world.rows() == other.rows()
    if looks is None or looks > world.now:
        assert world.rows() == before


def test_the_same_history_gives_the_same_decisions_under_any_hash_seed():
    program = """
import hashlib, random
from hypothesis import strategies as st
from tests.laws.worlds import NODES, World, component
from tests.core.fleets import application
from batuta.kinds.application import Toleration
draw, digest = random.Random(5), hashlib.sha256()
for _ in range(4):
    world = World()
    for k in range(25):
        part = component(name=draw.choice("xy"), count=draw.randint(0, 5), never_twice=draw.random() < 0.5,
                         cpu=draw.choice([100, 700]), command=draw.choice(["1", "2"]), near=("cameras/+/frame", "a/b"),
                         model=draw.choice([None, "1"]), tolerations=(Toleration(key="t"), Toleration(key="u")))
        world.step("apply", application(part, name=draw.choice("pqr")))
        world.step(draw.choice(["cut", "mend", "crash"]), draw.choice(NODES))
        world.step("obey", set())
        world.step("wait", draw.choice([500, 3000, 12000]))
    digest.update(repr(sorted(world.state.decided.items())).encode())
    digest.update(repr(world.turn().reasons).encode())
print(digest.hexdigest())
"""
    told = told_under_hash_seeds(program, 300)
    assert len(set(told.values())) == 1, told
    assert len(told["0"]) == 64


# --- The laws can see -------------------------------------------------------------------------------------------------


def test_a_fleet_that_is_only_touched_too_little_is_caught(monkeypatch):
    monkeypatch.setattr("tests.laws.worlds.touched", lambda *_: frozenset())
    history = [("apply", _some()), ("obey", set())]
    with pytest.raises(AssertionError, match="not deciding everything"):
        played(history)


def test_a_lease_that_is_not_waited_for_is_caught(monkeypatch):
    monkeypatch.setattr("batuta.core.heal.grace_ms", lambda _: 0)
    history = [("apply", _some()), ("obey", set()), *(("cut", n) for n in NODES[:2]), ("wait", 13_000)]
    with pytest.raises(AssertionError, match="may run twice"):
        played(history)


def _some() -> Change:
    from tests.core.fleets import application, component

    return application(component(never_twice=True, after_ms=2_000, count=4), name="p")
