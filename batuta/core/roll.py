"""Roll: takes the rollout of an application as far as it goes at one instant, before anything is given or taken."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING

import msgspec

from batuta.core.reasons import Reason
from batuta.core.rollout import WHOLE, Standing, advance, may_have, trial_of
from batuta.core.sample import total
from batuta.core.turns import turns_of

if TYPE_CHECKING:
    from collections.abc import Sequence

    from batuta.core.care import Notes
    from batuta.core.gates import Judged
    from batuta.core.rollout import Rollout
    from batuta.core.turns import Place, Turns

NO_ROOM = frozenset(("nothing_fits", "no_room_beside"))
STEPS_MAX = 100
"""In one decision: two for each wave, and some."""


def roll(notes: Notes, app: str) -> Turns | None:
    """Whose turn it is by now; None when all nodes are to run one and the same release."""
    draft, turns = notes.draft, turns_of(notes.draft, app)
    if turns is None:
        return None
    rollout = turns.rollout
    if not turns.changed and not rollout.is_over and rollout.phase != "paused":
        # What only came or went replaces nothing.
        rollout = turns.rollout = msgspec.structs.replace(
            rollout, phase="done", since=draft.now, reach=WHOLE, back=WHOLE, reason=None
        )
    draft.write_rollout(rollout)
    if not turns.changed or (rollout.phase == "done" and not draft.fleet.refused.any()):
        return turns
    places = turns.places()
    for _ in range(STEPS_MAX):
        standings = turns.standings(places)
        step = advance(rollout, turns.plan, standings, draft.now, partial(_ask, turns, places, standings))
        if step.look_at is not None:
            draft.wake(step.look_at)
        if step.rollout == rollout:
            break
        rollout = turns.rollout = _with_baseline(turns, rollout, step.rollout, places, standings)
    draft.write_rollout(rollout)
    return None if rollout.phase == "undone" else turns


def _ask(turns: Turns, places: Sequence[Place], standings: Sequence[Standing], _: Rollout) -> list[Judged]:
    return turns.judged(places, standings)


def _with_baseline(
    turns: Turns, before: Rollout, after: Rollout, places: Sequence[Place], standings: Sequence[Standing]
) -> Rollout:
    """Whose turn has just come is measured for the last time as it was."""
    if not turns.plan.gates or (before.reach, before.wave) == (after.reach, after.wave):
        return after
    turned = {s.node for s in standings if s.state == "old" and _has(after, s) and not _has(before, s)}
    if not turned:
        return after
    sample = total((after.before, turns.sample((place for place in places if place.node in turned), new=False)))
    return msgspec.structs.replace(after, before=sample)


def _has(rollout: Rollout, standing: Standing) -> bool:
    return may_have(rollout, standing.order, standing.hardware, standing.selected)


def say(notes: Notes, turns: Turns) -> None:
    """Where it stands. What is paused or was given up waits for people, not for anything that changes by itself."""
    rollout, reason = turns.rollout, turns.rollout.reason
    if rollout.phase == "done":
        return
    notes.pending = notes.pending or rollout.phase in ("rolling", "soaking", "undoing")
    if reason is None and turns.spec is not None and turns.spec.waves is not None:
        many = len(turns.plan.waves)
        what = {"undoing": "it is undone", "soaking": "it is watched"}.get(rollout.phase, "nodes are updated")
        if (trial := trial_of(rollout, turns.plan)) is not None:
            what = f"{what}, {trial}"
        detail = f"release {rollout.revision}, wave {min(rollout.wave + 1, many)} of {many}: {what}"
        reason = Reason(code="rolling_out", subject=f"application/{rollout.application}", detail=detail)
    if reason is None or (reason.code == "rollout_waits" and any(r.code in NO_ROOM for r in notes.reasons)):
        return  # why it waits for them is said already, slot by slot
    notes.reasons.append(reason)
