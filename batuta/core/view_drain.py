"""What a drained node still holds, and what each of it waits for, in the words of whoever decides it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import msgspec

from batuta.core.draft import Draft
from batuta.core.fleet import fleet_of
from batuta.core.tend import tend
from batuta.core.view_application import plain_reason

if TYPE_CHECKING:
    from batuta.core.fleet import Fleet
    from batuta.core.reasons import Reason
    from batuta.core.state import State
    from batuta.kinds.node import Node

TOLD_MAX = 64
"""Of so many that wait it is told for what."""


def drain_status(state: State, node: Node, now: int, fleet: Fleet | None = None) -> dict[str, Any]:
    """Nothing for a node that nobody drains. What is for every node stays, and is not waited for."""
    assignment = state.assignments.get(node.metadata.name)
    if not node.spec.drain:
        return {}
    held = assignment.instances if assignment is not None else ()
    leaving = [i for i in held if i.slot != node.metadata.name]
    found: dict[str, Any] = {"left": len(leaving), "stays": len(held) - len(leaving), "waits": []}
    said: dict[str, dict[str, Reason]] = {}
    for instance in leaving[:TOLD_MAX]:
        if instance.app not in said:
            fleet = fleet_of(state, now) if fleet is None else fleet.refresh(state, now)
            reasons = tend(Draft(state, fleet, now), instance.app).reasons
            # The first that is said of a slot is why it is still there.
            said[instance.app] = {r.subject: r for r in reversed(reasons)}
        reason = said[instance.app].get(f"component/{instance.component}/{instance.slot}")
        if reason is not None:
            told = msgspec.structs.replace(reason, subject=f"instance/{instance.name}")
            found["waits"].append({"instance": instance.name} | plain_reason(told))
    return {"drain": found}
