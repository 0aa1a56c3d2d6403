"""Rehearsal: a change tried on a copy of the live fleet, in virtual time, beside the same copy left alone.

The copy is made of what the hub knows. Its hub and nodes decide by the core's own `decide` and `step`; links, starts,
transfers and power are modelled from what is declared and what was measured, and whatever had to be assumed is said.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

from batuta.core.draft import Draft
from batuta.core.fleet import Fleet
from batuta.core.foresee import Step, steps_between
from batuta.core.optimize import Move as Proposed
from batuta.core.optimize import propose
from batuta.core.standing import Moving
from batuta.core.state import Change
from batuta.core.view_application import fill, plain_reason
from batuta.kinds.base import Record
from batuta.twin.rehearse_books import ASSUMED_FULL_W, ASSUMED_IDLE_W, Books, Deed, Outage, Point
from batuta.twin.rehearse_faults import NOT_PLAYED, plan_faults
from batuta.twin.rehearse_links import Uplink
from batuta.twin.rehearse_marks import Budget, SlowPlace, budgets, slow_places
from batuta.twin.rehearse_pace import Guess
from batuta.twin.rehearse_stage import Stage

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from batuta.core.reasons import Reason
    from batuta.core.state import State
    from batuta.kinds.scenario import Fault

POINTS_MAX = 400


class Move(Record):
    """What becomes of one slot, and when: milliseconds since the change is made."""

    step: Step
    ordered_ms: int | None = None
    begun_ms: int | None = None
    ready_ms: int | None = None
    left_ms: int | None = None
    """When the old one was gone."""


class Curve(Record):
    """A figure over time, as steps: each value holds until the next."""

    name: str
    unit: str
    points: tuple[tuple[int, float], ...]


class Course(Record):
    """What one run came to."""

    moves: tuple[Move, ...]
    done_ms: int | None
    """When everything that is new worked and nothing was left to decide; None when that never came."""
    quiet_ms: int
    """When anything last began, ended or got ready."""
    links: tuple[Uplink, ...]
    outages: tuple[Outage, ...]
    budgets: tuple[Budget, ...]
    slow: tuple[SlowPlace, ...]
    energy_wh: float
    reasons: dict[str, tuple[dict[str, Any], ...]]
    """By application: what is not as wished in the end."""
    curves: tuple[Curve, ...]
    events: int
    restless: int
    """Decisions of the hub that did not come to rest: it flaps."""


class Rehearsal(Record):
    """A change, beside nothing done."""

    at: int
    """The instant of the copy, on the hub's clock."""
    for_ms: int
    seed: int
    nodes: int
    silent: tuple[str, ...]
    """Nodes that were not heard: they stay so."""
    changed: Course
    nothing: Course
    guesses: tuple[Guess, ...]
    proposed: tuple[Proposed, ...]
    """Moves that pay for themselves: made as soon as the change is done, when they were asked for."""
    assumed: tuple[str, ...]
    """What nobody has measured or declared, in sentences."""


def rehearse(
    state: State,
    changes: Iterable[Change],
    now: int,
    *,
    for_ms: int,
    seed: int = 0,
    faults: Sequence[Fault] = (),
    optimize: bool = False,
) -> Rehearsal:
    """Plays `for_ms` of the fleet from `now` on, with the change and without. Equal arguments give equal answers."""
    plans = [Plan(0, tuple(changes))]

    with_it = Stage(state, now)
    nothing = play(Stage(state, now), [], for_ms, seed=seed, faults=faults)
    changed = play(with_it, plans, for_ms, seed=seed, faults=faults)
    proposed: tuple[Proposed, ...] = ()
    if optimize and changed.done_ms is not None:
        proposed = propose(with_it.hub.state, with_it.time.now).moves
        plans.append(Plan(changed.done_ms, tuple(asked_for(proposed, now))))
        with_it = Stage(state, now)
        changed = play(with_it, plans, for_ms, seed=seed, faults=faults)
    return Rehearsal(
        at=now,
        for_ms=for_ms,
        seed=seed,
        nodes=len(state.nodes),
        silent=tuple(sorted(with_it.silent)),
        changed=changed,
        nothing=nothing,
        guesses=with_it.pace.guesses,
        proposed=proposed,
        assumed=tuple(_assumed(with_it, changed, faults)),
    )


class Plan(NamedTuple):
    """What people do so long after the begin."""

    after_ms: int
    changes: tuple[Change, ...]


def asked_for(proposed: Iterable[Proposed], now: int) -> Iterable[Change]:
    """The moves as somebody would ask for them."""
    for move in proposed:
        namespace, _, name = move.app.partition("/")
        row = Moving(
            namespace=namespace, application=name, component=move.component, slot=move.slot, node=move.node,
            to=move.to, by="twin", why="optimize", at=now,
        )  # fmt: skip
        yield Change("decided", row.key, row)


def play(stage: Stage, plans: Sequence[Plan], for_ms: int, *, seed: int = 0, faults: Sequence[Fault] = ()) -> Course:
    """Plays one run to its end."""
    plan_faults(stage, faults, seed, for_ms)
    for plan in plans:
        if plan.changes:
            stage.time.after(plan.after_ms, stage.hub.hear_edits, plan.changes)
    stage.time.run_until(stage.time.began_at + for_ms)
    stage.books.close()
    named = {_app(change) for plan in plans for change in plan.changes} - {""}
    books, after, now = stage.books, stage.hub.state, stage.time.now
    steps = steps_between(stage.state_before, after, {})
    moves = sorted((_move(step, books.deeds) for step in steps), key=_when)
    touched = {move.step.app for move in moves} | named
    ends = [_done_ms(move, books) for move in moves]
    ends += [None if app in books.pending else books.settled_ms.get(app, 0) for app in touched]
    given_up = _given_up(stage.state_before, after)
    ends += [None] * len(given_up)
    reasons = {app: [*said] for app, said in stage.hub.reasons.items() if said}
    for app, reason in given_up.items():
        reasons.setdefault(app, []).append(reason)
    done_ms = None if None in ends else max((ms for ms in ends if ms is not None), default=0)
    wanted = _wanted(after, now)
    outages = tuple(o for o in books.outages if (o.app, o.component, o.slot) in wanted)
    return Course(
        moves=tuple(moves),
        done_ms=done_ms,
        quiet_ms=books.last_ms,
        links=stage.links.used(),
        outages=outages,
        budgets=tuple(budgets(after, outages)),
        slow=tuple(slow_places(stage.state_before, after, stage.time.began_at)),
        energy_wh=round(books.joules / 3600, 3),
        reasons={app: tuple(plain_reason(r) for r in said) for app, said in sorted(reasons.items())},
        curves=(
            _curve("ready", "instances", books.ready_points),
            _curve("links", "bit/s", books.link_points),
            _curve("power", "W", books.watt_points),
        ),
        events=stage.time.events,
        restless=stage.hub.restless,
    )


def _given_up(before: State, after: State) -> dict[str, Reason]:
    """Applications whose new release was undone meanwhile, and why."""
    undone = {app: rollout for app, rollout in after.rollouts.items() if rollout.phase in ("undoing", "undone")}
    return {
        app: rollout.reason
        for app, rollout in undone.items()
        if rollout.reason is not None and before.rollouts.get(app) != rollout
    }


def _app(change: Change) -> str:
    """The application that a change is about, as `namespace/name`; empty for anything else."""
    word, _, rest = change.key.partition(".")
    return rest.replace(".", "/", 1) if word == "applications" else ""


def _move(step: Step, deeds: dict[tuple[str, str], Deed]) -> Move:
    namespace_and_name = step.app
    come = deeds.get((step.node, f"{namespace_and_name}/{step.instance}"), Deed())
    left = deeds.get((step.was_on, f"{namespace_and_name}/{step.was}"), Deed())
    return Move(
        step=step, ordered_ms=come.ordered_ms, begun_ms=come.begun_ms, ready_ms=come.ready_ms, left_ms=left.ended_ms
    )


def _done_ms(move: Move, books: Books) -> int | None:
    """When the new one was ready, or the last one gone; None when it is not."""
    step = move.step
    if not step.node:
        return move.left_ms or 0
    return (move.ready_ms or 0) if books.works(step.node, f"{step.app}/{step.instance}") else None


def _when(move: Move) -> tuple[int, str, str, str]:
    at = next((ms for ms in (move.ordered_ms, move.begun_ms, move.left_ms) if ms is not None), 10**15)
    return (at, move.step.app, move.step.component, move.step.slot)


def _wanted(state: State, now: int) -> set[tuple[str, str, str]]:
    """The slots that are wished for in the end."""
    draft = Draft(state, Fleet().refresh(state, now), now)
    wanted: set[tuple[str, str, str]] = set()
    for app, releases in state.releases.items():
        for released in releases[-1].components if state.application(app) is not None else ():
            wanted |= {(app, released.component.name, f.slot.name) for f in fill(draft, app, released)}
    return wanted


def _curve(name: str, unit: str, points: list[Point]) -> Curve:
    """As many points as a plot can show: of too many, every so-manieth, and the last."""
    every = 1 + len(points) // POINTS_MAX
    kept = [p for i, p in enumerate(points) if i % every == 0 or i == len(points) - 1]
    return Curve(name=name, unit=unit, points=tuple((p.at_ms, p.value) for p in kept))


def _assumed(stage: Stage, course: Course, faults: Sequence[Fault]) -> Iterable[str]:
    for guess in stage.pace.guesses:
        if not guess.starts:
            yield f"a start of {guess.app}/{guess.component} takes {guess.start_ms} ms: none like it was measured yet"
    used = [link for link in course.links if link.is_assumed and (link.artifact_bytes or link.control_bytes)]
    for link in used:
        mbit = link.bandwidth_bps / 1e6
        yield f"the uplink of site {link.site} has {mbit:g} Mbit/s and {link.latency_ms} ms: spec.uplink does not say"
    if stage.books.assumed_power:
        yield (
            f"{stage.books.assumed_power} nodes draw {ASSUMED_IDLE_W:g} W at rest and {ASSUMED_FULL_W:g} W at work: "
            "their spec.power is left out"
        )
    for word in sorted({fault.fault for fault in faults} & NOT_PLAYED.keys()):
        yield f"{word} is not played: {NOT_PLAYED[word]}"
