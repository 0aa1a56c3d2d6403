"""`batuta doctor`: what is well, what is not, and the command that mends it."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

import click

from batuta.cli.options import may_talk_to_hub
from batuta.cli.text import painted

if TYPE_CHECKING:
    from collections.abc import Callable

    from batuta.client import Check, Client

SIGNS = {"pass": "ok  ", "warn": "warn", "fail": "FAIL"}
_TONES = {"pass": "good", "warn": "wait", "fail": "bad"}


class Section(NamedTuple):
    """What was looked at, and what was found."""

    title: str
    checks: tuple[Check, ...]


@click.command()
@click.option("-o", "--output", type=click.Choice(["text", "json"]), default="text", help="How to print it.")
@may_talk_to_hub
@click.pass_context
def doctor(context: click.Context, connect: Callable[[], Client], *, output: str) -> int:
    """Check this machine, its node and its hub. Ends with 1 when anything fails."""
    from pathlib import Path

    from batuta.cli import checks
    from batuta.config import default_state

    state = Path(context.params.get("state") or default_state()).expanduser().absolute()
    sections = [Section("this machine", tuple(checks.machine(state)))]
    node = tuple(checks.node(state))
    if node:
        sections.append(Section("this node", node))
    if hub := _hub(connect, is_node=bool(node)):
        sections.append(Section("the hub", hub))
    every = [check for section in sections for check in section.checks]
    if output == "json":
        from batuta.cli.get import as_text

        rows = [{"section": section.title, **_row(check)} for section in sections for check in section.checks]
        click.echo(as_text({"checks": rows}, "json"), nl=False)
    else:
        _print(sections)
    return 1 if any(check.result == "fail" for check in every) else 0


def _hub(connect: Callable[[], Client], *, is_node: bool) -> tuple[Check, ...]:
    from batuta.client import Check
    from batuta.context import NoContext
    from batuta.errors import BatutaError

    try:
        with connect() as hub:
            return (Check("address", "pass", hub.server), *hub.doctor())
    except NoContext as error:
        # A node needs no hub of its own here; a machine with neither has simply not begun.
        return () if is_node else (Check("address", "warn", error.message, error.next_step),)
    except BatutaError as error:
        return (Check("address", "fail", error.message, error.next_step),)


def _row(check: Check) -> dict[str, str]:
    row = {"name": check.name, "result": check.result, "message": check.message}
    return {**row, "nextStep": check.next_step} if check.next_step else row


def _print(sections: list[Section]) -> None:
    width = max(len(check.name) for section in sections for check in section.checks)
    for section in sections:
        click.echo(painted(section.title, "strong"))
        for check in section.checks:
            sign = painted(SIGNS[check.result], _TONES[check.result])
            click.echo(f"  {sign}  {check.name.ljust(width)}  {check.message}")
            if check.next_step and check.result != "pass":
                click.echo(f"        {' ' * width}  next: {check.next_step}")
    counts = {word: sum(c.result == word for s in sections for c in s.checks) for word in SIGNS}
    click.echo(f"{counts['pass']} passed, {counts['warn']} to look at, {counts['fail']} failed")
