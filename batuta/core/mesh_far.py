"""Far: who serves a model at other sites, as the hub tells a node that asks. Pure.

A site knows its own by their cards. Beyond it only the hub knows, from assignments and reports. It tells a node only
of namespaces of which the node itself runs something: what a tenant's machine may reach is what is the tenant's. The
nearest come first: those with whom the asker's site has a site above it in common (its region), beginning with the
lowest such site; then all others.
"""

from __future__ import annotations

import zlib
from typing import TYPE_CHECKING, Literal, NamedTuple

import msgspec

from batuta.core.liveness import link
from batuta.kinds.base import Record

if TYPE_CHECKING:
    from batuta.core.state import State

TOLD_MOST = 8
NAMESPACES_MOST = 64


class FarWanted(Record):
    """What a node's gateway asks the hub for."""

    namespace: str
    model: str
    version: str = ""
    """A version, an alias, or "" for any."""
    application: str = ""


class FarInstance(Record):
    """One instance at another site that was ready when the hub last heard."""

    application: str
    component: str
    instance: str
    node: str
    version: str
    nearness: Literal["region", "hub"]


class FarAnswer(Record, forbid_unknown_fields=False):
    instances: tuple[FarInstance, ...] = ()
    version: str = ""
    """The version that was meant, where an alias was asked for."""
    relinked: bool = False
    """The node's link had no right to this namespace yet, and is being made anew: call in a moment."""
    error: str = ""
    message: str = ""


def namespaces_of(state: State, node: str) -> tuple[str, ...]:
    """Those of which the node runs something, and which it may therefore call at other sites."""
    assignment = state.assignments.get(node)
    found = {instance.namespace for instance in assignment.instances} if assignment is not None else set()
    return tuple(sorted(found)[:NAMESPACES_MOST])


def version_meant(state: State, wanted: FarWanted) -> str:
    """A version's number, whether it was asked for by that or by an alias."""
    model = state.model(wanted.namespace, wanted.model)
    return model.spec.aliases.get(wanted.version, wanted.version) if model is not None else wanted.version


class Serving(NamedTuple):
    """All that serve one thing, ready and online, as of an instant: found once for everybody who asks."""

    of_site: dict[str, list[FarInstance]]
    """By every site that one is at or below."""
    everywhere: list[FarInstance]
    site: dict[str, str]
    """By node."""


def serving(state: State, wanted: FarWanted, now: int) -> Serving:
    """Who serves it, anywhere."""
    version = version_meant(state, wanted)
    found = Serving({}, [], {})
    for app in sorted(state.users_of_model.get(f"{wanted.namespace}/{wanted.model}", ())):
        for held in state.held.get(app, ()):
            instance, order = held.instance, held.instance.model
            there = state.nodes.get(held.node)
            if order is None or order.name != wanted.model or there is None:
                continue
            if (version and order.version != version) or wanted.application not in ("", instance.application):
                continue
            if not _is_ready(state, held.node, instance.name) or link(state, held.node, now) != "online":
                continue
            said = FarInstance(
                application=instance.application, component=instance.component, instance=instance.name,
                node=held.node, version=order.version, nearness="hub",
            )  # fmt: skip
            found.everywhere.append(said)
            found.site[held.node] = there.spec.site
            for site in _above(state, there.spec.site):
                found.of_site.setdefault(site, []).append(said)
    return found


def elsewhere(state: State, asker: str, found: Serving) -> tuple[FarInstance, ...]:
    """Those at other sites, nearest first: of the same region, beginning with its nearest part; then any."""
    node = state.nodes.get(asker)
    if node is None:
        return ()
    told: dict[str, FarInstance] = {}
    # Each asker begins somewhere else, so that not everybody runs to the same few.
    draw = zlib.crc32(asker.encode())
    for nearness, rows in (
        *(("region", found.of_site.get(site, [])) for site in _above(state, node.spec.site)[1:]),
        ("hub", found.everywhere),
    ):
        for i in range(len(rows)):
            row = rows[(draw + i) % len(rows)]
            if len(told) >= TOLD_MOST:
                return tuple(told.values())
            if row.instance not in told and found.site[row.node] != node.spec.site:
                told[row.instance] = row if nearness == "hub" else msgspec.structs.replace(row, nearness="region")
    return tuple(told.values())


def _above(state: State, site: str) -> list[str]:
    """The site, its region, and so on up."""
    found: list[str] = []
    here: str | None = site
    while here is not None and here not in found:
        found.append(here)
        declared = state.site(here)
        here = declared.spec.parent if declared is not None else None
    return found


def _is_ready(state: State, node: str, instance: str) -> bool:
    report = state.observed.get(node)
    return report is not None and any(each.name == instance and each.phase == "ready" for each in report.instances)
