"""Site: nodes that share an uplink and a fate."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, ClassVar, Literal

import msgspec
from msgspec import Meta

from batuta.kinds.base import BitsPerSecond, Millis, Name, Problem, Record, Resource
from batuta.kinds.calendar import why_no_zone

if TYPE_CHECKING:
    from collections.abc import Iterator


class Uplink(Record):
    """The link that a site shares on its way to its parent."""

    bandwidth_bps: BitsPerSecond | None = msgspec.field(default=None, name="bandwidth")
    latency_ms: Millis | None = msgspec.field(default=None, name="latency")
    metered: bool = False
    """Its traffic is paid for: a Policy may keep things away, and placement prefers other sites."""


class SiteSpec(Record):
    parent: Name | None = None
    """The site above in the tree; a region is a site with children."""
    residency: str | None = None
    """Where its data may live: components that must stay in `eu` run at sites of `eu` and, unless those say otherwise,
    at the sites below them."""
    uplink: Uplink = Uplink()
    on_partition: Literal["keep", "failover"] = "keep"
    """While cut off: keep things as they are, or let the site re-place its own instances."""
    time_zone: str | None = None
    """Its clocks, as in `Europe/Berlin`, for policies that hold at certain hours; UTC when left out."""
    carbon_intensity: Annotated[int, Meta(ge=0, le=5_000)] | None = None
    """Grams of carbon dioxide for a kilowatt-hour there: placement prefers clean places."""


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
        ("ZONE", "spec.timeZone"),
        ("REASON", "status.reason"),
    )

    spec: SiteSpec = SiteSpec()

    def problems(self) -> Iterator[Problem]:
        if self.spec.parent == self.metadata.name:
            yield Problem(path="spec.parent", code="cycle", message="a site cannot be its own parent")
        if self.spec.time_zone is not None and (wrong := why_no_zone(self.spec.time_zone)):
            yield Problem(path="spec.timeZone", code="value", message=wrong[0], hint=wrong[1])
        if self.spec.on_partition == "failover":
            yield Problem(
                path="spec.onPartition",
                code="not_yet",
                message="'failover' is not yet available: it needs an elected site leader",
                hint="leave it out, or say 'keep'",
            )
