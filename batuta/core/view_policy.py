"""The status of a policy: to how many components it applies, where it says no, and where it cannot be answered."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from batuta.core.words import WORDS
from batuta.kinds.policy import RULES

if TYPE_CHECKING:
    from batuta.core.fleet import Fleet
    from batuta.core.state import State
    from batuta.kinds.policy import Policy


def policy_status(state: State, policy: Policy, now: int, fleet: Fleet | None = None) -> dict[str, Any]:
    """What comes of a policy, here and now."""
    word = "idle"
    return {
        "state": word,
        "rules": [rule for rule in RULES if getattr(policy.spec, rule)],
        "components": 0,
        "refuses": 0,
        "unanswered": 0,
        "reason": WORDS[word].meaning,
        "next": WORDS[word].next_step,
    }
