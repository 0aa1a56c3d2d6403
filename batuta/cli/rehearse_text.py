"""How a rehearsal reads at a terminal: what moves and when, what it costs, what would go wrong, what was assumed."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator

    from batuta.twin.rehearse import Course, Move, Rehearsal

_SIGNS = {"start": ("+", "good"), "stop": ("-", "bad"), "move": (">", "wait"), "replace": ("~", "wait")}
MOVES_MAX = 40


def told(found: Rehearsal) -> Iterator[str]:
    """The whole summary."""
    changed, nothing = found.changed, found.nothing
    yield from _outcome(found)
    yield from _proposed(found)
    yield from _moves(changed)
    if nothing.moves:
        yield f"Without the change {_many(len(nothing.moves), 'instance')} would move all the same."
    yield ""
    yield from _links(changed, nothing)
    yield from _missing(changed, nothing)
    yield from _slow(changed)
    yield from _energy(found)
    for app, said in changed.reasons.items():
        for reason in said:
            yield f"in the end  {_short(app)}: {reason.get('sentence', reason.get('code', ''))}"
    if changed.restless:
        yield f"! the hub would not come to rest {_many(changed.restless, 'time')}: it flaps"
    yield from _known(found)


def _outcome(found: Rehearsal) -> Iterator[str]:
    from batuta.cli.text import painted

    moves = len(found.changed.moves)
    span = seconds(found.for_ms)
    if found.changed.done_ms is None:
        yield painted(f"Not done within {span}", "bad") + f"; {_many(moves, 'instance')} would change."
    elif moves:
        head = painted(f"Done after {seconds(found.changed.done_ms)}", "good")
        yield f"{head}: {_many(moves, 'instance')} would change, and {span} were looked ahead."
    else:
        yield painted("Nothing would move", "good") + f" within {span}."
    if found.silent:
        names = ", ".join(found.silent[:8])
        yield f"{_many(len(found.silent), 'node')} of {found.nodes} cannot be heard and stay so: {names}"


def _proposed(found: Rehearsal) -> Iterator[str]:
    for move in found.proposed:
        parts = ", ".join(f"{name} {points:+}" for name, points in move.parts.items())
        gain = f"it gains {move.gain // 1000:,} and costs {move.cost // 1000:,} thousand point-seconds"
        yield f"proposed {_short(move.app)}/{move.component} {move.slot}: {move.node} → {move.to}, {gain} ({parts})"


def _moves(course: Course) -> Iterator[str]:
    from batuta.cli.text import painted, table

    rows = [_row(move) for move in course.moves[:MOVES_MAX]]
    headings = ["", "ORDERED", "STARTED", "READY", "OLD GONE", "INSTANCE", "NODE", "WHAT"]
    if rows:
        first, *lines = table(headings, rows)
        yield painted(first, "dim")
        for line, move in zip(lines, course.moves, strict=False):
            yield painted(line, _SIGNS[move.step.action][1])
    if len(course.moves) > MOVES_MAX:
        yield f"  … and {len(course.moves) - MOVES_MAX} more (see -o json)"


def _row(move: Move) -> list[str]:
    step = move.step
    name = f"{step.was} → {step.instance}" if step.was and step.instance and step.was != step.instance else ""
    where = f"{step.was_on} → {step.node}" if step.was_on and step.node and step.was_on != step.node else ""
    at = [move.ordered_ms, move.begun_ms, move.ready_ms, move.left_ms]
    return [
        f"  {_SIGNS[step.action][0]}",
        *("-" if ms is None else seconds(ms) for ms in at),
        f"{_short(step.app)}/{name or step.instance or step.was}",
        where or step.node or step.was_on,
        step.action,
    ]


def _links(course: Course, nothing: Course) -> Iterator[str]:
    from batuta.cli.text import size

    before = {link.site: link for link in nothing.links}
    for link in course.links:
        other = before.get(link.site)
        idle = other.artifact_bytes + other.control_bytes if other is not None else 0
        if link.artifact_bytes + link.control_bytes == idle:
            continue
        metered = ", metered" if link.metered else ""
        yield (
            f"link    {link.site}: {size(link.artifact_bytes)} of artifacts, {size(link.control_bytes)} of orders and "
            f"reports; busy for {seconds(link.busy_ms)} ({link.bandwidth_bps / 1e6:g} Mbit/s{metered}); "
            f"without the change {size(idle)}"
        )


def _missing(course: Course, nothing: Course) -> Iterator[str]:
    from batuta.cli.text import painted

    total, idle = missing_ms(course), missing_ms(nothing)
    if not course.outages and not nothing.outages:
        yield "missing nothing that works would ever be missing"
        return
    times = _many(len(course.outages), "outage")
    yield f"missing {seconds(total)} in all, over {times}; without the change {seconds(idle)}"
    for outage in course.outages[:8]:
        until = "the end" if outage.to_ms is None else seconds(outage.to_ms)
        what = f"{_short(outage.app)}/{outage.component} {outage.slot} at {outage.site}"
        yield f"        {what}: from {seconds(outage.from_ms)} to {until}"
    for budget in course.budgets:
        line = f"budget  {_short(budget.app)}/{budget.component} at {budget.site}: {budget.missed} missing at once"
        if budget.breached_ms:
            yield painted(f"{line}, {budget.may_miss} may be: breached for {seconds(budget.breached_ms)}", "bad")
        else:
            yield f"{line}, as {budget.may_miss} may be"


def missing_ms(course: Course) -> int:
    """For how long slots that had worked did not, added up; those that never came back count until the last deed."""
    return sum(
        (course.quiet_ms if o.to_ms is None else o.to_ms) - min(o.from_ms, course.quiet_ms) for o in course.outages
    )


def _slow(course: Course) -> Iterator[str]:
    from batuta.cli.text import painted

    for place in course.slow:
        yield painted(
            f"slow    {place.instance} on {place.node}: p99 is {place.known_p99_ms:g} ms on {place.hardware}, "
            f"and {place.asked_p99_ms} ms are asked",
            "bad",
        )


def _energy(found: Rehearsal) -> Iterator[str]:
    more = found.changed.energy_wh - found.nothing.energy_wh
    yield (f"energy  {found.changed.energy_wh:.3f} Wh in {seconds(found.for_ms)}, {more:+.3f} Wh against nothing done")


def _known(found: Rehearsal) -> Iterator[str]:
    from batuta.cli.text import painted

    for guess in found.guesses:
        if guess.starts:
            what = f"a start of {_short(guess.app)}/{guess.component} on {guess.hardware} takes {guess.start_ms} ms"
            yield painted(f"learned {what}: {guess.how} ({guess.starts})", "dim")
    for sentence in found.assumed:
        yield painted(f"assumed {sentence}", "dim")


def seconds(ms: int) -> str:
    """`0.7 s`, `12 s`, `5 min 3 s`, `2 h`."""
    if ms < 10_000:
        return f"{ms / 1000:.2f} s"
    if ms < 120_000:
        return f"{ms / 1000:.0f} s"
    minutes, left = divmod(round(ms / 1000), 60)
    if minutes < 120:
        return f"{minutes} min {left} s" if left else f"{minutes} min"
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes} min" if minutes else f"{hours} h"


def _short(app: str) -> str:
    return app.removeprefix("default/")


def _many(count: int, what: str) -> str:
    return f"{count} {what}{'' if count == 1 else 's'}"
