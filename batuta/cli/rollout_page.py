"""A rollout in plain words: its waves, its nodes, what its gates say, and why it stands still."""

from __future__ import annotations

from datetime import datetime
from typing import TYPE_CHECKING, Any, Final

from batuta.cli.text import ABSENT, age, clean, painted, table

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from batuta.answers import Found
    from batuta.kinds.rollout import Rollout

SORTS: Final = ("done", "updating", "waiting", "deferred", "held", "failed")
TOLD: Final = {
    "updating": "in the middle of it", "deferred": "cannot be reached; they follow when they are back",
    "held": "kept as they are: by their owner, a lock, their link or their update window", "failed": "turned it down",
}  # fmt: skip
NAMED_MAX: Final = 8
GATE_WIDTH: Final = 72
_STANDS: Final = {
    "soaking": "watched", "paused": "paused", "undoing": "being undone", "undone": "undone", "aborted": "ended here",
}  # fmt: skip
_TONES: Final = {
    "done": "good", "paused": "wait", "undoing": "bad", "undone": "bad", "aborted": "bad", "held": "good",
    "broken": "bad", "open": "wait", "through": "good",
}  # fmt: skip


def page(found: Found[Rollout], now_ms: float) -> Iterator[str]:
    """All of it."""
    status, spec = found.status, found.resource.spec
    name = found.resource.metadata.name
    yield f"{painted(f'rollouts/{name}', 'strong')}  release {spec.release}, in place of {spec.previous}"
    yield f"  {headline(status, now_ms)}"
    reason = status.get("reason")
    if reason:
        yield f"  {clean(reason['sentence'])}"
        yield f"    next: {clean(reason['next'])}"
    if (error := status.get("firstError")) and (not reason or error not in reason["sentence"]):
        yield f"  first error: {clean(error)}"
    if stopped := status.get("stoppedClasses"):
        names = ", ".join(clean(name) or "unknown hardware" for name in stopped)
        yield f"  keeps the old release, for its nodes turned this one down: {names}"
    yield ""
    rows = [
        [str(i), wave["wave"], str(wave.get("target", ABSENT)), _stands(wave["state"], status.get("phase", ""))]
        for i, wave in enumerate(status.get("waves", ()), 1)
    ]
    yield from _painted(table(["WAVE", "UP TO", "NODES", "STATE"], rows))
    yield ""
    nodes = status.get("nodes", {})
    yield from table(
        ["NODES", *(sort.upper() for sort in SORTS)],
        [[str(nodes.get("total", 0)), *(str(nodes.get(sort, 0)) for sort in SORTS)]],
    )
    yield from _named(status)
    if gates := status.get("gates"):
        yield ""
        for gate in gates:
            yield from _gate(gate)


def _stands(state: str, phase: str) -> str:
    """How a wave stands, where its rollout is doing something else than going on."""
    return _STANDS.get(phase, state) if state == "under way" else state


def headline(status: Mapping[str, Any], now_ms: float) -> str:
    """One line: where it stands and since when, and when it may be through."""
    said = str(status.get("says", "")).partition("; ")[0]
    began = age(status.get("beganAt"), now_ms)
    line = f"{_toned(clean(said), str(status.get('phase', '')))}, begun {began} ago"
    if (eta := status.get("eta")) is not None:
        at = datetime.fromtimestamp(eta / 1000).astimezone().strftime("%H:%M:%S")
        line += f"; through in about {age(now_ms, max(eta, now_ms))}, at {at}"
    return line


def brief(status: Mapping[str, Any]) -> str:
    """The same in one line for each change, where nothing can be painted over: nothing in it changes by itself."""
    nodes = status.get("nodes", {})
    counts = ", ".join(f"{nodes[sort]} {sort}" for sort in SORTS if nodes.get(sort))
    return f"{clean(str(status.get('says', '')))}  ({counts or 'no nodes'} of {nodes.get('total', 0)})"


def _named(status: Mapping[str, Any]) -> Iterator[str]:
    """Those that one may have to look after, by name."""
    for sort, meaning in TOLD.items():
        names = status.get("named", {}).get(sort, ())
        if names:
            more = status.get("nodes", {}).get(sort, len(names)) - min(len(names), NAMED_MAX)
            rest = f" and {more} more" if more > 0 else ""
            yield f"  {sort}: {', '.join(map(clean, names[:NAMED_MAX]))}{rest}  {painted(f'({meaning})', 'dim')}"


def _gate(gate: Mapping[str, Any]) -> Iterator[str]:
    """A gate, and what was measured: where the truth is, as far as can be told by now."""
    from batuta.kinds.gate import BASELINE, MEASURED

    verdict = str(gate["verdict"])
    yield f"gate {clean(gate['gate'])}: {_toned(VERDICTS.get(verdict, verdict), verdict)}"
    for name, value in gate.get("values", {}).items():
        unit = MEASURED.get(name.removeprefix(f"{BASELINE}."), ("", ""))[0]
        # What nothing is known of has no bound, and JSON no word for that.
        bounds = {each: figure(value[each], unit) for each in ("least", "seen", "most") if value[each] is not None}
        seen = bounds.get("seen", "not known")
        spans = [f"at {each} {bounds[each]}" for each in ("least", "most") if bounds.get(each, seen) != seen]
        yield f"  {clean(name)} is {seen}{', ' if spans else ''}{' and '.join(spans)}"
    for name in gate.get("missing", ()):
        yield f"  {clean(name)} was not measured, or not often enough"


VERDICTS: Final = {
    "held": "it holds", "broken": "it is broken", "open": "too early to tell", "not asked yet": "not asked yet",
    "in shadow": "asked in shadow only",
}  # fmt: skip


def figure(value: float, unit: str) -> str:
    """A measurement with its unit, in so many digits as say something."""
    if unit == "share":
        return f"{value * 100:.3g} %"
    if unit == "bytes":
        from batuta.cli.text import size

        return size(value)
    return f"{value:.4g} {unit}".strip()


def _toned(text: str, word: str) -> str:
    return painted(text, _TONES.get(word, ""))


def _painted(lines: list[str]) -> Iterator[str]:
    for line in lines:
        yield painted(line, "good") if line.endswith("through") else line
