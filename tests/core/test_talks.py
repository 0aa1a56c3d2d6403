"""Components that talk are placed together, by how much they say, and whoever is bound to a place comes first."""

from __future__ import annotations

import msgspec
import pytest

from batuta.core.observed import Measures
from batuta.core.place import explain
from batuta.core.state import Change
from batuta.core.talks import in_order, meets, says_to
from batuta.kinds.application import Input, Output, Placement
from batuta.kinds.base import BitsPerSecond, Millis
from batuta.kinds.site import Uplink
from tests.core.fleets import NOW, application, component, decided, machines, model, places, settled, site, state_of


def part(name, reads, writes, **more):
    made = component(name=name, model="1", **more)
    return msgspec.structs.replace(made, inputs=(Input(topic=reads),), outputs=(Output(topic=writes),))


READ = part("read", "cameras/+/frame", "meters/{1}/reading")
JUDGE = part("judge", "meters/+/reading", "alarms/{1}/raised")
OTHER = part("other", "doors/+/open", "doors/{1}/closed")


@pytest.mark.parametrize(
    ("output", "pattern", "so"),
    [
        ("meters/{1}/reading", "meters/+/reading", True),
        ("meters/{1}/reading", "meters/7/reading", True),
        ("meters/{1}/reading", "meters/#", True),
        ("meters/{1}/reading", "#", True),
        ("meters/a/reading", "meters/b/reading", False),
        ("meters/{1}", "meters/+/reading", False),
        ("meters/{1}/reading/x", "meters/+/reading", False),
    ],
)
def test_what_can_be_heard(output, pattern, so):
    assert meets(output, pattern) == so


def test_who_says_something_to_whom():
    assert says_to(READ, JUDGE)
    assert not says_to(JUDGE, READ)
    assert not says_to(READ, OTHER)


def two_sites(*rows):
    return state_of(model("1"), machines("a", "b", at="berlin"), machines("x", "y", at="lyon"), list(rows))


def sites_of(state):
    return {name.split("-")[0]: state.nodes[node].spec.site for name, node in places(state)}


@pytest.mark.parametrize("where", ["berlin", "lyon"])
def test_they_are_placed_at_one_site_whoever_is_named_first(where):
    bound = msgspec.structs.replace(READ, placement=Placement(where=f'site.name == "{where}"'))
    for parts in ((bound, JUDGE), (JUDGE, bound)):
        state, _ = decided(two_sites(application(*parts)))
        assert sites_of(state) == {"read": where, "judge": where}


def test_those_that_say_nothing_to_each_other_are_placed_as_ever():
    alone, _ = decided(two_sites(application(OTHER)))
    beside, _ = decided(two_sites(application(READ, OTHER)))
    assert places(alone)[0][1] in dict(places(beside)).values() or len(set(places(beside))) == 2


def test_the_one_that_is_bound_comes_first_and_then_its_partners():
    state, _ = decided(
        two_sites(application(JUDGE, OTHER, msgspec.structs.replace(READ, placement=Placement(where="true"))))
    )
    from batuta.core.draft import Draft
    from batuta.core.fleet import Fleet

    draft = Draft(state, Fleet().refresh(state, NOW), NOW)
    released = state.releases["default/app"][-1].components
    assert [r.component.name for r in in_order(draft, "default/app", released)] == ["read", "judge", "other"]


def test_who_says_more_pulls_more():
    """One reader in Berlin says little, the one in Lyon much: who listens goes to Lyon."""
    pair = msgspec.structs.replace(READ, replicas=msgspec.structs.replace(READ.replicas, count=None, per_site=1))
    state = settled(two_sites(application(pair)))
    for loud in ("berlin", "lyon"):
        rows = []
        for name, report in state.observed.items():
            answered = 9_000 if state.nodes[name].spec.site == loud else 10
            said = tuple(msgspec.structs.replace(i, measures=Measures(answered=answered)) for i in report.instances)
            rows.append(Change("observed", name, msgspec.structs.replace(report, instances=said)))
        after, _ = decided(state.with_changes([*rows, application(pair, JUDGE)]))
        assert sites_of(after)["judge"] == loud


def test_a_near_site_is_better_than_a_far_one():
    """Its own site is full: the next best is the one to which the way is shorter."""
    from batuta.core.draft import Draft
    from batuta.core.fleet import Fleet
    from batuta.core.talks import listen
    from batuta.core.wish import Ask, Slot, Wish

    def up(ms):
        return Uplink(latency_ms=Millis(ms), bandwidth_bps=BitsPerSecond(100_000_000))

    bound = msgspec.structs.replace(READ, placement=Placement(where='site.name == "berlin"'))
    state = settled(
        state_of(model("1"), machines("a", at="berlin"), machines("near", at="potsdam"), machines("far", at="lyon"),
                 site("berlin", uplink=up(5)), site("potsdam", uplink=up(5)), site("lyon", uplink=up(300)),
                 application(bound)))  # fmt: skip
    state, _ = decided(state.with_changes([application(READ, JUDGE)]))
    fleet = Fleet().refresh(state, NOW)
    draft = Draft(state, fleet, NOW)
    judge = next(r for r in state.releases["default/app"][-1].components if r.component.name == "judge")
    ask = listen(draft, Ask("default/app", judge, fleet))
    talks = {name: scored.parts["talks"] for name, scored in explain(Wish(ask, Slot("0")), fleet)}
    assert talks["a"] > talks["near"] > talks["far"]
