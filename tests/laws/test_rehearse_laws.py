"""Laws of rehearsals, from wherever a fleet may be: amid a change, after a crash, with nodes that are silent."""

from __future__ import annotations

import os
from collections import Counter
from typing import Any

import msgspec
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from batuta.core.decide import decide
from batuta.kinds.base import decode_hook
from batuta.kinds.scenario import Fault
from batuta.twin import rehearse_books
from batuta.twin.rehearse import Plan, play, rehearse
from batuta.twin.rehearse_stage import Stage
from batuta.twin.replay_rows import rows_of, state_of
from tests.laws.worlds import NODES, SITES, World, applications, worlds

FOR_MS = 900_000
bounded = settings(
    max_examples=int(os.environ.get("BATUTA_LAW_EXAMPLES", "15")),
    deadline=None,
    derandomize="BATUTA_LAW_EXAMPLES" not in os.environ,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large],
)


def a_fault(word: str, at_s: int, for_s: int, **more: Any) -> Fault:
    return msgspec.convert({"fault": word, "at": f"{at_s}s", "for": f"{for_s}s", **more}, Fault, dec_hook=decode_hook)


faults = st.lists(
    st.one_of(
        st.builds(
            a_fault,
            st.sampled_from(["crash", "agentCrash", "partition", "exit", "fullDisk"]),
            st.integers(0, 60),
            st.integers(1, 60),
            node=st.lists(st.sampled_from(NODES), min_size=1, max_size=2).map(list),
        ),
        st.builds(
            a_fault,
            st.sampled_from(["partition", "crash"]),
            st.integers(0, 60),
            st.integers(1, 60),
            site=st.lists(st.sampled_from(SITES), min_size=1, max_size=1).map(list),
        ),
        st.builds(a_fault, st.just("hubRestart"), st.integers(0, 60), st.integers(1, 30)),
    ),
    max_size=3,
)


def played(history: Any) -> World:
    world = World()
    for name, value in history:
        world.step(name, value)
    return world


class Watch:
    """Counts the processes of every never-twice slot while a rehearsal goes on."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.running: Counter[tuple[int, Any]] = Counter()
        # Kept as long as they are counted: a number by which an object is known is given anew when it is gone.
        self._known: list[Any] = []
        began, ended = rehearse_books.Books.began, rehearse_books.Books.ended

        def beginning(books: Any, node: Any, instance: Any, *, ready: bool = False) -> None:
            began(books, node, instance, ready=ready)
            if instance.lease_ms is not None:
                self._known.append(books)
                slot = (id(books), (instance.app, instance.component, instance.slot))
                self.running[slot] += 1
                assert self.running[slot] == 1, f"{instance.name} runs twice"

        def ending(books: Any, node: Any, instance: Any) -> None:
            ended(books, node, instance)
            if instance.lease_ms is not None:
                self.running[id(books), (instance.app, instance.component, instance.slot)] -= 1

        monkeypatch.setattr(rehearse_books.Books, "began", beginning)
        monkeypatch.setattr(rehearse_books.Books, "ended", ending)

    def forget(self) -> None:
        """Another rehearsal begins."""
        self.running.clear()
        self._known.clear()


@given(worlds, faults)
@bounded
def test_it_comes_to_rest_and_every_node_that_is_there_runs_what_it_was_told(history: Any, befall: list[Fault]) -> None:
    world = played(history)
    stage = Stage(world.state, world.now)
    course = play(stage, [], FOR_MS, seed=1, faults=befall)
    assert course.restless == 0
    assert decide(stage.hub.state, stage.time.now).changes == ()
    for name, node in stage.nodes.items():
        assignment = stage.hub.state.assignments.get(name)
        if not node.linked or assignment is None:
            continue
        said = {i.name: i.phase for i in stage.hub.state.observed[name].instances}
        assert stage.hub.state.observed[name].serial == assignment.serial
        for instance in assignment.instances:
            assert said.get(instance.name) in ("ready", "backoff", "refused"), (name, instance.name, said)


def test_what_must_never_run_twice_never_does(monkeypatch: pytest.MonkeyPatch) -> None:
    watch = Watch(monkeypatch)

    @given(worlds, faults)
    @bounded
    def holds(history: Any, befall: list[Fault]) -> None:
        watch.forget()
        world = played(history)
        rehearse(world.state, [], world.now, for_ms=FOR_MS, faults=befall)

    holds()


@given(worlds, applications, faults)
@bounded
def test_equal_questions_have_equal_answers(history: Any, change: Any, befall: list[Fault]) -> None:
    world = played(history)
    copy = state_of(rows_of(world.state), world.state.hub_since)
    one = rehearse(world.state, [change], world.now, for_ms=FOR_MS, seed=3, faults=befall)
    assert one == rehearse(copy, [change], world.now, for_ms=FOR_MS, seed=3, faults=befall)


@given(worlds)
@bounded
def test_tables_are_read_back_as_they_were_written(history: Any) -> None:
    state = played(history).state
    copy = state_of(rows_of(state), state.hub_since)
    for table in ("desired", "decided", "observed", "sightings"):
        assert dict(getattr(copy, table)) == dict(getattr(state, table))


def test_a_plan_is_carried_out_at_its_instant() -> None:
    world = World()
    stage = Stage(world.state, world.now)
    play(stage, [Plan(5_000, ())], FOR_MS)
    assert stage.time.passed_ms == FOR_MS
