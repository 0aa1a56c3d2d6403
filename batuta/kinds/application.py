"""Application: what should run. Components, each one model, process, container or pipeline."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal

import msgspec
from msgspec import Meta

from batuta.kinds import condition, topics
from batuta.kinds.autoscale import Autoscale, autoscale_problems
from batuta.kinds.base import Bytes, Condition, Millicores, Millis, Name, Problem, Record, Resource, Scale, Topic
from batuta.kinds.container import ContainerUse, container_problems
from batuta.kinds.hardware import AcceleratorKind, Architecture, architecture_problems
from batuta.kinds.program import Port, Probe, env_problems, probe_problems
from batuta.kinds.rolling import Rollout, rollout_problems

if TYPE_CHECKING:
    from collections.abc import Iterator

Count = Annotated[int, Meta(ge=0, le=100_000)]
Priority = Annotated[int, Meta(ge=-1000, le=1000)]
Residency = Annotated[str, Meta(min_length=1, max_length=63, description="A place where data may live, such as `eu`.")]
DevicePath = Annotated[
    str,
    Meta(pattern=r"^/dev/[A-Za-z0-9._/-]{1,120}$", description="A path below /dev, such as `/dev/video0`."),
]


class ModelUse(Record):
    """Which model, and how to feed it."""

    name: Name
    version: str
    batch: Annotated[int, Meta(ge=1, le=1024)] = 32
    """At most so many messages in one run."""
    linger_ms: Millis = msgspec.field(default_factory=lambda: Millis(0), name="linger")
    """How long a message may wait for others to share its run."""


class Serve(Record):
    """Answering requests besides topics: the Open Inference Protocol, version 2."""

    port: Port
    """At loopback of its node. Every model also answers at a Unix socket in its directory and through the gateway of
    its site, whether it has a port or not."""


class ProcessUse(Record):
    """A program of the node: an argument list, never a shell line."""

    command: Annotated[tuple[str, ...], Meta(min_length=1, max_length=1024)]
    env: dict[str, str] = {}
    architectures: tuple[Architecture, ...] = ()
    """Processors that can run the command, such as `arm64`; all of them when left out."""
    working_directory: str | None = None
    """Defaults to the instance's own directory."""
    ready: Probe | None = None
    live: Probe | None = None
    stop_grace_ms: Millis = msgspec.field(default_factory=lambda: Millis(10_000), name="stopGrace")
    """Between the polite signal and the last one."""


class Input(Record):
    """A topic to read, and the model input that its messages feed."""

    topic: Topic
    tensor: str | None = None
    """The model's input; may be left out when it has one."""
    decode: Literal["json", "raw", "image"] = "json"
    """`json`: numbers in nested lists; `raw`: the tensor's little-endian bytes; `image`: a JPEG or PNG, shaped as
    `before` of the model's version says."""


class Output(Record):
    """Where results go: exactly one of topic and forward."""

    topic: Annotated[str, Meta(min_length=1, max_length=256)] | None = None
    """`{1}` is what the input's first wildcard matched. Two levels at least, the first of them a fixed word."""
    forward: Literal["hub"] | None = None
    """Carry it to the hub: stored on the node until the hub has it."""


class Replicas(Record):
    """How many: exactly one of count, perSite, everyNode, autoscale."""

    count: Count | None = None
    per_site: Count | None = None
    every_node: bool | None = None
    autoscale: Autoscale | None = None
    """A count that follows the hour and the load."""


class Toleration(Record):
    """A taint that a component does not mind."""

    key: str
    value: str | None = None
    """Left out: any value."""


class Placement(Record):
    """Where it may run, and where it had better."""

    where: Condition | None = None
    """CEL over node and site: where it may run."""
    near: tuple[Topic, ...] = ()
    """Data gravity: prefer nodes where these topics are published."""
    spread: Literal["node", "site"] | None = None
    """Prefer, among equals, unlike places."""
    spread_label: Annotated[str, Meta(min_length=1, max_length=128)] | None = None
    """Prefer, among equals, nodes that differ in this label: `rack` for as few as possible in one rack."""
    residency: tuple[Residency, ...] = ()
    """It may run only where data may live in one of these: at sites whose `residency` says so. Moves away when a site
    says so no more."""
    tolerations: tuple[Toleration, ...] = ()


class AcceleratorNeed(Record):
    """Accelerators of one kind: so many whole ones, or a share of one."""

    kind: AcceleratorKind
    """`gpu` and `npu` mean any; `nvidia`, `jetson`, `coral`, `hailo`, … are families."""
    count: Annotated[int, Meta(ge=1, le=64)] | None = None
    """So many for itself. Left out: one, or a share of one when `memory` is given."""
    memory_bytes: Bytes | None = msgspec.field(default=None, name="memory")
    """With `count`, each has at least this; without, so much of one, beside others."""

    @property
    def is_share(self) -> bool:
        return self.count is None and self.memory_bytes is not None


class Resources(Record):
    """What one instance is promised, and held to where the node can."""

    cpu_millis: Millicores = msgspec.field(default_factory=lambda: Millicores(100), name="cpu")
    memory_bytes: Bytes = msgspec.field(default_factory=lambda: Bytes(64 * 2**20), name="memory")
    disk_bytes: Bytes | None = msgspec.field(default=None, name="disk")
    accelerators: Annotated[tuple[AcceleratorNeed, ...], Meta(max_length=8)] = ()
    """Accelerators, whole or in shares. Instances on one node never share more than there is."""
    ports: Annotated[tuple[Port, ...], Meta(max_length=64)] = ()
    """Ports that it listens at. Two instances that name the same one never share a node; ports of probes count too."""
    devices: Annotated[tuple[DevicePath, ...], Meta(max_length=64)] = ()
    """Devices that it needs for itself, such as `/dev/video0`: the node must have them, and nobody else there may name
    them."""


class Slo(Record):
    """What it must achieve. Placement refuses nodes on which a model has proved to be slower."""

    p99_ms: Millis = msgspec.field(name="p99")
    """Of a hundred answers, ninety-nine come within this time."""


class Failover(Record):
    """When a silent node's instances are given up."""

    after_ms: Millis = msgspec.field(default_factory=lambda: Millis(10_000), name="after")
    """How long a node must be silent before its instances are placed elsewhere."""


class Component(Record):
    """One part of an application: exactly one of model, process, container, pipeline."""

    name: Name
    model: ModelUse | None = None
    process: ProcessUse | None = None
    container: ContainerUse | None = None
    pipeline: dict[str, Any] | None = None
    """Not yet available."""
    inputs: tuple[Input, ...] = ()
    outputs: tuple[Output, ...] = ()
    serve: Serve | None = None
    """A port at which a model answers requests."""
    replicas: Replicas = Replicas(count=1)
    placement: Placement = Placement()
    resources: Resources = msgspec.field(default_factory=Resources)
    slo: Slo | None = None
    runs: Literal["at-least-once", "never-twice"] = "at-least-once"
    """What to do when a silent node may be alive: start another at once, or wait until it cannot run any more. What is
    `never-twice` runs under a lease that its node agent counts, so it ends with the node agent, by SIGKILL if need be,
    and also when the agent is replaced; everything else goes on. Programs that it starts itself must end when it does:
    those that do not are ended only when the node agent is back."""
    failover: Failover = msgspec.field(default_factory=Failover)

    @property
    def program(self) -> ProcessUse | ContainerUse | None:
        """What it runs, when that is not a model."""
        return self.process if self.process is not None else self.container

    @property
    def type(self) -> str:
        """Which of the four it is; the first named, when a bad document names more."""
        return next((t for t in COMPONENT_TYPES if getattr(self, t) is not None), "none")


COMPONENT_TYPES = ("model", "process", "container", "pipeline")

# What decodes but has nobody yet to honour it is refused, never ignored: a field that does nothing is a lie.
NOT_YET_COMPONENT = {
    "pipeline": "pipeline components are not yet available; use a model with inputs and outputs",
}


class ApplicationSpec(Record):
    components: Annotated[tuple[Component, ...], Meta(min_length=1, max_length=256)]
    residency: tuple[Residency, ...] = ()
    """For all of its components: those that say nothing of their own run only where data may live in one of these."""
    priority: Priority = 0
    """Who gives way to whom when room is short. What fits nowhere may take the place of what has a strictly lower
    priority: -100 for what can wait, 0 for the usual, 100 for what the business needs, 1000 for what protects people
    and machines."""
    rollout: Rollout = msgspec.field(default_factory=Rollout)


class Application(Resource, tag="Application", kw_only=True):
    """What should run: components, how many, where, and how they may be replaced."""

    plural: ClassVar[str] = "applications"
    namespaced: ClassVar[bool] = True
    short_names: ClassVar[tuple[str, ...]] = ("app", "apps")
    scale: ClassVar[Scale | None] = Scale(parts=("components",), wanted=("replicas", "count"), ready="ready")
    columns: ClassVar[tuple[tuple[str, str], ...]] = (
        ("STATE", "status.state"),
        ("READY", "status.ready"),
        ("RELEASE", "status.release"),
        ("REASON", "status.reason"),
    )
    wide_columns: ClassVar[tuple[tuple[str, str], ...]] = (
        ("COMPONENTS", "spec.components.name"),
        ("MODELS", "spec.components.model.name"),
        ("NODES", "status.components.instances.node"),
        ("NEXT", "status.next"),
    )

    spec: ApplicationSpec

    def problems(self) -> Iterator[Problem]:
        seen: set[str] = set()
        for i, component in enumerate(self.spec.components):
            here = f"spec.components[{i}]"
            if component.name in seen:
                yield Problem(
                    path=f"{here}.name", code="duplicate", message=f"component {component.name!r} is there twice"
                )
            seen.add(component.name)
            yield from _component_problems(here, component)
        yield from rollout_problems("spec.rollout", self.spec.rollout)
        if all(component.model is None for component in self.spec.components):
            for name in ("shadow_ms", "split"):
                if getattr(self.spec.rollout, name) is not None:
                    path = f"spec.rollout.{name.removesuffix('_ms')}"
                    message = "only models are tried beside what runs, and there is none"
                    yield Problem(path=path, code="value", message=message)


def _component_problems(here: str, component: Component) -> Iterator[Problem]:
    named = [t for t in COMPONENT_TYPES if getattr(component, t) is not None]
    if len(named) != 1:
        what = " and ".join(named) or "none"
        yield Problem(
            path=here, code="one_of", message=f"say exactly one of {', '.join(COMPONENT_TYPES)}; there is {what}"
        )
    for field, message in NOT_YET_COMPONENT.items():
        if getattr(component, field) is not None:
            yield Problem(path=f"{here}.{field}", code="not_yet", message=message)

    replicas = component.replicas
    chosen = [f for f in ("count", "per_site", "every_node", "autoscale") if getattr(replicas, f) is not None]
    if len(chosen) != 1:
        message = "say exactly one of count, perSite, everyNode, autoscale"
        yield Problem(path=f"{here}.replicas", code="one_of", message=message)
    if replicas.autoscale is not None:
        yield from autoscale_problems(f"{here}.replicas.autoscale", replicas.autoscale)
    if replicas.every_node is False:
        yield Problem(
            path=f"{here}.replicas.everyNode", code="value", message="everyNode can only be true; for none say count: 0"
        )

    if component.placement.where is not None:
        yield from condition.check(f"{here}.placement.where", component.placement.where)
    for i, topic in enumerate(component.placement.near):
        if wrong := topics.why_not_input(topic):
            yield Problem(path=f"{here}.placement.near[{i}]", code="value", message=wrong.message, hint=wrong.hint)

    for field in ("ports", "devices"):
        claimed = getattr(component.resources, field)
        for i, claim in enumerate(claimed):
            if claim in claimed[:i]:
                path = f"{here}.resources.{field}[{i}]"
                yield Problem(path=path, code="duplicate", message=f"{claim} is there twice")
    if component.serve is not None and component.model is None:
        message = "only models answer the inference protocol by themselves"
        yield Problem(path=f"{here}.serve", code="value", message=message, hint="name its ports in resources.ports")
    if component.serve is not None and component.serve.port in component.resources.ports:
        message = f"{component.serve.port} is there twice: serve claims its port by itself"
        yield Problem(path=f"{here}.serve.port", code="duplicate", message=message)
    if component.slo is not None and component.model is None:
        yield Problem(
            path=f"{here}.slo",
            code="value",
            message="only models are measured",
            hint=f"leave it out for a {component.type}",
        )
    if component.process is not None:
        yield from architecture_problems(f"{here}.process.architectures", component.process.architectures)
        for name in ("ready", "live"):
            yield from probe_problems(f"{here}.process.{name}", getattr(component.process, name))
        yield from env_problems(f"{here}.process.env", component.process.env)
    if component.container is not None:
        never_twice = component.runs == "never-twice"
        yield from container_problems(f"{here}.container", component.container, never_twice=never_twice)
    if component.program is not None:
        what = "process" if component.process is not None else "container"
        for field in ("inputs", "outputs"):
            if getattr(component, field):
                yield Problem(
                    path=f"{here}.{field}",
                    code="value",
                    message=f"a {what} connects to the broker by itself; inputs and outputs are for models",
                )
    if component.model is not None:
        yield from _flow_problems(here, component)


def _flow_problems(here: str, component: Component) -> Iterator[Problem]:
    if component.outputs and not component.inputs:
        message = "answers to requests go to who asked; without inputs there is nothing to write"
        yield Problem(path=f"{here}.outputs", code="value", message=message, hint="name an input, or leave it out")
    if len({i.tensor for i in component.inputs}) > 1:
        yield Problem(
            path=f"{here}.inputs",
            code="value",
            message="all inputs of a component feed the same tensor; joining topics into one run is for pipelines",
        )
    for i, one in enumerate(component.inputs):
        if wrong := topics.why_not_input(one.topic):
            yield Problem(path=f"{here}.inputs[{i}].topic", code="value", message=wrong.message, hint=wrong.hint)
    fewest = min((topics.wildcards(i.topic) for i in component.inputs), default=0)
    for j, output in enumerate(component.outputs):
        path = f"{here}.outputs[{j}]"
        if (output.topic is None) == (output.forward is None):
            yield Problem(path=path, code="one_of", message="say exactly one of topic, forward")
        if output.topic is None:
            continue
        if wrong := topics.why_not_output(output.topic):
            yield Problem(path=f"{path}.topic", code="value", message=wrong.message, hint=wrong.hint)
        for number in re.findall(r"\{([^}]*)\}", output.topic):
            if not number.isdigit() or not 1 <= int(number) <= fewest:
                yield Problem(
                    path=f"{path}.topic",
                    code="value",
                    message=f"{{{number}}} names no wildcard: the inputs have {fewest}",
                    hint="count the + and # of the input topic from 1",
                )
    if sum(o.topic is not None for o in component.outputs) > 1:
        yield Problem(
            path=f"{here}.outputs", code="value", message="one output topic a component; add a forward beside it"
        )
    if any(o.forward for o in component.outputs) and not any(o.topic for o in component.outputs):
        yield Problem(
            path=f"{here}.outputs",
            code="value",
            message="a forward carries what an output topic names",
            hint="add {topic: …} beside it",
        )
