"""YAML text into plain values that remember where they stood.

The parser's events are read one by one instead of through a loader, because only there can a bomb of aliases, a pit of
brackets or a key said twice be met before it has been swallowed. Positions are counted from 1. What is wrong with one
document never hides what is wrong with the next: after a syntax error reading goes on at the next `---`.
"""

from __future__ import annotations

import re
from itertools import islice
from typing import TYPE_CHECKING, Any, NamedTuple

import yaml

from batuta.kinds.base import Problem
from batuta.kinds.marks import Mark, Place
from batuta.kinds.scalars import Trap, resolve

if TYPE_CHECKING:
    from collections.abc import Iterator

DEPTH_MAX = 64
VALUES_MAX = 500_000
DOCUMENTS_MAX = 10_000
SYNTAX_ERRORS_MAX = 20
DOCUMENT_PROBLEMS_MAX = 200

_Loader: Any = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
_TEXT_TAG = "tag:yaml.org,2002:str"
_UNPRINTABLE = re.compile("[^\t\n\x20-\x7e\xa0-\u2027\u202a-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")
# No key that was read can hold it: it is half a pair, which no text has.
_REFUSED_KEY = "\ud800"
_NEW_DOCUMENT = re.compile(r"^---(?=\s|\Z)", re.MULTILINE)


class Document(NamedTuple):
    """One document: its value, where its parts stand, and what is wrong with it as YAML."""

    value: Any
    place: Place
    problems: tuple[Problem, ...]


class _Abandoned(Exception):
    """This document cannot be read on; the next one can."""

    def __init__(self, problem: Problem) -> None:
        self.problem = problem


def read(text: str) -> Iterator[Document | Problem]:
    """Every document of `text` that is not empty, in order; a Problem stands for one that cannot be read."""
    text = re.sub(r"\r\n?", "\n", text)
    for bad in islice(_UNPRINTABLE.finditer(text), SYNTAX_ERRORS_MAX):
        yield _unprintable(text, bad.start())
    text = _UNPRINTABLE.sub("\ufffd", text)
    start, line, budget, documents = 0, 0, _Budget(), 0
    for _ in range(SYNTAX_ERRORS_MAX):
        reader = _Reader(text[start:], line, budget)
        try:
            for document in reader.documents():
                documents += 1
                if documents > DOCUMENTS_MAX:
                    yield Problem(
                        path="",
                        code="too_many",
                        message=f"there are more than {DOCUMENTS_MAX} documents",
                        hint="split the file",
                        line=document.place.line,
                        column=1,
                    )
                    return
                if document.value is not None or document.problems:
                    yield document
        except _Abandoned as abandoned:
            yield from reader.problems
            yield abandoned.problem
            if budget.spent > VALUES_MAX:
                return
            # A bracket or quote that is never closed is noticed at the next `---`, which is then still to be read.
            after = max(reader.document_line + 1, abandoned.problem.line, reader.noticed_line)
            skip = "\n".join(text[start:].split("\n", after - line - 1)[: after - line - 1])
            following = _NEW_DOCUMENT.search(text, start + len(skip))
            if following is None:
                return
            line += text.count("\n", start, following.start())
            start = following.start()
        else:
            return


def _unprintable(text: str, at: int) -> Problem:
    return Problem(
        path="",
        code="yaml",
        message=f"the character U+{ord(text[at]):04X} cannot be in a manifest",
        hint="remove it",
        line=text.count("\n", 0, at) + 1,
        column=at - text.rfind("\n", 0, at),
    )


class _Budget:
    """How many values have been read, with those that aliases repeat."""

    __slots__ = ("spent",)

    def __init__(self) -> None:
        self.spent = 0


class _Frame:
    """A mapping or sequence being filled."""

    __slots__ = ("anchor", "before", "key", "place", "value")

    def __init__(self, value: dict[str, Any] | list[Any], place: Place, anchor: str | None, before: int) -> None:
        self.value = value
        self.place = place
        self.anchor = anchor
        self.before = before
        self.key: str | None = None


class _Reader:
    """Reads one stretch of text that starts at line `first_line` (from 0) of the whole."""

    def __init__(self, text: str, first_line: int, budget: _Budget) -> None:
        self.text = text
        self.first_line = first_line
        self.budget = budget
        self.problems: list[Problem] = []
        self.document_line = first_line + 1
        self.noticed_line = 0
        self.stack: list[_Frame] = []
        self.anchors: dict[str, tuple[Any, Place, int] | None] = {}

    def documents(self) -> Iterator[Document]:
        loader = _Loader(self.text)
        try:
            while True:
                event = loader.get_event()
                if isinstance(event, yaml.DocumentStartEvent):
                    start: Any = event.start_mark
                    self.document_line = self.first_line + start.line + 1
                    self.anchors = {}
                    value, place = self._root(loader)
                    problems, self.problems = tuple(self.problems), []
                    yield Document(value, place, problems)
                elif isinstance(event, yaml.StreamEndEvent):
                    return
        except yaml.MarkedYAMLError as error:
            raise _Abandoned(self._syntax_problem(error)) from None
        finally:
            loader.dispose()

    def _root(self, loader: Any) -> tuple[Any, Place]:
        """Read events until the value that started is complete."""
        stack = self.stack = []
        while True:
            event = loader.get_event()
            mark = event.start_mark
            place = Place(self.first_line + mark.line + 1, mark.column + 1)
            kind = type(event)
            self.budget.spent += 1
            if kind is yaml.ScalarEvent:
                place.style = event.style
                value = self._scalar(event, place)
                if event.anchor is not None:
                    self.anchors[event.anchor] = (value, place, 1)
            elif kind is yaml.AliasEvent:
                value, place = self._alias(event, place)
            elif kind is yaml.MappingEndEvent or kind is yaml.SequenceEndEvent:
                frame = stack.pop()
                value, place = frame.value, frame.place
                if frame.anchor is not None:
                    self.anchors[frame.anchor] = (value, place, self.budget.spent - frame.before)
            else:
                self._open(event, place)
                continue
            if self.budget.spent > VALUES_MAX:
                raise _Abandoned(
                    self._problem(place, "too_many", f"there are more than {VALUES_MAX} values, repeated ones counted")
                )
            if not stack:
                return value, place
            self._put(stack[-1], event, value, place)

    def _open(self, event: Any, place: Place) -> None:
        if len(self.stack) >= DEPTH_MAX:
            raise _Abandoned(self._problem(place, "too_deep", f"values nest more than {DEPTH_MAX} deep", path=""))
        if event.tag is not None:
            self._refuse_tag(event.tag, place)
        if event.anchor is not None:
            self.anchors[event.anchor] = None
        place.children, place.keys = {}, {}
        value: dict[str, Any] | list[Any] = {} if type(event) is yaml.MappingStartEvent else []
        self.stack.append(_Frame(value, place, event.anchor, self.budget.spent))

    def _put(self, frame: _Frame, event: Any, value: Any, place: Place) -> None:
        """Hand a finished value to the mapping or sequence that it is in."""
        if isinstance(frame.value, list):
            frame.place.children[len(frame.value)] = place
            frame.value.append(value)
        elif frame.key is None:
            frame.key = self._key(frame, event, value, place)
        else:
            # A key that was refused takes its value with it.
            if frame.key != _REFUSED_KEY and frame.key not in frame.value:
                frame.value[frame.key] = value
                frame.place.children[frame.key] = place
            frame.key = None

    def _key(self, frame: _Frame, event: Any, value: Any, place: Place) -> str:
        if type(event) is not yaml.ScalarEvent:
            self._add(place, "key", "a key is text, not a list or a mapping", "quote it if it is meant as text")
            return _REFUSED_KEY
        if event.value == "<<" and event.implicit[0]:
            self._add(place, "key", "merge keys (<<) are not read", "repeat the fields, or use an alias for the value")
            return _REFUSED_KEY
        if not isinstance(value, str):
            self._add(place, "key", f"the key {event.value[:40]!r} is not text", f'write "{event.value[:40]}"')
            return _REFUSED_KEY
        if value in frame.place.keys:
            first = frame.place.keys[value]
            path = self._path(frame)
            self.problems.append(
                Problem(
                    path=f"{path}.{_short(value)}" if path else _short(value),
                    code="duplicate_key",
                    message=f"{_short(value)!r} is said twice, first at line {first.line}, column {first.column}",
                    hint="keep one",
                    line=place.line,
                    column=place.column,
                )
            )
            self._enough(place)
        else:
            frame.place.keys[value] = Mark(place.line, place.column)
        return value

    def _scalar(self, event: Any, place: Place) -> Any:
        tag = event.tag
        if tag == _TEXT_TAG or (tag in (None, "!") and not event.implicit[0]) or tag == "!":
            return event.value
        if tag is not None:
            self._refuse_tag(tag, place)
            return event.value
        value = resolve(event.value)
        if isinstance(value, Trap):
            self._add(place, "ambiguous", value.message, value.hint)
            return event.value
        if value is not event.value:
            place.word = event.value
        return value

    def _alias(self, event: Any, place: Place) -> tuple[Any, Place]:
        name = event.anchor
        if name not in self.anchors:
            raise _Abandoned(
                self._problem(place, "alias", f"*{_short(name)} repeats nothing: there is no &{_short(name)}")
            )
        held = self.anchors[name]
        if held is None:
            raise _Abandoned(self._problem(place, "alias", f"*{_short(name)} is inside the very value that it repeats"))
        value, origin, weight = held
        self.budget.spent += weight
        return value, origin

    def _refuse_tag(self, tag: str, place: Place) -> None:
        shown = tag.replace("tag:yaml.org,2002:", "!!")
        self._add(place, "tag", f"tags such as {_short(shown)} are not read", "write the value plainly, or in quotes")

    def _add(self, place: Place, code: str, message: str, hint: str) -> None:
        self.problems.append(self._problem(place, code, message, hint))
        self._enough(place)

    def _enough(self, place: Place) -> None:
        if len(self.problems) > DOCUMENT_PROBLEMS_MAX:
            raise _Abandoned(self._problem(place, "too_many", "this document has too many problems to read on"))

    def _problem(self, place: Place, code: str, message: str, hint: str = "", path: str | None = None) -> Problem:
        path = self._here() if path is None else path
        return Problem(path=path, code=code, message=message, hint=hint, line=place.line, column=place.column)

    def _here(self) -> str:
        """The path to the value being read; to its mapping while it may still be a key."""
        path = self._path(self.stack[-1]) if self.stack else ""
        if self.stack and isinstance(self.stack[-1].value, list):
            path += f"[{len(self.stack[-1].value)}]"
        elif self.stack and (key := self.stack[-1].key) and key != _REFUSED_KEY:
            path = f"{path}.{_short(key)}" if path else _short(key)
        return path

    def _path(self, frame: _Frame) -> str:
        """The path to the value that `frame` fills."""
        path = ""
        for outer in self.stack:
            if outer is frame:
                break
            if isinstance(outer.value, list):
                path += f"[{len(outer.value)}]"
            elif outer.key not in (None, _REFUSED_KEY):
                path += ("." if path else "") + _short(outer.key)
        return path

    def _syntax_problem(self, error: yaml.MarkedYAMLError) -> Problem:
        mark: Any = error.problem_mark or error.context_mark
        line, column = (mark.line, mark.column) if mark else (0, 0)
        self.noticed_line = self.first_line + line + 1
        lines = self.text.split("\n")
        rest = lines[line][column:] if line < len(lines) else ""
        said, context = error.problem or "", error.context or ""
        at_end = not "".join([rest, *lines[line + 1 :]]).strip() or (column == 0 and bool(_NEW_DOCUMENT.match(rest)))
        if at_end and error.context_mark is not None and re.search("flow|quoted", context):
            line, column = error.context_mark.line, error.context_mark.column
            opened = lines[line][column : column + 1] if line < len(lines) else ""
            known = opened in ("[", "{", '"', "'")
            message = (
                f"this {opened} is never closed" if known else "the document ends here, and a bracket is still open"
            )
            hint = ""
        else:
            message, hint = _plain_words(said, context, rest)
        return Problem(
            path="", code="yaml", message=message, hint=hint, line=self.first_line + line + 1, column=column + 1
        )


def _plain_words(said: str, context: str, rest: str) -> tuple[str, str]:
    if "cannot start any token" in said:
        if rest.startswith("\t"):
            return "a tab cannot indent", "use spaces"
        return f"a value cannot start with {rest[:1]!r} without quotes", "quote it"
    if "mapping values are not allowed" in said:
        return "a ':' makes no sense here", "quote the value, or check the indentation of this line"
    if "did not find expected key" in said or "expected '-' indicator" in said or "expected <block end>" in said:
        return "this line does not line up with those before it", "check its indentation"
    if "did not find expected ',' or" in said:
        return f"expected a comma or {said[-3:]} here", ""
    if "could not find expected ':'" in said:
        return "there is no ':' after this key", "check the line before it, too"
    if "unknown escape character" in said:
        return f"the backslash in {rest[:2]} means nothing", "double the backslash, or use single quotes"
    return ": ".join(filter(None, (context, said))) or "this is not YAML", ""


def _short(word: str) -> str:
    return word if len(word) <= 60 else word[:57] + "…"
