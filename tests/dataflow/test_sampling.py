"""What a worker counts for gates: exact where it can be, bounded always, and going on where the last run ended."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from batuta.core.evidence import latency_bucket
from batuta.core.sample import CONFIDENCE_BINS, Sample
from batuta.core.worker import PULSE_FILE
from batuta.dataflow.oip.datatypes import Port
from batuta.dataflow.sampling import Sampling, sample_before, sureness
from batuta.dataflow.sensors import Sensors
from batuta.dataflow.tally import Tally
from batuta.tuning import sketch

SCORES = (Port("scores", "FP32", (-1, 3)),)


class Clock:
    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


def test_it_goes_on_where_the_last_run_ended(tmp_path: Path) -> None:
    path = tmp_path / PULSE_FILE
    first = Tally(path, 1)
    for took_ms in (1.0, 1.0, 50.0):
        first.answered_after(took_ms)
    first.errors += 1
    first.beat("ready")
    second = Tally(path, 2)
    second.beat("loading")  # killed here, what it was told is not forgotten
    third = Tally(path, 3)
    third.answered_after(1.0)
    third.beat("ready")
    found = sample_before(path)
    assert found is not None
    assert (found.answered, found.errors) == (4, 1)
    assert found.latency == {latency_bucket(1.0): 3, latency_bucket(50.0): 1}
    assert found.memory_bytes is not None
    assert found.memory_bytes > 1 << 20


def test_nothing_before_is_nothing_counted(tmp_path: Path) -> None:
    assert sample_before(tmp_path / PULSE_FILE) is None
    (tmp_path / PULSE_FILE).write_bytes(b"no pulse")
    assert Tally(tmp_path / PULSE_FILE, 1).sample.answered == 0


@pytest.mark.parametrize(
    ("outputs", "bins"),
    [
        ([np.array([[0.1, 0.9, 0.0], [0.5, 0.25, 0.25]])], [18, 10]),
        ([np.array([[0.0, 0.0, 100.0], [1.0, 1.0, 1.1]])], [19, 7]),
        ([[{0: 0.2, 1: 0.8}, {0: 0.99, 1: 0.01}]], [16, 19]),
        ([np.array([[np.nan, 0.0, 0.0], [1.0, 0.0, 0.0]], np.float32)], [19]),
        ([np.array([1, 2]), np.array([[0.2, 0.3, 0.5], [0.4, 0.3, 0.3]], np.float32)], [10, 8]),
        ([np.array([[0.1], [0.2]])], None),
        ([np.array(["a", "b"])], None),
    ],
    ids=["shares", "logits", "maps", "nonsense", "beside-labels", "a-number", "words"],
)
def test_how_sure_a_model_is(outputs: list[Any], bins: list[int] | None) -> None:
    ports = [Port("y", "FP32", (-1, 3))] * len(outputs)
    found = sureness(outputs, 2, ports)
    assert found == bins


def test_looking_is_bounded_whatever_comes() -> None:
    clock = Clock()
    sampling = Sampling(clock=clock)
    sampling.sketch = sketch.made({"x": np.random.default_rng(1).normal(size=(200, 4))})
    assert sampling.sketch is not None
    feeds, scores = {"x": np.zeros((1000, 4))}, [np.full((1000, 3), 1 / 3)]
    for _ in range(50):
        sampling.look(feeds, scores, 1000, SCORES)
    found = sampling.sample(0, 0)
    assert sum(found.confidence) == sum(found.inputs) == 256, "one look in an instant, and not at every row"
    assert found.reference == sampling.sketch.counts
    clock.now += 1
    sampling.look(feeds, scores, 2, SCORES)
    assert sum(sampling.sample(0, 0).confidence) == 258, "rows that only fill up are nobody's"
    clock.now += 1
    sampling.look({"x": np.array([["a"]], object)}, [np.array(["b"])], 1, SCORES)
    assert sampling.unseen == 2


def test_time_is_counted_from_the_first_readiness() -> None:
    clock = Clock()
    before = Sample(instance_ms=5_000, confidence=(1,) * CONFIDENCE_BINS)
    sampling = Sampling(before, clock)
    clock.now += 3
    assert sampling.sample(0, 0).instance_ms == 5_000
    sampling.ready()
    clock.now += 2
    sampling.ready()
    assert sampling.sample(0, 0).instance_ms == 7_000
    assert sampling.sample(0, 0).confidence == before.confidence


def test_a_machine_that_tells_nothing(tmp_path: Path) -> None:
    sensors = Sensors(tmp_path)
    sensors.look()
    assert (sensors.memory_bytes, sensors.temperature_c, sensors.energy_j) == (None, None, None)


def test_heat_and_energy_where_they_can_be_told(tmp_path: Path) -> None:
    zone, package = tmp_path / "sys/class/thermal/thermal_zone0", tmp_path / "sys/class/powercap/intel-rapl:0"
    core = tmp_path / "sys/class/powercap/intel-rapl:0:0"
    for each in (zone, package, core, tmp_path / "proc"):
        each.mkdir(parents=True)
    (zone / "temp").write_text("61000\n")
    (package / "max_energy_range_uj").write_text("1000000")
    (core / "energy_uj").write_text("5")

    def at(energy_uj: int, ticks: int) -> None:
        (package / "energy_uj").write_text(f"{energy_uj}\n")
        (tmp_path / "proc/stat").write_text(f"cpu {ticks} 0 0 9 9 0 0 0\n")

    at(500_000, 0)
    sensors = Sensors(tmp_path)
    sensors.look()
    (zone / "temp").write_text("48000\n")
    sum(range(200_000))  # our own processor time
    at(900_000, 100_000)
    sensors.look()
    assert sensors.temperature_c == 61.0
    assert sensors.energy_j is not None
    assert 0 < sensors.energy_j < 0.4, "a part of what was used meanwhile, and not of what is inside the package twice"
    was = sensors.energy_j
    at(100_000, 200_000)  # the counter ran over
    sum(range(200_000))
    sensors.look()
    assert was < sensors.energy_j < was + 0.2
