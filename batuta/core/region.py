"""Region: which nodes of other sites give a node a file, as the hub tells a node that asks. Pure.

A site that has a depot gives what its nodes hold to the sites of its region: those below it, and those beside it under
the same site above. The nearest come first: one's own site's parent, then that one's, then the sites beside; of a site
those nodes first that hold the file or are to run it. All of them lie behind the asker's own uplink, so that one's
windows and budgets hold for what comes from them as for what comes from the hub.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from batuta.core.liveness import link
from batuta.kinds.base import Record

if TYPE_CHECKING:
    from collections.abc import Iterator

    from batuta.core.state import State
    from batuta.kinds.site import Site

TOLD_MOST = 4
SITES_MOST = 32


class DepotsWanted(Record):
    """What a node asks the hub for."""

    digest: str


class DepotOf(Record):
    """A node that gives files to other sites."""

    node: str
    address: str
    is_metered: bool = False
    """An uplink on the way to it has windows, a budget or a price: ask the hub before each answer."""
    is_due: bool = False
    """It is to run something that needs the file, so it has begun to fetch it, or is about to."""


class DepotsAnswer(Record, forbid_unknown_fields=False):
    depots: tuple[DepotOf, ...] = ()
    error: str = ""
    message: str = ""


class PassageWanted(Record):
    """May so many bytes of a file come from this node of the region? If so they are counted."""

    digest: str
    node: str
    size_bytes: int


def depots(state: State, asker: str, digest: str, now: int) -> tuple[DepotOf, ...]:
    """Who may give a file to the nodes of this site, the best first."""
    found: list[DepotOf] = []
    for site in _region(state, asker):
        is_metered = any(_is_ruled(each) for each in way(state, asker, site))
        rows = []
        for node in state.nodes_of_site.get(site, ()):
            report = state.observed.get(node)
            if report is not None and report.depot and link(state, node, now) == "online":
                holds, is_due = digest in report.artifacts, _needs(state, node, digest)
                rows.append((not (holds or is_due), node, report.depot, is_due and not holds))
        found += [
            DepotOf(node=node, address=at, is_metered=is_metered, is_due=is_due) for _, node, at, is_due in sorted(rows)
        ]
        if len(found) >= TOLD_MOST:
            break
    return tuple(found[:TOLD_MOST])


def way(state: State, asker: str, site: str) -> tuple[Site, ...]:
    """The sites whose uplinks are needed for what comes to a site from one of its region: its own, and those above it
    until the first that the two have in common."""
    theirs = {each.metadata.name for each in _up(state, site)}
    found: list[Site] = []
    for each in _up(state, asker):
        if each.metadata.name in theirs:
            break
        found.append(each)
    return tuple(found)


def _region(state: State, site: str) -> tuple[str, ...]:
    """Sites with a depot that give to this one, nearest first."""
    line = [each.metadata.name for each in _up(state, site)]
    has_depot = [each for each in state.sites() if each.spec.depot is not None and each.metadata.name not in line[:1]]
    above = [name for name in line[1:] if any(each.metadata.name == name for each in has_depot)]
    beside = sorted(
        (line.index(each.spec.parent), each.metadata.name)
        for each in has_depot
        if each.metadata.name not in line and each.spec.parent in line[1:]
    )
    return (*above, *(name for _, name in beside))[:SITES_MOST]


def _up(state: State, site: str) -> Iterator[Site]:
    """A site and those above it; a circle, which admission refuses, ends the walk."""
    seen: set[str] = set()
    here = state.site(site)
    while here is not None and here.metadata.name not in seen:
        yield here
        seen.add(here.metadata.name)
        here = state.site(here.spec.parent) if here.spec.parent is not None else None


def _is_ruled(site: Site) -> bool:
    uplink = site.spec.uplink
    return bool(uplink.windows or uplink.budget or uplink.metered)


def _needs(state: State, node: str, digest: str) -> bool:
    assignment = state.assignments.get(node)
    return assignment is not None and any(digest in instance.artifacts for instance in assignment.instances)
