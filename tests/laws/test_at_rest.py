"""What spares the hub a close look never hides anything from it: with and without, every run is the same."""

from __future__ import annotations

import pytest

from batuta.core import tend
from batuta.twin.run import run
from batuta.twin.sketch import sketch


@pytest.fixture
def spared(monkeypatch) -> dict[str, int]:
    """How often each shortcut was taken."""
    taken = {"applications": 0, "slots": 0}
    is_at_rest, well_slots = tend.is_at_rest, tend.well_slots

    def counted_rest(*args):
        found = is_at_rest(*args)
        taken["applications"] += found
        return found

    def counted_slots(*args):
        found = well_slots(*args)
        taken["slots"] += len(found)
        return found

    monkeypatch.setattr(tend, "is_at_rest", counted_rest)
    monkeypatch.setattr(tend, "well_slots", counted_slots)
    return taken


@pytest.mark.parametrize("seed", range(5_000, 5_006))
def test_a_close_look_finds_nothing_that_a_glance_missed(seed, spared, monkeypatch):
    glanced = run(sketch(seed), seed)
    assert spared["applications"] + spared["slots"] > 0
    monkeypatch.setattr(tend, "is_at_rest", lambda *_: False)
    monkeypatch.setattr(tend, "well_slots", lambda *_: set())
    assert run(sketch(seed), seed) == glanced


def test_both_shortcuts_are_taken(spared):
    for seed in (5_000, 5_001, 5_002):
        run(sketch(seed), seed)
    assert min(spared.values()) > 10


def test_a_glance_that_sees_too_little_is_caught(monkeypatch):
    """The comparison can fail: whoever takes everything for well never gives up a silent node."""
    well = {seed: run(sketch(seed), seed) for seed in (5_000, 5_001)}
    monkeypatch.setattr(
        tend, "well_slots", lambda _, slots, held_by: {slot.name for slot in slots if held_by[slot.name]}
    )
    assert all(run(sketch(seed), seed).trace != verdict.trace for seed, verdict in well.items())
