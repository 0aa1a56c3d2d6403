"""`batuta moves`: what is being moved, by whom and why; and what policies have moved by themselves."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any

import click

from batuta.cli.options import talks_to_hub
from batuta.cli.text import age, clean, table

if TYPE_CHECKING:
    from batuta.client import Client


@click.command()
@click.option("-o", "--output", type=click.Choice(["table", "json", "yaml"]), default="table", help="How to print it.")
@talks_to_hub
def moves(hub: Client, *, output: str) -> None:
    """What is being moved, by whom and why; and what policies have moved.

    A policy with `spec.moves` moves by itself what is better off elsewhere. What it moved stays for a while, and does
    not go back. See which moves would pay for themselves with `batuta twin rehearse --optimize`.
    """
    found = hub.moves()
    if output != "table":
        from batuta.cli.get import as_text

        click.echo(as_text(list(found), output), nl=False)
        return
    if not found:
        click.echo("Nothing is being moved, and no policy has moved anything.", err=True)
        return
    now_ms = time.time() * 1000
    for line in table(["WHAT", "FROM", "TO", "STATE", "BY", "AGE", "WHY"], [_row(m, now_ms) for m in found]):
        click.echo(line)


def _row(move: dict[str, Any], now_ms: float) -> list[str]:
    from batuta.kinds.base import DEFAULT_NAMESPACE

    tenant = "" if move["namespace"] == DEFAULT_NAMESPACE else f"{move['namespace']}/"
    what = f"{tenant}{move['application']}/{move['component']}/{move['slot']}"
    ago = age(move["at"], now_ms)
    return [*map(clean, (what, move["node"], move["to"], move["state"], move["by"])), ago, clean(move["why"]) or "-"]
