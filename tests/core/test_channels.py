"""Channels: who follows which, and that moving one makes a release."""

from __future__ import annotations

from msgspec.structs import replace

from batuta.cli.why import told
from batuta.core.channels import channels, followed_by
from batuta.core.state import Change, State
from batuta.core.view_application import application_status
from batuta.core.why import why
from tests.core.fleets import APP, NOW, application, component, machines, model, settled, state_of


def moved(state: State, **aliases: str) -> State:
    known = state.model("default", "digits")
    assert known is not None
    known = replace(known, spec=replace(known.spec, aliases=aliases))
    return state.with_changes([Change("desired", known.ref.key, known)])


def test_a_component_that_names_a_channel_follows_it():
    state = moved(state_of(machines("a"), model("1", "2")), stable="1", canary="2")
    state = settled(state.with_changes([application(component(model="stable"))]))
    known = state.model("default", "digits")
    assert known is not None
    assert channels(state, known) == [
        {"name": "canary", "version": "2", "followers": []},
        {"name": "stable", "version": "1", "followers": ["app/read"]},
    ]
    (released,) = state.releases[APP][-1].components
    assert followed_by(released) == {"model": "digits", "channel": "stable", "version": "1"}
    state = settled(moved(state, stable="2", canary="2"))
    assert [r.revision for r in state.releases[APP]] == [1, 2]
    (released,) = state.releases[APP][-1].components
    assert followed_by(released) == {"model": "digits", "channel": "stable", "version": "2"}
    (answer,) = why(state, NOW, APP)
    assert list(told(answer))[-1] == "  follows channel stable of model digits: version 2"
    status = application_status(state, state.declared[APP], NOW)
    assert status["components"][0]["follows"]["channel"] == "stable"


def test_a_component_that_names_a_version_follows_nothing():
    state = moved(state_of(machines("a"), model("1")), stable="1")
    state = settled(state.with_changes([application(component(model="1"))]))
    known = state.model("default", "digits")
    assert known is not None
    assert channels(state, known) == [{"name": "stable", "version": "1", "followers": []}]
    assert followed_by(state.releases[APP][-1].components[0]) is None
