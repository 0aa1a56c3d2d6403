"""Time on a node: instants that look like the wall clock's and never step.

Cheap machines have no battery for their clock: they boot in 1970 and jump by decades, or are set back a day. What
waits, backs off or holds a lease must not notice. So instants here are the wall clock at one moment plus what the
monotonic clock counted since; when the two part, the loop shifts every instant it keeps by the difference and
follows.

The monotonic clock must count the time a machine sleeps: a lease that lapsed in a closed laptop has lapsed.
"""

from __future__ import annotations

import time
from pathlib import Path
from typing import TYPE_CHECKING, Final

from batuta.fabric.clock import SystemClock

if TYPE_CHECKING:
    from batuta.fabric.clock import Clock

DRIFT_MS: Final = 500
"""Less than this is the clock being kept right, and not worth touching anything."""
JUMP_MS: Final = 5_000
"""More than this at once is a jump, and is reported."""


class MachineClock(SystemClock):
    """The system's clock, with a monotonic one that goes on while the machine sleeps."""

    def monotonic(self) -> float:
        return time.clock_gettime(time.CLOCK_BOOTTIME)


class Steady:
    """Instants in milliseconds, anchored once to the wall clock."""

    def __init__(self, clock: Clock) -> None:
        self.clock = clock
        self._anchor = clock.now() - self.monotonic_ms()

    def monotonic_ms(self) -> int:
        return int(self.clock.monotonic() * 1000)

    def now(self) -> int:
        return self._anchor + self.monotonic_ms()

    def apart_ms(self) -> int:
        """How far the wall clock is ahead of ours."""
        return self.clock.now() - self.now()

    def follow(self) -> int:
        """Take the wall clock's word again; returns the shift that every instant kept so far needs."""
        shift = self.apart_ms()
        self._anchor += shift
        return shift


def machine_boot() -> str:
    """Which run of the machine this is: monotonic instants and process ids mean something only within one."""
    try:
        return Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii").strip()
    except OSError:
        return ""
