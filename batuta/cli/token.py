"""`batuta token`: what a machine needs to join, once; and what people and programs need to ask the hub."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

import click

from batuta.cli.options import output_option, talks_to_hub
from batuta.cli.rows import instant_ms
from batuta.cli.text import ABSENT, age, cell, table

if TYPE_CHECKING:
    from batuta.answers import Token
    from batuta.client import Client

ROLES = ["viewer", "operator", "admin"]


@click.group()
def token() -> None:
    """Join tokens and API tokens: create, list, revoke."""


@token.command()
@click.option("--site", default="default", show_default=True, help="The site that the node joins; made with its first.")
@click.option("--name", default="", help="The only name that the node may take; of an API token, whose it is.")
@click.option("--ttl", metavar="DURATION", help="How long the token is good [default: 1h; of an API token 30d].")
@click.option(
    "--uses", metavar="N", default=1, show_default=True, type=click.IntRange(1, 100_000), help="So many nodes may join."
)
@click.option("--approve", is_flag=True, help="Who joins by it waits until `batuta node approve NAME`.")
@click.option("--api", is_flag=True, help="A token for the API, instead of one to join with.")
@click.option("--role", type=click.Choice(ROLES), default="viewer", show_default=True, help="With --api: may do what.")
@click.option(
    "-n", "--namespace", "namespaces", multiple=True, metavar="NAME",
    help="With --api: only there; again for more, '*' for every one [default: default; of an admin '*'].",
)  # fmt: skip
@click.option("-o", "--output", type=click.Choice(["text", "json"]), default="text", help="How to print it.")
@click.pass_context
@talks_to_hub
def create(
    context: click.Context, hub: Client, *, site: str, name: str, ttl: str | None, uses: int, approve: bool, api: bool,
    role: str, namespaces: tuple[str, ...], output: str,
) -> None:  # fmt: skip
    """Make a token by which a machine may join, once; or with --api one by which the hub may be asked.

    It is shown now and never again; the hub keeps only its hash.

    \b
    batuta token create --site berlin
    batuta token create --site berlin --uses 50 --ttl 7d --approve
    batuta token create --api --role operator --namespace default --ttl 30d --name ci
    """
    _check_sort(context, api=api)
    ttl = ttl or ("30d" if api else "1h")
    if api:
        made = hub.create_api_token(role, namespaces or scope_of(role), ttl_ms=duration_ms(ttl), name=name)
    else:
        made = hub.create_token(site, name=name, ttl_ms=duration_ms(ttl), uses=uses, approve=approve)
    if output == "json":
        from batuta.cli.get import as_text

        click.echo(as_text({k: v for k, v in made._asdict().items() if v}, "json"), nl=False)
        return
    # What is to be pasted is all of stdout, so that it can be piped to a machine or into a file.
    if api:
        click.echo(made.token)
        where = "every namespace" if made.namespaces == "*" else made.namespaces
        click.echo(f"Token {made.name}: {role} in {where}, for {ttl}. Send it as `Authorization: Bearer …`,", err=True)
        click.echo("or keep it in a file that only you can read and name that in BATUTA_TOKEN_FILE.", err=True)
        return
    click.echo(f"batuta join {made.token}")
    works = "once" if uses == 1 else f"{uses} times"
    click.echo(f"Paste this line on the machine within {ttl}. It works {works}, for site {site}.", err=True)
    if approve:
        click.echo("The machine then waits: see it in `batuta get nodes`, and `batuta node approve NAME`.", err=True)


def _check_sort(context: click.Context, *, api: bool) -> None:
    """An option of the other sort would be ignored, and that is never what was meant."""
    for option, of_api in (("site", False), ("uses", False), ("approve", False), ("role", True), ("namespaces", True)):
        source = context.get_parameter_source(option)
        if source is click.core.ParameterSource.COMMANDLINE and of_api != api:
            word = f"--{option.removesuffix('s') if option == 'namespaces' else option}"
            sort, step = ("API", "add") if of_api else ("join", "drop")
            raise click.UsageError(f"{word} is for {sort} tokens; {step} --api")


def scope_of(role: str) -> tuple[str, ...]:
    """The namespaces of a token of this role when none is named."""
    return ("*",) if role == "admin" else ("default",)


def duration_ms(ttl: str) -> int:
    from batuta.kinds.base import Millis

    try:
        return int(Millis.parse(ttl))
    except ValueError as error:
        raise click.BadParameter(str(error), param_hint="--ttl") from None


@token.command(name="ls")
@output_option
@talks_to_hub
def ls(hub: Client, *, output: str) -> None:
    """Tokens of both sorts that were made, never their secrets."""
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
    heads = ["ID", "SORT", "NAME", "STATE", "FOR", "EXPIRES", "USED"]
    for line in table(heads, [_row(each) for each in found]):
        click.echo(line)


def _row(each: Token) -> list[str]:
    if each.sort == "api":
        what = f"{each.role} in {'every namespace' if each.namespaces == '*' else each.namespaces}"
        used_at = instant_ms(each.last_used)
        used = f"{age(used_at, time.time() * 1000)} ago from {each.last_used_from}" if used_at else ABSENT
    else:
        what, used = f"site {each.site}{', to be approved' if each.approval else ''}", cell(each.used_by)
    return [each.id, each.sort, cell(each.name), cell(each.state), what, cell(each.expires), used]


@token.command()
@click.argument("id")
@talks_to_hub
def revoke(hub: Client, id: str) -> None:  # noqa: A002 - the word that people type
    """Make a token worthless, at once. Nodes that joined with it stay."""
    hub.revoke_token(id)
    click.echo(f"tokens/{id} revoked")
