"""Rollout: how a release arrives, as the hub shows it. Read and watched as every kind is, and never declared."""

from __future__ import annotations

from typing import Annotated, ClassVar, Literal

import msgspec
from msgspec import Meta

from batuta.kinds.base import Millis, Record, Resource


class RolloutSpec(Record):
    """What arrives, and how its application says that it shall."""

    release: Annotated[int, Meta(ge=1)]
    """The release that arrives."""
    previous: Annotated[int, Meta(ge=1)]
    """The last one that is trusted: what is undone goes back to it."""
    waves: tuple[str, ...] = ()
    """As `spec.rollout.waves` of the application says them; empty for one wave of everything."""
    soak_ms: Millis = msgspec.field(default_factory=lambda: Millis(0), name="soak")
    """So long a wave that is through is watched before the next one begins."""
    gates: tuple[str, ...] = ()
    """What must hold of what the updated nodes measure."""
    shadow_ms: Millis | None = msgspec.field(default=None, name="shadow")
    """So long the new model is shown what the old one is asked, before a wave is switched."""
    split: str | None = None
    """And so much it answers after that, beside the old one."""
    on_failure: Literal["undo", "pause"] = "undo"
    """What becomes of it when it fails."""
    approvals: bool = False
    """Somebody must agree before every wave but the first."""


class Rollout(Resource, tag="Rollout", kw_only=True):
    """How the newest release of an application arrives. It has the application's name; what is asked of it, such as a
    pause, is asked by `batuta rollout`."""

    plural: ClassVar[str] = "rollouts"
    namespaced: ClassVar[bool] = True
    short_names: ClassVar[tuple[str, ...]] = ("ro",)
    columns: ClassVar[tuple[tuple[str, str], ...]] = (
        ("RELEASE", "spec.release"),
        ("STATE", "status.phase"),
        ("WAVE", "status.progress"),
        ("NODES", "status.nodes.total"),
        ("DONE", "status.nodes.done"),
        ("UPDATING", "status.nodes.updating"),
        ("FAILED", "status.nodes.failed"),
        ("DEFERRED", "status.nodes.deferred"),
        ("REASON", "status.reason.sentence"),
    )
    wide_columns: ClassVar[tuple[tuple[str, str], ...]] = (
        ("PREVIOUS", "spec.previous"),
        ("HELD", "status.nodes.held"),
        ("WAITING", "status.nodes.waiting"),
        ("STOPPED", "status.stoppedClasses"),
        ("NEXT", "status.reason.next"),
    )

    spec: RolloutSpec
