"""`batuta node`: what is done to machines."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from batuta.cli.options import talks_to_hub

if TYPE_CHECKING:
    from batuta.client import Client


@click.group()
def node() -> None:
    """Machines: remove one for good."""


@node.command()
@click.argument("names", metavar="NAME", nargs=-1, required=True)
@talks_to_hub
def remove(hub: Client, names: tuple[str, ...]) -> None:
    """Take machines out for good: their instances move, their certificates are worth nothing at once.

    To bring one back, join it anew with a new token.
    """
    from batuta.kinds.node import Node

    for name in names:
        hub.delete(Node, name)
        click.echo(f"nodes/{name} removed")
