"""What a drained node still holds, told until nothing of it can move any more."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, NamedTuple

import click

if TYPE_CHECKING:
    from collections.abc import Sequence

    from batuta.client import Client

LOOK_EVERY_S = 1.0
STUCK_S = 15.0
"""What cannot move for so long, with nothing else under way, is not waited for any longer."""


class Waits(NamedTuple):
    """Why an instance is still there, and what can be done about it."""

    why: str
    next_step: str


STEP = "add room elsewhere, or stop it"


def wait_until_empty(hub: Client, names: Sequence[str], timeout_s: float) -> None:
    """Returns when every instance that can move has moved. Raises WaitedTooLong with what stays and why."""
    from batuta.client import WaitedTooLong

    until = time.monotonic() + timeout_s
    last: dict[str, Waits] = {}
    since = time.monotonic()
    while True:
        left = leaving(hub, names)
        for gone in last.keys() - left.keys():
            click.echo(f"  {gone} has moved", err=True)
        for instance, waits in left.items():
            if last.get(instance) != waits:
                click.echo(f"  {instance}: {waits.why}", err=True)
        if not left:
            click.echo(f"{', '.join(f'nodes/{name}' for name in names)} drained")
            return
        now = time.monotonic()
        since = since if left == last else now
        if now >= until or now - since >= STUCK_S:
            what = "; ".join(f"{instance}: {waits.why}" for instance, waits in left.items())
            steps = "; ".join(dict.fromkeys(waits.next_step for waits in left.values()))
            raise WaitedTooLong(f"these stay: {what}", next_step=steps)
        last = left
        # The rows of applications change with every step; looking once a second misses none that matters.
        time.sleep(min(LOOK_EVERY_S, max(0.0, until - now)))


def leaving(hub: Client, names: Sequence[str]) -> dict[str, Waits]:
    """The instances on these nodes that are there only until they can be elsewhere, each with what it waits for."""
    from batuta.kinds import Application

    found: dict[str, Waits] = {}
    for application in hub.list(Application, namespace=None):
        for component in application.status.get("components") or ():
            for instance in component.get("instances", ()):
                if instance["node"] in names and instance["verdict"] in ("move", "stop", "replace", "hold"):
                    subject = f"component/{component['name']}/{instance['slot']}"
                    reasons = application.status.get("reasons") or ()
                    said = next((r for r in reasons if r.get("subject") == subject), None)
                    waits = Waits(said["sentence"], said["next"]) if said else Waits("waits for its turn", STEP)
                    found[instance["name"].rpartition("/")[2]] = waits
    return found
