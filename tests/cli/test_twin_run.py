"""`batuta twin run`: what it prints, what it writes, and how it ends."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path
from xml.etree import ElementTree

import pytest
from click.testing import CliRunner

from batuta.cli.main import batuta
from batuta.errors import Refused

EXAMPLES = Path(__file__).parents[2] / "examples" / "scenarios"
CHURN = EXAMPLES / "churn.yaml"
STORM = """
apiVersion: batuta.dev/v1
kind: Scenario
metadata: {name: small-storm}
spec:
  duration: 4m
  fleet: [{name: edge, nodes: 1500, sites: 75}]
  load: [{name: app, instances: {least: 100, most: 100}, component: {name: part, process: {command: [run]}}}]
  faults: [{fault: reconnectStorm, at: 60s, for: 20s}]
  expectations:
  - {name: nobody is given up who is there, always: false_dead_verdicts == 0}
  - {name: all are back, eventually: connected == nodes && ready == wished, from: 90s}
"""


def ran(*arguments: object) -> tuple[int, str, str]:
    result = CliRunner().invoke(batuta, ["twin", "run", *map(str, arguments)], standalone_mode=False)
    if result.exception is not None:
        raise result.exception
    return result.return_value, result.stdout, result.stderr


def test_an_example_is_played_and_told():
    code, out, _ = ran(CHURN, "--seed", 7)
    assert code == 0
    assert out.startswith("churn, seed 7: held; 44 nodes, 20 min\n")
    for words in ("laws         all hold", "expected     yes  nobody is given up", "decisions", "messages", "trace"):
        assert words in out


def test_the_same_as_json_is_the_same_under_any_hash_seed():
    told = []
    for hash_seed in ("0", "77"):
        done = subprocess.run(
            [sys.executable, "-m", "batuta", "twin", "run", str(CHURN), "--seed", "3", "-o", "json"],
            env={**os.environ, "PYTHONHASHSEED": hash_seed}, capture_output=True, text=True, check=True, timeout=300,
        )  # fmt: skip
        document = json.loads(done.stdout)
        del document["spent"]
        told.append(document)
    assert told[0] == told[1]
    assert told[0]["ok"]
    assert len(told[0]["sites"]) == 11


def test_a_broken_expectation_ends_with_one_and_names_the_seed(tmp_path):
    path = tmp_path / "hard.yaml"
    text = CHURN.read_text().replace("ready >= wished * 8 / 10", "ready >= wished * 2")
    path.write_text(text.replace("files: [till-2.yaml]", "delete: [applications/till]"))
    code, out, err = ran(path, "--seeds", "4..9")
    assert code == 1
    assert "no  most of it is up all the time" in out
    assert "the last of it:" in out
    assert "seed 4 breaks" in err
    assert f"batuta twin run {path} --seed 4" in err


def test_without_a_file_a_fleet_is_made_up():
    code, out, _ = ran("--seeds", "1..2")
    assert code == 0
    assert "sketch-1, seed 1: held; 8 nodes, 5 min" in out
    assert "sketch-2, seed 2" in out


@pytest.mark.slow
def test_a_storm_gives_nobody_up(tmp_path):
    path = tmp_path / "storm.yaml"
    path.write_text(STORM)
    code, out, _ = ran(path, "-o", "json")
    run = json.loads(out)
    assert code == 0, run["broken"]
    assert run["counts"]["fault reconnect_storm"] == 1
    assert run["counts"]["messages lost"] > 1000, "no link broke"
    assert run["counts"]["false dead verdicts"] == run["counts"]["moves"] == 0


def test_files_are_named_from_where_the_scenario_is_and_their_mistakes_have_places(tmp_path):
    (tmp_path / "churn.yaml").write_text(CHURN.read_text())
    (tmp_path / "till-2.yaml").write_text((EXAMPLES / "till-2.yaml").read_text().replace("count: 4", "cuont: 4"))
    with pytest.raises(Refused) as refused:
        ran(tmp_path / "churn.yaml")
    assert [(Path(p.file).name, p.line, p.column, p.code) for p in refused.value.problems] == [
        ("till-2.yaml", 9, 16, "unknown_field")
    ]


class _Page(HTMLParser):
    def __init__(self) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.loads: list[str] = []

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.loads += [value for name, value in attrs if name in ("src", "href", "data", "action")]


def test_the_report_opens_offline_and_says_what_it_shows(tmp_path):
    report = tmp_path / "run.html"
    code, _, _ = ran(CHURN, "--seed", 7, "--report", report)
    text = report.read_text()
    page = _Page()
    page.feed(text)
    assert code == 0
    assert page.loads == []
    assert "script" not in page.tags
    assert "://" not in text
    assert "prefers-color-scheme: dark" in text
    pictures = [ElementTree.fromstring(svg) for svg in re.findall(r"<svg.*?</svg>", text, re.DOTALL)]
    assert len(pictures) == 6
    for svg in pictures:
        assert svg.get("role") == "img"
        named = {element.get("id") for element in svg if element.tag in ("title", "desc")}
        assert set(svg.get("aria-labelledby").split()) == named
        assert svg.find("desc").text
        for line in svg.findall("polyline"):
            points = [tuple(map(float, point.split(","))) for point in line.get("points").split()]
            assert len(points) > 100
            assert all(0 <= x <= 860 and 0 <= y <= 220 for x, y in points)
    ready = [line.get("points").split()[-1] for line in pictures[0].findall("polyline")]
    assert len(set(ready)) == 1, "in the end what is ready is what is wished"


@pytest.mark.parametrize("words", ["7", "a..b", "9..1"])
def test_seeds_are_a_span(words):
    result = CliRunner().invoke(batuta, ["twin", "run", "--seeds", words])
    assert result.exit_code == 2
    assert "write it like 1..50" in result.output


def test_a_story_is_shown_when_asked_for():
    _, out, _ = ran("--seed", 1, "--story")
    assert "the last of it:" in out
