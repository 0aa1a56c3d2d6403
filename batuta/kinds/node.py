"""Node: a machine that runs the node agent."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, ClassVar, Literal

import msgspec
from msgspec import Meta

from batuta.kinds.base import Bytes, Name, Problem, Record, Resource
from batuta.kinds.hardware import AcceleratorKind, Hardware, Precision
from batuta.kinds.instants import Instant

if TYPE_CHECKING:
    from collections.abc import Iterator


class Taint(Record):
    """A mark that keeps instances away unless their component tolerates it."""

    key: str
    value: str = ""
    effect: Literal["NoSchedule", "NoExecute"] = "NoSchedule"
    """NoSchedule places nothing new here; NoExecute also moves away what is here."""


class Hold(Record):
    """Its owner keeps the machine as it is: nothing new comes, and nothing on it is changed or taken."""

    reason: Annotated[str, Meta(max_length=256)] = ""
    """For people: why."""
    until: Instant | None = None
    """Ends by itself at this instant; without one it lasts until it is released."""

    def holds_at(self, now: int) -> bool:
        return self.until is None or now < self.until


class Power(Record):
    """What the machine draws, in watts: at rest, and when all of its processors work."""

    idle_watts: Annotated[float, Meta(ge=0, le=100_000)] = msgspec.field(default=0.0, name="idle")
    full_watts: Annotated[float, Meta(ge=0, le=100_000)] = msgspec.field(default=0.0, name="full")


class Card(Record):
    """An accelerator, for machines that cannot tell themselves."""

    kind: AcceleratorKind
    name: Annotated[str, Meta(max_length=128)] = ""
    memory_bytes: Bytes = msgspec.field(default_factory=lambda: Bytes(0), name="memory")


class NodeSpec(Record):
    """What people say about a machine; what it has, it reports itself."""

    site: Name
    taints: tuple[Taint, ...] = ()
    unschedulable: bool = False
    """Place nothing new here (`kubectl cordon` sets it); what runs stays."""
    drain: bool = False
    """Place nothing new here and move away what can run elsewhere, the new one ready before the old one stops."""
    power: Power | None = None
    """Placement prefers the machine that draws the least for the work; left out, nobody knows."""
    hardware: Hardware | None = None
    """Its class of hardware, by which measured speeds are compared; what it reports itself when left out."""
    precisions: tuple[Precision, ...] = ()
    """What its hardware computes in, such as `int8` alone; left out, nothing is ruled out."""
    accelerators: Annotated[tuple[Card, ...], Meta(max_length=64)] = ()
    """In place of what it reports: for drivers that do not tell their memory."""
    hold: Hold | None = None
    """Change nothing on it. Should it fall silent, what ran on it is healed elsewhere all the same."""
    pending: bool = False
    """It asks to join and waits for `batuta node approve`: it has no certificate and gets nothing. Set by enrolment."""


class Node(Resource, tag="Node", kw_only=True):
    """A machine that runs the node agent. Enrolment creates it; it reports its own hardware."""

    plural: ClassVar[str] = "nodes"
    namespaced: ClassVar[bool] = False
    short_names: ClassVar[tuple[str, ...]] = ("no",)
    columns: ClassVar[tuple[tuple[str, str], ...]] = (
        ("SITE", "spec.site"),
        ("STATE", "status.state"),
        ("LINK", "status.link.word"),
        ("SYNC", "status.sync.word"),
        ("HEALTH", "status.health.word"),
        ("INSTANCES", "status.instances"),
        ("SINCE", "status.since"),
    )
    wide_columns: ClassVar[tuple[tuple[str, str], ...]] = (
        ("ARCH", "status.inventory.architecture"),
        ("CPU", "status.inventory.cpu"),
        ("MEMORY", "status.inventory.memory"),
        ("RUNTIMES", "status.inventory.runtimes"),
        ("MQTT", "status.mqtt"),
        ("AGENT", "status.inventory.agentVersion"),
        ("REASON", "status.reason"),
    )

    spec: NodeSpec

    def problems(self) -> Iterator[Problem]:
        keys = [taint.key for taint in self.spec.taints]
        for i, key in enumerate(keys):
            if key in keys[:i]:
                yield Problem(path=f"spec.taints[{i}].key", code="duplicate", message=f"taint {key!r} is there twice")
        power = self.spec.power
        if power is not None and power.full_watts < power.idle_watts:
            yield Problem(path="spec.power.full", code="value", message="it cannot draw less at work than at rest")
