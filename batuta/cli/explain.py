"""`batuta explain`: what a field, a state word or a reason code means. It needs no hub."""

from __future__ import annotations

import re

import click

from batuta.cli.text import painted


@click.command()
@click.argument("path")
@click.option("--schema", is_flag=True, help="The JSON Schema of a kind, for editors.")
def explain(path: str, *, schema: bool) -> None:
    """What a field, a state or a reason means.

    With --schema an editor can complete and check manifests: write it to a file, and name that in the first line of a
    manifest: `# yaml-language-server: $schema=application.schema.json`.

    \b
    batuta explain application.spec.components.placement
    batuta explain deferred
    batuta explain memory_short
    batuta explain application --schema > application.schema.json
    """
    if schema:
        click.echo(_schema(path), nl=False)
        return
    from batuta.core.reasons import CATALOGUE
    from batuta.core.words import WORDS
    from batuta.kinds import KINDS, kind_called
    from batuta.kinds.nearest import did_you_mean

    dotted = ".".join(step for step in re.split(r"[./]", re.sub(r"\[\d*\]", "", path)) if step)
    if kind_called(dotted.partition(".")[0]) is not None:
        from batuta.kinds.schema import explain as explain_field

        click.echo(explain_field(dotted))
    elif path in WORDS:
        word = WORDS[path]
        _pairs(("STATE", path), ("MEANS", word.meaning), *((("NEXT", word.next_step),) if word.next_step else ()))
        well, wait = "All is well.", "This is a wait, not an error."
        click.echo((well, wait, "Look into it.", "This is an error.")[word.severity])
    elif path in CATALOGUE:
        entry = CATALOGUE[path]
        _pairs(("REASON", path), ("MEANS", entry.sentence), ("NEXT", entry.next_step))
        if entry.waits:
            click.echo("This is a wait, not an error: it passes by itself.")
    else:
        known = (*(k.__name__.lower() for k in KINDS), *WORDS, *CATALOGUE)
        hint = did_you_mean(path, known, "it explains fields, states and reason codes")
        raise click.UsageError(f"nothing is called {path!r}; {hint}")


def _schema(word: str) -> str:
    from batuta.cli.options import the_kind
    from batuta.kinds.schema import rendered

    return rendered()[f"{the_kind(word).plural}.json"]


def _pairs(*pairs: tuple[str, str]) -> None:
    width = max(len(heading) for heading, _ in pairs)
    for heading, value in pairs:
        click.echo(f"{painted(heading.ljust(width), 'dim')}  {value}")
