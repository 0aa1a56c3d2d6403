"""What the machine tells of a worker: the most memory it had, how hot the machine gets, and what it used of its energy.

Energy is counted by the machine, not by the process: Intel's and AMD's RAPL counters, or a sensor that counts or tells
power. A worker's part of it is its part of the processor time that was used meanwhile, which leaves out what an idle
machine would use for it and what an accelerator uses. Where nothing may be read, nothing is told.
"""

from __future__ import annotations

import re
import time
from pathlib import Path
from typing import Final

PLAUSIBLE_C: Final = (-40.0, 150.0)
"""Sensors that are not connected answer nonsense."""
BUSY: Final = (0, 1, 2, 5, 6, 7)
"""Of the columns of /proc/stat: user, nice, system, irq, softirq, steal."""
TICKS_A_SECOND: Final = 100


class Sensors:
    """Looked at every second or so; each look adds to what was there before."""

    def __init__(self, root: Path = Path("/")) -> None:
        self._root = root
        self.memory_bytes: int | None = None
        self.temperature_c: float | None = None
        self.energy_j: float | None = None
        self._zones = tuple(sorted((root / "sys/class/thermal").glob("thermal_zone*/temp")))
        rapl = sorted((root / "sys/class/powercap").glob("intel-rapl:*/energy_uj"))
        packages = [path for path in rapl if path.parent.name.count(":") == 1]
        sensors = root / "sys/class/hwmon"
        counters = packages or sorted(sensors.glob("hwmon*/energy1_input"))
        self._counters = tuple(path for path in counters if _number(path) is not None)
        powers = sorted({*sensors.glob("hwmon*/power1_average"), *sensors.glob("hwmon*/power1_input")})
        self._powers = () if self._counters else tuple(path for path in powers if _number(path) is not None)
        self._before: tuple[float, float, float, dict[Path, int]] | None = None
        if self._counters or self._powers:
            self.energy_j = 0.0

    def look(self) -> None:
        if (peak_bytes := _peak_bytes(self._root)) is not None:
            self.memory_bytes = max(peak_bytes, self.memory_bytes or 0)
        zones = (value / 1000 for zone in self._zones if (value := _number(zone)) is not None)
        known = [c for c in zones if PLAUSIBLE_C[0] <= c <= PLAUSIBLE_C[1]]
        known += [self.temperature_c] if self.temperature_c is not None else []
        self.temperature_c = max(known, default=None)
        if self.energy_j is not None:
            self.energy_j += self._used()

    def _used(self) -> float:
        """Joules that were this process's since the last look."""
        now, own, busy = time.monotonic(), time.process_time(), _busy_s(self._root)
        counted = {path: value for path in self._counters if (value := _number(path)) is not None}
        before, self._before = self._before, (now, own, busy, counted)
        if before is None or busy <= before[2]:
            return 0.0
        part = min(1.0, max(0.0, own - before[1]) / (busy - before[2]))
        microjoules = 0.0
        for path, value in counted.items():
            if (since := before[3].get(path)) is not None:
                # A counter that ran over begins again at 0.
                round_of = _number(path.with_name("max_energy_range_uj")) or 0
                microjoules += value - since if value >= since else max(0, round_of - since + value)
        microjoules += sum(_number(path) or 0 for path in self._powers) * (now - before[0])
        return part * microjoules / 1e6


def _number(path: Path) -> int | None:
    try:
        return int(path.read_text("ascii")[:40])
    except (OSError, ValueError):
        return None


def _busy_s(root: Path) -> float:
    try:
        words = (root / "proc/stat").read_text("ascii").split("\n", 1)[0].split()[1:]
        return sum(int(words[i]) for i in BUSY if i < len(words)) / TICKS_A_SECOND
    except (OSError, ValueError):
        return 0.0


def _peak_bytes(root: Path) -> int | None:
    try:
        found = re.search(rb"^VmHWM:\s+(\d+) kB", (root / "proc/self/status").read_bytes(), re.MULTILINE)
    except OSError:
        return None
    return int(found[1]) * 1024 if found else None
