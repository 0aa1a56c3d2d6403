"""A rollout in plain words, from statuses as the hub gives them."""

from __future__ import annotations

from typing import Any

import pytest

from batuta.answers import Found
from batuta.cli.rollout_page import brief, figure, page
from batuta.cli.rollout_progress import Screen
from batuta.kinds.base import Metadata
from batuta.kinds.rollout import Rollout, RolloutSpec

NOW = 1_790_000_000_000


def found(**status: Any) -> Found[Rollout]:
    rollout = Rollout(metadata=Metadata(name="reader"), spec=RolloutSpec(release=4, previous=3))
    said = {
        "phase": "rolling",
        "says": "wave 1 of 2: under way",
        "waves": [
            {"wave": "1 node", "state": "under way", "target": 1},
            {"wave": "100%", "state": "to come", "target": 9},
        ],
        "nodes": {"total": 9, "done": 0, "updating": 1, "waiting": 7, "deferred": 1, "held": 0, "failed": 0},
        "named": {"updating": ["pi-3"], "deferred": ["pi-8"], "waiting": ["pi-1"]},
        "gates": [], "reason": None, "firstError": "", "stoppedClasses": [], "beganAt": NOW - 60_000, "eta": None,
        **status,
    }  # fmt: skip
    return Found(rollout, said, {"status": said})


def told(**status: Any) -> list[str]:
    return list(page(found(**status), NOW))


def test_waves_and_nodes_are_told_and_those_by_name_who_may_need_care():
    assert told() == [
        "rollouts/reader  release 4, in place of 3",
        "  wave 1 of 2: under way, begun 60s ago",
        "",
        "WAVE  UP TO   NODES  STATE",
        "1     1 node  1      under way",
        "2     100%    9      to come",
        "",
        "NODES  DONE  UPDATING  WAITING  DEFERRED  HELD  FAILED",
        "9      0     1         7        1         0     0",
        "  updating: pi-3  (in the middle of it)",
        "  deferred: pi-8  (cannot be reached; they follow when they are back)",
    ]


def test_a_gate_is_told_with_what_was_measured_and_its_limits():
    gate = {
        "gate": "errors.rate < 0.01",
        "verdict": "held",
        "values": {"errors.rate": {"least": 0.0001, "seen": 0.002, "most": 0.0061}},
        "missing": [],
    }
    silent = {"gate": "latency.p99 < 20.0", "verdict": "open", "values": {}, "missing": ["latency.p99"]}
    assert told(gates=[gate, silent])[-5:] == [
        "",
        "gate errors.rate < 0.01: it holds",
        "  errors.rate is 0.2 %, at least 0.01 % and at most 0.61 %",
        "gate latency.p99 < 20.0: too early to tell",
        "  latency.p99 was not measured, or not often enough",
    ]


def test_what_has_no_bound_yet_and_what_is_asked_in_shadow_only_are_told():
    gate = {
        "gate": "latency.p95 < 20.0",
        "verdict": "open",
        "values": {"latency.p95": {"least": 1.5, "seen": 2.0, "most": None}},
        "missing": [],
    }
    agrees = {"gate": "agreement.share >= 0.9", "verdict": "in shadow", "values": {}, "missing": []}
    assert told(gates=[gate, agrees])[-3:] == [
        "gate latency.p95 < 20.0: too early to tell",
        "  latency.p95 is 2 ms, at least 1.5 ms",
        "gate agreement.share >= 0.9: asked in shadow only",
    ]


def test_what_stopped_it_comes_first_with_what_to_do():
    reason = {"code": "gate_broken", "sentence": "application/reader: beyond a gate's limit (x)", "next": "correct it"}
    lines = told(
        phase="undone", says=f"undone: every node has what it had; {reason['sentence']}", reason=reason,
        firstError="pi-3: its process ended", stoppedClasses=["pi-zero"],
    )  # fmt: skip
    assert lines[1:6] == [
        "  undone: every node has what it had, begun 60s ago",
        "  application/reader: beyond a gate's limit (x)",
        "    next: correct it",
        "  first error: pi-3: its process ended",
        "  keeps the old release, for its nodes turned this one down: pi-zero",
    ]


def test_it_says_when_it_may_be_through():
    assert "; through in about 5m, at " in told(eta=NOW + 300_000)[1]


def test_one_line_says_how_far_it_is():
    assert brief(found().status) == "wave 1 of 2: under way  (1 updating, 7 waiting, 1 deferred of 9)"


def test_at_a_terminal_it_is_painted_over(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]):
    monkeypatch.setattr("sys.stdout.isatty", lambda: True, raising=False)
    monkeypatch.setenv("NO_COLOR", "1")
    screen = Screen("text")
    screen.show(found())
    lines = capsys.readouterr().out.count("\n")
    screen.show(found(phase="done", says="done"))
    assert capsys.readouterr().out.startswith(f"\x1b[{lines}Frollouts/reader")


def test_names_of_others_cannot_paint_the_terminal():
    lines = told(named={"failed": ["\x1b[2Jpi"]}, nodes={"total": 1, "failed": 1})
    assert not [line for line in lines if "\x1b[2J" in line]


@pytest.mark.parametrize(
    ("value", "unit", "said"),
    [(0.0123, "share", "1.23 %"), (12.34567, "ms", "12.35 ms"), (3.0, "", "3"), (2**20, "bytes", "1.0 MiB")],
)
def test_figures_have_units(value: float, unit: str, said: str):
    assert figure(value, unit) == said
