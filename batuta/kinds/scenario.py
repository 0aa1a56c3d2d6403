"""Scenario: a made-up fleet, what people ask of it, what goes wrong, and what is expected: what the twin plays."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal, NamedTuple

import msgspec
from msgspec import Meta

from batuta.errors import Refused
from batuta.kinds import condition
from batuta.kinds.application import Component
from batuta.kinds.base import Bytes, Millicores, Millis, Name, Problem, Record, Resource
from batuta.kinds.site import Uplink
from batuta.kinds.truth import Truth, truth_problems

if TYPE_CHECKING:
    from collections.abc import Iterator

NODES_MAX = 200_000
Many = Annotated[int, Meta(ge=1, le=NODES_MAX)]
Share = Annotated[
    str,
    Meta(
        pattern=r"^([1-9][0-9]{0,5}|(100|[1-9]?[0-9](\.[0-9])?)%)$",
        description="So many, as in `20`, or a share of all, as in `5%`.",
    ),
]
FaultWord = Literal[
    "crash", "agentCrash", "exit", "partition", "flapping", "reconnectStorm", "loss", "duplication", "reordering",
    "delay", "skew", "fullDisk", "slowDisk", "hubRestart", "hubTorn",
    "hubStall",
]  # fmt: skip


class Takes(NamedTuple):
    """What a fault asks for, beside when and whom."""

    amount: str = ""
    """The field that says how strong it is; empty for a fault that has no strength."""
    lasts: bool = True
    whom: bool = True
    """It befalls nodes; otherwise the hub."""


FAULTS: dict[str, Takes] = {
    "crash": Takes(),
    "agentCrash": Takes(),
    "exit": Takes(lasts=False),
    "partition": Takes(),
    "flapping": Takes("period"),
    "reconnectStorm": Takes(whom=False),
    "loss": Takes("percent"),
    "duplication": Takes("percent"),
    "reordering": Takes("percent"),
    "delay": Takes("by"),
    "skew": Takes("by", lasts=False),
    "fullDisk": Takes(),
    "slowDisk": Takes("times"),
    "hubRestart": Takes(whom=False),
    "hubTorn": Takes(whom=False),
    "hubStall": Takes(whom=False),
}
_AMOUNTS = {"period": "period_ms", "percent": "percent", "by": "by_ms", "times": "times"}

FIGURES = (
    "at_s", "nodes", "running", "connected", "online", "late", "offline", "wished", "assigned", "ready", "ready_of",
    "decisions", "writes", "moves", "dead_verdicts", "false_dead_verdicts", "broken_laws", "messages", "message_bytes",
    "uplink_bytes", "lost_messages", "hub_is_up", "converged", "rollout_of", "updated_of",
)  # fmt: skip
"""What expectations may ask, at every look: numbers, but for `converged` and `hub_is_up` (true or false) and, by
`namespace/application`, `ready_of`, `updated_of` (how many are ready with the newest release) and `rollout_of` (its
phase; `none` before the second release)."""


class MadeAccelerator(Record):
    """A GPU, NPU or TPU of a made-up machine."""

    kind: str
    name: str = ""
    memory_bytes: Bytes = msgspec.field(default_factory=lambda: Bytes(0), name="memory")


class Hardware(Record):
    """One sort of machine."""

    name: Name | None = None
    """Its class, as nodes report theirs: what is remembered of a class holds for all that have its name."""
    weight: Annotated[int, Meta(ge=1, le=1000)] = 1
    """Against the other sorts of its group: 3 beside a 1 is three quarters of the nodes."""
    cpu_millis: Millicores = msgspec.field(default_factory=lambda: Millicores(4000), name="cpu")
    memory_bytes: Bytes = msgspec.field(default_factory=lambda: Bytes(4 * 2**30), name="memory")
    disk_bytes: Bytes = msgspec.field(default_factory=lambda: Bytes(32 * 2**30), name="disk")
    architecture: str = "arm64"
    runtimes: tuple[str, ...] = ("process", "onnx")
    accelerators: tuple[MadeAccelerator, ...] = ()


class Group(Record):
    """Nodes that are alike: `shop` with 40 nodes makes `shop-0` to `shop-39`."""

    name: Name
    nodes: Many
    sites: Many = 1
    """Spread over so many sites: `shop` itself, or `shop-site-0`, `shop-site-1`, … in turn."""
    hardware: Annotated[tuple[Hardware, ...], Meta(max_length=32)] = ()
    """The sorts of machines it has; of one sort, with all that is usual, when left out."""
    labels: dict[str, str] = {}
    residency: str | None = None
    uplink: Uplink = Uplink()
    """The link of each site. Its latency is one way, give or take a quarter; 20 ms and 20 Mbit when left out."""
    drift_ppm: Annotated[int, Meta(ge=0, le=100_000)] = 0
    """Clocks run so much too fast or too slow at most, in millionths."""
    ahead_ms: Millis = msgspec.field(default_factory=lambda: Millis(0), name="ahead")
    """Clocks are so far off at most, either way."""


class Span(Record):
    """A whole number, drawn evenly."""

    least: Annotated[int, Meta(ge=0, le=NODES_MAX)]
    most: Annotated[int, Meta(ge=0, le=NODES_MAX)]


class Load(Record):
    """Applications that are alike: `reader` with 3 of them makes `reader-0` to `reader-2`."""

    name: Name
    component: Component
    """What each of them runs."""
    applications: Annotated[int, Meta(ge=1, le=10_000)] = 1
    instances: Span | None = None
    """How many replicas each has, instead of what the component says."""
    at_ms: Millis = msgspec.field(default_factory=lambda: Millis(0), name="at")
    every_ms: Millis = msgspec.field(default_factory=lambda: Millis(0), name="every")
    """Between one application and the next."""


class RolloutAsk(Record):
    """What people ask of a rollout, as `batuta rollout` does."""

    application: Annotated[str, Meta(pattern=r"^[a-z0-9][-a-z0-9]*(/[a-z0-9][-a-z0-9]*)?$")]
    """`NAME`, or `NAMESPACE/NAME`."""
    ask: Literal["pause", "resume", "approve", "abort", "undo", "retry"]


class Ask(Record):
    """What people do at an instant."""

    at_ms: Millis = msgspec.field(default_factory=lambda: Millis(0), name="at")
    apply: tuple[dict[str, Any], ...] = ()
    """Manifests, written right here."""
    files: tuple[str, ...] = ()
    """Manifests in files beside the scenario's own."""
    delete: tuple[Annotated[str, Meta(pattern=r"^[a-z]+(/[a-z0-9][-a-z0-9]*){1,2}$")], ...] = ()
    """`applications/NAME`, or `applications/NAMESPACE/NAME`."""
    rollouts: Annotated[tuple[RolloutAsk, ...], Meta(max_length=1000)] = ()
    """What is asked of rollouts. What makes no sense at that instant is refused, and counted."""


class Fault(Record):
    """One thing that goes wrong, once or to many."""

    fault: FaultWord
    """What: `crash` of machines, `agentCrash` of the node agent alone, `exit` of one process, `partition` from the hub,
    `flapping` of links, `reconnectStorm` of all links at once, `loss`, `duplication`, `reordering`, `delay` of
    messages, `skew` of clocks, `fullDisk`, `slowDisk`, `hubRestart`, `hubTorn` (the hub dies amid a commit),
    `hubStall` (its process is held up, and hears and decides nothing meanwhile)."""
    at_ms: Millis = msgspec.field(default_factory=lambda: Millis(0), name="at")
    until_ms: Millis | None = msgspec.field(default=None, name="until")
    """With it, every one has an instant of its own, drawn between `at` and this."""
    for_ms: Millis = msgspec.field(default_factory=lambda: Millis(30_000), name="for")
    nodes: Share | None = None
    """So many nodes, drawn; all of those named by `node` and `site` when left out."""
    node: tuple[Name, ...] = ()
    site: tuple[Name, ...] = ()
    repeat: Annotated[int, Meta(ge=1, le=10_000)] = 1
    """For faults of the hub: so often, between `at` and `until`."""
    percent: Annotated[int, Meta(ge=1, le=100)] | None = None
    """Of messages, for loss, duplication and reordering."""
    by_ms: Millis | None = msgspec.field(default=None, name="by")
    """How much at most, for delay and skew."""
    period_ms: Millis | None = msgspec.field(default=None, name="period")
    """Of flapping: up for half of it, down for half of it."""
    times: Annotated[int, Meta(ge=2, le=1000)] | None = None
    """How many times slower, for slowDisk."""


class Expectation(Record):
    """What must be so, asked at every look: exactly one of always and eventually."""

    name: Annotated[str, Meta(min_length=1, max_length=120)]
    always: Annotated[str, Meta(min_length=1, max_length=4096)] | None = None
    """CEL over the figures: at every look."""
    eventually: Annotated[str, Meta(min_length=1, max_length=4096)] | None = None
    """CEL over the figures: at one look at least."""
    from_ms: Millis = msgspec.field(default_factory=lambda: Millis(0), name="from")
    until_ms: Millis | None = msgspec.field(default=None, name="until")
    """The end of the phase; the end of the run when left out."""


class ScenarioSpec(Record):
    fleet: Annotated[tuple[Group, ...], Meta(min_length=1, max_length=1000)]
    load: Annotated[tuple[Load, ...], Meta(max_length=1000)] = ()
    asks: Annotated[tuple[Ask, ...], Meta(max_length=10_000)] = ()
    truths: Annotated[tuple[Truth, ...], Meta(max_length=1000)] = ()
    """What versions are like where they run: how much they are asked, how they answer, which machines refuse them."""
    faults: Annotated[tuple[Fault, ...], Meta(max_length=10_000)] = ()
    expectations: Annotated[tuple[Expectation, ...], Meta(max_length=1000)] = ()
    duration_ms: Millis = msgspec.field(default_factory=lambda: Millis(300_000), name="duration")
    """How long things may go wrong; then everything heals, and the fleet must find back."""
    settle_ms: Millis = msgspec.field(default_factory=lambda: Millis(400_000), name="settle")
    """How long it may take to find back."""
    look_ms: Millis | None = msgspec.field(default=None, name="look")
    """Between two looks at the figures; a 200th of the duration when left out, a second at least."""


class Scenario(Resource, tag="Scenario", kw_only=True):
    """A made-up fleet, what people ask of it, what goes wrong and what is expected. `batuta twin run` plays it."""

    plural: ClassVar[str] = "scenarios"
    namespaced: ClassVar[bool] = False
    columns: ClassVar[tuple[tuple[str, str], ...]] = (
        ("DURATION", "spec.duration"),
        ("STATE", "status.state"),
        ("NODES", "status.nodes"),
    )
    wide_columns: ClassVar[tuple[tuple[str, str], ...]] = (("GROUPS", "spec.fleet.name"),)

    spec: ScenarioSpec

    def problems(self) -> Iterator[Problem]:
        spec = self.spec
        yield from _fleet_problems(spec)
        yield from _name_problems("load", [load.name for load in spec.load])
        for i, load in enumerate(spec.load):
            if load.instances is not None and load.instances.least > load.instances.most:
                yield _misfit(f"spec.load[{i}].instances", "least is more than most")
        for i, ask in enumerate(spec.asks):
            yield from _ask_problems(f"spec.asks[{i}]", ask)
        sorts = {hardware.name for group in spec.fleet for hardware in group.hardware if hardware.name is not None}
        for i, truth in enumerate(spec.truths):
            yield from truth_problems(f"spec.truths[{i}]", truth, sorts)
        groups = {group.name for group in spec.fleet}
        named = any(fault.node or fault.site for fault in spec.faults)
        nodes = {f"{group.name}-{k}" for group in spec.fleet for k in range(group.nodes) if named}
        sites = {site for group in spec.fleet for site in sites_of(group) if named}
        for i, fault in enumerate(spec.faults):
            yield from _fault_problems(f"spec.faults[{i}]", fault, spec)
            for field, known, given in (("node", nodes, fault.node), ("site", sites | groups, fault.site)):
                for j, name in enumerate(given):
                    if name not in known:
                        yield _misfit(f"spec.faults[{i}].{field}[{j}]", f"the fleet has no {field} {name!r}")
        for i, expectation in enumerate(spec.expectations):
            yield from _expectation_problems(f"spec.expectations[{i}]", expectation)


def sites_of(group: Group) -> list[str]:
    """The sites of a group, by name."""
    return [group.name] if group.sites == 1 else [f"{group.name}-site-{k}" for k in range(group.sites)]


def _misfit(path: str, message: str, hint: str = "", code: str = "value") -> Problem:
    return Problem(path=path, code=code, message=message, hint=hint)


def _name_problems(where: str, names: list[str]) -> Iterator[Problem]:
    for i, name in enumerate(names):
        if name in names[:i]:
            yield _misfit(f"spec.{where}[{i}].name", f"{name!r} is there twice", code="duplicate")


def _fleet_problems(spec: ScenarioSpec) -> Iterator[Problem]:
    yield from _name_problems("fleet", [group.name for group in spec.fleet])
    for i, group in enumerate(spec.fleet):
        for key in ("budget", "windows"):
            if getattr(group.uplink, key):
                yield _misfit(f"spec.fleet[{i}].uplink.{key}", "artifacts do not wait in the twin", code="not_yet")
        if group.sites > group.nodes:
            yield _misfit(f"spec.fleet[{i}].sites", f"{group.sites} sites need as many nodes; there are {group.nodes}")
    total = sum(group.nodes for group in spec.fleet)
    if total > NODES_MAX:
        yield _misfit("spec.fleet", f"{total} nodes are too many: {NODES_MAX} at most")
    if spec.duration_ms < 1_000:
        yield _misfit("spec.duration", "a run lasts a second at least")
    if spec.look_ms is not None and spec.look_ms < 100:
        yield _misfit("spec.look", "there are 100 ms between two looks at least")


def _ask_problems(here: str, ask: Ask) -> Iterator[Problem]:
    from batuta.kinds.manifest import from_document

    if not (ask.apply or ask.files or ask.delete or ask.rollouts):
        yield _misfit(here, "say what people do: apply, files, delete or rollouts", code="missing_field")
    for i, document in enumerate(ask.apply):
        at = f"{here}.apply[{i}]"
        try:
            resource = from_document(document)
        except Refused as refused:
            for problem in refused.problems:
                path = f"{at}.{problem.path}" if problem.path else at
                yield msgspec.structs.replace(problem, path=path)
        else:
            if isinstance(resource, Scenario):
                yield _misfit(at, "a scenario cannot hold another one")
    for i, word in enumerate(ask.delete):
        if word.split("/")[0] not in ("applications", "models", "sites", "nodes", "policies"):
            hint = "write it like applications/NAME"
            yield _misfit(f"{here}.delete[{i}]", f"there is no kind {word.split('/')[0]!r} to delete from", hint)


def _fault_problems(here: str, fault: Fault, spec: ScenarioSpec) -> Iterator[Problem]:
    takes = FAULTS[fault.fault]
    for wire, field in _AMOUNTS.items():
        given = getattr(fault, field) is not None
        if takes.amount == wire and not given:
            yield _misfit(here, f"{fault.fault} needs {wire!r}", code="missing_field")
        elif takes.amount != wire and given:
            hint = f"it takes {takes.amount!r}" if takes.amount else "leave it out"
            yield _misfit(f"{here}.{wire}", f"{fault.fault} has no {wire!r}", hint)
    if not takes.whom:
        for field in ("nodes", "node", "site"):
            if getattr(fault, field):
                yield _misfit(f"{here}.{field}", f"{fault.fault} befalls the hub, not nodes", "leave it out")
    elif fault.repeat != 1:
        yield _misfit(f"{here}.repeat", f"{fault.fault} befalls nodes: say how many in 'nodes'")
    if fault.period_ms is not None and fault.period_ms < 100:
        yield _misfit(f"{here}.period", "a period has 100 ms at least")
    if fault.until_ms is not None and fault.until_ms < fault.at_ms:
        yield _misfit(f"{here}.until", "it ends before it begins")
    if max(fault.at_ms, fault.until_ms or 0) > spec.duration_ms:
        field = "at" if fault.at_ms > spec.duration_ms else "until"
        yield _misfit(f"{here}.{field}", f"the run is over by then: duration is {spec.duration_ms.text()}")


def _expectation_problems(here: str, expectation: Expectation) -> Iterator[Problem]:
    said = [word for word in ("always", "eventually") if getattr(expectation, word) is not None]
    if len(said) != 1:
        yield _misfit(here, "say exactly one of always, eventually", code="one_of")
    for word in said:
        yield from condition.check(f"{here}.{word}", getattr(expectation, word), frozenset(FIGURES))
    if expectation.until_ms is not None and expectation.until_ms < expectation.from_ms:
        yield _misfit(f"{here}.until", "it ends before it begins")
