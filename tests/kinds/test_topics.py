"""Topics: which may be read and written, and what a filter's wildcards match."""

from __future__ import annotations

import pytest

from batuta.kinds.topics import RESERVED_ROOTS, captures, why_no_topic, why_not_input, why_not_output, wildcards


@pytest.mark.parametrize(
    ("topic", "message"),
    [
        ("", "at least one level"),
        ("a b", "white space"),
        ("a\x00", "control characters"),
        ("a/\x1b[31m", "control characters"),
        ("a/*", "neither '*' nor '>'"),
        ("a/>", "neither '*' nor '>'"),
        ("a/b+", "whole level"),
        ("a/#/b", "alone, and last"),
        ("a/b#", "alone, and last"),
    ],
)
def test_what_no_broker_takes_is_neither_read_nor_written(topic, message):
    for wrong in (why_no_topic(topic), why_not_input(topic), why_not_output(topic)):
        assert wrong is not None
        assert message in wrong.message
        assert wrong.hint


@pytest.mark.parametrize(
    "topic", ["a", "cameras/+/frame", "cameras/#", "a//b", "/a", "+/frame", "outer/x", "control/x"]
)
def test_what_may_be_read(topic):
    assert why_not_input(topic) is None


@pytest.mark.parametrize("root", [*RESERVED_ROOTS, "$SYS", "$MQTT", "$JS"])
def test_what_is_the_fabrics_is_neither_read_nor_written(root):
    for topic in (root, f"{root}/x"):
        for wrong in (why_not_input(topic), why_not_output(topic)):
            assert wrong is not None
            assert "belong to the fabric" in wrong.message


@pytest.mark.parametrize("topic", ["meters/{1}/reading", "meters/{1}", "readings/all", "a_b-C9/x.y"])
def test_what_may_be_written(topic):
    assert why_not_output(topic) is None


@pytest.mark.parametrize(
    ("topic", "message", "hint"),
    [
        ("meters/+/reading", "no wildcards", "use {1}, {2}, …"),
        ("meters/#", "no wildcards", "use {1}, {2}, …"),
        ("readings", "at least two levels", "for example readings/all"),
        ("readings/", "at least two levels", "for example readings/all"),
        ("{1}", "first level", "for example results/{1}"),
        ("{1}/reading", "first level", "for example results/{1}/reading"),
        ("/reading", "first level", "for example results/reading"),
        ("mess.wert/x", "first level", "for example results/mess.wert/x"),
        ("meters/{1", "no other half", "use {1}, {2}, …"),
        ("meters/1}", "no other half", "use {1}, {2}, …"),
        ("meters/{{1}}", "no other half", "use {1}, {2}, …"),
    ],
)
def test_what_may_not_be_written_and_what_to_write_instead(topic, message, hint):
    wrong = why_not_output(topic)
    assert wrong is not None
    assert message in wrong.message
    assert wrong.hint == hint
    if hint.startswith("for example"):
        assert why_not_output(hint.removeprefix("for example ")) is None


def test_what_wildcards_match():
    assert captures("cameras/+/frame", "cameras/c1/frame") == ("c1",)
    assert captures("plant/+/#", "plant/a/b/c") == ("a", "b/c")
    assert captures("plant/#", "plant") == ("",)
    assert captures("a/+", "a/b/c") is None
    assert captures("a/b", "a/c") is None
    assert captures("+/x", "$SYS/x") is None
    assert [wildcards(topic) for topic in ("a", "a/+", "+/a/+/#")] == [0, 1, 3]
