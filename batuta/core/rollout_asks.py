"""Asks: what people may ask of a rollout, and what each makes of its record. Pure.

| ask | while it is | makes it |
|---|---|---|
| pause | rolling, soaking, undoing | paused: nothing changes any more, in either direction |
| resume | paused | what it was; a deadline begins anew |
| approve | rolling, soaking, paused | free to begin its next wave when this one is through |
| abort | rolling, soaking, paused | aborted: no further node gets it, and those that have it keep it |
| undo | rolling, soaking, paused, aborted | undoing: everybody goes back to the release that is trusted |
| retry | paused, undoing, undone, aborted, done | rolling: from its first wave, as if nobody had refused it |

What makes no sense now is refused with a Reason, and nothing is changed. To go back to another release, or from one
that is done, is to declare that release again: see `core.history`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final, Literal

from batuta.core.reasons import Reason
from batuta.core.rollout import aborted, approved, paused, resumed, retried, undoing

if TYPE_CHECKING:
    from collections.abc import Mapping

    from batuta.core.rollout import Phase, Plan, Rollout

Ask = Literal["pause", "resume", "approve", "abort", "undo", "retry"]

WHILE: Final[Mapping[Ask, tuple[Phase, ...]]] = {
    "pause": ("rolling", "soaking", "undoing"),
    "resume": ("paused",),
    "approve": ("rolling", "soaking", "paused"),
    "abort": ("rolling", "soaking", "paused"),
    "undo": ("rolling", "soaking", "paused", "aborted"),
    "retry": ("paused", "undoing", "undone", "aborted", "done"),
}


def asked(rollout: Rollout, plan: Plan, ask: Ask, now: int, said: str) -> Rollout | Reason:
    """The record as it is to be; `said` is who asks and why, for people."""
    subject = f"application/{rollout.application}"
    if why_not := _why_not(rollout, plan, ask):
        return Reason(code="rollout_unfit", subject=subject, detail=why_not)
    if ask == "pause":
        return paused(rollout, now, Reason(code="rollout_paused", subject=subject, detail=said))
    if ask == "resume":
        return resumed(rollout, now)
    if ask == "approve":
        return approved(rollout)
    if ask == "abort":
        return aborted(rollout, now, Reason(code="rollout_aborted", subject=subject, detail=said))
    if ask == "undo":
        return undoing(rollout, now, Reason(code="rollout_undone", subject=subject, detail=said))
    return retried(rollout, now)


def unknown(app: str) -> Reason:
    """What is said to whoever asks something of a rollout that is not there."""
    return Reason(code="rollout_unknown", subject=f"application/{app.rpartition('/')[2]}")


def can_be_undone(rollout: Rollout | None, to: int | None) -> bool:
    """Is to go back to release `to` to undo this rollout? Else that release is to be declared again."""
    return rollout is not None and rollout.phase in WHILE["undo"] and to in (None, rollout.previous)


def _why_not(rollout: Rollout, plan: Plan, ask: Ask) -> str:
    """Why that makes no sense now; empty when it does."""
    if rollout.phase not in WHILE[ask]:
        *others, last = WHILE[ask]
        fit = f"{', '.join(others)} or {last}" if others else last
        return f"release {rollout.revision} is {rollout.phase}; {ask} is for one that is {fit}"
    if ask == "retry" and rollout.phase == "done" and not rollout.turned_down:
        return f"release {rollout.revision} is done, and no node turned it down"
    if ask != "approve":
        return ""
    if not plan.approvals:
        return "its application asks for no approvals: spec.rollout.approvals"
    if rollout.wave >= len(plan.waves) - 1:
        return "its last wave is under way, and waits for nobody"
    if rollout.approved > rollout.wave:
        return f"wave {rollout.wave + 2} of {len(plan.waves)} is approved already"
    return ""
