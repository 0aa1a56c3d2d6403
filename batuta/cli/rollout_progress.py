"""A rollout while it goes on: painted over at a terminal, elsewhere a line for every change."""

from __future__ import annotations

import shutil
import sys
import time
from typing import TYPE_CHECKING, Any

import click

if TYPE_CHECKING:
    from batuta.client import Client, Found

LOOK_S = 5.0
"""At a terminal ages are painted anew at least so often."""


def follow(hub: Client, name: str, namespace: str, *, output: str = "text") -> None:
    """Tells every change until it is over. What is paused is waited with."""
    from batuta.client_rollouts import OVER

    screen = Screen(output)
    hub.rollouts.get(name, namespace=namespace)  # one that is not there is said so at once
    for event in hub.rollouts.watch(name, namespace=namespace):
        if event.type == "DELETED":
            return
        screen.show(event.found)
        if event.found.status.get("phase") in OVER:
            return


def wait_until_over(
    hub: Client, name: str, namespace: str, timeout_s: float, *, is_undone: bool = False, release: int = 0
) -> None:
    """Returns when it is done, or undone where that is what was asked for. Raises WaitedTooLong when it ends
    otherwise, is paused, or takes too long."""
    from batuta.client import WaitedTooLong
    from batuta.client_rollouts import OVER

    screen, last = Screen("text"), None
    for event in hub.rollouts.watch(name, namespace=namespace, timeout_s=timeout_s):
        found = event.found
        if event.type == "DELETED" or found.resource.spec.release < release:
            continue
        screen.show(found)
        last, phase = found, found.status.get("phase")
        if phase == ("undone" if is_undone else "done"):
            return
        if phase in (*OVER, "paused"):
            reason = found.status.get("reason") or {}
            raise WaitedTooLong(
                f"rollouts/{name} is {phase}: {reason.get('sentence', '')}".rstrip(": "),
                next_step=str(reason.get("next") or f"see `batuta rollout status {name}`"),
            )
    said = last.status.get("says", "") if last is not None else "not seen"
    raise WaitedTooLong(
        f"rollouts/{name} is not over after {timeout_s:.0f} s: {said}",
        next_step=f"see `batuta rollout status {name}`",
    )


class Screen:
    """What was last shown."""

    def __init__(self, output: str) -> None:
        self._output = output
        self._painted = 0
        self._told = ""

    def show(self, found: Found[Any]) -> None:
        from batuta.cli.rollout_page import brief, page

        if self._output != "text":
            self._as_document(found)
            return
        if not sys.stdout.isatty():
            line = brief(found.status)
            if line != self._told:
                click.echo(line)
                self._told = line
            return
        width = max(20, shutil.get_terminal_size().columns - 1)
        rows = list(page(found, time.time() * 1000))
        back = f"\x1b[{self._painted}F" if self._painted else ""
        click.echo(back + "".join(f"{_cut(row, width)}\x1b[K\n" for row in rows) + "\x1b[J", nl=False)
        self._painted = len(rows)

    def _as_document(self, found: Found[Any]) -> None:
        if self._output == "json":
            import json

            click.echo(json.dumps(found.document, ensure_ascii=False))
        else:
            from batuta.cli.get import as_text

            click.echo("---\n" + as_text(dict(found.document), "yaml"), nl=False)


def _cut(row: str, width: int) -> str:
    """A line that wrapped would be two, and painting over would miss one. Escapes take no room."""
    plain = len(click.unstyle(row))
    return row if plain <= width else f"{click.unstyle(row)[: width - 1]}…"
