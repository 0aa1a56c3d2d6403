"""`batuta logs`: what instances printed."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from batuta.cli.completing import applications
from batuta.cli.options import namespace_option, talks_to_hub

if TYPE_CHECKING:
    from batuta.client import Client


@click.command()
@click.argument("application", metavar="APP[/COMPONENT]", shell_complete=applications)
@click.option("-f", "--follow", is_flag=True, help="Go on until Ctrl-C.")
@click.option(
    "--tail", metavar="N", default=100, show_default=True, type=click.IntRange(0, 100_000), help="So many last lines."
)
@click.option("--instance", default="", help="Only this instance: `read-1-berlin-0`.")
@namespace_option
@talks_to_hub
def logs(hub: Client, application: str, *, follow: bool, tail: int, instance: str, namespace: str) -> None:
    """What the instances of an application printed; also of one that failed."""
    name, _, component = application.partition("/")
    lines = hub.logs(name, component=component, instance=instance, tail=tail, follow=follow, namespace=namespace)
    count = 0
    for line in lines:
        click.echo(line)
        count += 1
    if not count:
        click.echo(f"Nothing was printed yet. See `batuta why {application}`.", err=True)
