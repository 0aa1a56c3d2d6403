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
SERVER_FIELDS = ("uid", "generation", "resourceVersion", "creationTimestamp", "managedFields")


@click.command()
@click.option("--since", default="", metavar="DURATION", help="Only this far back: `1h`.")
@click.option(
    "--who", default="", metavar="TOKEN", help="Only by this token: its name or id; `local` is this machine's."
)
@click.option("--kind", default="", help="Only this kind, or `tokens` or `artifacts`.")
@click.option("--name", default="", help="Only what has this name.")
@click.option(
    "--verb",
    default="",
    help="Only create, apply, patch, replace, delete, enrol, approve, revoke, upload; of rollouts also undo, pause, …",
)
@click.option("--limit", default=100, show_default=True, type=click.IntRange(1, 5_000), help="So many newest entries.")
@click.option("-f", "--follow", is_flag=True, help="Go on until Ctrl-C.")
@click.option(
    "-o", "--output", type=click.Choice(["table", "wide", "json", "yaml"]), default="table", help="How to print it."
)
@talks_to_hub
def audit(
    hub: Client, *, since: str, who: str, kind: str, name: str, verb: str, limit: int, follow: bool, output: str
) -> None:  # fmt: skip
    """Who did what: every write, and every refusal of one. It takes an admin.

    With `-o wide` each entry is followed by the fields that changed, as they were and as they became. With `-o json`
    each line is one entry, with all that was there before and after.

    \b
    batuta audit --since 1h --kind applications -o wide
    batuta audit --who ci --verb delete
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
    if output == "yaml":
        from batuta.cli.get import as_text

        for item in items:
            click.echo("---\n" + as_text(item, "yaml"), nl=False)
        return
    if not items:
        if is_first:
            click.echo("Nothing that fits was written.", err=True)
        return
    lines = table(["AT", "WHO", "FROM", "VERB", "WHAT", "OUTCOME", "WHY"], [_row(item) for item in items])
    if is_first:
        click.echo(lines[0])
    for item, line in zip(items, lines[1:], strict=True):
        click.echo(line)
        for change in _changes(item) if output == "wide" else ():
            click.echo(change)


def _changes(item: dict[str, Any]) -> Iterator[str]:
    """Field by field, as `batuta diff` prints them. What the hub itself writes down is left out."""
    from batuta.cli.diff import field_line
    from batuta.kinds.difference import differences

    before, after = ({**(item.get(when) or {})} for when in ("before", "after"))
    for document in (before, after):
        if isinstance(metadata := document.get("metadata"), dict):
            document["metadata"] = {k: v for k, v in metadata.items() if k not in SERVER_FIELDS}
    for change in differences(before, after):
        field = {"op": change.op, "path": change.path, "before": change.before, "after": change.after}
        yield f"    {field_line(field)}"


def _row(item: dict[str, Any]) -> list[str]:
    at = datetime.fromtimestamp(item["at"] / 1000).astimezone().isoformat(sep=" ", timespec="seconds")
    who = f"{item.get('name') or item['who']}{' (' + item['role'] + ')' if item.get('role') else ''}"
    why = f"{item.get('code', '')} {item.get('message', '')}".strip() if item["outcome"] != "unchanged" else ""
    return [at[:19], who, item.get("address") or ABSENT, item["verb"], item["what"], item["outcome"], why or ABSENT]
