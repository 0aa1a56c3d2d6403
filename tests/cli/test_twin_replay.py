"""`batuta twin replay` on files: what is the same, what differs, and what is no recording."""

from __future__ import annotations

import gzip
import json
from typing import TYPE_CHECKING

import msgspec
import pytest
from click.testing import CliRunner

from batuta.cli.twin_replay import replay
from batuta.core.state import Change, State
from batuta.errors import BatutaError
from batuta.kinds import manifest
from batuta.twin.replay_frames import Begin, There, Turn, to_line
from batuta.twin.replay_rows import row_of, rows_of
from tests.hub.hubs import PROCESS_APP

if TYPE_CHECKING:
    from pathlib import Path

AT = 1_700_000_000_000


@pytest.fixture
def recording(tmp_path: Path) -> Path:
    """A hub that learnt of an application and, it is said, decided nothing: the present code makes a release of it."""
    [app] = manifest.parse(PROCESS_APP.replace("NAME", "sleeper"))
    [other] = manifest.parse(PROCESS_APP.replace("NAME", "walker"))
    state = State(hub_since=AT).with_changes([Change("desired", app.ref.key, app)])
    lines = [to_line(Begin(at=AT, hub_since=AT, rows=1, version="9.9"))]
    lines += [to_line(There(row=row)) for row in rows_of(state)]
    lines += [to_line(Turn(at=AT + 1000))]
    lines += [to_line(Turn(at=AT + 2000, heard=(row_of("desired", other.ref.key, other),)))]
    (tmp_path / "00000001.jsonl.gz").write_bytes(gzip.compress(lines[0]) + gzip.compress(b"".join(lines[1:])))
    return tmp_path


def test_the_first_difference_is_shown_with_its_row_and_instant(recording: Path) -> None:
    ran = CliRunner().invoke(replay, [str(recording)], standalone_mode=False)
    assert ran.return_value == 1
    assert "release.default.walker.1 at 2023-11-14T22:13:22.000Z (decision 2, deciding what changed)" in ran.output
    assert "~ the row: (not written) → {" in ran.output


def test_every_difference_as_json(recording: Path) -> None:
    ran = CliRunner().invoke(replay, [str(recording), "--all", "-o", "json"], standalone_mode=False)
    assert ran.return_value == 1
    said = json.loads(ran.output)
    assert said["parted"][0]["key"] == "release.default.walker.1"
    assert said["version"] == "9.9"


def test_what_was_torn_off_at_the_end_is_left_out(recording: Path) -> None:
    [file] = recording.iterdir()
    file.write_bytes(file.read_bytes()[:-20])
    ran = CliRunner().invoke(replay, [str(file)], standalone_mode=False)
    assert "the same" in ran.output
    assert ran.return_value == 0


def test_what_is_no_recording_is_said(tmp_path: Path) -> None:
    wrong = tmp_path / "wrong.jsonl"
    wrong.write_text("{}\n")
    for path, words in ((wrong, "wrong.jsonl:1 is no line of a recording"), (tmp_path / "empty", "holds no recording")):
        (tmp_path / "empty").mkdir(exist_ok=True)
        with pytest.raises(BatutaError, match=words):
            CliRunner().invoke(replay, [str(path)], standalone_mode=False, catch_exceptions=False)
    newer = tmp_path / "newer.jsonl"
    newer.write_bytes(to_line(msgspec.structs.replace(Begin(at=1, hub_since=1, rows=0), format=2, version="3.0")))
    with pytest.raises(BatutaError, match="has format 2"):
        CliRunner().invoke(replay, [str(newer)], standalone_mode=False, catch_exceptions=False)
