"""What a broker in memory holds: rows, pages, and how far each follower of a log has come."""

from __future__ import annotations

import asyncio
from collections import deque
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Final

from batuta.errors import Stale
from batuta.fabric.base import Appended, Entry, LogEntry

DEDUPLICATION_S: Final = 120.0


def matches(pattern: str, subject: str) -> bool:
    """Whether `subject` falls under `pattern`: `*` is one level, a last `>` is one or more."""
    wanted, levels = pattern.split("."), subject.split(".")
    for i, level in enumerate(wanted):
        if level == ">":
            return len(levels) > i
        if i >= len(levels) or level not in ("*", levels[i]):
            return False
    return len(levels) == len(wanted)


def is_under(prefix: str, key: str) -> bool:
    """A watch's prefix: "" is all keys, `a.` all below `a`, anything else one whole key."""
    return not prefix or key == prefix or (prefix.endswith(".") and key.startswith(prefix))


def now_s() -> float:
    return asyncio.get_running_loop().time()


# --- What the broker holds ------------------------------------------------------------------------------------------


class Bell:
    """Wakes everyone who waits, each once per ring however many rings there were."""

    def __init__(self) -> None:
        self._waiting: set[asyncio.Event] = set()

    def ring(self) -> None:
        for event in tuple(self._waiting):
            event.set()

    async def wait(self, timeout_s: float | None = None) -> None:
        event = asyncio.Event()
        self._waiting.add(event)
        try:
            with suppress(TimeoutError):
                async with asyncio.timeout(timeout_s):
                    await event.wait()
        finally:
            self._waiting.discard(event)


@dataclass(slots=True)
class Rows:
    rows: dict[str, Entry] = field(default_factory=dict)
    revision: int = 0
    changed: Bell = field(default_factory=Bell)

    def write(self, key: str, value: bytes | None, revision: int | None) -> int:
        row = self.rows.get(key)
        newest = row.revision if row and row.value is not None else 0
        # A deleted row still has a revision; writing against it is as good as creating.
        accepted = (newest,) if newest else (0, row.revision if row else 0)
        if revision is not None and revision not in accepted:
            raise Stale(f"{key} is at revision {newest}, not {revision}")
        self.revision += 1
        self.rows[key] = Entry(key, value, self.revision)
        self.changed.ring()
        return self.revision


@dataclass(slots=True)
class Follower:
    next_sequence: int = 1
    # Sequence to (when it may be handed out again, how often it was).
    lent: dict[int, tuple[float, int]] = field(default_factory=dict)


@dataclass(slots=True)
class Pages:
    entries: deque[LogEntry] = field(default_factory=lambda: deque(maxlen=1_000_000))
    sequence: int = 0
    recent: dict[str, tuple[int, float]] = field(default_factory=dict)
    followers: dict[str, Follower] = field(default_factory=dict)
    changed: Bell = field(default_factory=Bell)

    def append(self, key: str, data: bytes, msg_id: str | None) -> Appended:
        at_s = now_s()
        if msg_id is not None:
            self.recent = {k: v for k, v in self.recent.items() if v[1] > at_s - DEDUPLICATION_S}
            if msg_id in self.recent:
                return Appended(self.recent[msg_id][0], duplicate=True)
            self.recent[msg_id] = (self.sequence + 1, at_s)
        self.sequence += 1
        self.entries.append(LogEntry(self.sequence, key, data, int(at_s * 1000)))
        self.changed.ring()
        return Appended(self.sequence, duplicate=False)

    def after(self, sequence: int, limit: int) -> list[LogEntry]:
        out: list[LogEntry] = []
        for entry in self.entries:
            if len(out) == limit:
                break
            if entry.sequence > sequence:
                out.append(entry)
        return out

    def at(self, sequence: int) -> LogEntry | None:
        return next(iter(self.after(sequence - 1, 1)), None)
