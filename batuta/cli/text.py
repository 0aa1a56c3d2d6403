"""How answers look: tables, ages, sizes, colour. Plain text first; colour repeats what a word already says."""

from __future__ import annotations

import os
import re
import shutil
import sys
import unicodedata
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

CELL_MAX = 60
CUT_MIN = 20
"""No column is cut below this."""
ABSENT = "-"

_CODES = {"good": "32", "wait": "33", "bad": "31", "dim": "2", "strong": "1"}
# What instances do and doctors find; the states of resources have their severity in `core.words`.
TONES = {
    "good": ("ready", "pass"),
    "wait": ("fetching", "proving", "starting", "unready", "backoff", "stopping", "warn"),
    "bad": ("refused", "fail"),
}


def tone_of(word: str) -> str:
    """How much a state word should worry; empty for what is neutral or no state."""
    from batuta.core.words import WORDS

    row = WORDS.get(word)
    if row is None:
        return next((tone for tone, words in TONES.items() if word in words), "")
    if row.severity == 0:
        return "" if row.next_step else "good"
    return "wait" if row.severity == 1 else "bad"


def wants_colour(*, err: bool = False) -> bool:
    """Only at a terminal that can, and never against NO_COLOR."""
    stream = sys.stderr if err else sys.stdout
    return not os.environ.get("NO_COLOR") and os.environ.get("TERM") != "dumb" and stream.isatty()


def painted(text: str, tone: str, *, err: bool = False) -> str:
    code = _CODES.get(tone, "")
    return f"\x1b[{code}m{text}\x1b[0m" if code and wants_colour(err=err) else text


def toned(text: str) -> str:
    """A state word in its colour."""
    return painted(text, tone_of(text.strip()))


def table(
    headings: Sequence[str], rows: Iterable[Sequence[str]], widths: Sequence[int] | None = None, *, cuts: bool = True
) -> list[str]:
    """Lines of a table: columns two spaces apart, nothing after the last word. At a terminal that is too narrow the
    widest columns are cut, if it may be; what is piped elsewhere is whole."""
    rows = [[clean(cell) for cell in row] for row in rows]
    lines = [list(headings), *rows]
    needed = [max(map(_width, column)) for column in zip(*lines, strict=True)] if lines else []
    widths = [max(pair) for pair in zip(needed, widths, strict=True)] if widths else needed
    if cuts and sys.stdout.isatty():
        widths = fitting(widths, shutil.get_terminal_size().columns)
        rows = [[_cut(cell, width) for cell, width in zip(row, widths, strict=True)] for row in rows]
    out = [painted(_joined(headings, widths), "dim")] if headings and any(headings) else []
    colours = wants_colour()
    for row in rows:
        padded = [cell + " " * (width - _width(cell)) for cell, width in zip(row, widths, strict=True)]
        padded[-1] = row[-1]
        out.append("  ".join(map(toned, padded) if colours else padded).rstrip())
    return out


def fitting(widths: Sequence[int], room: int) -> list[int]:
    """These widths, the widest made narrower until all of them fit; names and words of usual length are spared."""
    found = list(widths)
    while sum(found) + 2 * (len(found) - 1) > room and (widest := max(found, default=0)) > CUT_MIN:
        found[found.index(widest)] = widest - 1
    return found


def _cut(text: str, width: int) -> str:
    if _width(text) <= width:
        return text
    while _width(text) >= width:
        text = text[:-1]
    return f"{text}…"


def column_widths(headings: Sequence[str], rows: Iterable[Sequence[str]]) -> list[int]:
    """How wide each column is, to keep later rows in line with those printed."""
    lines = [list(headings), *([clean(cell) for cell in row] for row in rows)]
    return [max(map(_width, column)) for column in zip(*lines, strict=True)]


def cell(value: Any, *, wide: bool = False) -> str:
    """One value as one cell."""
    if value is None or value in ("", (), [], {}):
        return ABSENT
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, dict):
        return ",".join(f"{key}={inner}" for key, inner in sorted(value.items()))
    if isinstance(value, list | tuple):
        return ",".join(cell(inner, wide=True) for inner in value)
    if isinstance(value, float):
        return f"{value:.3g}"
    text = clean(str(value))
    return text if wide or len(text) <= CELL_MAX else f"{text[: CELL_MAX - 1]}…"


def clean(text: str) -> str:
    """No control character of somebody else's reaches the terminal, and a cell is one line."""
    if text.isprintable():
        return text
    return re.sub(r"[\x00-\x1f\x7f-\x9f\u2028\u2029]+", " ", text)


def age(since_ms: float | None, now_ms: float) -> str:
    """How long ago, in the two largest units that matter: `40s`, `5m`, `3h12m`, `12d`."""
    if since_ms is None:
        return ABSENT
    seconds = max(0, int((now_ms - since_ms) // 1000))
    if seconds < 120:
        return f"{seconds}s"
    minutes, hours, days = seconds // 60, seconds // 3600, seconds // 86_400
    if minutes < 10:
        return f"{minutes}m{seconds % 60}s" if seconds % 60 else f"{minutes}m"
    if hours < 3:
        return f"{minutes}m"
    if hours < 8:
        return f"{hours}h{minutes % 60}m" if minutes % 60 else f"{hours}h"
    if hours < 48:
        return f"{hours}h"
    if days < 8:
        return f"{days}d{hours % 24}h" if hours % 24 else f"{days}d"
    return f"{days}d" if days < 730 else f"{days // 365}y{days % 365}d"


def size(bytes_: float) -> str:
    """An amount of bytes as people read it: `210 KiB`."""
    for unit in ("B", "KiB", "MiB", "GiB"):
        if abs(bytes_) < 1024:
            return f"{bytes_:.0f} {unit}" if unit == "B" or bytes_ >= 100 else f"{bytes_:.1f} {unit}"
        bytes_ /= 1024
    return f"{bytes_:.1f} TiB"


def at(document: Mapping[str, Any], path: str) -> Any:
    """The value at a dotted path of plain keys; None where it ends early. Through a list, each value that is there."""
    value: Any = document
    keys = path.split(".")
    for i, key in enumerate(keys):
        if isinstance(value, list):
            inner = (at(member, ".".join(keys[i:])) for member in value if isinstance(member, dict))
            flat = (v for each in inner for v in (each if isinstance(each, list) else [each]))
            return list(dict.fromkeys(v for v in flat if v is not None))
        value = value.get(key) if isinstance(value, dict) else None
    return value


def _joined(cells: Sequence[str], widths: Sequence[int]) -> str:
    return "  ".join(c + " " * (w - _width(c)) for c, w in zip(cells, widths, strict=True)).rstrip()


def _width(text: str) -> int:
    """Terminal columns, as far as the standard library knows."""
    if text.isascii():
        return len(text)
    return sum(0 if unicodedata.combining(c) else 2 if unicodedata.east_asian_width(c) in "WF" else 1 for c in text)
