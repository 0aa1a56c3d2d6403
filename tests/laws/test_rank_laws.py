"""Ranking is asking everybody everything: the same node for every slot, however many are placed one after the other."""

from __future__ import annotations

import os

import numpy as np
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from batuta.core.care import Care, Notes
from batuta.core.draft import Draft
from batuta.core.facts import fact, look_up, node_facts, site_facts
from batuta.core.fleet import Fleet
from batuta.core.gravity import Ways, closeness
from batuta.core.place import choose, choose_plainly
from batuta.core.release import release
from batuta.core.state import Change
from batuta.core.wish import Ask, Slot, Wish
from batuta.kinds.application import Toleration
from batuta.kinds.base import Metadata, Millis
from batuta.kinds.node import Taint
from batuta.kinds.site import Site, SiteSpec, Uplink
from tests.core.fleets import APP, NOW, application, component, heard, model, node, report, site, state_of

bounded = settings(
    max_examples=int(os.environ.get("BATUTA_LAW_EXAMPLES", "40")),
    deadline=None,
    derandomize="BATUTA_LAW_EXAMPLES" not in os.environ,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large],
)

machines = st.lists(
    st.tuples(
        st.sampled_from(["berlin", "lyon", "oslo"]),
        st.sampled_from([300, 1_000, 2_000]),
        st.sampled_from([100, 300, 600]),
        st.sampled_from([("process", "onnx"), ("process",), ("onnx",)]),
        st.sampled_from([(), (), (), (Taint(key="t"),)]),
        st.sampled_from([{}, {"a/b": 3}, {"a/b": 40}]),
        st.booleans(),
    ),
    min_size=1,
    max_size=14,
)
components = st.builds(
    component,
    count=st.integers(1, 60),
    cpu=st.sampled_from([10, 40, 100, 300]),
    memory=st.sampled_from([1, 10, 64]),
    where=st.sampled_from([None, '"camera" in node.labels', 'node.memory > quantity("200Mi") && node.site != "oslo"']),
    near=st.sampled_from([(), ("a/b",)]),
    spread=st.sampled_from([None, "node", "site"]),
    tolerations=st.sampled_from([(), (Toleration(key="t"),)]),
    model=st.sampled_from([None, "1"]),
    port=st.sampled_from([None, None, 8080]),
)


def fleet_of(rows):
    changes = [site(name) for name in ("berlin", "lyon", "oslo")] + [model("1", needs=(90, 30))]
    for k, (at, cpu, memory, runtimes, taints, topics, camera) in enumerate(rows):
        name = f"n{k:02}"
        changes += [node(name, at, labels={"camera": "1"} if camera else {}, taints=taints), heard(name, NOW)]
        said = report(name, cpu=cpu, memory=memory, runtimes=runtimes, topics=topics)
        changes.append(Change("observed", name, said))
    return changes


def ready(rows, part):
    state = state_of(fleet_of(rows), application(part))
    draft = Draft(state, Fleet().refresh(state, NOW), NOW)
    resolved = release(draft, APP).release
    assert resolved is not None
    return draft, Care(Notes(draft), Ask(APP, resolved.components[0], draft.fleet))


@given(machines, components, st.integers(0, 60))
@bounded
def test_one_after_the_other_they_go_where_asking_everybody_would_send_them(rows, part, ahead):
    draft, care = ready(rows, part)
    care.ask.open = ahead
    for k in range(part.replicas.count):
        wish = Wish(care.ask, Slot(str(k)))
        expected = choose_plainly(wish, draft.fleet)
        found = choose(wish, draft.fleet)
        assert found == expected, f"the {k}th"
        if found is None:
            break
        care.give(wish.slot, found, 1)


@given(machines, components, st.lists(st.tuples(st.sampled_from("gtmsno"), st.integers(0, 13)), max_size=40))
@bounded
def test_whatever_is_given_taken_and_asked_in_between(rows, part, steps):
    """g: give to the best; t: take somebody's; m: ask as the successor of somebody; s, n: for a site, for a node."""
    draft, care = ready(rows, part)
    fleet, given_to = draft.fleet, []
    care.ask.open = 10
    for k, (what, which) in enumerate(steps):
        name = f"n{which % len(rows):02}"
        row = fleet.row_of[name]
        if what == "t" and draft.held(APP):
            held = draft.held(APP)
            care.take(held[which % len(held)])
            continue
        wish = Wish(care.ask, Slot(str(k)))
        if what == "m":
            own = (row,) if care.ask.here[row] else ()
            wish = Wish(care.ask, Slot(str(k)), before=row, own=own, shun=row if which % 2 else None)
        elif what == "s":
            wish = Wish(care.ask, Slot(f"berlin-{k}", site="berlin"))
        elif what == "n":
            wish = Wish(care.ask, Slot(name, node=name))
        elif what == "o":
            care.ask.open = which
        found = choose(wish, fleet)
        assert found == choose_plainly(wish, fleet), f"step {k}, {what}"
        if found is not None and what != "m":
            care.give(Slot(f"{k}-{what}"), found, 1)
            given_to.append(found.row)


def test_placing_many_asks_few_rows_more_than_once():
    """A hundred instances on a hundred nodes: every row once, the best once more, and not a hundred times each."""
    rows = [("berlin", 2_000, 600, ("process",), (), {}, False)] * 100
    draft, care = ready(rows, component(count=100, cpu=10, memory=1))
    care.ask.open = 100
    for k in range(100):
        found = choose(Wish(care.ask, Slot(str(k))), draft.fleet)
        assert found is not None
        care.give(Slot(str(k)), found, 1)
    assert care.ask.ranking(draft.fleet).asked <= 300


trees = st.lists(
    st.tuples(st.integers(-1, 6), st.sampled_from([None, 5, 40, 200]), st.integers(0, 500)), min_size=1, max_size=7
)


@given(trees)
@bounded
def test_ways_in_columns_are_ways_one_by_one(rows):
    names = [f"s{k}" for k in range(len(rows))]
    sites = {}
    for k, (parent, latency_ms, _) in enumerate(rows):
        uplink = Uplink(latency_ms=None if latency_ms is None else Millis(latency_ms))
        above = f"s{parent}" if parent >= 0 else None
        sites[names[k]] = Site(metadata=Metadata(name=names[k]), spec=SiteSpec(parent=above, uplink=uplink))
    published = {name: count for name, (_, _, count) in zip(names, rows, strict=True)}
    plainly = closeness(sites, published)
    found = Ways(sites, names).closeness(np.array(list(published.values()), np.int64))
    assert found.tolist() == [plainly.get(name, 0) for name in names]


FIELDS = (
    ("node",), ("node", "labels"), ("node", "labels", "camera"), ("node", "labels", "none"), ("node", "memory"),
    ("node", "cpu"), ("node", "disk"), ("node", "architecture"), ("node", "os"), ("node", "runtimes"), ("node", "name"),
    ("node", "temperature"), ("node", "nonsense"), ("site",), ("site", "name"), ("site", "residency"),
)  # fmt: skip


@given(machines, st.sampled_from(FIELDS), st.booleans())
@bounded
def test_one_fact_is_the_same_as_among_all_of_them(rows, path, reported):
    state = state_of(fleet_of(rows))
    sites = {name: state.site(name) for name in ("berlin", "lyon", "oslo")}
    for name, declared in state.nodes.items():
        said = state.observed[name] if reported else None
        everything = {"node": node_facts(declared, said), "site": site_facts(declared, sites)}
        assert fact(declared, said, sites, path) == look_up(everything, path)
