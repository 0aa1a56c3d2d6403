"""What must not be in the sources: promises instead of work, silent failures, shells, this machine."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest

from tests.tidy.sources import ROOT, name_of, parsed, python_files, tracked

TEXT_SUFFIXES = (".py", ".md", ".toml", ".yaml", ".yml", ".json", ".js", ".css", ".html", ".sh", ".txt", ".cfg", "")

PROMISES = re.compile(r"\b(?:TODO|FIXME|XXX|HACK|NotImplemented(?:Error)?)\b")
# Where such a word is no promise, and why.
PROMISES_ALLOWED = {
    "batuta/kinds/base.py": "Quantity is abstract, and msgspec's hooks answer NotImplementedError by contract",
    "batuta/runtimes/keeping.py": "what its tenants, process and model, each say; neither can leave it out",
    "tests/tidy/test_hygiene.py": "it names what it looks for",
}

SHELLS = (
    "os.system", "os.popen", "subprocess.getoutput", "subprocess.getstatusoutput", "asyncio.create_subprocess_shell",
)  # fmt: skip

# Paths and names of a machine on which this happens to be written, spelled so that this file does not hold them.
_LEAKS = (
    ("/ho", "me/[a-z]"), ("/Us", "ers/[a-z]"), ("/wo", "rk/"), ("/tmp/br", "ief"), ("/tmp/ba", "sh_"),
    (r"\bfa", r"rm-[a-z]"), (r"\.lib", r"rary\b"), (r"\.mir", "ror/"), (r"\.cla", r"ude\b"),
)  # fmt: skip
LEAKS = re.compile("|".join(first + rest for first, rest in _LEAKS))


def _text_files() -> list[Path]:
    return [p for p in tracked() if p.suffix in TEXT_SUFFIXES and p.stat().st_size < 2_000_000]


@pytest.mark.parametrize("path", python_files("batuta", "tests", "benchmarks", "docs", "examples"), ids=name_of)
def test_nothing_is_promised_instead_of_done(path: Path) -> None:
    if name_of(path) in PROMISES_ALLOWED:
        return
    for number, line in enumerate(path.read_text("utf-8").splitlines(), 1):
        assert not PROMISES.search(line), f"{name_of(path)}:{number}: do it, or write an issue: {line.strip()}"


def test_no_allowance_has_outlived_its_reason() -> None:
    for name, why in PROMISES_ALLOWED.items():
        assert why
        assert PROMISES.search((ROOT / name).read_text("utf-8")), f"{name} needs no allowance any more"


@pytest.mark.parametrize("path", python_files("batuta"), ids=name_of)
def test_no_cancellation_is_lost(path: Path) -> None:
    """Before Python 3.12 `asyncio.wait_for` forgets one that meets an answer, and who waits for the end waits on."""
    for node in ast.walk(parsed(path)):
        if isinstance(node, ast.Attribute) and node.attr == "wait_for" and ast.unparse(node.value) == "asyncio":
            pytest.fail(
                f"{name_of(path)}:{node.lineno}: say `async with asyncio.timeout(…)`; end by `fabric.tasks.end`"
            )


def test_no_path_or_name_of_one_machine_is_in_the_repository() -> None:
    leaks = [
        f"{name_of(path)}:{number}: {line.strip()[:120]}"
        for path in _text_files()
        for number, line in enumerate(path.read_text("utf-8", errors="replace").splitlines(), 1)
        if LEAKS.search(line)
    ]
    assert not leaks, "\n".join(leaks)


def _catches_everything(node: ast.ExceptHandler) -> bool:
    caught = node.type.elts if isinstance(node.type, ast.Tuple) else [node.type]
    return any(c is None or (isinstance(c, ast.Name) and c.id in ("Exception", "BaseException")) for c in caught)


def _raises_again(node: ast.ExceptHandler) -> bool:
    """It only tidies up on the way out: nothing is swallowed."""
    last = node.body[-1]
    return isinstance(last, ast.Raise) and last.exc is None


@pytest.mark.parametrize("path", python_files(), ids=name_of)
def test_catching_everything_says_why(path: Path) -> None:
    lines = path.read_text("utf-8").splitlines()
    for node in ast.walk(parsed(path)):
        if isinstance(node, ast.ExceptHandler) and _catches_everything(node) and not _raises_again(node):
            # On the line itself, or on its own between `except` and the first statement.
            near = lines[node.lineno - 1 : node.body[0].lineno]
            comments = [c for line in near if "#" in line for c in [line.partition("#")[2].strip()]]
            explained = [c for c in comments if not c.startswith("noqa") or " " in c.removeprefix("noqa:").strip()]
            assert explained, f"{name_of(path)}:{node.lineno}: a comment says why everything is caught here"


@pytest.mark.parametrize("path", python_files("batuta", "benchmarks", "docs", "examples"), ids=name_of)
def test_nothing_goes_through_a_shell(path: Path) -> None:
    for node in ast.walk(parsed(path)):
        if not isinstance(node, ast.Call):
            continue
        called = ast.unparse(node.func)
        assert called not in SHELLS, f"{name_of(path)}:{node.lineno}: {called}: pass a list of arguments"
        shells = [k for k in node.keywords if k.arg == "shell" and getattr(k.value, "value", None) is not False]
        assert not shells, f"{name_of(path)}:{node.lineno}: shell=True: pass a list of arguments"


@pytest.mark.parametrize("path", python_files("tests"), ids=name_of)
def test_no_test_is_switched_off_without_a_reason(path: Path) -> None:
    for node in ast.walk(parsed(path)):
        if isinstance(node, ast.Call) and ast.unparse(node.func) in (
            "pytest.mark.skip",
            "pytest.skip",
            "pytest.mark.xfail",
        ):
            said = [*node.args, *(k.value for k in node.keywords if k.arg == "reason")]
            assert said, f"{name_of(path)}:{node.lineno}: say why"
