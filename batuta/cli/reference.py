"""The reference pages, printed from the code: `python -m batuta.cli.reference` writes docs/reference.

Nothing here is said that is not said elsewhere: verbs and options come from Click, fields from the classes, reasons
from the catalogue, states from the rules. A test keeps the pages current.
"""

from __future__ import annotations

import re
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import click

from batuta.cli.main import VERBS, batuta
from batuta.core.liveness import LINK_RULES
from batuta.core.reasons import CATALOGUE
from batuta.core.words import APPLICATION, HEALTH, LINK, MODEL, SYNC, WORDS
from batuta.kinds import KINDS
from batuta.kinds.schema import explain

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence

    from batuta.kinds.base import Resource
    from batuta.kinds.schema import Field

PAGES = Path(__file__).parents[2] / "docs" / "reference"
SEVERITIES = ("fine", "passes by itself", "look into it", "an error")
NOTE = "<!-- Printed by `python -m batuta.cli.reference`; change the code, not this page. -->"


def rendered() -> dict[str, str]:
    """Every page: file name and exact text."""
    pages = {"cli.md": cli(), "reasons.md": reasons(), "states.md": states(), "kinds.md": kinds()}
    return {name: _page(lines) for name, lines in pages.items()}


def _page(lines: Iterable[str]) -> str:
    text = "\n".join([NOTE, "", *lines]).rstrip() + "\n"
    return re.sub(r"\n{3,}", "\n\n", text)


def main(arguments: Sequence[str] = ()) -> None:
    """Write docs/reference, or the directory named as the one argument."""
    directory = Path(arguments[0]) if arguments else PAGES
    directory.mkdir(parents=True, exist_ok=True)
    for name, text in rendered().items():
        (directory / name).write_text(text, "utf-8")


# --- The command line ---


def cli() -> Iterator[str]:
    yield "# The command line"
    yield ""
    yield "Exit codes: 0 done, 1 failed, 2 wrong usage, 3 refused documents, 130 interrupted. Off a terminal the output"
    yield "is plain and stable; `NO_COLOR` is honoured. `BATUTA_DEBUG=1` shows tracebacks."
    yield ""
    yield "Contexts and state are in `--state DIR`, else `$BATUTA_HOME`, else `~/.local/share/batuta`. `BATUTA_SERVER`"
    yield "and `BATUTA_TOKEN_FILE` name another hub."
    context = click.Context(batuta, info_name="batuta")
    for name in VERBS:
        command = batuta.get_command(context, name)
        assert command is not None
        yield from _command(command, name, context)


def _command(command: click.Command, name: str, parent: click.Context) -> Iterator[str]:
    context = click.Context(command, info_name=name, parent=parent)
    context.help_option_names = []
    yield ""
    yield (
        f"## `{context.command_path}`"
        if not isinstance(parent.parent, click.Context)
        else f"### `{context.command_path}`"
    )
    yield ""
    yield from _prose(command)
    if isinstance(command, click.Group):
        for inner in command.list_commands(context):
            found = command.get_command(context, inner)
            assert found is not None
            yield from _command(found, inner, context)
        return
    yield "```"
    usage = " ".join(command.collect_usage_pieces(context))
    yield f"{context.command_path} {usage}".rstrip()
    yield "```"
    options = [p for p in command.params if isinstance(p, click.Option)]
    if options:
        yield ""
        yield "| option | what |"
        yield "| --- | --- |"
    for option in options:
        record = option.get_help_record(context)
        if record is not None:
            yield f"| `{_cell(record[0])}` | {_cell(record[1])} |"


def _prose(command: click.Command) -> Iterator[str]:
    """The help text; a block after a line with \\b is code."""
    for paragraph in (command.help or "").strip().split("\n\n"):
        lines = [line.strip() for line in paragraph.splitlines()]
        if lines and lines[0] == "\b":
            yield from ("```", *lines[1:], "```", "")
        elif lines:
            yield " ".join(lines)
            yield ""


# --- Reasons and states ---


def reasons() -> Iterator[str]:
    yield "# Reasons"
    yield ""
    yield "Every refusal, wait and undo carries a reason; `batuta why` and `batuta describe` print them. A wait passes"
    yield "by itself and is not an error."
    yield ""
    yield "| code | what it means | what to do | |"
    yield "| --- | --- | --- | --- |"
    for code, entry in CATALOGUE.items():
        yield f"| `{code}` | {_cell(entry.sentence)} | {_cell(entry.next_step)} | {'waits' if entry.waits else ''} |"


def states() -> Iterator[str]:
    yield "# States"
    yield ""
    yield "The closed list of words for how things are. A roll-up is as bad as its worst part; waiting is not an error;"
    yield "no word is without a way out. `batuta explain WORD` prints the same."
    yield ""
    yield "| word | how bad | what it means | what to do |"
    yield "| --- | --- | --- | --- |"
    for row in WORDS.values():
        yield f"| `{row.word}` | {SEVERITIES[row.severity]} | {_cell(row.meaning)} | {_cell(row.next_step)} |"
    yield ""
    yield "| of | words |"
    yield "| --- | --- |"
    groups = (("a node's link", LINK), ("a node's sync", SYNC), ("a node's health", HEALTH),
              ("an application", APPLICATION), ("a model", MODEL))  # fmt: skip
    for of, words in groups:
        yield f"| {of} | {', '.join(f'`{word}`' for word in words)} |"
    yield ""
    yield "## How a node's link is judged"
    yield ""
    yield "The first rule that holds wins."
    yield ""
    yield "| word | when |"
    yield "| --- | --- |"
    for rule in LINK_RULES:
        yield f"| `{rule.word}` | {_cell(rule.sentence)} |"


# --- Kinds ---


def kinds() -> Iterator[str]:
    yield "# Kinds"
    yield ""
    yield "What manifests declare. `batuta explain PATH` prints the same at a terminal, and the JSON Schemas in"
    yield "`docs/schemas` let editors complete it."
    for kind in KINDS:
        yield ""
        yield f"## {kind.__name__}"
        yield ""
        yield f"{(kind.__doc__ or '').strip()}"
        yield ""
        short = f" (also {', '.join(f'`{name}`' for name in kind.short_names)})" if kind.short_names else ""
        place = "lives in a namespace" if kind.namespaced else "has no namespace"
        yield f"Plural `{kind.plural}`{short}; {place}. `batuta get` shows {_columns(kind)}."
        yield ""
        yield "| field | type | what |"
        yield "| --- | --- | --- |"
        for field in explain(kind.__name__.lower()).fields:
            if field.name == "spec":
                yield from _rows(field, "spec")


def _columns(kind: type[Resource]) -> str:
    return ", ".join(heading for heading, _ in kind.columns)


def _rows(field: Field, path: str) -> Iterator[str]:
    for inner in field.fields:
        notes = ["required"] if inner.required else [f"default `{inner.default}`"] if inner.default is not None else []
        what = " ".join([inner.description, *(f"({note})" for note in notes)]).strip()
        yield f"| `{path}.{inner.name}` | {_cell(inner.type)} | {_cell(what)} |"
        yield from _rows(inner, f"{path}.{inner.name}")


def _cell(text: str) -> str:
    return " ".join(text.split()).replace("|", "\\|").replace("<", "&lt;")


if __name__ == "__main__":
    main(sys.argv[1:])
