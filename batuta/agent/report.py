"""Report: what the node says about itself, said when it matters and no more often.

A change is told within 200 ms, together with whatever else changes meanwhile; without a change, every 15 s. What
varies all the time (vitals, measures, books, ages) rides along and never causes a report. One report is on its way at
a time; the next carries everything that happened meanwhile, so a slow link gets fewer reports, not a queue of them.
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any, Final

import msgspec

from batuta.core.observed import Report
from batuta.errors import FabricUnavailable
from batuta.fabric import subjects
from batuta.kinds.base import encode_hook

if TYPE_CHECKING:
    from collections.abc import Callable

    from batuta.core.observed import InstanceReport
    from batuta.core.reasons import Reason
    from batuta.fabric.base import Fabric

COALESCE_MS: Final = 200
RETRY_MS: Final = 1_000
WATCHED_MS: Final = 5_000
"""While something is on trial or on probation, a report comes at least so often."""
MOST_BYTES: Final = 512 * 1024
MOST_ARTIFACTS: Final = 2_048
MOST_NAMED: Final = 256
MOST_PROBLEMS: Final = 32

_encoder = msgspec.json.Encoder(enc_hook=encode_hook)


class Reporter:
    """Knows what the hub was told last, and when to tell it again."""

    def __init__(self, fabric: Fabric, on_sent: Callable[[], None], *, every_ms: int = 15_000) -> None:
        self.fabric = fabric
        self.on_sent = on_sent
        """Called when a report has arrived or was given up: the next may go."""
        self.every_ms = every_ms
        self.sequence = 0
        self.sent = 0
        self.unsent = 0
        """Reports that could not be delivered; each was followed by a newer one."""
        self._told: Any = None
        self._offered: Any = None
        self.due_at = 0
        self._sending: asyncio.Task[None] | None = None

    def offer(self, report: Report, now: int) -> None:
        """Look at what would be said now; a change brings the next report near."""
        what = _what_matters(report)
        if what != self._offered:
            self._offered = what
            if what != self._told:
                self.due_at = min(self.due_at, now + COALESCE_MS)

    def again(self, now: int) -> None:
        """The link is back: whatever was said into the void is said again, with no more waiting for an answer."""
        if self._sending is not None:
            self._sending.cancel()
        self._told = None
        self.due_at = min(self.due_at, now)

    def asked(self, now: int) -> None:
        """The hub misses a neighbour: what is heard here is wanted now."""
        self.due_at = min(self.due_at, now)

    def shift(self, by_ms: int) -> None:
        self.due_at += by_ms

    def wake_at(self) -> int | None:
        """When to look again; None while one is on its way, because its end wakes the loop."""
        return self.due_at if self._sending is None or self._sending.done() else None

    def is_due(self, now: int) -> bool:
        return now >= self.due_at and (self._sending is None or self._sending.done())

    def send(self, report: Report, now: int, *, watched: bool = False) -> None:
        """Put it on its way; the next follows sooner when something is watched. Failing to deliver brings it near."""
        self.sequence += 1
        self._told = self._offered = _what_matters(report)
        report = bounded(msgspec.structs.replace(report, sequence=self.sequence, at=now))
        self.due_at = now + (min(self.every_ms, WATCHED_MS) if watched else self.every_ms)
        self._sending = asyncio.create_task(self._send(report, now))

    async def _send(self, report: Report, now: int) -> None:
        key = subjects.report_key(report.node)
        try:
            await self.fabric.table("observed").put(key, _encoder.encode(report))
        except FabricUnavailable:
            self.unsent += 1
            self._told = None
            self.due_at = min(self.due_at, now + RETRY_MS)
        else:
            self.sent += 1
        finally:
            # The task must be over before the loop looks.
            asyncio.get_running_loop().call_soon(self.on_sent)

    async def flush(self) -> None:
        """Wait for the report that is on its way."""
        if self._sending is not None:
            await asyncio.wait([self._sending])


def _what_matters(report: Report) -> Any:
    """All but what varies by itself."""
    return (
        report.serial, report.inventory, report.artifacts, report.address, report.mqtt, report.inference,
        report.problems, report.profiles,
        tuple(msgspec.structs.replace(instance, measures=None) for instance in report.instances),
        tuple((flow.consumer, flow.shed, flow.reason) for flow in report.flows),
        frozenset(report.hears),
    )  # fmt: skip


def bounded(report: Report) -> Report:
    """A report that the fabric carries whatever happens: lists are cut, and then what the hub decides least by."""
    report = msgspec.structs.replace(
        report,
        artifacts=report.artifacts[:MOST_ARTIFACTS],
        problems=tuple(_short(problem) for problem in report.problems[:MOST_PROBLEMS]),
        hears=dict(sorted(report.hears.items(), key=lambda pair: pair[1])[:MOST_NAMED]),
        topics=dict(sorted(report.topics.items())[:MOST_NAMED]),
        topic_bytes=dict(sorted(report.topic_bytes.items())[:MOST_NAMED]),
        flows=report.flows[:MOST_NAMED],
    )
    if len(_encoder.encode(report)) > MOST_BYTES:
        report = msgspec.structs.replace(report, instances=tuple(_without_sample(i) for i in report.instances))
    if len(_encoder.encode(report)) > MOST_BYTES:
        slim = tuple(
            msgspec.structs.replace(i, measures=None, reason=_short(i.reason) if i.reason else None)
            for i in report.instances
        )
        report = msgspec.structs.replace(report, instances=slim, flows=(), mesh=None)
    return report


def _without_sample(instance: InstanceReport) -> InstanceReport:
    if instance.measures is None:
        return instance
    return msgspec.structs.replace(instance, measures=msgspec.structs.replace(instance.measures, sample=None))


def _short(reason: Reason) -> Reason:
    return msgspec.structs.replace(reason, detail=reason.detail[:300])
