"""A rehearsal as one page for any browser: no script, nothing from the network, plots drawn as SVG."""

from __future__ import annotations

from html import escape
from typing import TYPE_CHECKING, Final

from batuta.cli.plain_page import document, short
from batuta.cli.rehearse_text import seconds, told

if TYPE_CHECKING:
    from collections.abc import Sequence

    from batuta.twin.rehearse import Course, Curve, Move, Rehearsal

WIDTH, HEIGHT, LEFT, BOTTOM = 900, 160, 170, 24
BARS_MAX: Final = 200
STEPS_MS: Final = (
    *(base * 10**power for power in range(2, 5) for base in (1, 2, 5)),
    *(minutes * 60_000 for minutes in (1, 2, 5, 10, 30, 60, 120, 360, 1_440, 7_200)),
)


def page(found: Rehearsal) -> str:
    """The whole page."""
    parts = [
        f"<h1>{escape(_headline(found))}</h1>",
        f"<p class=soft>A copy of {found.nodes} nodes, {escape(seconds(found.for_ms))} ahead, seed {found.seed}.</p>",
        f"<pre>{escape(_summary(found))}</pre>",
        "<h2>What moves, and when</h2>",
        _key([("c3", "ordered, on its way"), ("c1", "starting"), ("c2", "ready, the old one still there")]),
        _bars(found.changed.moves, _span(found.changed, found.for_ms)),
    ]
    titles = {"ready": "Instances that are ready", "links": "Artifacts over all links", "power": "What all nodes draw"}
    for mine, other in zip(found.changed.curves, found.nothing.curves, strict=True):
        span = _span(found.changed, found.for_ms)
        parts += [
            f"<h2>{escape(titles.get(mine.name, mine.name))}, {escape(mine.unit)}</h2>",
            _key([("c1", "with the change"), ("c0", "nothing done")]),
            _plot([(other, "c0"), (mine, "c1")], span),
        ]
    return document(_headline(found), parts)


def _headline(found: Rehearsal) -> str:
    if found.changed.done_ms is None:
        return "Not done in time"
    return f"Done after {seconds(found.changed.done_ms)}, {len(found.changed.moves)} instances changed"


def _summary(found: Rehearsal) -> str:
    import re

    # The same words as at a terminal, whoever looks: colours do not belong on a page.
    return re.sub(r"\x1b\[[0-9;]*m", "", "\n".join(told(found)))


def _span(course: Course, for_ms: int) -> int:
    """As far as anything happens, and a little further."""
    last = max(course.quiet_ms, course.done_ms or 0, 1_000)
    return min(for_ms, last + last // 5)


def _key(words: Sequence[tuple[str, str]]) -> str:
    spans = (f"<span><i style='background:var(--{tone})'></i>{escape(word)}</span>" for tone, word in words)
    return f"<p class=key>{''.join(spans)}</p>"


def _x(ms: float, span_ms: int) -> float:
    return round(LEFT + (WIDTH - LEFT - 10) * min(ms, span_ms) / span_ms, 1)


def _axis(span_ms: int, height: int) -> str:
    """Lines at round times, six at most."""
    step = next((s for s in STEPS_MS if span_ms / s <= 6), span_ms)
    parts = []
    for ms in range(0, span_ms + 1, step):
        x = _x(ms, span_ms)
        anchor = "end" if x > WIDTH - 40 else "middle"
        parts.append(f"<line x1={x} y1=0 x2={x} y2={height - BOTTOM} stroke='var(--line)'/>")
        parts.append(f"<text x={x} y={height - 6} text-anchor={anchor}>{escape(_tick(ms))}</text>")
    return "".join(parts)


def _tick(ms: int) -> str:
    return f"{ms / 1000:g} s" if ms < 120_000 else seconds(ms)


def _plot(curves: Sequence[tuple[Curve, str]], span_ms: int) -> str:
    """Steps: each value holds until the next."""
    top = max((value for curve, _ in curves for _, value in curve.points), default=0) or 1
    room = HEIGHT - BOTTOM - 8

    def y(value: float) -> float:
        return round(8 + room * (1 - value / top), 1)

    parts = [_axis(span_ms, HEIGHT)]
    parts += [
        f"<text x={LEFT - 8} y={y(value) + 4} text-anchor=end>{short(value)}</text>" for value in (0, top / 2, top)
    ]
    for curve, tone in curves:
        path: list[str] = []
        last = 0.0
        for ms, value in curve.points:
            if ms > span_ms:
                break
            path.append(f"M{_x(ms, span_ms)},{y(value)}" if not path else f"H{_x(ms, span_ms)}V{y(value)}")
            last = value
        if path:
            path.append(f"H{_x(span_ms, span_ms)}")
            name = f"{curve.name}, {short(last)} {curve.unit} in the end"
            parts.append(
                f"<path d='{''.join(path)}' fill=none stroke='var(--{tone})' stroke-width=2>"
                f"<title>{escape(name)}</title></path>"
            )
    return f"<svg viewBox='0 0 {WIDTH} {HEIGHT}' role=img>{''.join(parts)}</svg>"


def _bars(moves: Sequence[Move], span_ms: int) -> str:
    """One bar an instance: from its order until the old one is gone."""
    if not moves:
        return "<p>Nothing.</p>"
    shown = moves[:BARS_MAX]
    height = 18 * len(shown) + BOTTOM + 8
    parts = [_axis(span_ms, height)]
    for row, move in enumerate(shown):
        y = 4 + 18 * row
        step = move.step
        edges = [move.ordered_ms, move.begun_ms, move.ready_ms, move.left_ms]
        label = f"{step.app.removeprefix('default/')}/{step.instance or step.was}"
        where = f"{step.was_on} → {step.node}" if step.was_on and step.node != step.was_on else step.node or step.was_on
        for begin, end, tone in zip(edges, edges[1:], ("c3", "c1", "c2"), strict=False):
            if begin is not None and end is not None and end >= begin:
                width = max(1.0, round(_x(end, span_ms) - _x(begin, span_ms), 1))
                parts.append(f"<rect x={_x(begin, span_ms)} y={y} width={width} height=12 fill='var(--{tone})'/>")
        first = next((ms for ms in edges if ms is not None), 0)
        title = f"{label} on {where}: {step.action}"
        parts.append(
            f"<text x={LEFT - 8} y={y + 10} text-anchor=end>{escape(label[-24:])}<title>{escape(title)}</title></text>"
            f"<text x={_x(max(first, *(ms or 0 for ms in edges)), span_ms) + 5} y={y + 10}>{escape(where)}</text>"
        )
    more = f"<p>… and {len(moves) - BARS_MAX} more.</p>" if len(moves) > BARS_MAX else ""
    return f"<svg viewBox='0 0 {WIDTH} {height}' role=img>{''.join(parts)}</svg>{more}"
