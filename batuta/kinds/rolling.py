"""Rolling: how a change arrives. Waves, what they are judged by, and when a node may change at all."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Literal

import msgspec
from msgspec import Meta

from batuta.kinds.autoscale import Cron
from batuta.kinds.base import Millis, Problem, Record

if TYPE_CHECKING:
    from collections.abc import Iterator

DomainLabel = Annotated[str, Meta(min_length=1, max_length=128)]
Missing = Annotated[int, Meta(ge=0, le=100_000)]
WaveText = Annotated[
    str,
    Meta(
        min_length=1,
        max_length=4096,
        description="`1 node`, `5 nodes`, `10%`, or `where` and a condition over node and site.",
    ),
]
GateText = Annotated[
    str,
    Meta(
        min_length=1,
        max_length=4096,
        description="CEL over what devices measured: `latency.p99 < baseline.latency.p99 * 1.2`.",
    ),
]


SplitText = Annotated[str, Meta(min_length=2, max_length=16, description="A share: `20%`.")]


class Disruption(Record):
    """How much of a component may be missing by our own doing, at one time."""

    per_site: Missing | None = None
    """So many of its replicas at one site; 0 for none at all."""
    per_domain: Annotated[dict[DomainLabel, Missing], Meta(max_length=8)] = {}
    """So many on all nodes together whose label has one and the same value: `{rack: 1}` for one in each rack."""


class Deadline(Record):
    """By when a change must have worked."""

    node_ms: Millis | None = msgspec.field(default=None, name="node")
    """A node that is not done so long after its turn came counts as one that turned the release down."""
    wave_ms: Millis | None = msgspec.field(default=None, name="wave")
    """A wave that is not through so long after it began pauses the rollout."""


class UpdateWindow(Record):
    """A time that comes again and again, in which nodes may be updated."""

    opens: Cron
    closes: Cron
    zone: str | None = None
    """Whose clock: `Europe/Berlin`. Left out: that of the node's site."""


class Rollout(Record):
    """How a change arrives, and how much of it may be missing meanwhile."""

    disruption: Disruption = Disruption()
    """Holds for whatever is done on purpose: changes of what runs, drained nodes, policies, moves, preemption. What
    fails by itself counts against it; healing asks nobody."""
    waves: Annotated[tuple[WaveText, ...], Meta(min_length=1, max_length=32)] | None = None
    """How far it goes before it looks around: `["1 node", "10%", "100%"]`. Counts and shares are of the nodes that run
    what changes, and include the waves before. Left out: one wave of everything, one replica at a time."""
    soak_ms: Millis = msgspec.field(default_factory=lambda: Millis(0), name="soak")
    """So long a wave that is through is watched before the next one begins."""
    gates: Annotated[tuple[GateText, ...], Meta(max_length=16)] = ()
    """What must hold of what the updated nodes measure, in every wave. What was not measured is never a pass."""
    least_answers: Annotated[int, Meta(ge=1, le=1_000_000_000)] = 200
    """Fewer answers than this decide nothing."""
    on_failure: Literal["undo", "pause"] = "undo"
    """When a gate is broken, or no node can take it: give every node back what it had, or stop where it is."""
    concurrency: Annotated[int, Meta(ge=1, le=100_000)] | None = None
    """So many nodes are in the middle of the change at one time; all of a wave when left out."""
    deadline: Deadline = Deadline()
    probation_ms: Millis = msgspec.field(default_factory=lambda: Millis(60_000), name="probation")
    """So long after the new one is first ready a node goes back to the old one by itself when the new one fails."""
    windows: Annotated[tuple[UpdateWindow, ...], Meta(max_length=32)] = ()
    """Nodes are updated only while one of these is open at their site; at any time when left out."""
    links: Literal["any", "unmetered"] = "any"
    """`unmetered`: nodes whose way to the hub is paid for keep what they have until it is not."""
    priority: Literal["normal", "security"] = "normal"
    """`security` waits for no window and for no link."""
    approvals: bool = False
    """Somebody must agree before every wave but the first."""
    jitter_ms: Millis = msgspec.field(default_factory=lambda: Millis(0), name="jitter")
    """The nodes of a wave begin at different instants within so long: no stampede."""
    shadow_ms: Millis | None = msgspec.field(default=None, name="shadow")
    """Before a wave is switched, its nodes run the new model beside the old one for so long: it is shown what the old
    one was asked and has answered, and answers nobody. Only then `agreement.share` is measured."""
    split: SplitText | None = None
    """After that, and for as long as `soak`, the new model answers so much by itself: a stable share of the topics, or
    of the keys of requests. What it cannot answer in time, the old one does."""


def rollout_problems(here: str, rollout: Rollout) -> Iterator[Problem]:
    """Everything wrong with one that can be seen from itself."""
    from batuta.kinds import calendar, gate
    from batuta.kinds.waves import share_of, wave_problems

    if rollout.waves is not None:
        yield from wave_problems(f"{here}.waves", rollout.waves)
    for i, text in enumerate(rollout.gates):
        found = list(gate.check(f"{here}.gates[{i}]", text))
        yield from found
        if not found and rollout.shadow_ms is None and gate.asks_agreement(text):
            message = "whether two releases agree is seen in shadow only, and there is none"
            yield Problem(path=f"{here}.gates[{i}]", code="value", message=message, hint="say shadow: 10m")
    if rollout.split is not None and share_of(rollout.split) is None:
        message = f"{rollout.split!r} is no share"
        yield Problem(path=f"{here}.split", code="value", message=message, hint="for example 20%")
    for i, window in enumerate(rollout.windows):
        path = f"{here}.windows[{i}]"
        for name in ("opens", "closes"):
            if wrong := calendar.why_no_cron(getattr(window, name)):
                yield Problem(path=f"{path}.{name}", code="value", message=wrong, hint="for example 0 22 * * *")
        if window.zone is not None and (unknown := calendar.why_no_zone(window.zone)):
            yield Problem(path=f"{path}.zone", code="value", message=unknown[0], hint=unknown[1])
    if rollout.waves is None:
        # Without waves it is one wave of everything, replica by replica: these would do nothing.
        for name in ("concurrency", "approvals", "jitter_ms"):
            if getattr(rollout, name):
                key = name.removesuffix("_ms")
                message = f"{key} is about waves, and there are none"
                yield Problem(path=f"{here}.{key}", code="value", message=message, hint="say waves, or leave it out")
