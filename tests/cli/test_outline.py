"""Outlines: the shapes that answers are made of."""

from __future__ import annotations

from batuta.cli.outline import outline

NOW = 1_790_000_000_000


def lines(value: dict[str, object]) -> list[str]:
    return list(outline(value, NOW))


def test_words_line_up_and_emptiness_is_left_out() -> None:
    assert lines(
        {
            "site": "lab",
            "memoryFree": "98304Ki",
            "reportedAt": NOW - 5_000,
            "labels": {},
            "taints": [],
            "address": "",
            "battery": None,
        }
    ) == [
        "site         lab",
        "memory free  96.0 MiB",
        "reported at  5s ago",
    ]


def test_a_state_word_says_since_when_why_and_what_next() -> None:
    reason = {"code": "node_silent", "subject": "node/pi-4", "detail": "40 s"}
    assert lines({"link": {"word": "late", "since": NOW - 40_000, "reason": reason, "next": "wait"}}) == [
        "link  late for 40s: node/pi-4: the node is silent; it may come back (40 s); wait"
    ]


def test_like_things_become_a_table() -> None:
    instances = [
        {"name": "read-1-0", "phase": "ready", "since": NOW - 300_000},
        {"name": "read-1-1", "phase": "fetching", "reason": {"code": "fetching", "subject": "model/digits"}},
    ]
    assert lines({"instances": instances}) == [
        "instances",
        "  NAME      PHASE     SINCE   REASON",
        "  read-1-0  ready     5m ago  -",
        "  read-1-1  fetching  -       model/digits: its artifact is on the way",
    ]


def test_things_with_an_inside_stand_below_each_other() -> None:
    components = [{"name": "read", "instances": [{"a": 1, "b": 2, "c": 3}]}, {"name": "write"}]
    assert lines({"components": components}) == [
        "components",
        "  - name  read",
        "    instances",
        "      A  B  C",
        "      1  2  3",
        "  - name  write",
    ]


def test_reasons_are_sentences() -> None:
    assert lines({"reasons": [{"code": "no_node", "subject": "component/read"}]}) == [
        "reasons",
        "  component/read: there is no node",
    ]


def test_nothing_of_a_nodes_own_words_reaches_the_terminal_raw() -> None:
    hostile = {"os": "Linux\x1b]0;owned\x07", "x\x1b[2J": "y", "state": {"word": "ok", "reason": "a\nb\x1b[1m"}}
    assert not [line for line in lines(hostile) if "\x1b" in line or "\x07" in line or "\n" in line]
