"""Selectors, by table."""

from __future__ import annotations

import pytest

from batuta.kinds.base import Ref
from batuta.web.answers import Wrong
from batuta.web.selectors import selector

REF = Ref("applications", "default", "one")


@pytest.mark.parametrize(
    ("text", "labels", "expected"),
    [
        ("", {}, True),
        ("a=1", {"a": "1"}, True),
        ("a==1", {"a": "2"}, False),
        ("a!=1", {}, True),
        ("a!=1", {"a": "1"}, False),
        ("a", {"a": ""}, True),
        ("a", {}, False),
        ("!a", {}, True),
        ("!a", {"a": "1"}, False),
        ("a in (1,2)", {"a": "2"}, True),
        ("a in (1, 2),b=3", {"a": "2"}, False),
        ("a notin (1,2)", {"a": "3"}, True),
        ("a notin (1,2)", {}, True),
        ("example.com/a = 1 , b", {"example.com/a": "1", "b": "x"}, True),
    ],
)
def test_labels(text: str, labels: dict[str, str], expected: bool) -> None:
    assert selector(text, "").selects(REF, labels) is expected


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("metadata.name=one", True),
        ("metadata.name==two", False),
        ("metadata.name!=one", False),
        ("metadata.name=one,metadata.namespace=default", True),
    ],
)
def test_fields(text: str, expected: bool) -> None:
    assert selector("", text).selects(REF, {}) is expected


@pytest.mark.parametrize(
    ("labels", "fields"), [("a in 1", ""), ("=", ""), ("a=b=c", ""), ("a>1", ""), ("", "status.phase=x"), (",", "")]
)
def test_what_cannot_be_read_is_refused(labels: str, fields: str) -> None:
    with pytest.raises(Wrong):
        selector(labels, fields)


def test_what_is_not_there_is_not_selected() -> None:
    assert not selector("", "").selects(REF, None)
