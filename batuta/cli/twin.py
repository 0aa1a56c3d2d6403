"""`batuta twin`: the same deciding in virtual time. Nothing here touches a machine."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, NamedTuple

import click

if TYPE_CHECKING:
    from collections.abc import Mapping


class Part(NamedTuple):
    """One verb under `twin`: its module in this package, and its line in `batuta twin --help`."""

    module: str
    help: str


PARTS: Mapping[str, Part] = {
    "run": Part("twin_run", "Play a scenario, or a fleet drawn from a seed, in virtual time."),
    "rehearse": Part("twin_rehearse", "Try a change on a copy of the fleet: what moves, how long, at what cost."),
    "replay": Part("twin_replay", "Decide a recording again, and show the first difference."),
    "record": Part("twin_record", "Save what the hub decided of late."),
}


class Parts(click.Group):
    """Loads a module when its verb is used, and not before: the twin computes with NumPy."""

    def list_commands(self, ctx: click.Context) -> list[str]:  # noqa: ARG002
        return list(PARTS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:  # noqa: ARG002
        if cmd_name not in PARTS:
            return None
        command = getattr(importlib.import_module(f"batuta.cli.{PARTS[cmd_name].module}"), cmd_name)
        assert isinstance(command, click.Command)
        return command

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:  # noqa: ARG002
        with formatter.section("Verbs"):
            formatter.write_dl([(name, part.help) for name, part in PARTS.items()])


@click.group(cls=Parts)
def twin() -> None:
    """Play fleets in virtual time: the hub's and the nodes' own rules, over modelled machines and links.

    \b
    batuta twin run scenario.yaml --seed 7
    """
