"""Tables of releases: which are kept, what each changed, and the way back to one."""

from __future__ import annotations

import msgspec

from batuta.core.history import difference, history, pins, returned
from batuta.core.reasons import Reason
from batuta.core.release import RELEASES_KEPT
from batuta.core.state import Change, State
from batuta.kinds.application import Application
from tests.core.fleets import APP, application, component, decided, machines, model, no_application, settled, state_of


def released(*changes: Change) -> State:
    """Each declared after the one before it, and carried out."""
    state = state_of(machines("a", "b"), model("1", "2"))
    for change in changes:
        state = settled(state.with_changes([change]))
    return state


def commands(*words: str) -> State:
    return released(*(application(component(command=word)) for word in words))


def again(state: State, revision: int | None = None) -> Application:
    found = returned(state, APP, revision)
    assert isinstance(found, Application), found
    return found


def test_every_release_is_told_newest_first_with_what_it_changed():
    told = history(commands("one", "two"), APP)
    assert [(c.revision, c.is_newest) for c in told] == [(2, True), (1, False)]
    assert [(c.op, c.path, c.before, c.after) for c in told[0].changes] == [
        ("~", "components[0].process.command[0]", "one", "two")
    ]
    assert told[1].changes == ()


def test_what_a_name_came_to_is_part_of_a_release():
    state = released(application(component(model="1")), application(component(model="2")))
    older, newer = state.releases[APP]
    assert [p.what for p in pins(newer)] == ["model digits 2 fp32", "model digits 2 int8"]
    assert {p.digest for p in pins(older)}.isdisjoint(p.digest for p in pins(newer))
    paths = [change.path for change in difference(older, newer)]
    assert "components[0].resolved.variants[0].digest" in paths


def test_going_back_runs_what_ran_then():
    state = commands("one", "two", "three")
    assert again(state).spec.components[0].process.command == ("two",)
    back = again(state, 1)
    state = settled(state.with_changes([Change("desired", back.ref.key, back)]))
    assert [h.instance.process.command for h in state.held[APP]] == [("one",)]
    assert [r.revision for r in state.releases[APP]] == [1, 2, 3, 4]
    assert difference(state.releases[APP][0], state.releases[APP][-1]) == ()


def test_how_many_there_are_stays_as_it_is():
    state = commands("one", "two")
    state = settled(state.with_changes([application(component(command="two", count=3))]))
    (back,) = again(state, 1).spec.components
    assert (back.process.command, back.replicas.count) == (("one",), 3)


def test_a_name_that_means_another_version_now_is_not_followed():
    first = model("1", "2")
    alias = {"stable": "1"}
    spec = msgspec.structs.replace(first.value.spec, aliases=alias)
    named = first._replace(value=msgspec.structs.replace(first.value, spec=spec))
    state = released(named, application(component(model="stable")))
    moved = msgspec.structs.replace(spec, aliases={"stable": "2"})
    state = settled(state.with_changes([named._replace(value=msgspec.structs.replace(first.value, spec=moved))]))
    assert [r.components[0].version.version for r in state.releases[APP]] == ["1", "2"]
    assert again(state, 1).spec.components[0].model.version == "1"


def test_a_version_that_has_other_files_now_is_no_way_back():
    state = released(application(component(model="1")), application(component(model="2")))
    known = model("1", "2").value
    one, two = known.spec.versions
    other = msgspec.structs.replace(one, variants=two.variants)
    spec = msgspec.structs.replace(known.spec, versions=(other, two))
    state = state.with_changes([Change("desired", known.ref.key, msgspec.structs.replace(known, spec=spec))])
    found = returned(state, APP, 1)
    assert isinstance(found, Reason)
    assert found.code == "release_gone"
    state = state.with_changes([Change("desired", known.ref.key, None)])
    found = returned(state, APP, 1)
    assert isinstance(found, Reason)
    assert found.code == "model_missing"


def test_what_is_not_kept_is_said():
    for state, revision in ((commands("one"), None), (commands("one", "two"), 7), (state_of(), 1)):
        found = returned(state, APP, revision)
        assert isinstance(found, Reason)
        assert found.code == "release_unknown"
    gone, _ = decided(commands("one", "two").with_changes([no_application()]))
    assert history(gone, APP) == ()


def test_scaling_pushes_no_release_out():
    state = commands("one", "two")
    for count in range(2, RELEASES_KEPT + 5):
        state, _ = decided(state.with_changes([application(component(command="two", count=count, cpu=1, memory=1))]))
    assert len(state.releases[APP]) == RELEASES_KEPT
    assert again(state, 1).spec.components[0].process.command == ("one",)
    for k in range(RELEASES_KEPT + 2):
        state, _ = decided(state.with_changes([application(component(command=f"new-{k}"))]))
    assert len(state.releases[APP]) == RELEASES_KEPT
    # None of the new ones has been seen to work, so the last that was is not forgotten.
    assert {r.components[0].component.process.command[0] for r in state.releases[APP]} == {
        "two",
        *(f"new-{k}" for k in range(3, RELEASES_KEPT + 2)),
    }
