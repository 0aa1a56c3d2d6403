"""The guide for first users: every command of it is run, and what it prints is what the page shows."""

from __future__ import annotations

import os
import re
import shlex
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from batuta.demo.stage import Stage, wait_for
from batuta.kinds import Application
from tests.cli.running import Ran, run

if TYPE_CHECKING:
    from collections.abc import Iterator

pytestmark = pytest.mark.e2e

PAGE = Path(__file__).parents[2] / "docs" / "guide" / "first-steps.md"
PIECES = re.compile(r"^```console\n(.*?)^```$|^<!-- (\w+) (\S+) -->$", re.MULTILINE | re.DOTALL)

# What differs from one run to the next, and what the page shows for it: as wide, so that columns stay in line.
SHOWN = (
    (r"batuta join batuta1\S+", "batuta join batuta1.eyJo…"),
    (r"\b[0-9a-f]{4}(-[0-9a-f]{4}){3}\b", "32e9-9432-bbf3-a468"),
    (r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d", "2026-11-21 09:30:00"),
    (r"http://127\.0\.0\.1:\d+", "http://127.0.0.1:8400"),
    (r"[\d.]+ GiB free", "77.3 GiB free"),
    (r"answer in [\d.]+ ms", "answer in 1.6 ms"),
    (r"ends in \d+ days", "ends in 396 days"),
    (r"\d+ entries", "9 entries"),
    (r"Python \d[\d.]*\w*", "Python 3.11.7"),
    (r"nats-server: v[\d.]+", "nats-server: v2.15.1"),
    (r"score \d+: stays 1600, .*", "score 2098: stays 1600, …"),
    (r"epoch \d+", "epoch 1"),
)
AGES = re.compile(r"(?<![\w.=\"])(?<!: )\d+(s|m|h\d+m)(?![\w])")

PASSING = "it is starting"
MISTAKEN = ("resources:", "replicas: {count: 1, perSte: 1}\n    resources:")
BROKEN = """\
apiVersion: batuta.dev/v1
kind: Application
metadata: {name: broken}
spec:
  components:
  - name: watch
    process: {command: [watch-camera]}
    resources: {cpu: 10m, memory: 8Mi}
"""


class Reader:
    """Somebody who does what the page says, in a directory of their own."""

    def __init__(self, stage: Stage, page: str) -> None:
        self.stage, self.home = stage, stage.directory / "reader"
        self.home.mkdir()
        ticker = next(m[1] for m in re.finditer(r"^```yaml\n(.*?)^```$", page, re.MULTILINE | re.DOTALL))
        (self.home / "ticker.yaml").write_text(ticker)
        (self.home / "mistaken.yaml").write_text(ticker.replace(*MISTAKEN))
        (self.home / "broken.yaml").write_text(BROKEN)
        self.line = ""
        self.machine: subprocess.Popen[bytes] | None = None

    def end(self) -> None:
        if self.machine is not None:
            self.machine.terminate()
            self.machine.wait(30)

    def types(self, command: str) -> str:
        words = shlex.split(command.removeprefix("batuta "))
        words = [str(self.home / w) if w.endswith(".yaml") else w for w in words]
        # What fails is started again and again: for an instant it is starting, and that is not what the page is about.
        ran = wait_for(command, lambda: r if PASSING not in (r := self.run(words)).out else None, 60)
        if "token create" in command:
            self.line = ran.out
        lines = [*ran.out.splitlines(), *ran.err.splitlines()]
        if "--wait" in command:
            # On the way it says whatever it sees, and how much that is hangs on the machine.
            lines = [line for line in lines if not line.startswith("  ")]
        return "".join(f"{self.plainly(line)}\n" for line in lines)

    def run(self, words: list[str]) -> Ran:
        return run(*words, state=self.stage.hub_state, env={"TZ": "UTC"})

    def plainly(self, line: str) -> str:
        line = line.replace(f"{self.home}/", "").replace(str(self.stage.hub_state), "~/.local/share/batuta")
        for pattern, shown in SHOWN:
            line = re.sub(pattern, shown, line)
        return AGES.sub(lambda m: "9s".ljust(len(m[0])), line).rstrip()

    def does(self, verb: str, name: str) -> None:
        """What the page's reader does or waits for between two commands."""
        if verb == "join":
            words = ["join", "-", "--name", name, "--mqtt-port", "0", "--cpu", "1", "--memory", "512Mi"]
            said = self.stage.directory / "join.log"
            with said.open("wb") as log:
                self.machine = subprocess.Popen(
                    [sys.executable, "-m", "batuta", *words, "--state", str(self.stage.directory / name)],
                    stdin=subprocess.PIPE, stdout=log, stderr=log,
                )  # fmt: skip
            assert self.machine.stdin is not None
            self.machine.stdin.write(self.line.encode())
            self.machine.stdin.close()
            wait_for("the machine", lambda: "waits for approval" in said.read_text() or None, 60)
        elif verb == "online":
            wait_for(name, lambda: self.stage.online(name), 60)
        elif verb == "failing":
            self.stage.client.wait(Application, name, self.is_failing, timeout_s=60)
        else:
            raise AssertionError(f"nobody knows how to {verb}")

    @staticmethod
    def is_failing(found: object) -> bool:
        status = found.status  # type: ignore[attr-defined]
        return status["state"] == "failing" and "watch-camera" in str(status["reasons"])


@pytest.fixture
def stage(tmp_path: Path) -> Iterator[Stage]:
    made = Stage(tmp_path)
    try:
        made.start_hub()
        yield made
    finally:
        killed = made.close()
    assert killed == [], "these did not end when asked to"


def test_what_the_page_shows_is_what_is_printed(stage: Stage) -> None:
    """BATUTA_REWRITE=1 writes the answers anew: then read every line."""
    page = PAGE.read_text("utf-8")
    reader = Reader(stage, page)

    def anew(piece: re.Match[str]) -> str:
        if piece[2]:
            reader.does(piece[2], piece[3])
            return piece[0]
        commands = [line[2:] for line in piece[1].splitlines() if line.startswith("$ ")]
        assert commands, piece[0]
        return "```console\n" + "".join(f"$ {c}\n{reader.types(c)}" for c in commands) + "```"

    try:
        written = PIECES.sub(anew, page)
    finally:
        reader.end()
    if os.environ.get("BATUTA_REWRITE"):
        PAGE.write_text(written, "utf-8")
    assert page == written
