"""`batuta audit`: who did what, when, and how it ended."""

from __future__ import annotations

from datetime import datetime
from typing import TYPE_CHECKING, Any

import click

from batuta.cli.options import talks_to_hub, the_kind
from batuta.cli.text import ABSENT, table

if TYPE_CHECKING:
    from collections.abc import Iterator

    from batuta.client import Client

WAIT_S = 20.0


@click.command()
@click.option("--since", default="", metavar="DURATION", help="Only this far back: `1h`.")
@click.option(
    "--who", default="", metavar="TOKEN", help="Only by this token: its name or id; `local` is this machine's."
)
@click.option("--kind", default="", help="Only this kind, or `tokens` or `artifacts`.")
@click.option("--name", default="", help="Only what has this name.")
@click.option("--verb", default="", help="Only create, apply, patch, replace, delete, enrol, revoke or upload.")
@click.option("--limit", default=100, show_default=True, type=click.IntRange(1, 5_000), help="So many newest entries.")
@click.option("-f", "--follow", is_flag=True, help="Go on until Ctrl-C.")
@click.option("-o", "--output", type=click.Choice(["table", "json"]), default="table", help="How to print it.")
@talks_to_hub
def audit(
    hub: Client, *, since: str, who: str, kind: str, name: str, verb: str, limit: int, follow: bool, output: str
) -> None:  # fmt: skip
    """Who did what: every write, and every refusal of one. It takes an admin.

    With `-o json` each line is one entry, with what was there before and after.
    """
    what = kind if kind in ("", "tokens", "artifacts", "apply") else the_kind(kind).plural
    wanted: dict[str, str | int] = {"who": who, "what": what, "name": name, "verb": verb, "limit": limit}
    answer = hub.audit({**wanted, "since": since})
    _print(answer["items"], output, is_first=True)
    if not answer["isWhole"] and not follow and len(answer["items"]) >= limit:
        click.echo(f"These are the newest {limit}; see more with --limit.", err=True)
    if follow:
        for items in _following(hub, wanted, answer["last"]):
            _print(items, output, is_first=False)


def _following(hub: Client, wanted: dict[str, str | int], last: int) -> Iterator[list[dict[str, Any]]]:
    while True:
        # A log that is empty yet has no entry to go on from; then the hub answers at once, with the first.
        answer = hub.audit({**wanted, "after": last}, timeout_s=WAIT_S)
        last = answer["last"]
        yield answer["items"]


def _print(items: list[dict[str, Any]], output: str, *, is_first: bool) -> None:
    if output == "json":
        import msgspec

        for item in items:
            click.echo(msgspec.json.encode(item).decode())
        return
    if not items:
        if is_first:
            click.echo("Nothing that fits was written.", err=True)
        return
    lines = table(["AT", "WHO", "FROM", "VERB", "WHAT", "OUTCOME", "WHY"], [_row(item) for item in items])
    for line in lines if is_first else lines[1:]:
        click.echo(line)


def _row(item: dict[str, Any]) -> list[str]:
    at = datetime.fromtimestamp(item["at"] / 1000).astimezone().isoformat(sep=" ", timespec="seconds")
    who = f"{item.get('name') or item['who']}{' (' + item['role'] + ')' if item.get('role') else ''}"
    why = f"{item.get('code', '')} {item.get('message', '')}".strip() if item["outcome"] != "unchanged" else ""
    return [at[:19], who, item.get("address") or ABSENT, item["verb"], item["what"], item["outcome"], why or ABSENT]
