"""The status of a rollout: how far it came, where each node stands, what its gates say, and when it may be through."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import msgspec

from batuta.core.draft import Draft
from batuta.core.fleet import fleet_of
from batuta.core.rollout import WHOLE, gates_of, trial_of
from batuta.core.trusted import trusted_of
from batuta.core.turns import Turns
from batuta.kinds.base import encode_hook

if TYPE_CHECKING:
    from batuta.core.fleet import Fleet
    from batuta.core.reasons import Reason
    from batuta.core.rollout import Rollout, Standing
    from batuta.core.state import State
    from batuta.kinds.waves import Wave

NAMED_MAX = 32
"""Of nodes that are told apart by name, so many of each sort."""
_PHASES = {
    "rolling": "under way", "soaking": "a wave is through and is watched", "paused": "paused",
    "undoing": "nodes get back what they had", "done": "done", "undone": "undone: every node has what it had",
    "aborted": "aborted: who has it keeps it, nobody else gets it",
}  # fmt: skip


def rollout_status(state: State, app: str, now: int, fleet: Fleet | None = None) -> dict[str, Any]:
    """All that is to be shown of an application's rollout; empty while its first release is its only one.

    `nodes` counts those that hold what changes: done, updating, waiting (their turn has not come), deferred (they
    cannot be reached), held (their owner, their link or their window keeps them), failed (they turned it down).
    """
    rollout = state.rollouts.get(app)
    if rollout is None:
        return {}
    draft = Draft(state, fleet_of(state, now) if fleet is None else fleet.refresh(state, now), now)
    newest, trusted = draft.releases(app)[-1:], trusted_of(draft, rollout)
    if not newest or trusted is None:
        return {}
    turns = Turns(draft, rollout, newest[0], trusted)
    standings = sorted(turns.standings(turns.places()), key=lambda s: s.node)
    sorts: dict[str, list[str]] = {
        name: [] for name in ("done", "updating", "waiting", "deferred", "held", "failed")
    }  # fmt: skip
    for standing in standings:
        sorts[_sort(rollout, standing)].append(standing.node)
    waves = [_wave(turns, i, wave, len(standings)) for i, wave in enumerate(turns.plan.waves)]
    wrong = next((f"{s.node}: {s.detail}" for s in standings if s.state == "down" and s.detail), "")
    return {
        "application": app,
        "release": newest[0].revision,
        "previous": rollout.previous,
        "phase": rollout.phase,
        "says": _says(turns, len(waves)),
        "components": sorted(turns.changed),
        "wave": min(rollout.wave + 1, len(waves)),
        "waves": waves,
        "trial": _trial(turns),
        "nodes": {"total": len(standings)} | {name: len(those) for name, those in sorts.items()},
        "named": {name: those[:NAMED_MAX] for name, those in sorts.items() if those},
        "gates": _gates(turns),
        "reason": _reason(rollout.reason),
        "firstError": wrong or (rollout.reason.detail if rollout.reason is not None and rollout.turned_down else ""),
        "turnedDown": [
            {"node": node, "hardware": hardware} for node, hardware in sorted(rollout.turned_down.items())[:NAMED_MAX]
        ],
        "stoppedClasses": list(rollout.stopped),
        "awaitsApproval": rollout.reason is not None and rollout.reason.code == "rollout_unapproved",
        "beganAt": rollout.began_at,
        "since": rollout.since,
        "eta": _eta(turns, standings),
    }


def _sort(rollout: Rollout, standing: Standing) -> str:
    if standing.state == "down":
        return "failed"
    if standing.state == "new":
        return "done"
    if not standing.reachable:
        return "deferred"
    if not standing.may or standing.shut:
        return "held"
    if standing.state == "old" and (rollout.is_over or standing.order >= min(rollout.reach, rollout.back)):
        return "waiting"
    return "updating"


def _wave(turns: Turns, i: int, wave: Wave, of: int) -> dict[str, Any]:
    rollout = turns.rollout
    written = turns.spec.waves if turns.spec is not None and turns.spec.waves is not None else ()
    is_over = rollout.phase == "done" or i < rollout.wave
    found: dict[str, Any] = {"wave": written[i] if i < len(written) else "100%"}
    found["state"] = "through" if is_over else "under way" if i == rollout.wave else "to come"
    if wave.where is None:
        found["target"] = wave.target(of)
    return found


def _trial(turns: Turns) -> dict[str, Any] | None:
    """How the wave has the new release while it is beside the old one."""
    trial = trial_of(turns.rollout, turns.plan)
    return None if trial is None else {"mode": trial.mode, "share": trial.share, "forMs": trial.for_ms}


def _gates(turns: Turns) -> list[dict[str, Any]]:
    """Each as it was asked last: `least` and `most` are where the truth is, as far as can be told by now."""
    asked = {seen.gate: seen for seen in turns.rollout.seen}
    found = []
    asks = gates_of(turns.rollout, turns.plan)
    for gate in turns.plan.gates:
        seen = asked.get(gate)
        values = seen.values if seen is not None else {}
        found.append(
            {
                "gate": gate,
                "verdict": seen.verdict if seen is not None else "not asked yet" if gate in asks else "in shadow",
                "values": {name: {"least": v[0], "seen": v[1], "most": v[2]} for name, v in values.items()},
                "missing": list(seen.missing) if seen is not None else [],
            }
        )
    return found


def _reason(reason: Reason | None) -> dict[str, Any] | None:
    if reason is None:
        return None
    found: dict[str, Any] = msgspec.to_builtins(reason, enc_hook=encode_hook)
    return found | {"sentence": str(reason), "next": reason.next_step, "waits": reason.is_waiting}


def _says(turns: Turns, waves: int) -> str:
    """One line for people."""
    rollout = turns.rollout
    said = _PHASES[rollout.phase]
    if (trial := trial_of(rollout, turns.plan)) is not None:
        said = {"rolling": f"under way, {trial}", "soaking": f"watched, {trial}"}.get(rollout.phase, said)
    if not rollout.is_over and waves > 1:
        said = f"wave {min(rollout.wave + 1, waves)} of {waves}: {said}"
    return f"{said}; {rollout.reason}" if rollout.reason is not None else said


def _eta(turns: Turns, standings: list[Standing]) -> int | None:
    """When it may be through if all goes on as so far: from how long the nodes that are done took. None when there is
    nothing to tell it by."""
    rollout, plan = turns.rollout, turns.plan
    if rollout.phase not in ("rolling", "soaking"):
        return None
    done = sum(s.state == "new" for s in standings)
    left = sum(s.state in ("old", "updating") and s.reachable and s.may for s in standings)
    whole_ms = plan.soak_ms + sum(trial.for_ms for trial in plan.trials)
    soaks_ms = whole_ms * (len(plan.waves) - rollout.wave) - sum(t.for_ms for t in plan.trials[: rollout.stage])
    if rollout.phase == "soaking" or (rollout.reach == WHOLE and not left):
        trial = trial_of(rollout, plan)
        soaks_ms -= min(plan.soak_ms if trial is None else trial.for_ms, max(0, turns.draft.now - rollout.since))
    if not left:
        return turns.draft.now + soaks_ms
    if not done:
        return None
    spent_ms = max(1, turns.draft.now - rollout.began_at - whole_ms * rollout.wave)
    return turns.draft.now + soaks_ms + spent_ms * left // done
