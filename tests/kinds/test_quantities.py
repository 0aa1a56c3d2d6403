"""Quantities and names: what is read, what is refused, and that what is written reads back as the same number."""

from __future__ import annotations

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from batuta.kinds.base import NAME_PATTERN, BitsPerSecond, Bytes, Metadata, Millicores, Millis, Ref
from batuta.kinds.nearest import did_you_mean, nearest
from batuta.kinds.scalars import Trap, resolve

READ = [
    (Bytes, "512Mi", 512 * 2**20),
    (Bytes, "1k", 1000),
    (Bytes, "1.5Ki", 1536),
    (Bytes, 4096, 4096),
    (Millicores, "250m", 250),
    (Millicores, "2", 2000),
    (Millicores, 0.5, 500),
    (Millicores, "1.25", 1250),
    (Millis, "300ms", 300),
    (Millis, "1h", 3_600_000),
    (Millis, "1m30s", 90_000),
    (Millis, "1.5s", 1500),
    (BitsPerSecond, "20Mbit", 20_000_000),
    (BitsPerSecond, "0.5kbit", 500),
]
REFUSED = [
    (Bytes, "512MB"), (Bytes, "-1"), (Bytes, "1.5"), (Bytes, ""), (Bytes, True), (Bytes, None), (Bytes, "9" * 19),
    (Bytes, "9999999999999Ti"), (Bytes, float("nan")), (Bytes, 1e300), (Millicores, "0.0005"), (Millicores, "1u"),
    (Millis, 5), (Millis, "5"), (Millis, "5 s"), (Millis, "s"), (Millis, "1h-5m"), (Millis, "99999999999999999d"),
    (BitsPerSecond, "20Mb"), (BitsPerSecond, 5), (BitsPerSecond, "٣Mbit"),
]  # fmt: skip


@pytest.mark.parametrize(("kind", "text", "number"), READ)
def test_quantities_are_read(kind, text, number):
    assert kind.parse(text) == number


@pytest.mark.parametrize(("kind", "text"), REFUSED)
def test_what_is_no_quantity_is_refused_with_an_example(kind, text):
    with pytest.raises(ValueError, match=r"like|expected"):
        kind.parse(text)


@pytest.mark.parametrize("kind", [Bytes, Millicores, Millis, BitsPerSecond])
@given(number=st.integers(0, 2**63 - 1))
def test_what_is_written_reads_back(kind, number):
    text = kind(number).text()
    assert kind.parse(text) == number
    assert re.fullmatch(kind.pattern.strip("^$"), text)


@pytest.mark.parametrize("kind", [Bytes, Millicores, Millis, BitsPerSecond])
@given(text=st.one_of(st.text(max_size=30), st.from_regex(r"[0-9.]{1,25}[A-Za-z]{0,4}"), st.floats(), st.integers()))
def test_reading_gives_a_number_in_range_or_a_value_error(kind, text):
    try:
        number = kind.parse(text)
    except ValueError:
        return
    assert 0 <= number < 2**63


@pytest.mark.parametrize("name", ["a", "7", "meter-reader", "a" * 63, "0-0"])
def test_names(name):
    assert re.search(NAME_PATTERN, name)


@pytest.mark.parametrize("name", ["", "-a", "a-", "A", "a_b", "a.b", "a" * 64, "ä", "a\n", "a b"])
def test_what_is_no_name(name):
    assert not re.fullmatch(NAME_PATTERN, name)


def test_references_print_and_sort_plainly():
    assert str(Ref("sites", "", "eu")) == "sites/eu"
    assert str(Ref("models", "default", "digits")) == "models/default/digits"
    assert Ref("models", "default", "digits").key == "models.default.digits"
    assert sorted([Ref("sites", "", "b"), Ref("sites", "", "a"), Ref("models", "x", "z")])[0].plural == "models"
    assert Metadata(name="a") == Metadata(name="a", labels={})


@pytest.mark.parametrize(
    ("word", "value"),
    [
        ("", None), ("~", None), ("null", None), ("true", True), ("False", False), ("0", 0), ("-7", -7), ("+7", 7),
        ("1.5", 1.5), (".5", 0.5), ("1.5e+3", 1500.0), ("abc", "abc"), ("2024-01-01", "2024-01-01"), ("-", "-"),
        ("1.2.3", "1.2.3"), ("nope", "nope"), ("tRUE", "tRUE"), ("12h", "12h"), ("8080:80", "8080:80"), ("=", "="),
        ("127.0.0.1", "127.0.0.1"), ("-m", "-m"), ("yEs", "yEs"), (".", "."),
    ],
)  # fmt: skip
def test_plain_words_mean_what_both_yaml_versions_say(word, value):
    assert resolve(word) == value
    assert type(resolve(word)) is type(value)


@pytest.mark.parametrize(
    "word",
    ["no", "Yes", "ON", "off", "y", "N", "012", "-07", "0o14", "0x1F", "0b11", "1_000", "12:30", "12:30:45", ".inf",
     "-.INF", ".nan", "1e3", "1e999", "9" * 30, "9" * 5000, "1_0.5"],
)  # fmt: skip
def test_words_that_yaml_readers_disagree_about_are_refused(word):
    assert isinstance(resolve(word), Trap)


@given(st.text())
def test_every_word_means_something(word):
    resolve(word)


def test_the_nearest_word():
    known = ["perSite", "count", "everyNode"]
    assert nearest("per_site", known) == "perSite"
    assert nearest("cuont", known) == "count"
    assert nearest("every", known) == "everyNode"
    assert nearest("banana", known) is None
    assert did_you_mean("banana", known) == "known: perSite, count, everyNode"
    assert did_you_mean("banana", known, otherwise="") == ""
