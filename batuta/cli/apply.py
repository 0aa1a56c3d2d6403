"""`batuta apply`: declare what manifests say; watch it come true when asked to."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import click

from batuta.cli.options import may_talk_to_hub, namespace_option

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from batuta.client import Applied, Client, Found


@click.command()
@click.option(
    "-f", "--file", "files", multiple=True, required=True, metavar="FILE", help="A file, a directory, or - for stdin."
)
@namespace_option
@click.option("--dry-run", is_flag=True, help="Ask the hub, change nothing.")
@click.option("--offline", is_flag=True, help="Only check the documents; ask no hub.")
@click.option("--wait", "waits", is_flag=True, help="Stay until all of it runs, and say what keeps it.")
@click.option("--timeout", default="5m", show_default=True, metavar="DURATION", help="How long --wait waits.")
@may_talk_to_hub
def apply(
    connect: Callable[[], Client],
    *,
    files: tuple[str, ...],
    namespace: str,
    dry_run: bool,
    offline: bool,
    waits: bool,
    timeout: str,
) -> None:
    """Declare what manifests say: all of it, or nothing when anything is wrong.

    \b
    batuta apply -f examples/meter-reader.yaml
    batuta apply -f examples/ --wait
    """
    from batuta.cli.manifests import joined
    from batuta.kinds.base import Millis

    try:
        timeout_s = Millis.parse(timeout) / 1000
    except ValueError as error:
        raise click.BadParameter(str(error), param_hint="--timeout") from None
    # Checked here first: what is wrong with a document is wrong with or without a hub, and said in the same words.
    manifest = joined(files)
    if offline:
        for resource in manifest.resources:
            click.echo(f"{resource.plural}/{resource.metadata.name} is well-formed")
        return
    with connect() as hub:
        applied = manifest.apply(hub, namespace=namespace, dry_run=dry_run)
        for each in applied:
            click.echo(f"{_plural(each.kind)}/{each.name} {each.action}{' (dry run)' if dry_run else ''}")
        if waits and not dry_run:
            _wait(hub, applied, timeout_s)


def _plural(kind: str) -> str:
    from batuta.kinds import kind_called

    found = kind_called(kind)
    return found.plural if found is not None else kind


def _wait(hub: Client, applied: Sequence[Applied], timeout_s: float) -> None:
    """Follow each application until it is so; the first real error, in words, when it does not get there."""
    import time

    from batuta.cli.progress import Progress
    from batuta.errors import BatutaError
    from batuta.kinds.application import Application

    until = time.monotonic() + timeout_s
    for each in applied:
        if each.kind != "Application":
            continue
        progress = Progress(each.name)

        def is_so(found: Found[Any], progress: Progress = progress) -> bool:
            return progress.told(found)

        try:
            hub.wait(
                Application, each.name, is_so, namespace=each.namespace, timeout_s=max(0.0, until - time.monotonic())
            )
        except BatutaError as error:
            why = progress.what_keeps_it()
            raise BatutaError(
                f"applications/{each.name} does not run as declared after {timeout_s:g} s"
                + (f": {why}" if why else ""),
                next_step=f"see `batuta why {each.name}`",
            ) from error
