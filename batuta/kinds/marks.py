"""Where the values of a document stand in its text, down to the characters of one value. Counted from 1."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Iterator


class Mark(NamedTuple):
    """Line and column, both from 1."""

    line: int
    column: int


class Place:
    """Where one value stands, and where the values and keys inside it do."""

    __slots__ = ("children", "column", "keys", "line", "style", "word")

    def __init__(self, line: int, column: int, style: str | None = None) -> None:
        self.line = line
        self.column = column
        self.style = style
        self.word = ""
        """How a plain value that is not text was written: `1.10` is not `1.1` to whoever wrote it."""
        # Shared by all scalars, which are nearly all places; whoever opens a mapping or sequence gives it its own.
        self.children: dict[str | int, Place] = _NO_CHILDREN
        self.keys: dict[str, Mark] = _NO_KEYS

    def find(self, path: str) -> tuple[Place, Mark]:
        """The deepest place along `path` that exists, and the mark of the key that led to it.

        Keys may hold dots and brackets themselves, so the longest key that fits wins.
        """
        here, key = self, Mark(self.line, self.column)
        while path:
            if index := re.match(r"\[(\d+)\]", path):
                child, rest = here.children.get(int(index[1])), path[index.end() :]
                key = Mark(child.line, child.column) if child else key
            else:
                path = path.removeprefix(".")
                fits = [k for k in here.keys if path.startswith(k) and path[len(k) : len(k) + 1] in ("", ".", "[")]
                if not fits:
                    break
                name = max(fits, key=len)
                child, rest = here.children.get(name), path[len(name) :]
                key = here.keys[name]
            if child is None:
                break
            here, path = child, rest
        return here, key


_NO_CHILDREN: dict[str | int, Place] = {}
_NO_KEYS: dict[str, Mark] = {}


def inside_mark(lines: list[str], place: Place, value: str, inside: int) -> Mark:
    """Where character `inside` (from 1) of a text value stands; the value's own place when that is not certain."""
    own = Mark(place.line, place.column)
    if not 1 <= inside <= len(value) + 1:
        return own
    # One past the end is where something is missing: look for the last character and step over it.
    past = inside == len(value) + 1
    target = len(value) if past else inside
    if target < 1:
        return own
    last = own
    walk = _block_walk if place.style in ("|", ">") else _flow_walk
    for (mark, character), meant in zip(walk(lines, place), value[:target], strict=False):
        if character != meant:
            return own
        last = mark
    return Mark(last.line, last.column + past)


def _block_walk(lines: list[str], place: Place) -> Iterator[tuple[Mark, str]]:
    following = lines[place.line :]
    indent = next((len(line) - len(line.lstrip(" ")) for line in following if line.strip()), 0)
    for number, line in enumerate(following, place.line + 1):
        for column, character in enumerate(line[indent:], indent + 1):
            yield Mark(number, column), character
        yield Mark(number, len(line) + 1), "\n" if place.style == "|" else " "


def _flow_walk(lines: list[str], place: Place) -> Iterator[tuple[Mark, str]]:
    """The characters of a plain or quoted value; whoever walks compares them, and stops where they differ."""
    quote = place.style if place.style in ("'", '"') else ""
    column = place.column - 1 + len(quote)
    for number, line in enumerate(lines[place.line - 1 :], place.line):
        if number > place.line:
            column = len(line) - len(line.lstrip())
        end = len(line.rstrip())
        while column < end:
            mark, width = Mark(number, column + 1), 1
            character = line[column]
            if quote == "'" and character == "'":
                if line[column + 1 : column + 2] != "'":
                    return
                width = 2
            elif quote == '"' and character == "\\":
                escape = line[column + 1 : column + 2]
                width = {"x": 4, "u": 6, "U": 10}.get(escape, 2)
                character = {"n": "\n", "t": "\t"}.get(escape, escape)
            yield mark, character
            column += width
        yield Mark(number, len(line) + 1), " "
