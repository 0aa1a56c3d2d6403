"""`batuta version`."""

from __future__ import annotations

import click


@click.command()
def version() -> None:
    """The version of Batuta."""
    import platform

    from batuta import __version__

    click.echo(f"batuta {__version__} (Python {platform.python_version()}, {platform.machine()})")
