"""Laws of preemption, over fleets that never have room enough. What every step is held to is in `preempting`."""

from __future__ import annotations

import pytest
from hypothesis import given

from batuta.core import preempt
from tests.core.fleets import application, component
from tests.laws.test_decide_laws import bounded, played
from tests.laws.worlds import crowded_worlds


@given(crowded_worlds)
@bounded
def test_whoever_gives_way_to_whom_the_laws_hold(history):
    played(history)


@given(crowded_worlds)
@bounded
def test_who_gave_way_comes_to_rest(history):
    world = played(history)
    world.step("govern", None)  # That policies move things to an end is a law of its own.
    world.settle_for(5_000)
    before = world.rows()
    world.step("wait", 5_000)
    assert world.rows() == before


# --- The laws can see -------------------------------------------------------------------------------------------------


def _prioritised(name, priority, **more):
    from tests.laws.worlds import _application

    return ("apply", _application(name, [component(name="x", **more)], priority, None))


def _layers():
    """Three layers, each of which fits only where the one below it is."""
    return [
        _prioritised("p", -5, count=4, cpu=1_500),
        ("obey", set()),
        _prioritised("q", 10, count=1, cpu=1_500),
        ("obey", set()),
        _prioritised("r", 20, count=1, cpu=1_500, where='node.name == "QQ"'),
    ]


def test_a_cascade_is_caught(monkeypatch):
    monkeypatch.setattr(preempt, "is_barred", lambda *_: False)
    history = _layers()
    world = played(history[:-1])
    place = next(h.node for h in world.state.held["default/q"])
    with pytest.raises(AssertionError, match="gave way to"):
        world.step(*_prioritised("r", 20, count=1, cpu=1_500, where=f'node.name == "{place}"'))


def test_one_that_gives_way_to_its_equal_is_caught(monkeypatch):
    monkeypatch.setattr(preempt, "priority_of", lambda _, app: {"default/p": 0, "default/q": 1}.get(app, 0))
    history = [_prioritised("p", 7, count=4, cpu=1_500), ("obey", set()), _prioritised("q", 7, count=1, cpu=1_500)]
    with pytest.raises(AssertionError):
        played(history)


def test_a_budget_that_is_not_kept_is_caught(monkeypatch):
    from tests.laws.worlds import _application

    monkeypatch.setattr(preempt, "spare", lambda *_: None)
    low = ("apply", _application("p", [component(name="x", count=4, cpu=1_500)], 0, 0))
    with pytest.raises(AssertionError, match="are missing at"):
        played([low, ("obey", set()), _prioritised("q", 7, count=1, cpu=1_500)])


def test_an_application_is_what_it_says():
    assert application(component(), name="p").value.spec.priority == 0
