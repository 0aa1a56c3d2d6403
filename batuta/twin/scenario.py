"""Scenario: a fleet, what people ask of it and when, what goes wrong, and what must be so by when."""

from __future__ import annotations

from typing import Literal

from batuta.kinds import AnyResource, Site
from batuta.kinds.base import Record, Ref
from batuta.kinds.scenario import Expectation as Expected
from batuta.kinds.scenario import MadeAccelerator, RolloutAsk
from batuta.kinds.truth import Truth
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
    "hub_stall",
    "exit",
    "flapping",
    "reconnect_storm",
    "disk_full",
    "disk_slow",
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
    disk_bytes: int = 2**34
    architecture: str = "x86_64"
    accelerators: tuple[MadeAccelerator, ...] = ()
    labels: dict[str, str] = {}
    hardware: str = ""
    """Its class of hardware, as it reports it."""
    latency_ms: tuple[int, int] | None = None
    """One way to the hub; as the physics say when left out."""
    bandwidth_bps: int | None = None


class Demand(Record):
    """How much work comes to a component: so many replicas would be just enough, drawn anew every so often."""

    least: int
    most: int
    every_ms: int = 20_000


class Edit(Record):
    """What people do at an instant: apply a resource, delete the one called so, or ask something of a rollout."""

    at_ms: int
    apply: AnyResource | None = None
    delete: Ref | None = None
    rollout: RolloutAsk | None = None
    """Its application as `namespace/name`."""


class Fault(Record):
    """One thing that goes wrong. `target`: a node, a site, or nothing for the hub; `amount` in the kind's own unit."""

    kind: FaultKind
    at_ms: int
    for_ms: int = 0
    target: str = ""
    amount: int = 0
    """permille of messages (loss, duplication, reordering), milliseconds (delay, clock_jump, the period of flapping),
    rows (hub_torn), times slower (disk_slow); for a partition, 1 cuts the node from its neighbours too."""


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
    demands: dict[str, Demand] = {}
    """By `namespace/name/component`: the work that comes; nothing is measured of those that are not named."""
    truths: tuple[Truth, ...] = ()
    """What versions are like where they run."""
    physics: Physics = Physics()
    duration_ms: int = 300_000
    """The phase with faults; afterwards links heal and machines come back."""
    settle_ms: int = 400_000
    """How long a healed fleet may take until all is as wished."""
    lost: tuple[str, ...] = ()
    """Nodes that do not come back when the others do."""
    sites: tuple[Site, ...] = ()
    """Those of which more is known than that nodes are there."""
    expected: tuple[Expected, ...] = ()
    """What must be so, phase by phase."""
    look_ms: int = 0
    """Between two looks at the figures; none when zero."""

    @property
    def longest_delay_ms(self) -> int:
        """How long a fault may hold up a message, at most."""
        drawn = 8_000 if "delay" in self.rates else 0
        return max([drawn, *(f.amount for f in self.faults if f.kind == "delay")])
