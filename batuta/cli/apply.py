"""`batuta apply`: declare what manifests say; watch it come true when asked to."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from batuta.cli.options import may_talk_to_hub, milliseconds, namespace_option

if TYPE_CHECKING:
    from collections.abc import Callable

    from batuta.cli.progress import Goal
    from batuta.client import Client
    from batuta.kinds.application import Application


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
    import time

    from batuta.cli.manifests import joined
    from batuta.cli.progress import wait
    from batuta.kinds.application import Application

    timeout_s = milliseconds(timeout, "--timeout") / 1000
    # Checked here first: what is wrong with a document is wrong with or without a hub, and said in the same words.
    manifest = joined(files)
    if offline:
        for resource in manifest.resources:
            click.echo(f"{resource.plural}/{resource.metadata.name} is well-formed")
        return
    with connect() as hub:
        awaited = [_goal(hub, r, namespace) for r in manifest.resources if isinstance(r, Application) and waits]
        for each in manifest.apply(hub, namespace=namespace, dry_run=dry_run):
            click.echo(f"{_plural(each.kind)}/{each.name} {each.action}{' (dry run)' if dry_run else ''}")
        until = time.monotonic() + timeout_s
        for goal in awaited if not dry_run else ():
            wait(hub, goal, max(0.0, until - time.monotonic()))


def _plural(kind: str) -> str:
    from batuta.kinds import kind_called

    found = kind_called(kind)
    return found.plural if found is not None else kind


def _goal(hub: Client, application: Application, namespace: str) -> Goal:
    from msgspec.structs import replace

    from batuta.cli.progress import goal_of

    metadata = replace(application.metadata, namespace=application.metadata.namespace or namespace)
    return goal_of(hub, replace(application, metadata=metadata))
