"""The guide to the twin shows what really is printed. `BATUTA_REWRITE=1` prints it anew."""

from __future__ import annotations

import os
import re
import shlex
from pathlib import Path

from click.testing import CliRunner

from batuta.cli.main import batuta
from batuta.kinds.manifest import parse
from batuta.twin.compose import compose
from batuta.twin.run import run

ROOT = Path(__file__).parents[2]
GUIDE = ROOT / "docs" / "guide" / "twin.md"
BLOCK = re.compile(r"^```console\n\$ (batuta [^\n]*)\n(.*?)^```\n", re.MULTILINE | re.DOTALL)


def printed(command: str) -> str:
    """What a command prints, less what it cost: that is another number everywhere."""
    result = CliRunner().invoke(batuta, shlex.split(command)[1:], standalone_mode=False)
    assert result.exception is None, result.exception
    return "".join(line for line in result.stdout.splitlines(True) if not line.startswith("  cost "))


def test_the_guide_shows_what_is_printed(monkeypatch):
    monkeypatch.chdir(ROOT)
    text = GUIDE.read_text("utf-8")
    wanted = BLOCK.sub(lambda m: f"```console\n$ {m[1]}\n{printed(m[1])}```\n", text)
    if os.environ.get("BATUTA_REWRITE") == "1":
        GUIDE.write_text(wanted, "utf-8")
    shown = [_without_numbers(t) for t in BLOCK.findall(GUIDE.read_text("utf-8"))]
    assert len(shown) == 2
    assert shown == [_without_numbers(t) for t in BLOCK.findall(wanted)]


def _without_numbers(block: tuple[str, str]) -> tuple[str, str]:
    """Figures and the trace follow every change of a rule; what the guide promises is the words."""
    uplinks = re.sub(r"^(  (?:uplinks|faults) +).*$", r"\1…", block[1], flags=re.MULTILINE)
    return block[0], re.sub(r"[0-9a-f]{32}|[0-9]+(\.[0-9]+)?( [KMG]?i?B)?", "#", uplinks)


def test_the_scenario_of_the_guide_holds():
    (text,) = re.findall(r"^```yaml\n(.*?)^```", GUIDE.read_text("utf-8"), re.MULTILINE | re.DOTALL)
    verdict = run(compose(parse(text)[0], 1), 1)
    assert verdict.ok, verdict.broken
    assert set(verdict.met) == {"all is up first"}
