"""What the repository's own checks read: its files, parsed once."""

from __future__ import annotations

import ast
import subprocess
from functools import cache
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
PACKAGE = ROOT / "batuta"


@cache
def tracked() -> tuple[Path, ...]:
    """Every file that is, or is about to be, in the repository; ignored ones are not."""
    listed = subprocess.run(
        ["git", "ls-files", "--cached", "--others", "--exclude-standard", "-z"],
        cwd=ROOT, check=False, capture_output=True, text=True,
    )  # fmt: skip
    if listed.returncode == 0:
        return tuple(sorted(p for name in listed.stdout.split("\0") if name and (p := ROOT / name).is_file()))
    hidden = {".git", ".venv", "__pycache__", ".mypy_cache", ".ruff_cache", ".pytest_cache", ".hypothesis"}
    return tuple(sorted(p for p in ROOT.rglob("*") if p.is_file() and not hidden & set(p.relative_to(ROOT).parts)))


def python_files(*folders: str) -> tuple[Path, ...]:
    """Python files below these folders of the repository."""
    roots = [ROOT / folder for folder in folders or ("batuta",)]
    return tuple(p for p in tracked() if p.suffix == ".py" and any(p.is_relative_to(root) for root in roots))


@cache
def parsed(path: Path) -> ast.Module:
    return ast.parse(path.read_text("utf-8"), str(path))


def name_of(path: Path) -> str:
    """How a test is called that reads this file."""
    return str(path.relative_to(ROOT))
