"""`batuta token`: what a machine needs to join, once."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from batuta.cli.options import output_option, talks_to_hub
from batuta.cli.text import cell, table

if TYPE_CHECKING:
    from batuta.client import Client


@click.group()
def token() -> None:
    """Join tokens: create, list, revoke."""


@token.command()
@click.option("--site", default="default", show_default=True, help="The site that the node joins; made with its first.")
@click.option("--name", default="", help="The only name that the node may take.")
@click.option("--ttl", default="1h", show_default=True, metavar="DURATION", help="How long the token is good.")
@click.option(
    "--uses", metavar="N", default=1, show_default=True, type=click.IntRange(1, 100_000), help="So many nodes may join."
)
@click.option("-o", "--output", type=click.Choice(["text", "json"]), default="text", help="How to print it.")
@talks_to_hub
def create(hub: Client, *, site: str, name: str, ttl: str, uses: int, output: str) -> None:
    """Make a token by which a machine may join, once.

    It is shown now and never again; the hub keeps only its hash.
    """
    from batuta.kinds.base import Millis

    try:
        ttl_ms = int(Millis.parse(ttl))
    except ValueError as error:
        raise click.BadParameter(str(error), param_hint="--ttl") from None
    made = hub.create_token(site, name=name, ttl_ms=ttl_ms, uses=uses)
    if output == "json":
        from batuta.cli.get import as_text

        click.echo(as_text({k: v for k, v in made._asdict().items() if v}, "json"), nl=False)
        return
    # The line to paste is all of stdout, so that it can be piped to a machine.
    click.echo(f"batuta join {made.token}")
    works = "once" if uses == 1 else f"{uses} times"
    click.echo(f"Paste this line on the machine within {ttl}. It works {works}, for site {site}.", err=True)


@token.command(name="ls")
@output_option
@talks_to_hub
def ls(hub: Client, *, output: str) -> None:
    """Tokens that were made, never their secrets."""
    found = hub.tokens()
    if output in ("json", "yaml"):
        from batuta.cli.get import as_text

        click.echo(as_text([{k: v for k, v in each._asdict().items() if v} for each in found], output), nl=False)
        return
    if output == "name":
        for each in found:
            click.echo(each.id)
        return
    if not found:
        click.echo("No tokens. Make one: `batuta token create`.", err=True)
        return
    rows = [
        [each.id, each.site, cell(each.name), cell(each.state), cell(each.expires), cell(each.used_by)]
        for each in found
    ]
    for line in table(["ID", "SITE", "NAME", "STATE", "EXPIRES", "USED BY"], rows):
        click.echo(line)


@token.command()
@click.argument("id")
@talks_to_hub
def revoke(hub: Client, id: str) -> None:  # noqa: A002 - the word that people type
    """Make a token worthless. Nodes that joined with it stay."""
    hub.revoke_token(id)
    click.echo(f"tokens/{id} revoked")
