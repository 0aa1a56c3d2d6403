"""Kill the hub, a node agent, a worker or a whole node in every state that a rollout passes through: it comes to the
same end, nothing runs twice on the way, and nothing is forgotten."""

from __future__ import annotations

import itertools
from functools import cache

import pytest

from batuta.kinds.scenario import RolloutAsk
from batuta.twin.amiss import amiss
from tests.core.fleets import APP
from tests.laws.killing import NAMES, WAYS, Step, Watched, Way

KINDS = ("hub", "agent", "worker", "node")
BACK_MS = (400, 15_000)
"""As a supervisor brings back what died; and so late that a node counts as away."""


BY_NAME = {way.name: way for way in WAYS}


@cache
def _undisturbed(name: str) -> tuple[Watched, list[Step]]:
    play = Watched(BY_NAME[name])
    return play, play.steps()


def undisturbed(way: Way) -> tuple[Watched, list[Step]]:
    return _undisturbed(way.name)


def end_of(way: Way) -> dict[str, tuple[str, ...]]:
    which = "new" if way.ends == "done" else "old"
    if way.is_model:
        which = {"new": "v2", "old": "v1"}[which]
    return dict.fromkeys(NAMES, (f"x {which}",))


def killed(way: Way, step: Step, who: str, name: str, back_ms: int) -> Watched:
    """The same once more, with one death at this state; then on to the end."""
    play = Watched(way)
    play.run_to(step.at_ms)
    assert play.key() == step.key
    play.kill(who, name, back_ms)
    play.play_on(back_ms)
    return play


def wrong_with(way: Way, step: Step, who: str, name: str, back_ms: int) -> list[str]:
    """What is otherwise than if nothing had been killed."""
    play = killed(way, step, who, name, back_ms)
    found = [*play.wrong, *map(str, play.laws.broken)]
    if way.ends == play.phase == "done" and (down := play.turned_down):
        # One whose worker died while it was on probation took that for a failure of the release: that is what
        # probation is. Nobody else did, and somebody asks again.
        if who not in ("worker", "node") or set(down) != {name}:
            found.append(f"{down} turned it down")
        assert play.broker.hub is not None
        play.broker.hub.hear_ask(RolloutAsk(application=APP, ask="retry"))
        play.play_on()
        found += play.wrong
    if play.phase != way.ends:
        found.append(f"it is {play.phase}: {play.record}")
    xs = {n: tuple(r for r in releases if r.startswith("x ")) for n, releases in play.releases().items()}
    ys = [r for releases in play.releases().values() for r in releases if r.startswith("y ")]
    if xs != end_of(way):
        found.append(f"in the end there run {xs}")
    if not way.is_model and len(ys) != 1:
        found.append(f"in the end there run {ys}")
    return found + amiss(play)


@pytest.mark.parametrize("way", WAYS, ids=lambda way: way.name)
def test_undisturbed_it_comes_to_its_end(way: Way) -> None:
    play, steps = undisturbed(way)
    assert play.phase == way.ends
    assert not play.wrong
    assert not play.laws.broken
    assert {n: tuple(r for r in found if r.startswith("x ")) for n, found in play.releases().items()} == end_of(way)
    assert not amiss(play)
    assert len(steps) >= 30


@pytest.mark.parametrize("way", WAYS, ids=lambda way: way.name)
def test_a_death_in_any_state_changes_nothing_of_the_end(way: Way) -> None:
    """One death, of each kind in turn, at the node that came to that state: in every third, and in the first of each
    phase of each wave. All of them, at all nodes, in `make test-slow`."""
    _, steps = undisturbed(way)
    first = {step.place: step for step in reversed(steps)}
    chosen = [step for k, step in enumerate(steps) if k % 3 == 0 or first[step.place] is step]
    for step, who in zip(chosen, itertools.cycle(KINDS), strict=False):
        found = wrong_with(way, step, who, step.moved, BACK_MS[0])
        assert not found, (who, step, found)


def test_who_was_away_longer_than_its_probation_has_it_again() -> None:
    """What ended while its agent was away, longer than probation lasts, fails once more when that is back."""
    way = BY_NAME["fails in its probation"]
    _, steps = undisturbed(way)
    step = next(step for step in steps if step.place[:1] == ("soaking",))
    assert not wrong_with(way, step, "agent", step.moved, BACK_MS[1])


@pytest.mark.slow
@pytest.mark.parametrize("who", KINDS)
@pytest.mark.parametrize("way", WAYS, ids=lambda way: way.name)
def test_any_death_in_any_state_changes_nothing_of_the_end(way: Way, who: str) -> None:
    _, steps = undisturbed(way)
    for step in steps:
        for name in NAMES if who != "hub" else NAMES[:1]:
            found = wrong_with(way, step, who, name, BACK_MS[0])
            assert not found, (who, name, step, found)


@pytest.mark.slow
@pytest.mark.parametrize("who", ["hub", "agent", "node"])
@pytest.mark.parametrize("way", WAYS, ids=lambda way: way.name)
def test_who_comes_back_late_changes_nothing_of_the_end_either(way: Way, who: str) -> None:
    _, steps = undisturbed(way)
    for step in steps:
        found = wrong_with(way, step, who, step.moved, BACK_MS[1])
        assert not found, (who, step, found)
