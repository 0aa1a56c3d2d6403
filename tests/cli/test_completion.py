"""What shells are told and what they are offered."""

from __future__ import annotations

import shutil
import subprocess

import pytest

from tests.cli.running import run


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
