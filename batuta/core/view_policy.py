"""The status of a policy: to how many components it applies, where it says no, and where it cannot be answered.

| state | when | exit |
|---|---|---|
| ok | it applies to something, and can be answered wherever it is asked | |
| idle | it applies to nothing that is declared | something is declared, or `applies` changes |
| degraded | somewhere it cannot be answered | guard what may be missing with has(…) |
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from batuta.core import traits
from batuta.core.fleet import FAULT, fleet_of
from batuta.core.standing import Moved
from batuta.core.words import WORDS
from batuta.kinds.instants import Instant

if TYPE_CHECKING:
    from collections.abc import Iterator

    from batuta.core.fleet import Bools, Fleet
    from batuta.core.rules import Rule, Ruling
    from batuta.core.state import State
    from batuta.kinds.policy import Policy

NAMED_MAX = 5


def policy_status(state: State, policy: Policy, now: int, fleet: Fleet | None = None) -> dict[str, Any]:
    """What comes of a policy, here and now."""
    fleet = fleet_of(state, now) if fleet is None else fleet.refresh(state, now)
    name = policy.metadata.name
    there = fleet.present & fleet.reported
    refused, puzzled = there & False, there & False
    components, fault = 0, ""
    for ruling in _rulings(state, fleet):
        if name not in ruling.policies:
            continue
        components += 1
        for rule in (*ruling.hard, *ruling.soft):
            if rule.policy == name:
                no, unknown = _answers(fleet, rule)
                refused |= no & there
                puzzled |= unknown & there
                if not fault and (unknown & there).any():
                    fault = rule.fault or traits.fault(fleet, rule, int(np.flatnonzero(unknown & there)[0]))
    word = "idle" if not components else "degraded" if fault else "ok"
    reason = WORDS[word].meaning
    if fault:
        reason = f"it cannot be answered on {_named(fleet, puzzled)}: {fault}"
    elif refused.any():
        reason = f"it turns {int(refused.sum())} of {int(there.sum())} nodes away from some component"
    moves = {"moves": _moves(state, name)} if policy.spec.moves is not None else {}
    return moves | {
        "state": word,
        "rules": list(policy.spec.rules),
        "applied": components,
        "refuses": int(refused.sum()),
        "refused": _named(fleet, refused),
        "unanswered": int(puzzled.sum()),
        "reason": reason,
        "next": "guard what may be missing with has(…)" if fault else WORDS[word].next_step,
    }


def _moves(state: State, name: str) -> dict[str, Any]:
    """When it last looked for moves, when it will again, and what it moved so far."""
    look = state.looks.get(name)
    rows = [row for rows in state.standing.values() for row in rows.values() if isinstance(row, Moved)]
    found: dict[str, Any] = {"remembered": sum(row.policy == name for row in rows)}
    if look is not None:
        again = Instant(look.next_at).text()
        found |= {"lookedAt": look.at, "looksAgain": again, "weighed": look.looked_at, "begun": look.made}
    return found


def _rulings(state: State, fleet: Fleet) -> Iterator[Ruling]:
    for app in state.applications():
        application = state.application(app)
        for component in application.spec.components if application is not None else ():
            yield traits.ruling(fleet, app, component)


def _answers(fleet: Fleet, rule: Rule) -> tuple[Bools, Bools]:
    """By row: where it says no, and where nobody can say."""
    if rule.fault:
        return fleet.present & False, fleet.present
    unknown: Bools = traits.answers(fleet, rule) == FAULT
    return (traits.refused(fleet, rule) if rule.kind != "prefer" else fleet.present & False), unknown


def _named(fleet: Fleet, rows: Bools) -> str:
    names = sorted(fleet.names[row] for row in np.flatnonzero(rows).tolist())
    return ", ".join(names[:NAMED_MAX]) + (f" and {len(names) - NAMED_MAX} more" if len(names) > NAMED_MAX else "")
