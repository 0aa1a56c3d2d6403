"""The law of looking: what `view_changes` does not name looks as it did. So a list that computes only that is right."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import msgspec
import pytest
from hypothesis import given

from batuta.core import view_changes
from batuta.core.observed import Measures
from batuta.core.state import Change, State
from batuta.core.view import status
from batuta.core.view_changes import changed, is_at_rest
from batuta.kinds import KINDS
from batuta.kinds.base import Ref
from tests.core.fleets import NOW, node, report
from tests.laws.test_decide_laws import bounded
from tests.laws.worlds import World, worlds

if TYPE_CHECKING:
    from batuta.core.decide import Decision


def fresh(state: State) -> State:
    """The same tables, read by somebody who knows nothing yet."""
    copy = state.with_changes(())
    copy.memo = {}
    return copy


class Seen(World):
    """A world that somebody looks at after each turn, and now and then only after several."""

    def __init__(self) -> None:
        self.looks = 0
        self.seen: dict[str, tuple[State, int, dict[str, dict[str, Any]]]] = {}
        super().__init__()

    def turn(self, *, full: bool = False) -> Decision:
        decision = super().turn(full=full)
        self.looks += 1
        for k, kind in enumerate(KINDS):
            if self.looks % (k + 1) == 0:
                self.look(kind.plural)
        return decision

    def _obey(self, but: set[str]) -> None:
        """What they report is also measured, and differs each time."""
        super()._obey(but)
        measures = Measures(received=self.looks)
        rows = [
            Change("observed", name, msgspec.structs.replace(said, instances=tuple(
                msgspec.structs.replace(i, measures=measures) for i in said.instances
            )))
            for name, said in self.state.observed.items()
            if name not in self.cut and name not in but
        ]  # fmt: skip
        self.change(*rows)

    def look(self, plural: str) -> None:
        state, now = self.state, self.now
        now_all = {
            key: status(fresh(state), row.ref, now) for key, row in state.desired.items() if row.plural == plural
        }
        if plural in self.seen:
            before, was, was_all = self.seen[plural]
            named = changed(plural, before, state, was, now)
            for key, said in now_all.items() if named is not None else ():
                unmoved = before.desired.get(key) is state.desired[key] and is_at_rest(plural, was_all.get(key, {}))
                if key not in named and unmoved:
                    assert was_all[key] == said, f"{key} looks different and was not named"
        for key in sorted(now_all):
            assert status(state, state.desired[key].ref, now) == now_all[key], "what is remembered is not what is so"
        self.seen[plural] = (state, now, now_all)


@given(worlds)
@bounded
def test_what_is_not_named_looks_as_it_did(history):
    world = Seen()
    for what, with_ in history:
        world.step(what, with_)


def test_a_look_that_names_too_little_is_caught(monkeypatch):
    monkeypatch.setitem(view_changes._RULES, "nodes", lambda *_: set())
    world = Seen()
    world.step("cut", "a")
    with pytest.raises(AssertionError, match="was not named"):
        world.step("wait", 6_000)


@pytest.mark.parametrize("silent_ms", [2_999, 3_000, 3_001, 9_999, 10_000, 10_001, 12_999, 13_000, 20_001])
@pytest.mark.parametrize("more_ms", [1, 200, 9_000])
@pytest.mark.parametrize("heard", [True, False])
def test_the_passing_of_time_is_seen_to_the_millisecond(silent_ms, more_ms, heard):
    state = State(hub_since=NOW - 60_000).with_changes([node("a", "berlin"), Change("observed", "a", report("a"))])
    state = state.listening_since(NOW)
    if heard:
        from batuta.core.liveness import sighted

        state = state.with_changes([Change("sightings", "a", sighted(None, NOW))])
    ref = Ref("nodes", "", "a")
    was, now = NOW + silent_ms, NOW + silent_ms + more_ms
    named = changed("nodes", state, state, was, now)
    assert (status(state, ref, was) == status(state, ref, now)) or named == {ref.key}
