"""Which frames run alone, which are refused, and what is known after the process died."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from batuta.dataflow import suspects as suspects_module
from batuta.dataflow.answers import Place
from batuta.dataflow.hand import Frame
from batuta.dataflow.suspects import DEATHS_MAX, HANDED_OUT_MAX, REMEMBERED_MAX, Suspects

if TYPE_CHECKING:
    from pathlib import Path

    import pytest


class Plain:
    """A message as far as anybody here looks at it."""

    subject = "$MQTT.msgs.a.b"


def frame(sequence: int, delivered: int = 1, ingest: str = "n1") -> Frame:
    message: Any = Plain()
    return Frame(ingest, message, Place(delivered, sequence, 7), 0.0)


def sequences(frames: list[Frame]) -> list[int]:
    return [f.place.sequence for f in frames]


class Lives:
    """One instance whose process dies and starts again."""

    def __init__(self, path: Path) -> None:
        self.path = path / "suspects.json"
        self.complaints: list[str] = []
        self._never_ended: list[Any] = []

    def begin(self) -> Suspects:
        return Suspects(self.path, self.complaints.append)

    def dies_of(self, deadly: Frame) -> None:
        running = self.begin().alone(deadly)
        running.__enter__()
        # Kept, so that nobody tidies up what no dead process could.
        self._never_ended.append(running)


def test_what_is_handed_out_too_often_runs_alone_until_it_has_run(tmp_path: Path) -> None:
    suspects = Lives(tmp_path).begin()
    often, seldom = frame(1, HANDED_OUT_MAX + 1), frame(2, HANDED_OUT_MAX)
    assert suspects.sort([often, seldom]) == ([seldom], [often], [])
    with suspects.alone(often):
        pass
    # A broker that is away hands out everything again and again; harmless is harmless.
    assert suspects.sort([frame(1, 1_000), seldom]).alone == []


def test_what_the_process_died_of_goes_last_and_in_the_end_not_at_all(tmp_path: Path) -> None:
    lives, deadly = Lives(tmp_path), frame(1, 4)
    for death in range(1, DEATHS_MAX):
        lives.dies_of(deadly)
        suspects = lives.begin()
        assert suspects.deaths_of(deadly) == death
        together, alone, convicted = suspects.sort([deadly, frame(2, 4), frame(3), frame(4, 4)])
        assert (sequences(together), sequences(alone), convicted) == ([3], [2, 4, 1], [])
    lives.dies_of(deadly)
    for _ in range(2):
        assert sequences(lives.begin().sort([deadly, frame(2, 4)]).convicted) == [1]
    assert not lives.complaints


def test_a_death_by_somebody_elses_hand_is_forgiven(tmp_path: Path) -> None:
    lives, harmless = Lives(tmp_path), frame(1, 4)
    for _ in range(10):
        for _ in range(DEATHS_MAX - 1):
            lives.dies_of(harmless)
        with lives.begin().alone(harmless):
            pass
    assert lives.begin().deaths_of(harmless) == 0


def test_a_run_that_fails_in_words_is_no_death(tmp_path: Path) -> None:
    lives = Lives(tmp_path)
    for _ in range(5):
        try:
            with lives.begin().alone(frame(1, 4)):
                raise ValueError
        except ValueError:
            continue
    assert lives.begin().deaths_of(frame(1)) == 0


def test_another_place_is_another_frame(tmp_path: Path) -> None:
    lives = Lives(tmp_path)
    lives.dies_of(frame(1))
    assert [lives.begin().deaths_of(f) for f in (frame(1), frame(2), frame(1, ingest="n2"))] == [1, 0, 0]


def test_what_cannot_be_read_or_written_is_said(tmp_path: Path) -> None:
    lives = Lives(tmp_path)
    lives.path.write_bytes(b"{")
    assert lives.begin().deaths_of(frame(1)) == 0
    assert "cannot be read" in lives.complaints.pop()
    lives.path.unlink()
    (tmp_path / ".suspects.json.new").mkdir()
    with lives.begin().alone(frame(1, 4)):
        pass
    assert "cannot be written down" in lives.complaints[0]


def test_memories_are_bounded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(suspects_module, "CLEARED_MAX", 20)  # each is written down twice
    lives = Lives(tmp_path)
    for sequence in range(REMEMBERED_MAX + 10):
        lives.dies_of(frame(sequence))
    suspects = lives.begin()
    known = [s for s in range(REMEMBERED_MAX + 10) if suspects.deaths_of(frame(s))]
    assert known == list(range(10, REMEMBERED_MAX + 10))
    for sequence in range(21):
        with suspects.alone(frame(sequence, 4)):
            pass
    assert len(suspects._cleared) == 20
