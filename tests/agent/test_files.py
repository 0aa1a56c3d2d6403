"""What the agent leaves on a machine: a unit that systemd reads, and directories that do not pile up."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

from batuta.agent.contact import ContactNote
from batuta.agent.node import remove_ended
from batuta.agent.unit import unit

if TYPE_CHECKING:
    from pathlib import Path


def test_the_unit_survives_odd_paths_and_never_kills_instances() -> None:
    said = unit(["--state", "/srv/edge $1 100%"], python="/opt/py thon/bin/python")
    assert "ExecStart='/opt/py thon/bin/python' -m batuta.agent --state '/srv/edge $$1 100%%'" in said
    assert "KillMode=process" in said
    assert "Restart=always" in said


def test_directories_of_instances_go_a_day_after_their_end(tmp_path: Path) -> None:
    for name in ("default/a/old-1-0", "default/a/new-1-0", "default/a/runs-1-0"):
        (tmp_path / name / "log").mkdir(parents=True)
        if "new" not in name:
            os.utime(tmp_path / name, (0, 0))
    assert remove_ended(tmp_path, frozenset({"default/a/runs-1-0"})) == 1
    assert sorted(path.name for path in tmp_path.glob("*/*/*")) == ["new-1-0", "runs-1-0"]


def test_a_contact_of_another_boot_or_of_the_future_is_none(tmp_path: Path) -> None:
    note = ContactNote(tmp_path / "contact", "boot-1")
    note.write(5_000)
    assert note.read(6_000) == 5_000
    assert note.read(4_000) is None
    assert ContactNote(tmp_path / "contact", "boot-2").read(6_000) is None
    (tmp_path / "contact").write_bytes(b"\xff")
    assert note.read(6_000) is None
