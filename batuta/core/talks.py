"""Talks: components of one application that write what others read belong together, by how much they say.

Topics are a site's own: what is written at one site is read there. So the sites where the others are count most, then
the way over the links of the site tree, then the node itself. What is not yet measured counts a little, so that an
application is placed together from the beginning; and of those that talk, the one that is bound to a place comes first.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from batuta.core.trusted import followed

if TYPE_CHECKING:
    from collections.abc import Sequence

    from batuta.core.decided import Released
    from batuta.core.draft import Draft
    from batuta.core.wish import Ask
    from batuta.kinds.application import Component


def listen(draft: Draft, ask: Ask) -> Ask:
    """The same, knowing where those are with whom its component talks: messages by row."""
    mine = ask.component
    to_run = followed(draft, ask.app)
    others = [r.component for r in to_run.components if r.component.name != mine.name] if to_run is not None else []
    reads = {c.name for c in others if says_to(c, mine)}
    writes = {c.name for c in others if says_to(mine, c)}
    if not reads and not writes:
        return ask
    for held in draft.held(ask.app):
        name, row = held.instance.component, draft.fleet.row_of.get(held.node)
        if row is None or (name not in reads and name not in writes):
            continue
        report = draft.reported(held.node, held.instance)
        measures = report.measures if report is not None else None
        said = measures.answered if measures is not None and name in reads else 0
        heard = measures.received if measures is not None and name in writes else 0
        ask.pull[row] = ask.pull.get(row, 0) + max(1, said + heard)
    return ask


def says_to(writer: Component, reader: Component) -> bool:
    """Does one read what the other writes?"""
    return any(meets(o.topic, i.topic) for o in writer.outputs if o.topic is not None for i in reader.inputs)


def meets(output: str, pattern: str) -> bool:
    """Can a message of this output topic be one that the pattern asks for? `{1}` may be anything."""
    wanted, levels = pattern.split("/"), output.split("/")
    for i, level in enumerate(wanted):
        if level == "#":
            return True
        if i >= len(levels) or (level != "+" and "{" not in levels[i] and level != levels[i]):
            return False
    return len(wanted) == len(levels)


def in_order(draft: Draft, app: str, components: Sequence[Released]) -> list[Released]:
    """Those that are bound to a place first; then whoever talks with most of those before it."""
    left = list(components)
    if len(left) < 2 or not any(says_to(a.component, b.component) for a in left for b in left if a is not b):
        return left
    held = {h.instance.component for h in draft.held(app)}
    ordered: list[Released] = []
    while left:
        left.sort(key=lambda r: (-_ties(r, ordered), not _is_bound(r.component), r.component.name not in held))
        # The sort keeps the order of the manifest among equals.
        ordered.append(left.pop(0))
    return ordered


def _ties(released: Released, others: Sequence[Released]) -> int:
    c = released.component
    return sum(says_to(c, o.component) or says_to(o.component, c) for o in others)


def _is_bound(component: Component) -> bool:
    placement, replicas = component.placement, component.replicas
    return bool(placement.near or placement.where or replicas.per_site is not None or replicas.every_node)
