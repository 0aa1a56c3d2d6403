"""Observed: what nodes say is so. One writer each: a node writes its own Report and nothing else.

A Report is state, not an event: the latest one wins and says everything the hub decides by.
"""

from __future__ import annotations

from typing import Literal

import msgspec

from batuta.core.reasons import Reason
from batuta.core.sample import Sample
from batuta.kinds.base import Bytes, Millicores, Record
from batuta.kinds.hardware import Precision

Phase = Literal["waiting", "fetching", "proving", "starting", "ready", "unready", "backoff", "stopping", "refused"]
"""What an instance is doing. `refused`: trying again would give the same answer; a new order is needed."""


class Accelerator(Record):
    """A GPU, NPU or TPU."""

    kind: str
    name: str = ""
    memory_bytes: Bytes = msgspec.field(default_factory=lambda: Bytes(0), name="memory")


class Inventory(Record):
    """What a machine is and has; capacity is what instances may share, after the node agent's own needs."""

    architecture: str = ""
    cpu_millis: Millicores = msgspec.field(default_factory=lambda: Millicores(0), name="cpu")
    memory_bytes: Bytes = msgspec.field(default_factory=lambda: Bytes(0), name="memory")
    disk_bytes: Bytes = msgspec.field(default_factory=lambda: Bytes(0), name="disk")
    accelerators: tuple[Accelerator, ...] = ()
    runtimes: tuple[str, ...] = ()
    """`process`, `onnx`, …: what this node can run."""
    os: str = ""
    kernel: str = ""
    hostname: str = ""
    hardware: str = ""
    """Its class of hardware, in lower case and dashes: `raspberry-pi-4-model-b`."""
    devices: tuple[str, ...] = ()
    """Paths of what is attached: cameras, serial lines, buses."""
    opsets: dict[str, int] = {}
    """By runtime: the newest operator set it knows, where that can be told."""
    precisions: tuple[Precision, ...] = ()
    """In which its processor computes, where that can be told."""
    engines: dict[str, str] = {}
    """By runtime: the program that runs it here, and its version: `podman 4.3.1`."""
    link: str = ""
    """The interface of the default route, its kind and speed: `eth0 ethernet 1000 Mbit/s`."""
    agent_version: str = ""


class Vitals(Record):
    """What changes by the minute; None where the machine cannot tell."""

    cpu_percent: float | None = None
    memory_free_bytes: Bytes | None = msgspec.field(default=None, name="memoryFree")
    disk_free_bytes: Bytes | None = msgspec.field(default=None, name="diskFree")
    temperature_c: float | None = None
    battery_percent: float | None = None
    agent_rss_bytes: Bytes | None = msgspec.field(default=None, name="agentRss")
    broker_rss_bytes: Bytes | None = msgspec.field(default=None, name="brokerRss")


class Handover(Record):
    """What a worker counts of the new release on trial beside it, which counts its answers itself."""

    to: str
    """The instance that was there last."""
    shown: int = 0
    """In shadow: messages and requests that it was given, with the answers."""
    dropped: int = 0
    """And those that it was not, because it did not keep up or was gone."""
    asked: int = 0
    """In split: those that it was to answer."""
    answered: int = 0
    late: int = 0
    """Answered here, because it took too long, or had so often that it was not asked."""
    failed: int = 0
    """Answered here, because it could not."""
    lost: int = 0
    """Answered here, because it was gone."""


class Measures(Record):
    """Counters since the instance's start, and quantiles of its last minute."""

    received: int = 0
    answered: int = 0
    errors: int = 0
    latency_p50_ms: float | None = None
    latency_p99_ms: float | None = None
    rss_bytes: Bytes | None = msgspec.field(default=None, name="rss")
    sample: Sample | None = None
    """Counts since the instance's start that add up over a fleet; what gates are asked on."""
    handover: Handover | None = None
    """Since the instance's start, if a new release ever was beside it."""


class InstanceReport(Record):
    """One instance as its node sees it."""

    name: str
    """`namespace/application/component-revision-slot`."""
    epoch: int
    phase: Phase
    since: int
    """Instant of the phase's begin, milliseconds of the node's clock."""
    starts: int = 0
    ready_after_ms: int | None = None
    """How long its last start took until it was ready: by this a rehearsal knows how long the next will take."""
    reason: Reason | None = None
    measures: Measures | None = None
    locked: bool = False
    """It asks to be left as it is for now: no update begins while it does."""


class Flow(Record):
    """The books of one captured component's inbox at this node: produced = delivered + stored + shed."""

    consumer: str
    produced: int = 0
    delivered: int = 0
    stored: int = 0
    shed: int = 0
    reason: Reason | None = None


MESH_BOUNDS_MS = (1, 2, 5, 10, 20, 50, 100, 200, 500, 1_000, 2_000, 5_000)
"""Upper bounds of the histograms of mesh calls; the last bucket has none."""


class MeshRow(Record):
    """Calls from one node of one model, by how far they went."""

    namespace: str
    model: str
    nearness: Literal["local", "site", "region", "hub"]
    answered: int = 0
    failed_attempts: int = 0
    """Attempts that went there and were not answered, or badly; the call may have been answered by another."""
    latency_ms_sum: float = 0.0
    buckets: tuple[int, ...] = ()
    """Answers by `MESH_BOUNDS_MS`, each counted in one bucket."""


class Mesh(Record):
    """The books of a node's inference gateway since it began."""

    rows: tuple[MeshRow, ...] = ()
    calls: dict[str, int] = {}
    """By what came of them: `answered`, or the code of the error."""
    shed: dict[str, int] = {}
    """By class: refused because there were too many."""
    retries: int = 0
    hedges: int = 0
    breakers: dict[str, int] = {}
    """How many of the instances it knows are `closed`, `open`, `half-open`."""
    flags: dict[str, int] = {}
    """By `namespace/flag`: when a program of this node last asked for it, by the node's clock, to the minute."""


class Profiled(Record):
    """How fast a variant proved to be on this machine: one item a run, one thread, nothing beside it."""

    digest: str
    at: int
    p50_us: int
    p99_us: int
    memory_bytes: Bytes = msgspec.field(name="memory")
    """The most that its process took, interpreter and runtime included."""
    samples: int = 0
    runtime: str = ""


class Report(Record):
    """All that a node says about itself."""

    node: str
    boot: str
    """Identity of this run of the node agent; changes when it restarts."""
    sequence: int
    """Counts this run's reports."""
    at: int
    """The node's clock, milliseconds."""
    serial: int = 0
    """The assignment it acts on."""
    inventory: Inventory = Inventory()
    vitals: Vitals = Vitals()
    instances: tuple[InstanceReport, ...] = ()
    artifacts: tuple[str, ...] = ()
    """Digests it holds, verified."""
    flows: tuple[Flow, ...] = ()
    address: str = ""
    """`host:port` of its SITE listener, for its neighbours."""
    mqtt: str = ""
    """`host:port` of its MQTT listener."""
    hears: dict[str, int] = {}
    """Neighbours at the site and how many milliseconds ago each was heard."""
    topics: dict[str, int] = {}
    """Messages first published at this node, by the pattern that the site is to count."""
    topic_bytes: dict[str, int] = {}
    """How many bytes they came to."""
    problems: tuple[Reason, ...] = ()
    """What ails the node itself."""
    profiles: tuple[Profiled, ...] = ()
    """What variants proved to be here, the newest first."""
    inference: str = ""
    """`http://host:port` of its inference gateway."""
    depot: str = ""
    """`host:port` where it gives files to other sites."""
    mesh: Mesh | None = None
    """Calls through that gateway since it last began; None when nobody has used it."""


class Sighting(Record):
    """What the hub knows of a node's link: kept in memory, made from heartbeats and broker events, never stored."""

    last_seen: int
    """Instant of the last heartbeat, on the hub's clock."""
    online_since: int
    """Begin of the present unbroken presence."""
    disconnected_at: int | None = None
    """Instant at which the broker saw the link close, if it has not come back."""
    drops: int = 0
    """How often its presence broke of late: each hour without a break halves what was counted before."""
    reported_at: int | None = None
    """Instant at which its newest Report arrived: what `Report.hears` counts back from, on the hub's clock."""
    deaf_ms: int = 0
    """`State.deaf_ms` as of the last heartbeat: what came on top since then is no silence of the node's."""
    flags: str = ""
    """The digest of the flags that the node says it has."""
