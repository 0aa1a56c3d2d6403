"""`batuta up`: a hub, in the foreground."""

from __future__ import annotations

import click

from batuta.cli.options import state_option


@click.command()
@state_option
@click.option("--listen", metavar="ADDRESS", help="Take nodes and HTTPS from other machines at this address.")
@click.option(
    "--advertise", metavar="NAME", multiple=True, help="A name or address under which nodes find this hub. May repeat."
)
@click.option("--http-port", type=click.IntRange(0, 65_535), help="HTTP on loopback; 0 takes any [default: 8400].")
@click.option("--https-port", type=click.IntRange(0, 65_535), help="HTTPS; 0 takes any [default: 8443].")
@click.option("--leaf-port", type=click.IntRange(0, 65_535), help="Links of nodes; 0 takes any [default: 7422].")
def up(**options: object) -> int:
    """Start a hub and keep it running until Ctrl-C.

    Everything it knows is in the state directory: start it again and it goes on where it was.
    """
    raise NotImplementedError
