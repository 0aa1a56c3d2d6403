"""Differences of documents, field by field."""

from __future__ import annotations

import copy

import pytest
from hypothesis import given
from hypothesis import strategies as st

from batuta.kinds.difference import differences

READ = {"name": "read", "replicas": {"perSite": 1}}
SEND = {"name": "send"}


def said(before, after):
    return [(d.op, d.path) for d in differences(before, after)]


def test_the_smallest_field_that_says_it():
    before = {"spec": {"components": [READ]}}
    after = copy.deepcopy(before)
    after["spec"]["components"][0]["replicas"]["perSite"] = 2
    (found,) = differences(before, after)
    assert (found.op, found.path) == ("~", "spec.components[0].replicas.perSite")
    assert (found.before, found.after) == (1, 2)


@pytest.mark.parametrize(
    ("before", "after", "expected"),
    [
        ({"a": 1}, {"a": 1, "b": 2}, [("+", "b")]),
        ({"a": 1, "b": 2}, {"a": 1}, [("-", "b")]),
        ([READ], [SEND, READ], [("+", "[0]")]),
        ([SEND, READ], [READ], [("-", "[0]")]),
        ([SEND, READ], [READ, SEND], [("~", "")]),
        (["x", "y"], ["x", "z"], [("~", "[1]")]),
        (["x"], ["x", "x"], [("+", "[1]")]),
        ({"a": True}, {"a": 1}, [("~", "a")]),
        ({"a": [1]}, {"a": {"b": 1}}, [("~", "a")]),
    ],
)
def test_what_came_went_and_changed(before, after, expected):
    assert said(before, after) == expected


plain = st.recursive(
    st.none() | st.booleans() | st.integers(0, 3) | st.sampled_from("xyz"),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(["a", "name", "key"]), inner),
    max_leaves=8,
)


@given(plain, plain)
def test_nothing_differs_exactly_when_they_are_equal(before, after):
    assert said(before, before) == []
    assert bool(said(before, after)) == (repr(before) != repr(after) and not _same(before, after))


def _same(a, b) -> bool:
    """Equal as JSON: the order of keys is nothing, and true is not 1."""
    if isinstance(a, dict) and isinstance(b, dict):
        return a.keys() == b.keys() and all(_same(a[k], b[k]) for k in a)
    if isinstance(a, list) and isinstance(b, list):
        return len(a) == len(b) and all(map(_same, a, b))
    return type(a) is type(b) and a == b
