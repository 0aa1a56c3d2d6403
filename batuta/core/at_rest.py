"""At rest: applications with which nothing was the matter, and nothing can be now: no need to look at every slot.

An application that was found at rest is remembered by what it was: the same release, held by the same nodes. As long as
these were heard of late and may keep what they have, it still is at rest, whatever its instances report. Only the plain
case is remembered: a fixed number of replicas, of which two may run at once. A law holds this against looking closely.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from batuta.core.standing import Moved
from batuta.core.unasked import may_move
from batuta.core.wish import Ask

if TYPE_CHECKING:
    from collections.abc import Mapping

    from batuta.core.decided import Release
    from batuta.core.draft import Draft
    from batuta.core.fleet import Ints
    from batuta.core.state import Held


class _Rest(NamedTuple):
    """What an application was when it was at rest."""

    release: Release
    held: tuple[Held, ...]
    nodes: Mapping[str, Any]
    """The roster by which rows were found."""
    rows: tuple[Ints, ...]
    """By component: the rows of its holders."""


def is_at_rest(draft: Draft, app: str, release: Release | None) -> bool:
    """Was it at rest, and can nothing have disturbed it?"""
    known: _Rest | None = draft.fleet.books.get(_key(app))
    if known is None or known.release is not release or draft.state.held.get(app) is not known.held:
        return False
    if known.nodes is not draft.state.nodes or not _is_plain(draft, app):
        return False
    if draft.rollout(app) is not None and any(draft.fleet.refused[rows].any() for rows in known.rows):
        return False  # Whoever turns the release down gets back what it had.
    return all(
        bool(_good(Ask(app, released, draft.fleet))[rows].all())
        for released, rows in zip(known.release.components, known.rows, strict=True)
    )


def note_rest(draft: Draft, app: str, release: Release | None) -> None:
    """Remember an application about which there was nothing to say, if there is nothing the matter with any slot."""
    rest = _rest(draft, app, release) if release is not None and _is_plain(draft, app) else None
    if rest is not None:
        draft.fleet.books[_key(app)] = rest
    else:
        draft.fleet.books.pop(_key(app), None)


def _rest(draft: Draft, app: str, release: Release) -> _Rest | None:
    held, row_of = draft.state.held.get(app, ()), draft.fleet.row_of
    if any(r.component.replicas.count is None or r.component.runs == "never-twice" for r in release.components):
        return None
    if len(held) != sum(r.component.replicas.count or 0 for r in release.components):
        return None
    every: list[Ints] = []
    for released in release.components:
        mine = [h for h in held if h.instance.component == released.component.name]
        wanted = {str(k) for k in range(released.component.replicas.count or 0)}
        if {h.instance.slot for h in mine} != wanted or any(h.instance.revision != released.revision for h in mine):
            return None
        if len(mine) != len(wanted) or any(h.node not in row_of for h in mine):
            return None
        rows = np.array([row_of[h.node] for h in mine], np.int64)
        if not _good(Ask(app, released, draft.fleet))[rows].all():
            return None
        every.append(rows)
    return _Rest(release, held, draft.state.nodes, tuple(every))


def _good(ask: Ask) -> Any:
    """By row: what runs there may stay, and nothing asks for it to move."""
    return ask.fleet.fresh & ask.stays() & ~ask.fleet.drained


def _is_plain(draft: Draft, app: str) -> bool:
    """Nothing stands beside what is held: no fence, nothing displaced, scaled or moving; nothing drafted. That it was
    moved is no matter, as long as there is a policy that remembers it."""
    if draft.is_drafted(app) or draft.fences(app):
        return False
    standing = draft.state.standing.get(app)
    if not standing:
        return True
    return may_move(draft.state) and all(isinstance(row, Moved) for row in standing.values())


def _key(app: str) -> str:
    return f"application/{app}"
