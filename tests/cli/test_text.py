"""Cells, ages, sizes and tables."""

from __future__ import annotations

import pytest

from batuta.cli import text
from batuta.cli.rows import instant_ms, reason_text, shown

NOW = 1_790_000_000_000


@pytest.mark.parametrize(
    ("ago_s", "said"),
    [
        (0, "0s"), (40, "40s"), (119, "119s"), (120, "2m"), (150, "2m30s"), (599, "9m59s"), (3_599, "59m"),
        (7_200, "120m"), (10_800, "3h"), (11_520, "3h12m"), (28_800, "8h"), (172_799, "47h"), (172_800, "2d"),
        (190_000, "2d4h"), (86_400 * 400, "400d"), (86_400 * 800, "2y70d"), (-5, "0s"),
    ],
)  # fmt: skip
def test_ages_have_two_units_at_most(ago_s: int, said: str) -> None:
    assert text.age(NOW - ago_s * 1000, NOW) == said


@pytest.mark.parametrize(
    ("size", "said"),
    [(0, "0 B"), (1023, "1023 B"), (1024, "1.0 KiB"), (215_040, "210 KiB"), (5 << 30, "5.0 GiB"), (3 << 40, "3.0 TiB")],
)
def test_sizes_are_humanised(size: int, said: str) -> None:
    assert text.size(size) == said


def test_a_path_through_lists_means_every_member() -> None:
    document = {"a": [{"b": [{"c": 1}, {"c": 2}]}, {"b": [{"c": 1}]}, {"b": None}, {}], "d": {"e": []}}
    assert text.at(document, "a.b.c") == [1, 2]
    assert text.at(document, "d.e.f") == []
    assert text.at(document, "d.x.y") is None


def test_a_table_lines_up_and_has_no_trailing_blanks() -> None:
    assert text.table(["NAME", "STATE"], [["a", "online"], ["日本", "é"], ["longer", ""]]) == [
        "NAME    STATE",
        "a       online",
        "日本    é",
        "longer",
    ]


def test_foreign_control_characters_never_reach_the_terminal() -> None:
    (_, line) = text.table(["NAME"], [["evil\x1b[31m\nname\x9b1m"]])
    assert line == "evil [31m name 1m"


def test_long_cells_are_cut_except_in_wide() -> None:
    assert text.cell("x" * 100) == "x" * 59 + "…"
    assert text.cell("x" * 100, wide=True) == "x" * 100


@pytest.mark.parametrize(
    ("value", "said"),
    [(None, "-"), ("", "-"), ([], "-"), ({}, "-"), (0, "0"), (True, "yes"), (False, "no"), (0.12345, "0.123"),
     ({"b": 1, "a": 2}, "a=2,b=1"), (["x", "y"], "x,y")],
)  # fmt: skip
def test_every_value_has_a_cell(value: object, said: str) -> None:
    assert text.cell(value) == said


def test_colour_only_at_a_terminal_and_never_against_no_color(monkeypatch, capsys) -> None:
    assert text.painted("online", "good") == "online"
    monkeypatch.setattr("sys.stdout.isatty", lambda: True)
    monkeypatch.delenv("NO_COLOR", raising=False)
    monkeypatch.setenv("TERM", "xterm")
    assert text.painted("online", "good") == "\x1b[32monline\x1b[0m"
    monkeypatch.setenv("NO_COLOR", "1")
    assert text.painted("online", "good") == "online"


def test_a_word_has_one_tone() -> None:
    from batuta.core.words import WORDS

    words = [word for words in text.TONES.values() for word in words]
    assert len(words) == len(set(words))
    assert not WORDS.keys() & set(words), "their severity says it already"
    assert [text.tone_of(word) for word in ("ok", "late", "offline", "unassigned", "ready", "pi-4")] == [
        "good", "wait", "bad", "", "good", "",
    ]  # fmt: skip


def test_instants_become_ages_whichever_way_they_are_written() -> None:
    assert instant_ms("2026-09-21T14:13:20.500Z") == instant_ms("2026-09-21T14:13:20.500+00:00")
    assert shown("status.since", NOW - 60_000, NOW) == "60s"
    assert shown("status.since", "not a time", NOW) == "-"
    assert shown("status.ready", 3, NOW) == "3"


def test_reasons_become_sentences_also_those_of_a_newer_hub() -> None:
    assert reason_text({"code": "memory_short", "subject": "node/pi-4", "detail": "96Mi free, 128Mi needed"}) == (
        "node/pi-4: too little memory is free (96Mi free, 128Mi needed)"
    )
    assert reason_text({"code": "from_the_future", "subject": "node/a"}) == "node/a: from_the_future"


def test_the_widest_columns_are_cut_at_a_narrow_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    assert text.fitting([4, 60, 30, 3], 80) == [4, 37, 30, 3]
    assert text.fitting([4, 60, 50], 60) == [4, 26, 26]
    assert text.fitting([4, 60, 50], 10) == [4, text.CUT_MIN, text.CUT_MIN], "words of usual length are spared"
    assert text.fitting([5], 3) == [5]
    rows = [["a", "online", "why " * 20], ["b", "日本" * 20, ""]]
    whole = text.table(["NAME", "STATE", "REASON"], rows)
    monkeypatch.setattr("sys.stdout.isatty", lambda: True, raising=False)
    monkeypatch.setenv("NO_COLOR", "1")
    monkeypatch.setenv("COLUMNS", "60")
    cut = text.table(["NAME", "STATE", "REASON"], rows)
    assert max(map(text._width, cut)) <= 60
    assert cut[1].endswith("…")
    assert "…" in cut[2]
    assert text.table(["NAME", "STATE", "REASON"], rows, cuts=False) == whole
