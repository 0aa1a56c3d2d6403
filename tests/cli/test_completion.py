"""What shells are told and what they are offered."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from typing import TYPE_CHECKING

import pytest

from tests.cli.running import run

if TYPE_CHECKING:
    from pathlib import Path


def offered(*words: str, last: str = "") -> list[str]:
    typed = {"COMP_WORDS": " ".join(["batuta", *words, last]), "COMP_CWORD": str(len(words) + 1)}
    env = {"_BATUTA_COMPLETE": "bash_complete", **typed}
    return [line.partition(",")[2] for line in run(env=env).out.splitlines()]


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_a_script_for_each_shell_that_it_can_read(shell: str) -> None:
    ran = run("completion", shell)
    assert ran.code == 0, ran.err
    assert "_BATUTA_COMPLETE" in ran.out
    if shutil.which(shell):
        subprocess.run([shell, "-n"], input=ran.out, text=True, check=True, timeout=20)


def test_verbs_options_and_kinds_are_offered() -> None:
    assert "apply" in offered(last="ap")
    assert set(offered(last="de")) == {"demo", "describe", "delete"}
    assert "--dry-run" in offered("apply", last="--d")
    assert offered("get", last="no") == ["nodes"]


def test_without_a_hub_no_name_is_offered_and_nothing_is_said() -> None:
    env = {"_BATUTA_COMPLETE": "bash_complete", "COMP_WORDS": "batuta get nodes pi", "COMP_CWORD": "3"}
    ran = run(env=env)
    assert (ran.out.strip(), ran.err) == ("", "")


def test_offering_verbs_loads_none_of_them() -> None:
    env = {"_BATUTA_COMPLETE": "bash_complete", "COMP_WORDS": "batuta ", "COMP_CWORD": "1", "PYTHONVERBOSE": "1"}
    assert "batuta.cli.apply" not in run(env=env).err


@pytest.fixture
def on_path(tmp_path: Path) -> dict[str, str]:
    """An environment in which shells find this very batuta."""
    program = tmp_path / "bin" / "batuta"
    program.parent.mkdir()
    program.write_text(f'#!/bin/sh\nexec "{sys.executable}" -m batuta "$@"\n')
    program.chmod(0o755)
    return {**os.environ, "PATH": f"{program.parent}:{os.environ['PATH']}", "HOME": str(tmp_path), "NO_COLOR": "1"}


# What zsh gives completions to is replaced by printing them: its line editor needs a terminal.
ZSH = """
compdef() { : }
offered() { for word in "$@"; do [[ $word == completions* ]] && print -rl -- "${(@P)word}"; done }
_describe() { offered "$@" }
compadd() { offered "$@" }
eval "$(batuta completion zsh)"
words=(batuta get no) CURRENT=3
_batuta_completion
"""
BASH = """
eval "$(batuta completion bash)"
COMP_WORDS=(batuta get no) COMP_CWORD=2
_batuta_completion batuta no get
echo "${COMPREPLY[@]}"
"""
FISH = 'batuta completion fish | source; complete -C "batuta get no"'


@pytest.mark.parametrize(("shell", "script"), [("bash", BASH), ("zsh", ZSH), ("fish", FISH)])
def test_a_real_shell_completes(shell: str, script: str, on_path: dict[str, str], tmp_path: Path) -> None:
    if not shutil.which(shell):
        pytest.skip(f"NOT PROVEN: {shell} is not installed here; `apt-get install {shell}` proves its completion")
    (tmp_path / "script").write_text(script)
    ran = subprocess.run(
        [shell, str(tmp_path / "script")], env=on_path, cwd=tmp_path, capture_output=True, text=True, timeout=120,
        check=False,
    )  # fmt: skip
    assert "nodes" in ran.stdout.split(), (ran.stdout, ran.stderr)
    assert "applications" not in ran.stdout
