"""What the documents say is so: pages are current, commands exist, manifests are admitted, links lead somewhere."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import click
import pytest
import yaml

from batuta.cli import reference
from batuta.cli.main import VERBS, batuta
from batuta.core.reasons import CATALOGUE
from batuta.kinds.manifest import parse
from tests.tidy.sources import ROOT, name_of, python_files, tracked

PAGES = [p for p in tracked() if p.suffix == ".md"]

# Commands that may be named before they exist, each with the reason; empty is best.
COMMANDS_TO_COME = {
    "batuta node release NAME": "the exit of the state `held`, which nothing can reach before nodes can be held",
}


@pytest.mark.parametrize("name", reference.rendered())
def test_reference_pages_are_current(name: str) -> None:
    """When this fails: `python -m batuta.cli.reference`, then look at the difference."""
    assert (reference.PAGES / name).read_text("utf-8") == reference.rendered()[name]


def test_no_reference_page_has_lost_its_source() -> None:
    assert {p.name for p in reference.PAGES.glob("*.md")} == set(reference.rendered())


def _fences(path: Path, language: str) -> list[tuple[int, str]]:
    """Every fenced block of a language: the line it begins at, and its text."""
    text = path.read_text("utf-8")
    pattern = re.compile(rf"^```{language}[^\n]*\n(.*?)^```", re.MULTILINE | re.DOTALL)
    return [(text.count("\n", 0, m.start()) + 2, m[1]) for m in pattern.finditer(text)]


YAML_BLOCKS = [(path, line, text) for path in PAGES for line, text in _fences(path, "ya?ml")]


@pytest.mark.parametrize(
    ("path", "line", "text"), YAML_BLOCKS, ids=[f"{name_of(p)}:{line}" for p, line, _ in YAML_BLOCKS]
)
def test_manifests_in_documents_are_admitted(path: Path, line: int, text: str) -> None:
    """A block with an apiVersion is a manifest and must be one; any other must at least be YAML."""
    if "apiVersion: batuta.dev/" in text:
        assert parse(text, f"{name_of(path)}:{line}")
    else:
        list(yaml.safe_load_all(text))


def _commands(path: Path) -> list[tuple[int, str]]:
    """Every `batuta …` that a document or a message tells people to type."""
    found = []
    for number, line in enumerate(path.read_text("utf-8").splitlines(), 1):
        spots = [m[1] for m in re.finditer(r"`(batuta [^`]*)`", line)]
        if path.suffix == ".md" and (m := re.match(r"\s*(?:\$ |\S*/)?(batuta [a-z].*)", line)):
            spots.append(m[1])
        found += [(number, spot) for spot in spots]
    return found


def _complaint(command: str) -> str:
    """What is wrong with a command, or nothing: its verb, and every option it names."""
    if command in COMMANDS_TO_COME:
        return ""
    try:
        words = shlex.split(re.split(r"[#|;&]", command, maxsplit=1)[0])
    except ValueError:
        words = command.split()
    context, group = click.Context(batuta, info_name="batuta"), batuta
    here: click.Command = group
    rest = words[1:]
    while isinstance(here, click.Group):
        word = re.sub(r"[^a-z-].*$", "", rest[0]) if rest else ""
        if not word or word.startswith("-"):
            return ""  # A placeholder such as `batuta …`, or the group itself.
        found = here.get_command(context, word)
        if found is None:
            return f"there is no {word!r}"
        here, rest = found, rest[1:]
    known = {option for p in here.params for option in (*p.opts, *p.secondary_opts)} | {"--help", "-h"}
    unknown = [w for w in rest if re.fullmatch(r"--?[a-z][a-z-]*(=.*)?", w) and w.partition("=")[0] not in known]
    return f"{here.name} has no {unknown}" if unknown else ""


SAYING = [p for p in (*PAGES, *python_files("batuta"), ROOT / "Makefile") if p.exists() and _commands(p)]


@pytest.mark.parametrize("path", SAYING, ids=name_of)
def test_every_command_that_is_named_exists(path: Path) -> None:
    wrong = [
        f"{name_of(path)}:{n}: {command}: {what}" for n, command in _commands(path) if (what := _complaint(command))
    ]
    assert not wrong, "\n".join(wrong)


def test_the_check_of_commands_can_fail() -> None:
    assert _complaint("batuta get nodes -o wide") == ""
    assert _complaint("batuta token create --site berlin") == ""
    assert _complaint("batuta frobnicate") == "there is no 'frobnicate'"
    assert _complaint("batuta get nodes --frob") == "get has no ['--frob']"
    assert _complaint("batuta token mint") == "there is no 'mint'"


def test_every_next_step_of_the_catalogue_names_real_commands() -> None:
    wrong = [
        f"{code}: {m[1]}: {what}"
        for code, entry in CATALOGUE.items()
        for m in re.finditer(r"`(batuta [^`]*)`", entry.next_step)
        if (what := _complaint(m[1]))
    ]
    assert not wrong, "\n".join(wrong)


def test_every_verb_is_in_the_reference() -> None:
    text = reference.rendered()["cli.md"]
    assert [verb for verb in VERBS if f"`batuta {verb}`" not in text] == []


LINKS = [
    (path, m[1])
    for path in PAGES
    for m in re.finditer(r"\]\(([^)\s]+)\)", path.read_text("utf-8"))
    if not m[1].startswith(("http://", "https://", "mailto:", "#"))
]


@pytest.mark.parametrize(("path", "link"), LINKS, ids=[f"{name_of(p)}->{link}" for p, link in LINKS])
def test_links_between_documents_lead_somewhere(path: Path, link: str) -> None:
    assert (path.parent / link.partition("#")[0]).exists()
