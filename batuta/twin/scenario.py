"""Scenario: a fleet, what people ask of it and when, what goes wrong, and what must be so by when."""

from __future__ import annotations

from typing import Literal

from batuta.kinds import AnyResource
from batuta.kinds.base import Record, Ref
from batuta.twin.physics import Physics

FaultKind = Literal[
    "node_crash",
    "agent_crash",
    "partition",
    "site_partition",
    "loss",
    "duplication",
    "reordering",
    "delay",
    "clock_jump",
    "hub_restart",
    "hub_torn",
    "exit",
]


class Machine(Record):
    """A node's hardware."""

    name: str
    site: str
    cpu_millis: int = 4_000
    memory_bytes: int = 2 * 2**30
    runtimes: tuple[str, ...] = ("process", "onnx")
    drift_ppm: int = 0
    """How much faster than true its clock runs."""
    clock_ahead_ms: int = 0


class Edit(Record):
    """What people do at an instant: apply a resource, or delete the one called so."""

    at_ms: int
    apply: AnyResource | None = None
    delete: Ref | None = None


class Fault(Record):
    """One thing that goes wrong. `target`: a node, a site, or nothing for the hub; `amount` in the kind's own unit."""

    kind: FaultKind
    at_ms: int
    for_ms: int = 0
    target: str = ""
    amount: int = 0
    """permille of messages (loss, duplication, reordering), milliseconds (delay, clock_jump), rows (hub_torn); for a
    partition, 1 cuts the node from its neighbours too."""


class Expectation(Record):
    """By this instant so many instances of the application are ready."""

    at_ms: int
    application: str
    """`namespace/name`."""
    ready: int


class Scenario(Record):
    """Everything a run needs but its seed. Instants are milliseconds from its begin."""

    name: str
    machines: tuple[Machine, ...]
    edits: tuple[Edit, ...]
    faults: tuple[Fault, ...] = ()
    """These happen in every run."""
    rates: dict[FaultKind, int] = {}
    """And so many of these in an hour, drawn anew for every seed."""
    expectations: tuple[Expectation, ...] = ()
    physics: Physics = Physics()
    duration_ms: int = 300_000
    """The phase with faults; afterwards links heal and machines come back."""
    settle_ms: int = 400_000
    """How long a healed fleet may take until all is as wished."""
    lost: tuple[str, ...] = ()
    """Nodes that do not come back when the others do."""
