"""A real hub records what it decides; the present code decides the same again, and other code is found out."""

from __future__ import annotations

import gzip
from typing import TYPE_CHECKING

import msgspec

import batuta.core.tend
from batuta.core.observed import InstanceReport
from batuta.fabric.memory import MemoryBroker
from batuta.hub.counters import Counters
from batuta.hub.recording import Recording
from batuta.kinds import manifest
from batuta.twin.replay import replay
from batuta.twin.replay_frames import Begin, Turn, frames, to_line
from batuta.twin.replay_rows import rows_of, state_of
from tests.hub.hubs import PROCESS_APP, Voice, join, running

if TYPE_CHECKING:
    from pathlib import Path

    import pytest

    from batuta.core.decided import Instance
    from batuta.hub.hub import Hub
    from batuta.twin.replay_frames import Frame


def read(recording: Recording) -> list[Frame]:
    return [frame for file in recording.files() for frame in read_one(file)]


def read_one(file: Path) -> list[Frame]:
    with gzip.open(file, "rb") as lines:
        return list(frames(lines, file.name))


def ready(instance: Instance) -> InstanceReport:
    return InstanceReport(name=instance.name, epoch=instance.epoch, phase="ready", since=1)


async def settled(hub: Hub) -> None:
    """Until nothing is left to decide on what was said so far."""
    seen = -1
    while seen != hub.counters["decisions"]:
        seen = hub.counters["decisions"]
        await hub.loop.turn()


async def a_life(hub: Hub, broker: MemoryBroker) -> None:
    """Two nodes come, three replicas are placed and get ready, and then there is a newer version."""
    voices = []
    for name in ("pi-1", "pi-2"):
        await join(hub, name)
        voices.append(Voice(broker, name))
        await voices[-1].report()
        await voices[-1].beat()
    app = PROCESS_APP.replace("NAME", "sleeper").replace("count: 1", "count: 3")
    for command in ("1000", "2000"):
        await hub.declarations.apply(manifest.parse(app.replace("1000", command)))
        for _ in range(8):
            await settled(hub)
            for voice in voices:
                assignment = hub.loop.state.assignments.get(voice.name)
                if assignment is None:
                    continue
                await voice.report(serial=assignment.serial, instances=tuple(map(ready, assignment.instances)))
                await voice.beat()
                while hub.loop.state.observed[voice.name].serial != assignment.serial:
                    await hub.loop.turn()
    await settled(hub)
    await hub.recording.flush()


async def test_the_present_code_decides_what_was_recorded(tmp_path: Path) -> None:
    broker = MemoryBroker()
    async with running(tmp_path, broker) as hub:
        await a_life(hub, broker)
        state = hub.loop.state
        found = replay(read(hub.recording))
    assert found.parted == ()
    assert found.is_whole
    assert found.turns > 10
    assert found.decided >= 3 + 3 + 2, "three placements, three replacements, two releases"
    assert {i.revision for h in state.held["default/sleeper"] for i in [h.instance]} == {2}


async def test_other_code_is_found_out_at_its_first_decision_that_differs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    broker = MemoryBroker()
    async with running(tmp_path, broker) as hub:
        await a_life(hub, broker)
        recorded = read(hub.recording)
    # A change of code as somebody might make it: nobody is waited for any more before the next is replaced.
    monkeypatch.setattr(batuta.core.tend, "_unready", lambda *_: "")
    found = replay(recorded)
    [first] = found.parted
    assert not found.is_whole
    turn = [f for f in recorded if isinstance(f, Turn)][first.turn - 1]
    assert turn.at == first.at
    assert first.key.startswith("assignment.pi-")
    assert first.fields
    more = replay(recorded, differences_max=1000)
    assert more.is_whole
    assert len(more.parted) > 1


async def test_a_field_that_was_decided_otherwise_is_named(tmp_path: Path) -> None:
    broker = MemoryBroker()
    async with running(tmp_path, broker) as hub:
        await a_life(hub, broker)
        recorded = read(hub.recording)
    for n, frame in enumerate(recorded):
        if isinstance(frame, Turn) and frame.decided and b'"instances":' in bytes(frame.decided[0].value):
            row = frame.decided[0]
            value = msgspec.json.decode(row.value)
            value["instances"][0]["memory"] = "65Mi"
            tampered = msgspec.structs.replace(row, value=msgspec.Raw(msgspec.json.encode(value)))
            recorded[n] = msgspec.structs.replace(frame, decided=(tampered, *frame.decided[1:]))
            break
    [first] = replay(recorded).parted
    assert [(f.path, f.before, f.after) for f in first.fields] == [("instances[0].memory", "65Mi", "64Mi")]


async def test_each_life_of_a_hub_is_a_stretch_of_its_own(tmp_path: Path) -> None:
    broker = MemoryBroker()
    async with running(tmp_path, broker) as hub:
        await a_life(hub, broker)
    async with running(tmp_path, broker) as hub:
        await settled(hub)
        await hub.recording.flush()
        recorded = read(hub.recording)
    assert len([f for f in recorded if isinstance(f, Begin)]) == 2
    found = replay(recorded)
    assert (found.stretches, found.parted) == (2, ())


async def test_the_ring_keeps_within_its_room_and_every_file_of_it_can_be_replayed(tmp_path: Path) -> None:
    broker = MemoryBroker()
    bytes_max = 16_384
    async with running(tmp_path, broker, recording_bytes_max=bytes_max) as hub:
        await join(hub, "pi-1")
        voice = Voice(broker, "pi-1")
        await voice.report()
        await voice.beat()
        for n in range(60):
            app = PROCESS_APP.replace("NAME", f"sleeper-{n}")
            await hub.declarations.apply(manifest.parse(app))
            await settled(hub)
            await hub.recording.flush()
        files = hub.recording.files()
        assert files[0].name != f"{1:08d}.jsonl.gz", "the oldest went"
        sizes = [file.stat().st_size for file in files]
        assert sum(sizes) <= bytes_max + max(sizes)
        for file in files:
            found = replay(read_one(file))
            assert found.parted == ()
            assert found.stretches == 1
        assert hub.counters["recording_gaps"] == 0


async def test_a_recording_that_cannot_be_written_costs_a_counted_gap_and_nothing_else(tmp_path: Path) -> None:
    broker = MemoryBroker()
    async with running(tmp_path, broker) as hub:
        await settled(hub)
        await hub.recording.flush()
        for file in hub.recording.files():
            file.unlink()
        hub.recording.directory.rmdir()
        hub.recording.directory.write_text("in the way")
        await a_life(hub, broker)
        assert hub.counters["recording_gaps"] > 0
        hub.recording.directory.unlink()
        await join(hub, "pi-3")
        await settled(hub)
        await hub.recording.flush()
        found = replay(read(hub.recording))
        assert found.turns > 0
        assert found.parted == ()


def test_a_torn_last_line_is_the_end() -> None:
    begin = Begin(at=1, hub_since=0, rows=0)
    whole = [to_line(begin), to_line(Turn(at=2))]
    assert list(frames([*whole, to_line(Turn(at=3))[:-5]])) == [begin, Turn(at=2)]


async def test_a_state_is_read_back_as_it_was_written(tmp_path: Path) -> None:
    broker = MemoryBroker()
    async with running(tmp_path, broker) as hub:
        await a_life(hub, broker)
        state = hub.loop.state
        again = state_of(rows_of(state), state.hub_since)
    for table in ("desired", "decided", "observed", "sightings", "held", "nodes_of_site"):
        assert getattr(again, table) == getattr(state, table), table


def test_nothing_is_recorded_when_nothing_may_be(tmp_path: Path) -> None:
    recording = Recording(tmp_path / "recording", Counters(), bytes_max=0)
    recording.open()
    recording.heard([])
    assert recording.files() == []
