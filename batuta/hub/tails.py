"""Tails: the last lines of instances, kept at the hub for when their nodes cannot be asked any more.

A machine that dies says no last word, so the words are fetched before: when an instance ends badly, when it has become
ready, and every few minutes besides, only what is new. In a large fleet, and at sites that pay for their traffic, only
what ended badly is fetched. Whatever was shown to somebody is kept too. All of it is bounded; the tail that changed
longest ago is forgotten first. They lie in files that only the hub's user can read, because a hub may die as well.
"""

from __future__ import annotations

import asyncio
import hashlib
from collections import OrderedDict
from typing import TYPE_CHECKING, Final

import msgspec

from batuta.core.liveness import link
from batuta.errors import BatutaError
from batuta.fabric.questions import LogWanted
from batuta.hub.secret_files import write_secret
from batuta.kinds.base import Record

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from batuta.core.observed import InstanceReport, Report
    from batuta.core.state import State
    from batuta.fabric.clock import Clock
    from batuta.hub.counters import Counters
    from batuta.hub.questions import Questions

KEPT_BYTES_MAX: Final = 64 * 1024
"""Of what was shown to somebody."""
FETCHED_BYTES_MAX: Final = 8 * 1024
FETCHED_LINES: Final = 100
KEPT_MAX: Final = 1_000
"""Tails; and a fleet with more instances than this is a large one."""
LOOK_EVERY_MS: Final = 1_000
REFRESH_MS: Final = 300_000
AT_ONCE: Final = 8
"""Questions in one look."""
Key = tuple[str, str]
"""Node and instance."""


class Tail(Record):
    """The end of what an instance printed, as of an instant."""

    node: str
    instance: str
    at: int
    text: str
    offset: int = 0
    """Where what came later begins; 0 when nobody knows."""


class Tails:
    """Keeps them, and fetches them."""

    def __init__(
        self, directory: Path, questions: Questions, clock: Clock, counters: Counters, state: Callable[[], State]
    ) -> None:
        self._directory = directory
        self._questions = questions
        self._clock = clock
        self._counters = counters
        self._state = state
        self._kept: OrderedDict[Key, Tail] = OrderedDict()
        self._dirty: set[Key] = set()
        self._seen: dict[str, Report] = {}
        self._wanted: OrderedDict[Key, None] = OrderedDict()
        """Still to be fetched, the most urgent first."""
        self._fetched_at: dict[Key, int] = {}

    # --- Keeping ---

    def get(self, node: str, instance: str) -> Tail | None:
        return self._kept.get((node, instance))

    def keep(self, node: str, instance: str, text: str, *, adds: bool, offset: int = 0) -> None:
        """What was just printed, or `adds` to what is known. Fewer lines than are known add nothing."""
        before = self._kept.pop((node, instance), None)
        if before is not None and (adds or before.text.endswith(text)):
            text = before.text + text if adds else before.text
        self._kept[node, instance] = Tail(
            node=node, instance=instance, at=self._clock.now(), text=_end_of(text, KEPT_BYTES_MAX), offset=offset
        )
        self._dirty.add((node, instance))
        while len(self._kept) > KEPT_MAX:
            key, _ = self._kept.popitem(last=False)
            self._dirty.add(key)

    def open(self) -> None:
        """What the last hub kept, the newest last."""
        found: list[Tail] = []
        for path in self._directory.glob("*.json"):
            try:
                found.append(msgspec.json.decode(path.read_bytes(), type=Tail))
            except (OSError, msgspec.DecodeError):
                self._counters.add("tails_unreadable")
                path.unlink(missing_ok=True)
        for tail in sorted(found, key=lambda tail: tail.at)[-KEPT_MAX:]:
            # An offset is of one run of the node's log; it is cheaper to ask anew than to trust it.
            self._kept[tail.node, tail.instance] = msgspec.structs.replace(tail, offset=0)

    def flush(self) -> None:
        """Writes down what changed."""
        dirty, self._dirty = self._dirty, set()
        for key in dirty:
            path = self._directory / f"{hashlib.sha256('/'.join(key).encode()).hexdigest()[:32]}.json"
            tail = self._kept.get(key)
            try:
                if tail is None:
                    path.unlink(missing_ok=True)
                else:
                    write_secret(path, msgspec.json.encode(tail).decode())
            except OSError:
                self._counters.add("tails_unwritten")

    # --- Fetching ---

    async def run(self) -> None:
        while True:
            await self._clock.sleep_until(self._clock.now() + LOOK_EVERY_MS)
            await self.look()

    async def look(self) -> None:
        """Once: what has changed, a few questions, and what they brought onto the disk."""
        state = self._state()
        count = sum(len(report.instances) for report in state.observed.values())
        for node, report in state.observed.items():
            if (before := self._seen.get(node)) is not report:
                self._seen[node] = report
                self._want(state, report, before, large=count > KEPT_MAX)
        if count <= KEPT_MAX:
            self._want_again(state)
        for node in self._seen.keys() - state.observed.keys():
            del self._seen[node]
        keys = [self._wanted.popitem(last=False)[0] for _ in range(min(AT_ONCE, len(self._wanted)))]
        await asyncio.gather(*(self._fetch(state, key) for key in keys))
        if self._dirty:
            await asyncio.to_thread(self.flush)

    def _want(self, state: State, report: Report, before: Report | None, *, large: bool) -> None:
        known = {i.name: i for i in before.instances} if before is not None else {}
        quiet = large or _is_metered(state, report.node)
        for instance in report.instances:
            key, was = (report.node, instance.name), known.get(instance.name)
            if _ended_badly(instance) and (was is None or (was.phase, was.starts) != (instance.phase, instance.starts)):
                self._wanted[key] = None
                self._wanted.move_to_end(key, last=False)
            elif not quiet and instance.phase == "ready" and (was is None or was.phase != "ready"):
                self._wanted.setdefault(key)
        while len(self._wanted) > KEPT_MAX:
            self._wanted.popitem()
            self._counters.add("tails_missed", "too_many")

    def _want_again(self, state: State) -> None:
        until = self._clock.now() - REFRESH_MS
        present = set(_instances(state))
        self._fetched_at = {key: at for key, at in self._fetched_at.items() if key in present}
        for key, at in self._fetched_at.items():
            if at <= until and not _is_metered(state, key[0]):
                self._wanted.setdefault(key)

    async def _fetch(self, state: State, key: Key) -> None:
        node, instance = key
        if link(state, node, self._clock.now()) != "online":
            self._counters.add("tails_missed", "away")
            return
        self._fetched_at[key] = self._clock.now()
        tail = self._kept.get(key)
        try:
            if tail is not None and tail.offset:
                wanted = LogWanted(instance=instance, tail=0, offset=tail.offset, bytes_max=FETCHED_BYTES_MAX)
                piece = await self._questions.log_piece(node, wanted)
                if len(piece.text.encode()) < FETCHED_BYTES_MAX // 2:
                    # Each of the two streams may bring half: less than that is all there is.
                    self.keep(node, instance, piece.text, adds=True, offset=piece.offset)
                    return
            wanted = LogWanted(instance=instance, tail=FETCHED_LINES, bytes_max=FETCHED_BYTES_MAX)
            piece = await self._questions.log_piece(node, wanted)
            self.keep(node, instance, piece.text, adds=False, offset=piece.offset)
        except BatutaError:
            self._counters.add("tails_missed", "unanswered")


def _ended_badly(instance: InstanceReport) -> bool:
    return instance.phase in ("backoff", "refused")


def _instances(state: State) -> Iterator[Key]:
    return ((node, instance.name) for node, report in state.observed.items() for instance in report.instances)


def _is_metered(state: State, node: str) -> bool:
    resource = state.nodes.get(node)
    site = state.site(resource.spec.site) if resource is not None else None
    return site is not None and site.spec.uplink.metered


def _end_of(text: str, bytes_max: int) -> str:
    """Whole lines, no more than may be kept."""
    data = text.encode()
    if len(data) <= bytes_max:
        return text
    cut = data[-bytes_max:]
    return cut[cut.find(b"\n") + 1 :].decode(errors="replace")
