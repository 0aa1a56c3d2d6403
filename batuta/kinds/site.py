"""Site: nodes that share an uplink and a fate."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar, Literal

import msgspec

from batuta.kinds.base import BitsPerSecond, Millis, Name, Problem, Record, Resource

if TYPE_CHECKING:
    from collections.abc import Iterator


class Uplink(Record):
    """The link that a site shares on its way to its parent."""

    bandwidth_bps: BitsPerSecond | None = msgspec.field(default=None, name="bandwidth")
    latency_ms: Millis | None = msgspec.field(default=None, name="latency")
    metered: bool = False


class SiteSpec(Record):
    parent: Name | None = None
    """The site above in the tree; a region is a site with children."""
    residency: str | None = None
    """Where its data may live, for conditions: `site.residency == "eu"`."""
    uplink: Uplink = Uplink()
    on_partition: Literal["keep", "failover"] = "keep"
    """While cut off: keep things as they are, or let the site re-place its own instances."""


class Site(Resource, tag="Site", kw_only=True):
    """A place whose nodes share an uplink and a fate. Sites form a tree."""

    plural: ClassVar[str] = "sites"
    namespaced: ClassVar[bool] = False
    columns: ClassVar[tuple[tuple[str, str], ...]] = (
        ("PARENT", "spec.parent"),
        ("STATE", "status.state"),
        ("ONLINE", "status.online"),
        ("NODES", "status.nodes"),
    )
    wide_columns: ClassVar[tuple[tuple[str, str], ...]] = (
        ("RESIDENCY", "spec.residency"),
        ("BANDWIDTH", "spec.uplink.bandwidth"),
        ("METERED", "spec.uplink.metered"),
        ("REASON", "status.reason"),
    )

    spec: SiteSpec = SiteSpec()

    def problems(self) -> Iterator[Problem]:
        if self.spec.parent == self.metadata.name:
            yield Problem(path="spec.parent", code="cycle", message="a site cannot be its own parent")
        if self.spec.on_partition == "failover":
            yield Problem(
                path="spec.onPartition",
                code="not_yet",
                message="'failover' is not yet available: it needs an elected site leader",
                hint="leave it out, or say 'keep'",
            )
