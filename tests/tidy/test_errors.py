"""The tree of errors is drawn once, in `batuta.errors`, for people; here it is held against the classes."""

from __future__ import annotations

import ast
import re
from typing import NamedTuple

from batuta import errors
from tests.tidy.sources import PACKAGE, parsed, python_files

ROW = re.compile(r"(?P<lead>[ │├└─]*)(?P<name>[A-Z]\w+)(?:\s+(?:(?P<module>[a-z][\w.]*): )?\S.*)?")


class Drawn(NamedTuple):
    """An error, what it is a kind of, and where it is defined."""

    name: str
    parent: str
    module: str


def drawn() -> list[Drawn]:
    assert errors.__doc__ is not None
    rows: list[Drawn] = []
    above: list[tuple[int, str]] = []
    for line in errors.__doc__.splitlines():
        match = ROW.fullmatch(line) if line.startswith("    ") else None
        if match is None:
            continue
        depth = len(match["lead"])
        while above and above[-1][0] >= depth:
            above.pop()
        rows.append(Drawn(match["name"], above[-1][1] if above else "Exception", match["module"] or "errors"))
        above.append((depth, match["name"]))
    return rows


def defined() -> list[Drawn]:
    """Every class of the package that is, by whatever way, a BatutaError."""
    found: dict[str, list[Drawn]] = {}
    for path in python_files():
        module = ".".join(path.relative_to(PACKAGE).with_suffix("").parts)
        for node in ast.walk(parsed(path)):
            if isinstance(node, ast.ClassDef):
                for base in node.bases:
                    name = (
                        base.id if isinstance(base, ast.Name) else base.attr if isinstance(base, ast.Attribute) else ""
                    )
                    found.setdefault(name, []).append(Drawn(node.name, name, module))
    ours = [Drawn("BatutaError", "Exception", "errors")]
    for each in ours:
        ours += found.get(each.name, [])
    return ours


def test_the_drawn_tree_is_the_real_one() -> None:
    assert sorted(drawn()) == sorted(defined())


def test_what_is_defined_beside_the_tree_comes_in_its_order() -> None:
    """As in the module, and what is defined elsewhere after it."""
    here = [node.name for node in parsed(PACKAGE / "errors.py").body if isinstance(node, ast.ClassDef)]
    assert [row.name for row in drawn() if row.module == "errors"] == here
