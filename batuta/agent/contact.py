"""The last contact with the hub, kept through a crash of the agent for what must never run twice.

A lease counts from the last answered heartbeat. What has one ends with its agent; an agent that was killed and came
back a second later, while the hub is out of reach, must know that instant to start it again. The ledger is flushed to
flash and must not be written every second; this note is neither: it is rewritten only while something with a lease is
here, never flushed, and means nothing after a boot.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pathlib import Path


class ContactNote:
    """One line: which run of the machine, and what its monotonic clock said."""

    def __init__(self, path: Path, machine_boot: str) -> None:
        self.path = path
        self.machine_boot = machine_boot
        self.unwritten = 0
        """Times it could not be written; then after a crash what has a lease waits for the hub, and nothing worse."""

    def write(self, sent_ms: int) -> None:
        new = self.path.with_suffix(".new")
        try:
            new.write_text(f"{self.machine_boot} {sent_ms}\n", encoding="ascii")
            new.replace(self.path)
        except OSError:
            self.unwritten += 1

    def read(self, now_ms: int) -> int | None:
        """The instant on the monotonic clock; None when there is none of this boot, or it makes no sense."""
        try:
            words = self.path.read_text(encoding="ascii").split()
            boot, sent_ms = words[0], int(words[1])
        except (OSError, ValueError, IndexError):
            return None
        return sent_ms if self.machine_boot and boot == self.machine_boot and 0 <= sent_ms <= now_ms else None
