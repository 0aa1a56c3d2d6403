"""Far: who serves a model at other sites, as the hub tells a node that asks. Pure.

A site knows its own by their cards. Beyond it only the hub knows, from assignments and reports. It tells a node only
of namespaces of which the node itself runs something: what a tenant's machine may reach is what is the tenant's. The
nearest come first: those with whom the asker's site has a site above it in common (its region), then all others; and
among those by how far one has to go up and down the tree of sites.
"""

from __future__ import annotations

import zlib
from typing import TYPE_CHECKING, Literal

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


def elsewhere(state: State, asker: str, wanted: FarWanted, now: int) -> tuple[FarInstance, ...]:
    """Instances at other sites, nearest first."""
    node = state.nodes.get(asker)
    if node is None:
        return ()
    version = version_meant(state, wanted)
    above = _above(state, node.spec.site)
    found: list[tuple[int, int, int, FarInstance]] = []
    for app in sorted(state.users_of_model.get(f"{wanted.namespace}/{wanted.model}", ())):
        for held in state.held.get(app, ()):
            instance, order = held.instance, held.instance.model
            there = state.nodes.get(held.node)
            if order is None or order.name != wanted.model or there is None or there.spec.site == node.spec.site:
                continue
            if (version and order.version != version) or wanted.application not in ("", instance.application):
                continue
            if not _is_ready(state, held.node, instance.name) or link(state, held.node, now) != "online":
                continue
            theirs = _above(state, there.spec.site)
            shared = [site for site in above if site in theirs]
            steps = above.index(shared[0]) + theirs.index(shared[0]) if shared else len(above) + len(theirs)
            said = FarInstance(
                application=instance.application, component=instance.component, instance=instance.name,
                node=held.node, version=order.version, nearness="region" if shared else "hub",
            )  # fmt: skip
            # Among equals each asker has an order of its own, so that not everybody runs to the same few.
            draw = zlib.crc32(f"{asker} {instance.name}".encode())
            found.append((0 if shared else 1, steps, draw, said))
    found.sort(key=lambda row: (*row[:3], row[3].instance))
    return tuple(row[3] for row in found[:TOLD_MOST])


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
