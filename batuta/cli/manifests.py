"""Reading the manifests that -f names: files, directories, or standard input."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import msgspec

from batuta.errors import BatutaError, Refused

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from batuta.client import Applied, Client
    from batuta.kinds import AnyResource
    from batuta.kinds.base import Problem

SUFFIXES = (".yaml", ".yml", ".json")
BETWEEN = "\n...\n"
"""Ends the last document of one file, whatever the next file begins with."""


class Manifest(NamedTuple):
    """Several files as the one text that the hub is sent, so that all of it is declared or nothing."""

    resources: tuple[AnyResource, ...]
    text: str
    files: tuple[tuple[str, int], ...]
    """Each file's name, and the line of `text` before its first."""

    def apply(self, hub: Client, *, namespace: str, dry_run: bool) -> tuple[Applied, ...]:
        """Declare it. What the hub refuses is told by file and line of what people wrote."""
        try:
            return hub.apply(self.text, namespace=namespace, dry_run=dry_run)
        except Refused as refused:
            raise Refused([self._placed(problem) for problem in refused.problems]) from None

    def _placed(self, problem: Problem) -> Problem:
        if not problem.line:
            return problem
        file, before = [each for each in self.files if each[1] < problem.line][-1]
        return msgspec.structs.replace(problem, file=file, line=problem.line - before)


def joined(names: Iterable[str]) -> Manifest:
    """Everything that these declare, in order. Raises Refused with all problems of all files."""
    from batuta.kinds.manifest import parse

    resources: list[AnyResource] = []
    problems: list[Problem] = []
    texts: list[str] = []
    files: list[tuple[str, int]] = []
    line = 0
    for file, read in _texts(names):
        try:
            resources += parse(read, file)
        except Refused as refused:
            problems += refused.problems
            continue
        # What people wrote is what the hub is sent, so that it can point into it.
        text = read.decode("utf-8-sig")
        files.append((file, line))
        texts.append(text)
        line += text.count("\n") + BETWEEN.count("\n")
    if problems:
        raise Refused(problems)
    return Manifest(tuple(resources), BETWEEN.join(texts), tuple(files))


def _texts(names: Iterable[str]) -> Iterator[tuple[str, bytes]]:
    for name in names:
        if name == "-":
            yield "<stdin>", sys.stdin.buffer.read()
            continue
        path = Path(name)
        files = sorted(p for p in path.rglob("*") if p.suffix in SUFFIXES and p.is_file()) if path.is_dir() else [path]
        if not files:
            raise BatutaError(f"{name} holds no manifest", next_step=f"name files that end in {', '.join(SUFFIXES)}")
        for file in files:
            try:
                yield str(file), file.read_bytes()
            except OSError as error:
                raise BatutaError(f"{file} cannot be read", next_step="check the path") from error
