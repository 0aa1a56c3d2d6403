"""`batuta model channel`: names that applications follow from version to version, such as `stable`."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

import click

from batuta.cli.options import milliseconds, namespace_option, talks_to_hub
from batuta.cli.text import ABSENT, cell, table

if TYPE_CHECKING:
    from batuta.cli.progress import Goal
    from batuta.client import Client, Found
    from batuta.kinds.model import Model


@click.command()
@click.argument("name")
@click.argument("moves", nargs=-1, metavar="[CHANNEL=VERSION]...")
@click.option("--wait", "waits", is_flag=True, help="Stay until the new releases of all who follow have arrived.")
@click.option("--timeout", default="1h", show_default=True, metavar="DURATION", help="How long --wait waits.")
@namespace_option
@talks_to_hub
def channel(hub: Client, name: str, moves: tuple[str, ...], *, waits: bool, timeout: str, namespace: str) -> None:
    """Names that applications follow: where they are, who follows, and to move them.

    A component with `version: stable` runs whatever version the channel is at. When it is moved, each application that
    follows it gets a new release, which arrives by that application's own waves and gates. `stable=` takes one away.

    \b
    batuta model channel digits
    batuta model channel digits canary=4
    batuta model channel digits stable=4 --wait
    """
    from batuta.cli.model_describe import wanted_of
    from batuta.cli.progress import wait
    from batuta.kinds.model import Model
    from batuta.model_push import with_aliases

    timeout_s = milliseconds(timeout, "--timeout") / 1000
    before = hub.get(Model, name, namespace=namespace)
    wanted = wanted_of(moves, "CHANNEL")
    goals: list[Goal] = []
    if wanted:
        after = with_aliases(before.resource, wanted)
        goals = [_goal(hub, app, namespace) for app in _who_moves(before, after)]
        before = hub.update(Model, name, lambda model: with_aliases(model, wanted), namespace=namespace)
    rows = [
        [each["name"], each["version"], cell(each["followers"], wide=True) if each["followers"] else ABSENT]
        for each in before.status.get("channels", ())
    ]
    if not rows:
        click.echo(f"{name} has no channels. Make one: `batuta model channel {name} stable=VERSION`", err=True)
        return
    for line in table(["CHANNEL", "VERSION", "FOLLOWED BY"], rows, cuts=False):
        click.echo(line)
    for goal in goals:
        click.echo(f"applications/{goal.name} gets a new release: `batuta rollout status {goal.name}`", err=True)
    until = time.monotonic() + timeout_s
    for goal in goals if waits else ():
        wait(hub, goal, max(0.0, until - time.monotonic()))


def _who_moves(before: Found[Model], after: Model) -> list[str]:
    """Applications that follow a channel whose version changes."""
    was, now = before.resource.spec.aliases, after.spec.aliases
    moved = {each["name"]: each["followers"] for each in before.status.get("channels", ())}
    return sorted({
        follower.partition("/")[0]
        for name, followers in moved.items() if name in now and was.get(name) != now[name] for follower in followers
    })  # fmt: skip


def _goal(hub: Client, app: str, namespace: str) -> Goal:
    from batuta.cli.progress import Goal
    from batuta.kinds.application import Application

    known = hub.get(Application, app, namespace=namespace).status.get("release") or 0
    return Goal(app, namespace, int(known) + 1)
