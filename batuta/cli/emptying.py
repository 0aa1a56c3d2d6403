"""What a drained node still holds, told until nothing of it can move any more."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

import click

if TYPE_CHECKING:
    from collections.abc import Sequence

    from batuta.client import Client

LOOK_EVERY_S = 1.0
STUCK_S = 15.0
"""What cannot move for so long, with nothing else under way, is not waited for any longer."""


def wait_until_empty(hub: Client, names: Sequence[str], timeout_s: float) -> None:
    """Returns when every instance that can move has moved. Raises WaitedTooLong with what stays and why."""
    from batuta.client import WaitedTooLong

    until = time.monotonic() + timeout_s
    last: dict[str, str] = {}
    since = time.monotonic()
    while True:
        left = leaving(hub, names)
        for gone in last.keys() - left.keys():
            click.echo(f"  {gone} has moved", err=True)
        for instance, why in left.items():
            if last.get(instance) != why:
                click.echo(f"  {instance}: {why}", err=True)
        if not left:
            click.echo(f"{', '.join(f'nodes/{name}' for name in names)} drained")
            return
        now = time.monotonic()
        since = since if left == last else now
        if now >= until or now - since >= STUCK_S:
            what = "; ".join(f"{instance}: {why}" for instance, why in left.items())
            raise WaitedTooLong(f"these stay: {what}", next_step="add room elsewhere, or stop them")
        last = left
        # The rows of applications change with every step; looking once a second misses none that matters.
        time.sleep(min(LOOK_EVERY_S, max(0.0, until - now)))


def leaving(hub: Client, names: Sequence[str]) -> dict[str, str]:
    """The instances on these nodes that are there only until they can be elsewhere, each with what it waits for."""
    from batuta.kinds import Application

    found: dict[str, str] = {}
    for application in hub.list(Application, namespace=None):
        for component in application.status.get("components") or ():
            for instance in component.get("instances", ()):
                if instance["node"] in names and instance["verdict"] in ("move", "stop", "replace", "hold"):
                    subject = f"component/{component['name']}/{instance['slot']}"
                    reasons = application.status.get("reasons") or ()
                    why = next((r["sentence"] for r in reasons if r.get("subject") == subject), "waits for its turn")
                    found[instance["name"].rpartition("/")[2]] = why
    return found
