"""`batuta twin rehearse`: try a change on a copy of the fleet, in virtual time, before anybody makes it."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from batuta.cli.main import FAILED
from batuta.cli.options import milliseconds, namespace_option, talks_to_hub

if TYPE_CHECKING:
    from batuta.client import Client
    from batuta.twin.rehearse import Rehearsal

FOR_MS_MAX = 31 * 86_400_000


@click.command()
@click.option(
    "-f", "--file", "files", multiple=True, metavar="FILE", help="The change: a file, a directory, or - for stdin."
)
@click.option("--delete", "deleted", multiple=True, metavar="KIND/NAME", help="Take this away as part of the change.")
@click.option(
    "--faults", metavar="FILE", help="What goes wrong meanwhile: the faults of a Scenario, or a list of them."
)
@click.option("--for", "span", default="1h", show_default=True, metavar="DURATION", help="How far to look ahead.")
@click.option("--seed", default=0, show_default=True, help="What faults leave to chance follows from it alone.")
@click.option("--optimize", is_flag=True, help="Propose moves that pay for themselves, and rehearse them too.")
@click.option(
    "--report", metavar="FILE", type=click.Path(dir_okay=False), help="Write a page with plots, for any browser."
)
@namespace_option
@click.option("-o", "--output", type=click.Choice(["text", "json", "yaml"]), default="text", help="How to print it.")
@talks_to_hub
def rehearse(
    hub: Client, *, files: tuple[str, ...], deleted: tuple[str, ...], faults: str | None, span: str, seed: int,
    optimize: bool, report: str | None, namespace: str, output: str,
) -> int:  # fmt: skip
    """Play a change on a copy of the fleet as it is now, beside the same copy left alone. Nothing is changed.

    \b
    batuta twin rehearse -f change.yaml
    batuta twin rehearse -f change.yaml --faults storm.yaml --for 2h --report change.html
    batuta twin rehearse --delete nodes/pi-4
    batuta twin rehearse --optimize
    Exit: 0 it comes to rest within what may be missing, 1 it does not, 3 refused.
    """
    from batuta.cli.manifests import joined
    from batuta.cli.rehearse_files import faults_in, removal_of, snapshot_of
    from batuta.twin.rehearse import rehearse as play

    for_ms = milliseconds(span, "--for")
    if not 1_000 <= for_ms <= FOR_MS_MAX:
        raise click.BadParameter("look ahead from a second to 31 days", param_hint="--for")
    if not (files or deleted or faults or optimize):
        raise click.UsageError("say what to rehearse: -f FILE, --delete KIND/NAME, --faults FILE or --optimize")
    answer = joined(files).rehearsal(hub, namespace=namespace) if files else hub.rehearsal()
    taken = snapshot_of(answer)
    befall = faults_in(faults, taken.state) if faults else ()
    changes = (*taken.changes, *(removal_of(word, namespace, taken.state) for word in deleted))
    found = play(taken.state, changes, taken.now, for_ms=for_ms, seed=seed, faults=befall, optimize=optimize)
    if report is not None:
        _write(report, found)
    if output == "text":
        from batuta.cli.rehearse_text import told

        for line in told(found):
            click.echo(line)
        if report is not None:
            click.echo(f"report  {report}")
    else:
        import msgspec

        from batuta.cli.get import as_text

        click.echo(as_text(msgspec.to_builtins(found), output), nl=False)
    return 0 if is_well(found) else FAILED


def is_well(found: Rehearsal) -> bool:
    """It comes to rest, and takes no more than it may."""
    course = found.changed
    return course.done_ms is not None and not course.slow and not any(budget.breached_ms for budget in course.budgets)


def _write(file: str, found: Rehearsal) -> None:
    from pathlib import Path

    from batuta.cli.rehearse_page import page
    from batuta.errors import BatutaError

    try:
        Path(file).write_text(page(found), encoding="utf-8")
    except OSError as error:
        raise BatutaError(f"{file} cannot be written") from error
