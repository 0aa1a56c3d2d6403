"""`batuta describe`."""

from __future__ import annotations

import click


@click.command()
def describe() -> None:
    """Describe?"""
