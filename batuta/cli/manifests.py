"""Reading the manifests that -f names: files, directories, or standard input."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import msgspec

from batuta.errors import BatutaError, Refused

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from batuta.client import Applied, Client, Foreseen
    from batuta.kinds import AnyResource
    from batuta.kinds.base import Problem

SUFFIXES = (".yaml", ".yml", ".json")
_END, _START = "\n...\n", "---\n"


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

    def diff(self, hub: Client, *, namespace: str) -> Foreseen:
        """What declaring it would change and move. Refused as `apply` would be."""
        try:
            return hub.diff(self.text, namespace=namespace)
        except Refused as refused:
            raise Refused([self._placed(problem) for problem in refused.problems]) from None

    def rehearsal(self, hub: Client, *, namespace: str) -> dict[str, Any]:
        """All of the hub's tables, and what declaring it would change in them. Refused as `apply` would be."""
        try:
            return hub.rehearsal(self.text, namespace=namespace)
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
    for file, read in _texts(names):
        try:
            resources += parse(read, file)
        except Refused as refused:
            problems += refused.problems
            continue
        # What people wrote is what the hub is sent, so that it can point into it.
        text = read.decode("utf-8-sig")
        if texts:
            texts.append(_END if _has_directive(text) else _END + _START)
        files.append((file, "".join(texts).count("\n")))
        texts.append(text)
    if problems:
        raise Refused(problems)
    return Manifest(tuple(resources), "".join(texts), tuple(files))


def _has_directive(text: str) -> bool:
    """Does it begin with `%YAML`, which may follow the end of a document but not the start of one?"""
    lines = (line for line in text.splitlines() if line.strip() and not line.startswith("#"))
    return next(lines, "").startswith("%")


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
