"""Running `batuta` as people do: in a process of its own, with what it printed and how it ended."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import NamedTuple

import pytest


class Ran(NamedTuple):
    """How a command ended."""

    code: int
    out: str
    err: str


def run(*arguments: str, state: Path | str | None = None, stdin: str = "", env: dict[str, str] | None = None) -> Ran:
    """`batuta ARGUMENTS`; nothing of the caller's own hubs or colours leaks in."""
    clean = {k: v for k, v in os.environ.items() if not k.startswith("BATUTA_")}
    home = {"BATUTA_HOME": str(state)} if state is not None else {"BATUTA_HOME": "/nonexistent"}
    done = subprocess.run(
        [sys.executable, "-m", "batuta", *arguments],
        input=stdin, capture_output=True, text=True, timeout=60, check=False, env={**clean, **home, **(env or {})},
    )  # fmt: skip
    return Ran(done.returncode, done.stdout, done.stderr)


def invoke(capsys: pytest.CaptureFixture[str], *arguments: str) -> Ran:
    """The same within this process: quick, for what needs no process of its own."""
    from batuta.cli.main import main

    with pytest.raises(SystemExit) as ended:
        main(arguments)
    out, err = capsys.readouterr()
    assert isinstance(ended.value.code, int)
    return Ran(ended.value.code, out, err)
