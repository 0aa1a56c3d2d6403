"""A played scenario as one page: it opens anywhere, offline, light or dark, and says in words what its plots show.

Hand-written SVG, no script, nothing loaded from elsewhere. Every colour is also a name beside its line.
"""

from __future__ import annotations

from html import escape
from itertools import pairwise
from typing import TYPE_CHECKING, Any, NamedTuple

from batuta.cli.plain_page import document, short

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from batuta.twin.scenario import Scenario

WIDTH, HEIGHT = 860, 220
LEFT, RIGHT, TOP, BOTTOM = 64, 150, 14, 34
BANDS_MAX = 300
"""Faults drawn as bands; more would only be grey."""


class Plot(NamedTuple):
    """One picture: its title, and the figures that it draws over time."""

    title: str
    keys: tuple[str, ...]
    unit: str = ""
    a_second: bool = False
    """Draw how fast it grew since the look before, not the sum so far."""


PLOTS = (
    Plot("Instances", ("wished", "assigned", "ready")),
    Plot("Nodes", ("nodes", "running", "connected", "online")),
    Plot("The hub's work, a second", ("decisions", "writes"), a_second=True),
    Plot("Messages a second", ("messages", "lost_messages"), a_second=True),
    Plot("Bytes a second", ("message_bytes", "uplink_bytes"), "B", a_second=True),
    Plot("Moves and nodes given up, so far", ("moves", "dead_verdicts", "false_dead_verdicts")),
)


def page(run: dict[str, Any], looks: Sequence[dict[str, Any]], plan: Scenario) -> str:
    """The whole page. `run` is what `-o json` prints."""
    parts = [*_head(run), *_expectations(run), *_figures(run)]
    if len(looks) > 1:
        parts.append("<h2>Over time</h2>")
        parts.append('<p class="soft">Shaded: something was wrong somewhere.</p>')
        for number, plot in enumerate(PLOTS):
            parts += _picture(number, plot, looks, plan)
        parts += _table(looks)
    parts += _uplinks(run)
    return document(f"{run['scenario']}, seed {run['seed']}", parts)


def _head(run: dict[str, Any]) -> Iterator[str]:
    word, tone = ("Everything held", "good") if run["ok"] else ("Broken", "bad")
    yield f"<h1>{escape(run['scenario'])}, seed {run['seed']}</h1>"
    minutes = run["virtualSeconds"] / 60
    yield f'<p><span class="{tone}">{word}</span>: {run["nodes"]} nodes, {minutes:g} minutes of virtual time.</p>'
    for broken in run["broken"]:
        at_s = broken["at_ms"] / 1000
        yield f'<p class="bad">{escape(broken["law"])} at {at_s:g} s: {escape(broken["detail"])}</p>'


def _expectations(run: dict[str, Any]) -> Iterator[str]:
    if not run["expectations"]:
        return
    yield "<h2>What was expected</h2>"
    yield '<table><thead><tr><th scope="col">Expectation</th><th scope="col">Met</th></tr></thead><tbody>'
    for each in run["expectations"]:
        met = each["metAtMs"]
        said = "no" if not each["ok"] else "yes, all the time" if met is None else f"yes, at {met / 1000:g} s"
        tone = "good" if each["ok"] else "bad"
        yield f'<tr><td>{escape(each["name"])}</td><td class="{tone}">{said}</td></tr>'
    yield "</tbody></table>"


def _figures(run: dict[str, Any]) -> Iterator[str]:
    yield "<h2>In figures</h2>"
    yield "<table><tbody>"
    healed = run["convergedAfterMs"]
    rows = {"converged after all was healed": "never" if healed is None else f"{healed / 1000:g} s", **run["counts"]}
    for name, value in rows.items():
        shown = f"{value:,}".replace(",", " ") if isinstance(value, int) else value
        yield f'<tr><th scope="row">{escape(name)}</th><td class="n">{shown}</td></tr>'
    yield f'<tr><th scope="row">trace</th><td class="n"><code>{run["trace"]}</code></td></tr>'
    yield "</tbody></table>"


# --- Plots ------------------------------------------------------------------------------------------------------------


def _picture(number: int, plot: Plot, looks: Sequence[dict[str, Any]], plan: Scenario) -> Iterator[str]:
    lines = {key: _values(plot, key, looks) for key in plot.keys}
    most = max((max(values) for values in lines.values()), default=0) or 1
    most = _round_up(most)
    until_s = max(look["at_s"] for look in looks) or 1
    wide, high = WIDTH - LEFT - RIGHT, HEIGHT - TOP - BOTTOM

    def x(at_s: float) -> float:
        return round(LEFT + wide * min(at_s, until_s) / until_s, 1)

    def y(value: float) -> float:
        return round(TOP + high * (1 - value / most), 1)

    said = "; ".join(
        f"{_word(key)} from {short(values[0])} to {short(values[-1])}, {short(min(values))} at least and "
        f"{short(max(values))} at most"
        for key, values in lines.items()
    )
    yield "<figure>"
    yield (
        f'<svg viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-labelledby="t{number} d{number}">'
        f'<title id="t{number}">{escape(plot.title)}</title><desc id="d{number}">{escape(said)}</desc>'
    )
    for fault in plan.faults[:BANDS_MAX]:
        begin, end = x(fault.at_ms / 1000), x((fault.at_ms + max(fault.for_ms, 1000)) / 1000)
        span = max(0.5, round(end - begin, 1))
        yield f'<rect x="{begin}" y="{TOP}" width="{span}" height="{high}" fill="var(--band)"/>'
    for k in range(5):
        value = most * k / 4
        yield f'<line x1="{LEFT}" x2="{LEFT + wide}" y1="{y(value)}" y2="{y(value)}" stroke="var(--line)"/>'
        yield f'<text x="{LEFT - 8}" y="{y(value) + 4}" text-anchor="end">{short(value)}{plot.unit}</text>'
    for k in range(6):
        at_s = until_s * k / 5
        yield f'<text x="{x(at_s)}" y="{HEIGHT - 12}" text-anchor="middle">{_clock(at_s)}</text>'
    labels = _apart([y(values[-1]) for values in lines.values()])
    for k, (key, values) in enumerate(lines.items()):
        points = " ".join(f"{x(look['at_s'])},{y(value)}" for look, value in zip(looks, values, strict=True))
        yield f'<polyline points="{points}" fill="none" stroke="var(--c{k})" stroke-width="2"/>'
        yield f'<text x="{LEFT + wide + 8}" y="{labels[k] + 4}" style="fill: var(--c{k})">{_word(key)}</text>'
    yield f"</svg><figcaption>{escape(plot.title)}</figcaption></figure>"


def _values(plot: Plot, key: str, looks: Sequence[dict[str, Any]]) -> list[float]:
    if not plot.a_second:
        return [look[key] for look in looks]
    before = {"at_s": 0, key: 0}
    return [(b[key] - a[key]) / max(1, b["at_s"] - a["at_s"]) for a, b in pairwise((before, *looks))]


def _apart(places: list[float]) -> list[float]:
    """Labels that would lie on each other are moved apart, in their order."""
    order = sorted(range(len(places)), key=lambda k: places[k])
    moved = list(places)
    for before, after in pairwise(order):
        moved[after] = max(moved[after], moved[before] + 15)
    over = max(0.0, max(moved, default=0.0) - (HEIGHT - BOTTOM))
    return [place - over for place in moved]


def _round_up(value: float) -> float:
    """The next number that quarters well."""
    step = 1.0
    while step * 10 < value:
        step *= 10
    return next(step * k for k in (1, 2, 4, 6, 8, 10) if step * k >= value)


def _clock(at_s: float) -> str:
    minutes, seconds = divmod(round(at_s), 60)
    return f"{minutes // 60}:{minutes % 60:02d}:{seconds:02d}" if minutes >= 60 else f"{minutes}:{seconds:02d}"


def _word(key: str) -> str:
    return key.replace("_", " ")


def _table(looks: Sequence[dict[str, Any]]) -> Iterator[str]:
    """The same as numbers, for those who read or listen rather than look."""
    keys = ["at_s", *dict.fromkeys(key for plot in PLOTS for key in plot.keys)]
    every = max(1, len(looks) // 60)
    yield '<details><summary>The same in numbers</summary><div class="scroll"><table><thead><tr>'
    yield "".join(f'<th scope="col" class="n">{_word(key)}</th>' for key in keys) + "</tr></thead><tbody>"
    for look in (*looks[:-1:every], looks[-1]):
        yield "<tr>" + "".join(f'<td class="n">{look[key]}</td>' for key in keys) + "</tr>"
    yield "</tbody></table></div></details>"


def _uplinks(run: dict[str, Any]) -> Iterator[str]:
    rows = sorted(run["sites"], key=lambda row: (-row["bytesUp"] - row["bytesDown"], row["site"]))[:20]
    if not rows:
        return
    yield "<h2>Uplinks</h2>"
    yield f"<table><caption>The {len(rows)} heaviest of {len(run['sites'])} sites.</caption><thead><tr>"
    yield '<th scope="col">Site</th><th scope="col" class="n">Bytes up</th><th scope="col" class="n">Bytes down</th>'
    yield "</tr></thead><tbody>"
    for row in rows:
        yield (
            f'<tr><th scope="row">{escape(row["site"])}</th><td class="n">{short(row["bytesUp"])}B</td>'
            f'<td class="n">{short(row["bytesDown"])}B</td></tr>'
        )
    yield "</tbody></table>"
