"""How the releases of a sketch arrive: waves, gates, deadlines and windows, versions that some machines refuse, that
answer worse or that fail, and people who pause, approve, abort, undo and retry.

Drawn from a stream of its own, so that a sketch is otherwise what it was without.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import msgspec

from batuta.kinds.application import Application
from batuta.kinds.base import Millis
from batuta.kinds.rolling import Deadline, UpdateWindow
from batuta.kinds.scenario import RolloutAsk
from batuta.kinds.truth import Truth
from batuta.twin.chance import Chance
from batuta.twin.scenario import Edit

if TYPE_CHECKING:
    from collections.abc import Iterator

    from batuta.kinds.rolling import Rollout
    from batuta.twin.scenario import Scenario

CLASSES = ("slate", "birch", "birch", "copper")
GATES = ("errors.rate < 0.05", "errors.rate < baseline.errors.rate + 0.05", "restarts.count < 4", "latency.p95 < 100.0")
LATEST_MS = 20_000
"""So long before the end nobody asks anything of a rollout any more."""


def arriving(scenario: Scenario, seed: int, model: str, versions: tuple[str, ...]) -> Scenario:
    """The same with rollouts. `versions` of the model, the first of which is good everywhere."""
    chance = Chance(seed, "rollouts")
    machines = tuple(msgspec.structs.replace(m, hardware=chance.pick(CLASSES)) for m in scenario.machines)
    names = sorted({e.apply.metadata.name for e in scenario.edits if isinstance(e.apply, Application)})
    ways = {name: Chance(seed, "rollouts", name) for name in names if chance.happens(600)}
    plans = {name: _way(draw) for name, draw in ways.items()}
    edits = [_with_rollout(edit, plans) for edit in scenario.edits]
    for name, draw in ways.items():
        edits += _asks(name, bool(plans[name].get("approvals")), draw, scenario.duration_ms)
    truths = tuple(_truths(chance, model, versions)) if ways else ()
    return msgspec.structs.replace(
        scenario,
        name=f"rollouts-{seed}",
        machines=machines,
        edits=tuple(sorted(edits, key=lambda e: e.at_ms)),
        truths=truths,
    )


def _with_rollout(edit: Edit, plans: dict[str, dict[str, object]]) -> Edit:
    application = edit.apply
    if not isinstance(application, Application) or application.metadata.name not in plans:
        return edit
    rollout: Rollout = msgspec.structs.replace(application.spec.rollout, **plans[application.metadata.name])
    spec = msgspec.structs.replace(application.spec, rollout=rollout)
    return msgspec.structs.replace(edit, apply=msgspec.structs.replace(application, spec=spec))


def _way(chance: Chance) -> dict[str, object]:
    """What an application says of how its releases arrive."""
    waves = chance.pick((None, ("1 node",), ("1 node", "50%"), ("25%", "100%"), ("2 nodes", "60%")))
    found: dict[str, object] = {
        "waves": waves,
        "soak_ms": Millis(chance.pick((0, 3_000, 15_000))),
        "gates": tuple(chance.sample(GATES, chance.pick((0, 0, 1, 2)))),
        "least_answers": 50,
        "on_failure": chance.pick(("undo", "undo", "pause")),
        "deadline": Deadline(
            node_ms=Millis(ms) if (ms := chance.pick((0, 0, 40_000, 90_000))) else None,
            wave_ms=Millis(ms) if (ms := chance.pick((0, 0, 60_000))) else None,
        ),
        "probation_ms": Millis(chance.pick((3_000, 20_000, 60_000))),
        "priority": chance.pick(("normal", "normal", "security")),
    }
    if chance.happens(150):
        # Runs begin at 22:13:20.
        opens, closes = chance.between(14, 16), chance.between(17, 19)
        found["windows"] = (UpdateWindow(opens=f"{opens} 22 * * *", closes=f"{closes} 22 * * *"),)
    if waves is not None:
        found |= {
            "concurrency": chance.pick((None, None, 1, 2)),
            "approvals": chance.happens(150),
            "jitter_ms": Millis(chance.pick((0, 0, 6_000))),
        }
    return found


def _asks(name: str, approvals: bool, chance: Chance, duration_ms: int) -> Iterator[Edit]:
    words = ["approve"] * chance.between(1, 4) if approvals else []
    for _ in range(chance.pick((0, 0, 1, 2))):
        words += chance.pick((("pause", "resume"), ("undo",), ("abort",), ("abort", "retry"), ("undo", "retry")))
    instants = sorted(chance.between(10_000, duration_ms - LATEST_MS) for _ in words)
    for word, at_ms in zip(words, instants, strict=True):
        ask = RolloutAsk(application=f"default/{name}", ask=word)  # type: ignore[arg-type]
        yield Edit(at_ms=at_ms, rollout=ask)


def _truths(chance: Chance, model: str, versions: tuple[str, ...]) -> Iterator[Truth]:
    """Programs are told apart by the word after `run`; what was wished for first is good."""
    if chance.happens(600):
        yield Truth(model=model, per_second=20.0)
        yield Truth(command="run", per_second=20.0)
    for version in versions[1:]:
        yield from _ills(chance, Truth(model=model, version=version))
    for word in range(2, 10):
        yield from _ills(chance, Truth(command=str(word)))


def _ills(chance: Chance, of: Truth) -> Iterator[Truth]:
    if not chance.happens(500):
        return
    where = (chance.pick(CLASSES),) if chance.happens(700) else ()
    ill: dict[str, object] = chance.pick(
        ({"refused": "no such instruction"}, {"errors": 20.0}, {"latency_ms": 200.0}, {"fails_after_ms": Millis(2_500)})
    )
    yield msgspec.structs.replace(of, hardware=where, **ill)
