"""Clocks that are set by a day while everything runs. The table is in test_misfortunes.py."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

import pytest

from batuta.demo.stage import processes_in, wait_for
from tests.cli.running import run
from tests.e2e.playing import SLEEPER, assert_refused, decided, instance, patiently, problems, ready, sleeping

if TYPE_CHECKING:
    from pathlib import Path

    from batuta.demo.stage import Stage

pytestmark = [pytest.mark.e2e, pytest.mark.slow]

# A clock of its own for every Python process below: the machine's is not ours to set, and its broker keeps that one.
WRONG_CLOCK = """\
import os, time
def _ahead(real, unit, file=os.environ.get("CLOCK_AHEAD", "")):
    def now():
        try:
            with open(file) as said:
                return real() + int(said.read()) * unit
        except (OSError, ValueError):
            return real()
    return now
time.time, time.time_ns = _ahead(time.time, 1), _ahead(time.time_ns, 10**9)
"""


class WrongClock:
    """What is started in here has a clock that can be set."""

    def __init__(self, directory: Path, patch: pytest.MonkeyPatch) -> None:
        self.file = directory / "ahead"
        self._patch = patch
        (directory / "clock").mkdir()
        (directory / "clock" / "sitecustomize.py").write_text(WRONG_CLOCK)
        self.environment = {"PYTHONPATH": str(directory / "clock"), "CLOCK_AHEAD": str(self.file)}

    def __enter__(self) -> None:
        for name, value in self.environment.items():
            self._patch.setenv(name, value)

    def __exit__(self, *_: object) -> None:
        for name in self.environment:
            self._patch.delenv(name)

    def set(self, ahead_s: int) -> None:
        fresh = self.file.with_name("ahead.new")
        fresh.write_text(str(ahead_s))
        fresh.replace(self.file)


DAY_S = 86_400


@pytest.fixture
def wrong_clock(stage: Stage, monkeypatch: pytest.MonkeyPatch) -> WrongClock:
    stage.directory.mkdir(exist_ok=True)
    return WrongClock(stage.directory, monkeypatch)


def two_sleepers(stage: Stage) -> None:
    """One that must never run twice, and one that may."""
    for name, runs in (("never", "never-twice"), ("least", "at-least-once")):
        stage.client.apply(SLEEPER.format(name=name, runs=runs))
        wait_for(name, lambda name=name: ready(stage, name), 120)  # type: ignore[misc]


def test_a_nodes_clock_that_is_set_by_a_day_moves_nothing_and_is_told(stage: Stage, wrong_clock: WrongClock) -> None:
    stage.start_hub()
    with wrong_clock:
        stage.start_node("pi", "home")
    wait_for("the node", lambda: stage.online("pi"), 120)
    two_sleepers(stage)
    before, serial = sleeping(stage), stage.node_status("pi")["serial"]
    for ahead_s, words in ((DAY_S, "86400 s ahead"), (0, "86400 s back")):
        wrong_clock.set(ahead_s)
        wait_for("the report", lambda words=words: words in problems(stage).get("clock_jumped", "") or None, 120)  # type: ignore[misc]
        assert abs(stage.node_status("pi")["reportedAt"] / 1000 - time.time() - ahead_s) < 60, "it speaks the new time"
        assert stage.online("pi")
    assert (sleeping(stage), stage.node_status("pi")["serial"]) == (before, serial)
    assert [instance(stage, name)["starts"] for name in ("never", "least")] == [1, 1]
    # With such a clock nobody joins: no certificate would hold.
    wrong_clock.set(DAY_S)
    ran = run("join", "-", "--name", "pj", state=stage.directory / "pj", stdin=stage.client.create_token("home").token,
              env=wrong_clock.environment)  # fmt: skip
    assert_refused(ran, "clock is far from the hub's", "set the clock")
    assert "+86400 s" in ran.err


def sleeping_as(stage: Stage, application: str) -> set[int]:
    return {
        p.pid for p in processes_in(stage.directory) if "sleep" in p.cmdline() and f"/{application}/" in f"{p.cwd()}/"
    }


def test_a_hubs_clock_that_is_set_by_a_day_decides_nothing(stage: Stage, wrong_clock: WrongClock) -> None:
    with wrong_clock:
        stage.start_hub()
    for name in ("pi", "pj"):
        stage.start_node(name, "home")
    for name in ("pi", "pj"):
        wait_for(name, lambda name=name: stage.online(name), 120)  # type: ignore[misc]
    two_sleepers(stage)
    least, rows = sleeping_as(stage, "least"), decided(stage)
    assert (len(least), len(sleeping_as(stage, "never"))) == (1, 1)
    for ahead_s, words in ((DAY_S, "clock went 86400 s ahead"), (0, "clock went 86400 s back")):
        epoch = stage.client.hub()["epoch"]
        wrong_clock.set(ahead_s)
        wait_for("the next hub", lambda e=epoch: patiently(lambda: stage.client.hub()["epoch"] > e), 120)  # type: ignore[misc]
        assert words in stage.log_tail("hub", 20)
        for name in ("pi", "pj"):
            wait_for(name, lambda name=name: patiently(lambda: stage.online(name)), 120)  # type: ignore[misc]
        assert decided(stage) == rows
        # It ends where it is when no hub is heard for longer than its lease, as on a machine that is busy.
        assert len(sleeping_as(stage, "never")) <= 1
    assert sleeping_as(stage, "least") == least
    assert instance(stage, "least")["starts"] == 1
    wait_for("the other", lambda: ready(stage, "never"), 120)
