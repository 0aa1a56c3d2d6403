"""Decided: what the hub has made of the declarations. One writer, the hub; nodes read only their own Assignment.

Keys of the decided table: `assignment.<node>`, `commons.<site>`, `release.<namespace>.<application>.<revision>`,
`fence.<namespace>.<application>.<component>.<slot>`.
"""

from __future__ import annotations

from typing import Literal

import msgspec

from batuta.kinds.application import Component, Input, Output, ProcessUse, Serve
from batuta.kinds.base import Bytes, Digest, Millicores, Millis, Record
from batuta.kinds.container import ContainerUse
from batuta.kinds.model import Golden, Signature, Variant
from batuta.kinds.shaping import After, Before

PROCESS, CONTAINER = "process", "container"
"""Runtimes of what is no model, by the names that nodes report."""


class ModelOrder(Record):
    """A model reference, resolved: these bytes, fed in this way."""

    name: str
    version: str
    variant: Variant
    signature: Signature | None = None
    labels: tuple[str, ...] = ()
    before: Before | None = None
    after: After | None = None
    transform: Digest | None = None
    transform_signatures: tuple[Digest, ...] = ()
    batch: int = 32
    linger_ms: int = 0
    signers: tuple[tuple[str, ...], ...] = ()
    """Public keys in PEM. One of each group must have signed the file, or it is not loaded."""
    golden: Golden | None = None
    """What it must answer on the node before it is switched in there for the first time."""
    drift: Digest | None = None
    """What its inputs looked like where it was made: those that it gets are compared with them."""

    @property
    def bundles(self) -> tuple[str, ...]:
        """Digests of the signatures that are to be looked at: of the file, then of the transform."""
        return (*self.variant.signatures, *self.transform_signatures) if self.signers else ()


class Grant(Record):
    """An accelerator that an instance may use: the whole card, or so much of its memory."""

    kind: str
    card: int
    """Its place in the list that the node reports, from 0."""
    memory_bytes: Bytes | None = msgspec.field(default=None, name="memory")
    """A share; None for all of it."""


class Beside(Record):
    """A new instance that is tried beside the old one of its slot: the old one keeps the inputs and hands them on."""

    mode: Literal["shadow", "split"]
    """`shadow`: it answers nobody, and what it would have answered is compared. `split`: it answers its share."""
    share: float = 1.0
    """Of the keys, 0 to 1, by a stable hash: who belongs to it always does."""


class Instance(Record):
    """One component on one node: all that the node must know to run it, with or without a hub."""

    namespace: str
    application: str
    component: str
    revision: int
    """The release in which the component last changed."""
    slot: str
    """Which replica: `0` for a count, `berlin-0` for a site's, the node's name for one on every node."""
    epoch: int
    """Counts the placements of this slot; the newest holder is the right one."""
    model: ModelOrder | None = None
    process: ProcessUse | None = None
    container: ContainerUse | None = None
    inputs: tuple[Input, ...] = ()
    outputs: tuple[Output, ...] = ()
    serve: Serve | None = None
    cpu_millis: Millicores = msgspec.field(default_factory=lambda: Millicores(0), name="cpu")
    memory_bytes: Bytes = msgspec.field(default_factory=lambda: Bytes(0), name="memory")
    disk_bytes: Bytes | None = msgspec.field(default=None, name="disk")
    accelerators: tuple[Grant, ...] = ()
    ports: tuple[int, ...] = ()
    """Ports that are its own on the node, those of its probes and of `serve` aside."""
    devices: tuple[str, ...] = ()
    """Devices that are its own on the node."""
    slo_p99_ms: Millis | None = msgspec.field(default=None, name="slo")
    """Of a model: where even its middle run takes longer than this, it is not switched in."""
    lease_ms: int | None = None
    """For `never-twice`: stop by yourself when the hub has not answered for so long."""
    signers: tuple[tuple[str, ...], ...] = ()
    """Of a container: public keys in PEM. One of each group must have signed its archive, or it is not loaded."""
    beside: Beside | None = None
    """While it is on trial beside the old one."""
    fallback: Instance | None = None
    """What ran here before: the node runs it again by itself, hub or no hub, when this one is refused or fails in its
    probation. How it would fall back is no part of what runs."""
    newcomer: Instance | None = None
    """The new release of this slot, on trial beside it: the node runs both, and each of them by itself. What is tried
    there is no part of what runs here."""
    probation_ms: int | None = None
    """So long after it is first ready, a failure that would else be retried makes the node fall back."""

    @property
    def name(self) -> str:
        """`default/meter-reader/read-1-berlin-0`: derived, never drawn."""
        return f"{self.namespace}/{self.application}/{self.component}-{self.revision}-{self.slot}"

    @property
    def app(self) -> str:
        return f"{self.namespace}/{self.application}"

    @property
    def consumer(self) -> str:
        """The name under which all replicas of this component, of any revision, share what a site captures."""
        return f"{self.namespace}_{self.application}_{self.component}"

    @property
    def runtime(self) -> str:
        """Which runtime runs it, by the name nodes report."""
        if self.container is not None:
            return CONTAINER
        return self.model.variant.format if self.model is not None else PROCESS

    @property
    def program(self) -> ProcessUse | ContainerUse | None:
        """What it runs, when that is not a model."""
        return self.process if self.process is not None else self.container

    @property
    def artifacts(self) -> tuple[str, ...]:
        """Digests that must be on the node before it can start."""
        if self.container is not None and self.container.archive is not None and self.signers:
            return (*self.container.artifacts, *self.container.archive.signatures)
        if self.container is not None:
            return self.container.artifacts
        if self.model is None:
            return ()
        golden = (self.model.golden.digest,) if self.model.golden is not None else ()
        transform = (self.model.transform,) if self.model.transform is not None else ()
        drift = (self.model.drift,) if self.model.drift is not None else ()
        return (self.model.variant.digest, *self.model.bundles, *golden, *transform, *drift)


class Capture(Record):
    """Topics that a node stores when they are published at its own broker, until an instance has answered them."""

    consumer: str
    topics: tuple[str, ...]
    outputs: tuple[Output, ...] = ()


class Peer(Record):
    """A neighbour at the site: where its SITE listener is."""

    node: str
    address: str


class Commons(Record):
    """What all nodes of one site do alike. A row of its own: one model placed would else rewrite every neighbour's
    assignment, and one topic that somebody wants to be near those of the whole fleet."""

    site: str
    serial: int
    """Rises with every change, from the instant of the first: no two contents ever have the same, not even when a
    site was given up in between, or the table was restored from an older copy."""
    captures: tuple[Capture, ...] = ()
    watched: tuple[str, ...] = ()
    """Topic patterns whose messages are counted there, for data gravity."""
    depot_port: int | None = None
    """Where each of its nodes gives files to other sites; None where they do not."""


class Assignment(Record):
    """All that one node should run. It is the command: losing, doubling or reordering it changes nothing."""

    node: str
    site: str
    serial: int
    """Counts the changes of this assignment; a node ignores one older than what it has."""
    instances: tuple[Instance, ...] = ()
    peers: tuple[Peer, ...] = ()
    """Every other node of the site that can be reached, eldest first."""
    elders: tuple[str, ...] = ()
    """Names of the peers that joined before this node: the ones it links to, in order. Acyclic by construction."""
    captures: tuple[Capture, ...] = ()
    watched: tuple[str, ...] = ()
    """These two were here before there were Commons: what an earlier version wrote is read, and written no more."""


class VersionChoice(Record):
    """The model version that a component asked for, with every variant a node may choose from."""

    name: str
    version: str
    variants: tuple[Variant, ...]
    signature: Signature | None = None
    labels: tuple[str, ...] = ()
    before: Before | None = None
    after: After | None = None
    transform: Digest | None = None
    transform_signatures: tuple[Digest, ...] = ()
    golden: Golden | None = None
    drift: Digest | None = None
    signers: tuple[tuple[str, ...], ...] = ()
    """Groups of public keys that policies ask for: one of each must have signed."""


class Released(Record):
    """A component of a release, with its references resolved and the revision in which it last changed."""

    component: Component
    revision: int
    version: VersionChoice | None = None
    signers: tuple[tuple[str, ...], ...] = ()
    """Of a container: groups of public keys that policies ask for."""


class Release(Record):
    """An immutable, resolved revision of an application."""

    namespace: str
    application: str
    revision: int
    components: tuple[Released, ...]
    at: int
    """When it was made, for people; nothing is decided by it."""


class Fence(Record):
    """The last placement of a `never-twice` slot: kept after its release until nobody can run it any more."""

    namespace: str
    application: str
    component: str
    slot: str
    epoch: int
    node: str
    serial: int
    """The assignment by which it was given or taken away."""
    lease_ms: int
    released_at: int | None = None
    """Instant at which it was taken from the node; None while it holds."""


def assignment_key(node: str) -> str:
    return f"assignment.{node}"


def commons_key(site: str) -> str:
    return f"commons.{site}"


def release_key(namespace: str, application: str, revision: int) -> str:
    return f"release.{namespace}.{application}.{revision}"


def fence_key(namespace: str, application: str, component: str, slot: str) -> str:
    return f"fence.{namespace}.{application}.{component}.{slot}"
