"""`batuta rollout`: how a release arrives, and what may be asked of that."""

from __future__ import annotations

import time
from datetime import datetime
from typing import TYPE_CHECKING

import click

from batuta.cli.completing import applications
from batuta.cli.options import milliseconds, namespace_option, talks_to_hub
from batuta.cli.text import ABSENT, clean, table

if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any, TypeVar

    from batuta.answers import Chapter
    from batuta.client import Client

    F = TypeVar("F", bound=Callable[..., Any])

name_argument = click.argument("name", metavar="APP", shell_complete=applications)
output_option = click.option(
    "-o", "--output", type=click.Choice(["text", "json", "yaml"]), default="text", help="How to print it."
)
reason_option = click.option("--reason", default="", metavar="WORDS", help="For people: why.")


def waits_options(command: F) -> F:
    timeout = click.option(
        "--timeout", "timeout_s", default="1h", show_default=True, metavar="DURATION", help="How long --wait waits.",
        callback=lambda _context, _option, said: milliseconds(said, "--timeout") / 1000,
    )  # fmt: skip
    waits = click.option("--wait", "waits", is_flag=True, help="Stay until it is over, and tell every change.")
    return waits(timeout(command))


@click.group()
def rollout() -> None:
    """How releases arrive: where they stand, and what may be asked of them.

    \b
    batuta rollout status meter-reader --watch
    batuta rollout pause meter-reader --reason "audit until noon"
    batuta rollout undo meter-reader
    """


@rollout.command()
@name_argument
@namespace_option
@click.option("-w", "--watch", is_flag=True, help="Tell every change until it is over.")
@output_option
@talks_to_hub
def status(hub: Client, name: str, *, namespace: str, watch: bool, output: str) -> None:
    """Waves, nodes and gates of an application's rollout; what it waits for, and what stopped it."""
    from batuta.cli.rollout_page import page
    from batuta.cli.rollout_progress import follow

    if watch:
        follow(hub, name, namespace, output=output)
        return
    found = hub.rollouts.get(name, namespace=namespace)
    if output != "text":
        from batuta.cli.get import as_text

        click.echo(as_text(dict(found.document), output), nl=False)
        return
    for line in page(found, time.time() * 1000):
        click.echo(line)


@rollout.command()
@name_argument
@namespace_option
@output_option
@talks_to_hub
def history(hub: Client, name: str, *, namespace: str, output: str) -> None:
    """The releases that are kept, the newest first: when, by whom, and what each changed. Files are named by digest."""
    chapters = hub.rollouts.history(name, namespace=namespace)
    if output != "text":
        from batuta.cli.get import as_text

        items = [{**c._asdict(), "pins": [p._asdict() for p in c.pins], "changes": list(c.changes)} for c in chapters]
        click.echo(as_text(items, output), nl=False)
        return
    for line in table(["RELEASE", "ROLLOUT", "WHEN", "BY", "CHANGED"], [_row(chapter) for chapter in chapters]):
        click.echo(line)
    pins = [[str(c.revision), p.component, p.what, p.digest[:19]] for c in chapters for p in c.pins]
    if pins:
        click.echo("")
        for line in table(["RELEASE", "COMPONENT", "RUNS", "DIGEST"], pins):
            click.echo(line)


def _row(chapter: Chapter) -> list[str]:
    at = datetime.fromtimestamp(chapter.at / 1000).astimezone().strftime("%Y-%m-%d %H:%M:%S")
    from batuta.cli.diff import field_line

    # Which files a version is made of, the table below tells.
    changed = [field_line(change) for change in chapter.changes if ".resolved.variants" not in change["path"]]
    said = "; ".join(changed[:2]) + (f"; and {len(changed) - 2} more" if len(changed) > 2 else "")
    return [str(chapter.revision), chapter.rollout or ABSENT, at, clean(chapter.by) or ABSENT, said or ABSENT]


@rollout.command()
@name_argument
@click.argument("older", metavar="REV", type=click.IntRange(min=1))
@click.argument("newer", metavar="REV", type=click.IntRange(min=1))
@namespace_option
@output_option
@talks_to_hub
def diff(hub: Client, name: str, older: int, newer: int, *, namespace: str, output: str) -> None:
    """In which fields two releases differ: what was written, and what its references came to."""
    changes = hub.rollouts.difference(name, older, newer, namespace=namespace)
    if output != "text":
        from batuta.cli.get import as_text

        click.echo(as_text(list(changes), output), nl=False)
        return
    from batuta.cli.diff import field_line

    for change in changes:
        click.echo(field_line(change))
    if not changes:
        click.echo(f"Releases {older} and {newer} of {name} are the same.", err=True)


@rollout.command()
@name_argument
@reason_option
@namespace_option
@talks_to_hub
def pause(hub: Client, name: str, *, reason: str, namespace: str) -> None:
    """Change nothing any more, in either direction, until it is resumed or undone."""
    click.echo(hub.rollouts.pause(name, reason=reason, namespace=namespace))


@rollout.command()
@name_argument
@reason_option
@waits_options
@namespace_option
@talks_to_hub
def resume(hub: Client, name: str, *, reason: str, waits: bool, timeout_s: float, namespace: str) -> None:
    """Go on where it was paused. What was measured meanwhile counts."""
    _ask(
        hub,
        name,
        namespace,
        hub.rollouts.resume(name, reason=reason, namespace=namespace),
        timeout_s if waits else None,
    )


@rollout.command()
@name_argument
@reason_option
@waits_options
@namespace_option
@talks_to_hub
def approve(hub: Client, name: str, *, reason: str, waits: bool, timeout_s: float, namespace: str) -> None:
    """Let the next wave begin as soon as this one is through. For applications with spec.rollout.approvals."""
    _ask(
        hub,
        name,
        namespace,
        hub.rollouts.approve(name, reason=reason, namespace=namespace),
        timeout_s if waits else None,
    )


@rollout.command()
@name_argument
@reason_option
@namespace_option
@talks_to_hub
def abort(hub: Client, name: str, *, reason: str, namespace: str) -> None:
    """End it where it is: no further node gets the release, and those that have it keep it."""
    click.echo(hub.rollouts.abort(name, reason=reason, namespace=namespace))


@rollout.command()
@name_argument
@click.option("--to", "to", metavar="REV", type=click.IntRange(min=1), help="To this release: see `history`.")
@reason_option
@waits_options
@namespace_option
@talks_to_hub
def undo(hub: Client, name: str, *, to: int | None, reason: str, waits: bool, timeout_s: float, namespace: str) -> None:
    """Give every node back what it had, the last to have changed first.

    Of a rollout that is done, or with --to, that release is declared again: it comes as a release of its own, by the
    same waves and gates, with the same bytes as then.

    \b
    batuta rollout undo meter-reader
    batuta rollout undo meter-reader --to 3 --wait
    """
    from batuta.cli.progress import Goal, wait
    from batuta.kinds.application import Application

    known = int(hub.get(Application, name, namespace=namespace).status.get("release") or 0) if waits else 0
    said = hub.rollouts.undo(name, to=to, reason=reason, namespace=namespace)
    if said.endswith("undone"):
        _ask(hub, name, namespace, said, timeout_s if waits else None, is_undone=True)
        return
    click.echo(said)
    if waits:
        wait(hub, Goal(name, namespace, known + 1), timeout_s)


@rollout.command()
@name_argument
@reason_option
@waits_options
@namespace_option
@talks_to_hub
def retry(hub: Client, name: str, *, reason: str, waits: bool, timeout_s: float, namespace: str) -> None:
    """Try again what nodes turned down, as if none had; what was undone begins anew with its first wave."""
    _ask(
        hub, name, namespace, hub.rollouts.retry(name, reason=reason, namespace=namespace), timeout_s if waits else None
    )


def _ask(
    hub: Client, name: str, namespace: str, said: str, timeout_s: float | None, *, is_undone: bool = False
) -> None:
    click.echo(said)
    if timeout_s is not None:
        from batuta.cli.rollout_progress import wait_until_over

        wait_until_over(hub, name, namespace, timeout_s, is_undone=is_undone)
