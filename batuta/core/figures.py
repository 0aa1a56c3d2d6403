"""Figures: what is known of every node as numbers, one array each, one row a node."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from batuta.core.observed import Report

    Ints = NDArray[np.int64]
    Bools = NDArray[np.bool_]

_BOOLS = ("present", "sighted", "closed", "reported", "schedulable", "drained", "fresh")
_INTS = (
    "heard", "site", "rank", "cpu_total", "cpu_free", "memory_total", "memory_free", "disk_total", "disk_free",
    "instances", "held_until", "since", "restarts", "refused", "drops", "machine", "vitals", "stock", "claimed", "pace",
)  # fmt: skip


class Figures:
    """One row per node, and room for more."""

    present: Bools
    sighted: Bools
    closed: Bools
    reported: Bools
    schedulable: Bools
    drained: Bools
    fresh: Bools
    """Heard of late, its link open: something new may be placed there."""
    heard: Ints
    """From when the hub's own ears count its silence."""
    site: Ints
    """Code of its site, an index into `site_names`."""
    rank: Ints
    """Place among all names, in alphabetical order."""
    cpu_total: Ints
    cpu_free: Ints
    memory_total: Ints
    memory_free: Ints
    disk_total: Ints
    disk_free: Ints
    instances: Ints
    since: Ints
    """From when it has been there without a break."""
    restarts: Ints
    """How often what it runs had to be started again."""
    refused: Ints
    """How many instances it turned down, of those that it was given last."""
    drops: Ints
    """How often its link broke, counted as its Sighting does."""
    held_until: Ints
    """The instant at which its owner's hold ends; 0 without one."""
    machine: Ints
    """Counts the changes of what conditions ask of a node, of its site and of its taints."""
    vitals: Ints
    """Counts the changes of its temperature and battery."""
    stock: Ints
    """Counts the changes of its artifacts, topics and flows."""
    claimed: Ints
    """Counts the changes of what its instances have for themselves."""
    pace: Ints
    """Counts the changes of what its models measure of themselves."""

    def widen(self, capacity: int) -> None:
        """Make room for so many rows; new ones are zero."""
        for name, dtype in [(n, np.bool_) for n in _BOOLS] + [(n, np.int64) for n in _INTS]:
            column = np.zeros(capacity, dtype)
            before = getattr(self, name, column[:0])
            column[: len(before)] = before
            setattr(self, name, column)


def troubles(report: Report | None) -> tuple[int, int]:
    """How often a node had to start things again, and how many it turned down."""
    if report is None:
        return 0, 0
    return sum(max(0, i.starts - 1) for i in report.instances), sum(i.phase == "refused" for i in report.instances)
