"""`batuta flag`: what a key gets of a flag, and which rule says so. Flags are declared with `batuta apply`."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import click

from batuta.cli.completing import flags, nodes
from batuta.cli.options import namespace_option, talks_to_hub
from batuta.cli.text import clean, painted, table

if TYPE_CHECKING:
    from collections.abc import Iterator

    from batuta.client import Client


@click.group()
def flag() -> None:
    """Feature flags: who gets what, and why."""


@flag.command("eval")
@click.argument("name", shell_complete=flags)
@click.option("--node", default="", metavar="NODE", shell_complete=nodes, help="On this node; on each when left out.")
@click.option("--key", default=None, metavar="KEY", help="For this targetingKey; a split needs one.")
@namespace_option
@click.option("-o", "--output", type=click.Choice(["text", "json", "yaml"]), default="text", help="How to print it.")
@talks_to_hub
def evaluate(hub: Client, name: str, *, node: str, key: str | None, namespace: str, output: str) -> None:
    """What does a program get that asks for a flag, and which rule says so?

    Evaluated at the hub by the same rules as on the node.

    \b
    batuta flag eval new-overlay --key camera-7
    batuta flag eval new-overlay --node pi-4 --key camera-7
    """
    answer = hub.flag_evaluation(name, node=node, key=key, namespace=namespace)
    items = list(answer["items"])
    if output != "text":
        from batuta.cli.get import as_text

        click.echo(as_text(items, output), nl=False)
        return
    if not items:
        click.echo("There is no node yet. Make a token with `batuta token create`.", err=True)
        return
    for line in told(items[0]) if node else _each(items):
        click.echo(line)
    if len(items) < answer["nodes"] and not node:
        click.echo(f"and {answer['nodes'] - len(items)} nodes more; ask with --node", err=True)


def told(answer: dict[str, Any]) -> Iterator[str]:
    """One node: what it gets, why, and what became of each rule."""
    what = f"{clean(answer['flag'])} on {clean(answer['node'])}" + (
        f" for {clean(answer['key'])}" if "key" in answer else ""
    )
    yield f"{painted(what, 'strong')} is {_value(answer)}"
    yield f"  {clean(answer['says'])}"
    for rule in answer["rules"]:
        why = f" ({clean(rule['why'])})" if "why" in rule else ""
        yield f"  rule {rule['rule']}: {rule['holds']}{why}: {clean(rule['when'])} gives {clean(rule['gives'])}"
    if not answer["hasIt"]:
        yield f"  {painted('the node has not said that it knows this yet', 'wait')}"


def _each(items: list[dict[str, Any]]) -> Iterator[str]:
    rows = [
        [
            clean(i["node"]),
            _value(i),
            str(i.get("why") or "-"),
            str(i["rule"] or "-"),
            "yes" if i["hasIt"] else "not yet",
        ]
        for i in items
    ]
    yield from table(["NODE", "GETS", "REASON", "RULE", "KNOWN THERE"], rows)


def _value(answer: dict[str, Any]) -> str:
    if "errorCode" in answer:
        return f"unanswered, {answer['errorCode']}: {clean(answer['message'])}"
    return f"{clean(answer['variant'])}, {clean(json.dumps(answer['value']))}"
