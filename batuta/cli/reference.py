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
from batuta.cli.reference_api import api
from batuta.core.liveness import LINK_RULES
from batuta.core.reasons import CATALOGUE
from batuta.core.words import APPLICATION, FLAG, HEALTH, LINK, MODEL, POLICY, SYNC, WORDS
from batuta.kinds import KINDS
from batuta.kinds.schema import explain

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence

    from batuta.kinds.base import Resource
    from batuta.kinds.schema import Field

PAGES = Path(__file__).parents[2] / "docs" / "reference"
SEVERITIES = ("fine", "passes by itself", "look into it", "an error")
DAY_MS = 86_400_000
NOTE = "<!-- Printed by `python -m batuta.cli.reference`; change the code, not this page. -->"


def rendered() -> dict[str, str]:
    """Every page: file name and exact text."""
    pages = {"cli.md": cli(), "reasons.md": reasons(), "states.md": states(), "kinds.md": kinds()}
    pages["access.md"] = access()
    pages["api.md"] = api()
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
              ("an application", APPLICATION), ("a model", MODEL), ("a policy", POLICY), ("a flag", FLAG))  # fmt: skip
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


# --- Who may do what ---


def access() -> Iterator[str]:
    from batuta.hub import api_tokens, audit
    from batuta.web.rights import OTHERWISE, RULES

    yield "# Who may do what, and who did"
    yield ""
    yield "Every request brings a token, `Authorization: Bearer TOKEN`, but those for health, version, the"
    yield "authority's certificate and enrolment. Both listeners take the same ones. The file"
    yield "`<state>/hub/admin.token` is the machine's own user `local`, an admin. All others are API tokens, made"
    yield "with `batuta token create --api`. Each has a role, namespaces (`*` is every one) and an end,"
    yield f"{api_tokens.TTL_MS // DAY_MS} days on unless said otherwise. The hub keeps the SHA-256 of its 256 random"
    yield "bits, and no more. `batuta token ls` shows its last use, which is written down every"
    yield f"{api_tokens.USE_WRITTEN_EVERY_MS // 1000} s and when the hub stops. `batuta token revoke` ends it at once;"
    yield "a watch or log that it has open ends before it would say the next thing."
    yield ""
    yield "A request without a good token is answered 401; one that its token may not make, 403 with what is missing;"
    yield f"both as Kubernetes `Status`. The roles are {', '.join(api_tokens.ROLES)}; each may do all that those"
    yield "before it may. The first rule that fits a request decides."
    yield ""
    yield "| methods | path | role | namespaces | why |"
    yield "| --- | --- | --- | --- | --- |"
    reaches = {"any": "any", "namespace": "the one in the path", "all": "`*`"}
    for rule in (*RULES, OTHERWISE):
        methods = ", ".join(rule.methods)
        yield f"| {methods} | `{rule.path}` | {rule.role} | {reaches[rule.reach]} | {_cell(rule.sentence)} |"
    yield ""
    yield "`batuta kubeconfig` writes a file for kubectl with a token of its own. `kubectl auth can-i` and `kubectl"
    yield "auth whoami` work: kubectl 1.32 and newer posts these two in protobuf, and the hub reads that envelope for"
    yield "access reviews alone; any other protobuf is answered 415. Answers are always JSON."
    yield ""
    yield "## The audit"
    yield ""
    yield "Every write has an entry: who (token, role, address), what, when, before and after, and how it ended. The"
    yield "entry is kept before the write, and **a write whose entry cannot be kept is refused with 503**: a hub"
    yield "whose audit has no room or no broker changes nothing, and goes on deciding by what is declared. An entry"
    yield "says `accepted`; should the write fail after all, a second one of the same request says `failed`. Refused"
    yield "writes (403, 404, 409, 422) say `refused`, and what changed nothing `unchanged`. Answers carry the request"
    yield "as `Audit-Id`."
    yield ""
    yield "Not in it: dry runs, reading, renewals of certificates, and requests without a good token, which are"
    yield f"counted in `batuta_requests_refused_total`. Of one asker {audit.REFUSALS_A_MINUTE_MAX} refusals a minute"
    yield "are kept, so that nobody can push what others did out of the log; those beyond are in"
    yield "`batuta_audit_entries_lost_total`."
    yield ""
    yield "The log is append-only, with 512 MiB and 365 days at most; its oldest entries go first. Secrets are never"
    yield "in it: tokens are named by id, and text under a key that says secret, password, token, credential, API key"
    yield f"or private key is hidden. A document above {audit.SPEC_BYTES_MAX >> 10} KiB is kept as its SHA-256 and"
    yield "size."
    yield ""
    yield "`batuta audit` prints it, and `GET /audit?since=&who=&what=&name=&verb=&limit=` answers it; with `after`"
    yield "and `wait` (milliseconds) the answer waits for what comes next."


# --- Kinds ---


def kinds() -> Iterator[str]:
    yield "# Kinds"
    yield ""
    yield "What manifests declare. `batuta explain PATH` prints the same at a terminal."
    yield ""
    yield "JSON Schemas let editors complete manifests: those in `docs/schemas`, or what"
    yield "`batuta explain application --schema > application.schema.json` writes. The first line of a manifest"
    yield "names one: `# yaml-language-server: $schema=application.schema.json`."
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
    wide = ", ".join(heading for heading, _ in kind.wide_columns)
    return ", ".join(heading for heading, _ in kind.columns) + (f"; with `-o wide` also {wide}" if wide else "")


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
