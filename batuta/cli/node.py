"""`batuta node`: what is done to machines."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

import click

from batuta.cli.completing import nodes
from batuta.cli.options import milliseconds, talks_to_hub

if TYPE_CHECKING:
    from collections.abc import Callable

    from batuta.client import Client
    from batuta.kinds.node import Node, NodeSpec

names_argument = click.argument("names", metavar="NAME", nargs=-1, required=True, shell_complete=nodes)


@click.group()
def node() -> None:
    """Machines: let join, hold as they are, empty, let work again, remove for good."""


@node.command()
@names_argument
@talks_to_hub
def approve(hub: Client, names: tuple[str, ...]) -> None:
    """Let machines join that came with a token of `batuta token create --approve`.

    Until then such a machine is only seen: `pending` in `batuta get nodes`. Compare the key that is printed here with
    the one that `batuta join` printed there. To refuse it: `batuta node remove NAME`.
    """
    for name in names:
        click.echo(f"nodes/{name} approved, its key is {hub.approve_node(name)}")


@node.command()
@names_argument
@click.option("--reason", default="", help="For people: why.")
@click.option("--for", "for_", metavar="DURATION", help="So long from now: `2h`; without it, until it is released.")
@click.option("--until", metavar="INSTANT", help="Until then: `2026-12-24T18:00:00Z`.")
@talks_to_hub
def hold(hub: Client, names: tuple[str, ...], *, reason: str, for_: str | None, until: str | None) -> None:
    """Keep machines as they are: nothing new comes, and nothing on them is changed or taken.

    Should one fall silent, what it ran is healed elsewhere all the same.

    \b
    batuta node hold press-4 --reason "audit until noon" --for 3h
    batuta node release press-4
    """
    from msgspec.structs import replace

    from batuta.kinds.base import Millis
    from batuta.kinds.instants import Instant
    from batuta.kinds.node import Hold

    if for_ is not None and until is not None:
        raise click.UsageError("--for and --until exclude each other")
    try:
        ends = Instant.parse(until) if until is not None else None
        if for_ is not None:
            # Whole seconds: nobody wants to read more of a hold.
            ends = Instant(-(-int(time.time() * 1000 + Millis.parse(for_)) // 1000) * 1000)
    except ValueError as error:
        raise click.BadParameter(str(error), param_hint="--until" if until is not None else "--for") from None
    if ends is not None and ends <= time.time() * 1000:
        raise click.BadParameter(f"{ends.text()} is over", param_hint="--until")
    for name in names:
        _change(hub, name, lambda spec: replace(spec, hold=Hold(reason=reason, until=ends)))
        click.echo(f"nodes/{name} held" + (f" until {ends.text()}" if ends is not None else ""))


@node.command()
@names_argument
@talks_to_hub
def release(hub: Client, names: tuple[str, ...]) -> None:
    """Let held, drained or cordoned machines work again."""
    from msgspec.structs import replace

    for name in names:
        _change(hub, name, lambda spec: replace(spec, hold=None, drain=False, unschedulable=False))
        click.echo(f"nodes/{name} released")


@node.command()
@names_argument
@click.option("--dry-run", is_flag=True, help="Only tell what would move.")
@click.option("--wait", "waits", is_flag=True, help="Stay until everything that can move has moved.")
@click.option("--timeout", default="5m", show_default=True, metavar="DURATION", help="How long --wait waits.")
@talks_to_hub
def drain(hub: Client, names: tuple[str, ...], *, dry_run: bool, waits: bool, timeout: str) -> None:
    """Empty machines: nothing new comes, and what can run elsewhere moves, the new one ready before the old one stops.

    What is for every node stays, and so does what fits nowhere else; `batuta why APP` says which and why.

    \b
    batuta node drain press-4 --dry-run
    batuta node drain press-4 --wait
    batuta node release press-4
    """
    from msgspec.structs import replace

    from batuta.cli.diff import told
    from batuta.cli.emptying import wait_until_empty
    from batuta.kinds.node import Node

    timeout_s = milliseconds(timeout, "--timeout") / 1000
    before = [hub.get(Node, name).resource for name in names]
    drained = [replace(n, spec=replace(n.spec, drain=True)) for n in before]
    for line in told(hub.diff(drained)):
        click.echo(line)
    if dry_run:
        return
    for name in names:
        _change(hub, name, lambda spec: replace(spec, drain=True))
        click.echo(f"nodes/{name} draining")
    if waits:
        wait_until_empty(hub, names, timeout_s)


@node.command()
@names_argument
@talks_to_hub
def remove(hub: Client, names: tuple[str, ...]) -> None:
    """Take machines out for good: their instances move, their certificates are worth nothing at once.

    One that waits for approval is refused. To bring one back, join it anew with a new token.
    """
    from batuta.kinds.node import Node

    for name in names:
        hub.delete(Node, name)
        click.echo(f"nodes/{name} removed")


def _change(hub: Client, name: str, change: Callable[[NodeSpec], NodeSpec]) -> None:
    from msgspec.structs import replace

    from batuta.kinds.node import Node

    def changed(known: Node) -> Node:
        return replace(known, spec=change(known.spec))

    hub.update(Node, name, changed)
