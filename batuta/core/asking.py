"""Asking: can a move be made as things are now? Looked at before it is written down; `core.moves` makes it."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from batuta.core.autoscale import as_scaled
from batuta.core.draft import Draft
from batuta.core.fleet import Fleet
from batuta.core.place import refusals
from batuta.core.reasons import Reason
from batuta.core.trusted import followed
from batuta.core.view_application import fill
from batuta.core.wish import Ask, Wish

if TYPE_CHECKING:
    from batuta.core.standing import Moving
    from batuta.core.state import State


def ask_for(state: State, now: int, row: Moving) -> Reason | None:
    """Why this move cannot be made as things are now; None when it can."""
    subject = f"component/{row.component}/{row.slot}"
    fleet = Fleet().refresh(state, now)
    draft = Draft(state, fleet, now)
    to_run = followed(draft, row.app) if state.application(row.app) is not None else None
    components = to_run.components if to_run is not None else ()
    released = next((r for r in components if r.component.name == row.component), None)
    filled = fill(draft, row.app, released) if released is not None else []
    slot = next((f.slot for f in filled if f.slot.name == row.slot and row.node in [h.node for h in f.holders]), None)
    to = fleet.row_of.get(row.to)
    if released is None or slot is None:
        return Reason(code="move_unknown", subject=subject, detail=f"it is not on {row.node}")
    if to is None or row.to == row.node:
        return Reason(code="move_unknown", subject=subject, detail=f"{row.to} is no other node")
    ask = Ask(row.app, as_scaled(draft, row.app, released), fleet)
    rows = [fleet.row_of[h.node] for f in filled for h in f.holders if h.node in fleet.row_of]
    np.add.at(ask.here, rows, 1)
    own = fleet.row_of.get(row.node)
    wish = Wish(ask, slot, before=own, own=() if own is None else (own,), only=to)
    refused = refusals(wish, fleet)
    return Reason(code=next(iter(refused)), subject=f"node/{row.to}", detail=f"for {subject}") if refused else None
