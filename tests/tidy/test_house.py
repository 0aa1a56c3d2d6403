"""The house: layers, borders in prose, sizes, words. Each ban names its replacement."""

from __future__ import annotations

import ast
import importlib
import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests.tidy.sources import PACKAGE, ROOT, name_of, parsed, python_files

LINES_MAX = 500

BANNED_WORDS = {
    "manager": "say what it does: Store, Loop, Feed",
    "handler": "say what it answers, or make it a function with a verb",
    "helper": "put it where it belongs, under its own name",
    "helpers": "put it where it belongs, under its own name",
    "util": "put it where it belongs, under its own name",
    "utils": "put it where it belongs, under its own name",
    "service": "say which: hub, node agent, broker, component",
    "processor": "say what it makes of what: Filter, Window, Feed",
    "info": "say which facts: Report, Inventory, Vitals",
    "common": "put it where it belongs, under its own name",
    "impl": "name the tenant: nats, memory, process",
    "misc": "put it where it belongs, under its own name",
    "deployment": "Application, Release or Rollout",
}
# Words that a foreign interface dictates, each with the reason.
FOREIGN_NAMES = {"_common_name": "X.509 calls the field CN, the common name"}


def test_imports_point_inward() -> None:
    """The contracts of pyproject.toml, so that a plain `pytest` catches what `make lint` does."""
    linted = subprocess.run(
        [str(Path(sys.executable).parent / "lint-imports"), "--no-cache"],
        cwd=ROOT, check=False, capture_output=True, text=True, timeout=120,
    )  # fmt: skip
    assert linted.returncode == 0, linted.stdout[-3000:] + linted.stderr[-1000:]


@pytest.mark.parametrize("path", [p for p in python_files() if p.name == "__init__.py"], ids=name_of)
def test_every_package_opens_with_its_borders(path: Path) -> None:
    said = ast.get_docstring(parsed(path)) or ""
    sentences = re.findall(r"\S[.:?](?:\s|$)", said)
    assert len(sentences) >= 2, f"{name_of(path)}: say in two sentences what belongs here and what never may"


@pytest.mark.parametrize("path", python_files(), ids=name_of)
def test_every_module_says_what_it_is(path: Path) -> None:
    assert ast.get_docstring(parsed(path)), f"{name_of(path)} opens with no docstring"


@pytest.mark.parametrize("path", python_files("batuta", "tests", "benchmarks", "examples", "docs"), ids=name_of)
def test_a_module_is_read_in_one_sitting(path: Path) -> None:
    lines = len(path.read_text("utf-8").splitlines())
    assert lines <= LINES_MAX, f"{name_of(path)} has {lines} lines: split it where the nouns part"


def _names(path: Path) -> list[tuple[str, int]]:
    defined = (ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)
    found = [(node.name, node.lineno) for node in ast.walk(parsed(path)) if isinstance(node, defined)]
    return [(path.stem, 1), *found]


@pytest.mark.parametrize("path", python_files(), ids=name_of)
def test_names_say_what_things_are(path: Path) -> None:
    for name, line in _names(path):
        words = {word.lower() for word in re.findall(r"[A-Z]+(?![a-z])|[A-Z]?[a-z]+", name)}
        for word in sorted(words & BANNED_WORDS.keys()):
            assert name in FOREIGN_NAMES, f"{name_of(path)}:{line}: {name!r}: instead of {word!r} {BANNED_WORDS[word]}"


def _modules() -> list[str]:
    return sorted(
        ".".join((*p.relative_to(PACKAGE.parent).parts[:-1], p.stem)).removesuffix(".__init__")
        for p in python_files()
        if p.name != "__main__.py"
    )


def _exporting() -> list[str]:
    return [
        module
        for module in _modules()
        if any(
            isinstance(node, ast.Assign) and any(isinstance(t, ast.Name) and t.id == "__all__" for t in node.targets)
            for node in parsed(_file_of(module)).body
        )
    ]


def _file_of(module: str) -> Path:
    path = PACKAGE.parent.joinpath(*module.split("."))
    return path / "__init__.py" if path.is_dir() else path.with_suffix(".py")


@pytest.mark.parametrize("name", _exporting())
def test_all_is_whole_and_sorted(name: str) -> None:
    """Each promised name is there, and each public name of ours that is there was promised."""
    module = importlib.import_module(name)
    assert list(module.__all__) == sorted(module.__all__, key=lambda n: (not n.isupper(), not n[:1].isupper(), n))
    missing = [n for n in module.__all__ if not hasattr(module, n)]
    assert not missing, f"{name} promises what it does not have: {missing}"
    ours = {
        node.name
        for node in parsed(_file_of(name)).body
        if isinstance(node, ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef) and not node.name.startswith("_")
    }
    assert ours <= set(module.__all__), f"{name} has public names that __all__ leaves out: {ours - set(module.__all__)}"
