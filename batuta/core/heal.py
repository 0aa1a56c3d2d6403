"""Heal: what becomes of an instance that is held. Ordered rules; the first that holds gives the verdict.

Nothing moves without a rule that says so: a converged fleet stays converged, and a node that comes back in time finds
everything where it was. `after` is the component's patience with a silent node: `failover.after`, two heartbeats at
least.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal, NamedTuple

from batuta.core.wish import LEASE_MS

if TYPE_CHECKING:
    from collections.abc import Callable

    from batuta.core.decided import Fence
    from batuta.core.draft import Draft

Verdict = Literal["lost", "stop", "wait", "keep", "hold", "replace", "move"]

ASKED = "it was asked to move"
LOCKED = "it would be updated, but asks to be left as it is"
UNLEASED_MS = 10**12
"""Lease of what was never leased: only its own node can say that it is gone."""


class Case(NamedTuple):
    """One held instance, as the rules see it."""

    removed: bool
    """Its node is no longer part of the fleet."""
    wanted: bool
    """Its slot is still wished for."""
    superseded: bool
    """A newer holder of the same slot is ready."""
    silent_ms: int
    """By everybody's ears."""
    late: bool
    """The hub itself has missed it of late."""
    after_ms: int
    """From when it counts as lost."""
    grace_ms: int
    """How much longer a silent holder may still be running it: zero where running twice does no harm."""
    old: bool
    """It is of an older revision than the release asks for."""
    forbidden: bool
    """Its node may no longer run it: taint, condition or site."""
    kept: bool = False
    """The owner of its node holds the node as it is."""
    locked: bool = False
    """It says that it is not to be updated for now."""
    drained: bool = False
    """Its node is to be emptied, and it can run elsewhere."""
    asked: bool = False
    """Somebody asked for it to be elsewhere."""


class Rule(NamedTuple):
    verdict: Verdict
    sentence: str
    holds: Callable[[Case], bool]


def _is_late(case: Case) -> bool:
    return case.late and case.silent_ms < case.after_ms


def _is_silent(case: Case) -> bool:
    return case.silent_ms >= case.after_ms


def _is_kept_from_change(case: Case) -> bool:
    return case.kept and (case.old or case.forbidden or case.drained or case.asked)


RULES: tuple[Rule, ...] = (
    Rule("lost", "its node was removed", lambda c: c.removed),
    Rule("hold", "nobody needs it there, but its node is held", lambda c: c.kept and (not c.wanted or c.superseded)),
    Rule("stop", "nobody wants it any more", lambda c: not c.wanted),
    Rule("stop", "a newer holder of its slot is ready", lambda c: c.superseded),
    Rule("keep", "its node has missed a heartbeat or two and may come back", _is_late),
    Rule(
        "wait",
        "its node is silent, may still run it, and it must never run twice",
        lambda c: _is_silent(c) and c.silent_ms < c.after_ms + c.grace_ms,
    ),
    Rule("lost", "its node has been silent too long", _is_silent),
    Rule("hold", "it would be changed, but its node is held", _is_kept_from_change),
    Rule("hold", LOCKED, lambda c: c.old and c.locked),
    Rule("replace", "it is of an older revision", lambda c: c.old),
    Rule("move", "its node may no longer run it", lambda c: c.forbidden),
    Rule("move", "its node is being drained", lambda c: c.drained),
    Rule("move", ASKED, lambda c: c.asked),
    Rule("keep", "all is well", lambda _: True),
)


WELL = RULES[-1]


def judge(case: Case) -> Rule:
    """The first rule that holds."""
    return next(rule for rule in RULES if rule.holds(case))


def grace_ms(lease_ms: int) -> int:
    """By when a lease has surely run out, on a clock a tenth slower than ours, with two seconds for slow stopping."""
    return lease_ms + lease_ms // 10 + 2_000


def is_gone(fence: Fence, draft: Draft, after_ms: int) -> bool:
    """Can nobody run what this fence stands for any more? Because its node says so, or cannot hold the lease."""
    due = gone_by(fence, draft, after_ms)
    if due is not None and due <= draft.now:
        return True
    report = draft.state.observed.get(fence.node)
    if fence.node not in draft.state.nodes or report is None or report.serial < fence.serial:
        return False
    ours = (fence.namespace, fence.application, fence.component, fence.slot)
    return not any(_names_slot(i.name, ours) and i.epoch <= fence.epoch for i in report.instances)


def gone_by(fence: Fence, draft: Draft, after_ms: int) -> int | None:
    """The instant at which time alone settles it, if its node stays silent; None while that cannot be said."""
    released_at = fence.released_at
    if released_at is None:
        return None
    if fence.node not in draft.state.nodes:
        # The hub answers a removed node no more, so its lease began to run out then, whatever it was.
        # An instant that is not of this hub's life may be of another clock: then it runs from the life's beginning.
        sighting, began = draft.state.sightings.get(fence.node), draft.state.hub_since
        since = released_at if began <= released_at <= draft.now else began
        since = max(since, sighting.last_seen if sighting is not None else since)
        return since + grace_ms(min(fence.lease_ms, LEASE_MS))
    return draft.ears.silent_since(fence.node) + max(after_ms, draft.missed_ms) + grace_ms(fence.lease_ms)


def _names_slot(name: str, slot: tuple[str, str, str, str]) -> bool:
    """Is this instance name (`namespace/application/component-revision-slot`) one of the slot, in any revision?"""
    namespace, application, component, wanted = slot
    prefix = f"{namespace}/{application}/{component}-"
    if not name.startswith(prefix):
        return False
    revision, _, found = name[len(prefix) :].partition("-")
    return revision.isdigit() and found == wanted
