"""`batuta describe`: all that is known of one thing, for people."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any

import click

from batuta.cli.completing import kinds, names
from batuta.cli.options import namespace_option, split_reference, talks_to_hub, the_kind

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from batuta.client import Client, Found
    from batuta.kinds.base import Resource

INSTANCE = ("name", "node", "phase", "since", "starts", "reason")
"""What is told of each instance; the rest is for programs."""
TOLD_MAX = 8


@click.command()
@click.argument("kind", shell_complete=kinds)
@click.argument("name", required=False, shell_complete=names)
@namespace_option
@talks_to_hub
def describe(hub: Client, kind: str, name: str | None, *, namespace: str) -> None:
    """All that is known of one thing: what was declared, what is so, and why.

    \b
    batuta describe node pi-4
    batuta describe application meter-reader
    """
    kind, name = split_reference(kind, name)
    meant = the_kind(kind)
    if name is None:
        raise click.UsageError("which one? Give its NAME; `batuta get` lists them")
    found = hub.get(meant, name, namespace=namespace)
    for line in described(meant, found, time.time() * 1000):
        click.echo(line)
    if meant.__name__ == "Application" and found.status.get("state") != "ok":
        # Not well: then what everybody asks next is answered at once.
        _tell_why(hub, name, namespace)


def _tell_why(hub: Client, name: str, namespace: str) -> None:
    from batuta.cli.why import told

    answers = [answer for answer in hub.why(name, namespace=namespace) if answer.get("reasons")]
    if answers:
        click.echo("why")
    for answer in answers[:TOLD_MAX]:
        for line in told(answer):
            click.echo(f"  {line}")
    if len(answers) > TOLD_MAX:
        click.echo(f"  and {len(answers) - TOLD_MAX} more: `batuta why {name}`")


def described(kind: type[Resource], found: Found[Resource], now_ms: float) -> Iterator[str]:
    """Who it is, how it is, what was asked for."""
    from batuta.cli.outline import outline
    from batuta.cli.rows import instant_ms
    from batuta.cli.text import age, cell, painted
    from batuta.kinds.manifest import dump

    metadata = found.resource.metadata
    yield painted(f"{kind.__name__} {metadata.name}", "strong")
    born_ms = instant_ms(metadata.creation_timestamp)
    facts = {
        "namespace": metadata.namespace if kind.namespaced else None,
        "labels": cell(metadata.labels, wide=True) if metadata.labels else None,
        "created": f"{age(born_ms, now_ms)} ago" if born_ms is not None else None,
        "generation": metadata.generation,
    }
    yield from outline({k: v for k, v in facts.items() if v is not None}, now_ms, indent=2)
    if found.status:
        yield "status"
        yield from outline(_for_people(found.status), now_ms, indent=2)
    # As it would be written, to be copied into a manifest.
    _, spec, written = dump(found.resource, server_fields=False).partition("\nspec:")
    if written.strip():
        yield from f"{spec.strip()}{written.rstrip()}".splitlines()


def _for_people(status: Mapping[str, Any]) -> dict[str, Any]:
    """The same, without what is there for programs, and each instance in one line."""
    # Every reason says more than the first one does.
    unsaid = {"conditions", "reason", "next"} if status.get("reasons") else {"conditions"}
    shown = {key: value for key, value in status.items() if key not in unsaid}
    components = [
        {
            **each,
            **_follows(each),
            "instances": [{key: _short(key, i.get(key)) for key in INSTANCE} for i in each.get("instances", ())],
        }
        for each in status.get("components") or ()
        if isinstance(each, dict)  # of a rollout they are told by name
    ]
    return {**shown, "components": components} if components else shown


def _follows(component: Mapping[str, Any]) -> dict[str, str]:
    from batuta.cli.why import following

    return {"follows": following(component["follows"])} if "follows" in component else {}


def _short(key: str, value: Any) -> Any:
    return str(value).rpartition("/")[2] if key == "name" else value
