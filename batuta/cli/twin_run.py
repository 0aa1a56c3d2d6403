"""`batuta twin run`: play a scenario in virtual time, and say what held."""

from __future__ import annotations

import click

from batuta.cli.main import FAILED


@click.command()
@click.option("--seed", default=0, show_default=True, help="What is left to chance follows from it alone.")
def run(*, seed: int) -> int:
    """Play a fleet drawn from the seed; the laws of the core must hold whatever fails."""
    from batuta.twin.run import run as play
    from batuta.twin.sketch import sketch

    verdict = play(sketch(seed), seed)
    for broken in verdict.broken:
        click.echo(f"{broken.law} at {broken.at_ms} ms: {broken.detail}")
    click.echo(f"seed {seed}: {'all laws hold' if verdict.ok else 'broken'}, trace {verdict.trace}")
    return 0 if verdict.ok else FAILED
