"""Site: nodes that share an uplink and a fate."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, ClassVar, Literal

import msgspec
from msgspec import Meta

from batuta.kinds.autoscale import Cron
from batuta.kinds.base import BitsPerSecond, Bytes, Millis, Name, Problem, Record, Resource
from batuta.kinds.calendar import why_no_cron, why_no_zone

if TYPE_CHECKING:
    from collections.abc import Iterator


class Budget(Record):
    """How much of a link artifacts may use."""

    per_day: Bytes
    """Bytes from midnight to midnight by the site's clock. What can wait (applications of a priority below 0) may use
    half of it; what the business needs (100 and above) is counted, and never stopped."""


class UplinkWindow(Record):
    """Hours in which artifacts may come, every time."""

    opens: Cron
    closes: Cron


class Uplink(Record):
    """The link that a site shares on its way to its parent."""

    bandwidth_bps: BitsPerSecond | None = msgspec.field(default=None, name="bandwidth")
    latency_ms: Millis | None = msgspec.field(default=None, name="latency")
    metered: bool = False
    """Its traffic is paid for: a Policy may keep things away, placement prefers other sites, and artifacts of
    applications with a priority below 0 come in `windows` only."""
    budget: Budget | None = None
    windows: Annotated[tuple[UplinkWindow, ...], Meta(max_length=32)] = ()
    """When artifacts may come, by the site's clock; at any time when left out. Applications of a priority of 100 and
    above wait for no window."""


class Depot(Record):
    """Where the nodes of a site give the files that they hold to other sites of its region."""

    port: Annotated[int, Meta(ge=1, le=65_535)] = 7424
    """TCP port at the address where the node listens, or the next free one; TLS, for nodes of the same hub only."""


class SiteSpec(Record):
    parent: Name | None = None
    """The site above in the tree; a region is a site with children."""
    residency: str | None = None
    """Where its data may live: components that must stay in `eu` run at sites of `eu` and, unless those say otherwise,
    at the sites below them."""
    uplink: Uplink = Uplink()
    depot: Depot | None = None
    """The sites below this one, and those beside it under the same parent, take files from its nodes before they ask
    the hub. Its nodes must be reachable from there."""
    on_partition: Literal["keep", "failover"] = "keep"
    """While cut off: keep things as they are, or let the site re-place its own instances."""
    time_zone: str | None = None
    """Its clocks, as in `Europe/Berlin`, for windows, budgets and policies that hold at certain hours; UTC when left
    out."""
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
        for i, window in enumerate(self.spec.uplink.windows):
            for name in ("opens", "closes"):
                if wrong_line := why_no_cron(getattr(window, name)):
                    path = f"spec.uplink.windows[{i}].{name}"
                    yield Problem(path=path, code="value", message=wrong_line, hint="for example 0 22 * * *")
        if self.spec.on_partition == "failover":
            yield Problem(
                path="spec.onPartition",
                code="not_yet",
                message="'failover' is not yet available: it needs an elected site leader",
                hint="leave it out, or say 'keep'",
            )
