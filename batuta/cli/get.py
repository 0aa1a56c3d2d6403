"""`batuta get`: one line each, from the columns that every kind declares."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any

import click

from batuta.cli.completing import kinds, names
from batuta.cli.options import namespace_option, output_option, split_reference, talks_to_hub, the_kind
from batuta.cli.rows import EMPTY, headings, row
from batuta.cli.text import column_widths, table

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from batuta.client import Client, Event, Found
    from batuta.kinds.base import Resource


@click.command()
@click.argument("kind", shell_complete=kinds)
@click.argument("name", required=False, shell_complete=names)
@namespace_option
@click.option("-A", "--all-namespaces", is_flag=True, help="Look into every namespace.")
@click.option("-l", "--selector", default="", metavar="LABELS", help="Only those with these labels: `a=b,c!=d`.")
@click.option("-w", "--watch", is_flag=True, help="Print rows as they change, until Ctrl-C.")
@output_option
@talks_to_hub
def get(
    hub: Client,
    kind: str,
    name: str | None,
    *,
    namespace: str,
    all_namespaces: bool,
    selector: str,
    watch: bool,
    output: str,
) -> None:
    """List nodes, sites, models or applications, one line each.

    \b
    batuta get nodes
    batuta get applications -o wide
    batuta get node pi-4 -o yaml
    """
    kind, name = split_reference(kind, name)
    meant = the_kind(kind)
    where = None if all_namespaces else namespace
    if name is not None and selector:
        raise click.UsageError("a NAME and a --selector exclude each other")
    if watch:
        events = hub.watch(meant, name=name or "", namespace=where, selector=selector)
        _follow(meant, events, output, is_everywhere=all_namespaces)
        return
    if name is not None:
        print_found(meant, [hub.get(meant, name, namespace=namespace)], output, is_one=True)
        return
    found = hub.list(meant, namespace=where, selector=selector)
    print_found(meant, found, output, is_everywhere=all_namespaces)
    if not found and output in ("table", "wide"):
        click.echo(_nothing(meant, selector, namespace if where else ""), err=True)


def print_found(
    kind: type[Resource],
    found: Sequence[Found[Any]],
    output: str,
    *,
    is_everywhere: bool = False,
    is_one: bool = False,
) -> None:
    """All of these, in the way that was asked for."""
    if output in ("json", "yaml"):
        documents = [dict(each.document) for each in found]
        click.echo(as_text(documents[0] if is_one else _as_list(documents), output), nl=False)
    elif output == "name":
        for each in found:
            click.echo(f"{kind.plural}/{each.resource.metadata.name}")
    elif found:
        now_ms = time.time() * 1000
        names = headings(kind, is_wide=output == "wide", is_everywhere=is_everywhere)
        rows = [row(kind, f, now_ms, is_wide=output == "wide", is_everywhere=is_everywhere) for f in found]
        # In one piece: thousands of lines would be as many writes.
        click.echo("\n".join(table(names, rows, cuts=output != "wide")))


def as_text(value: Any, output: str) -> str:
    """JSON or YAML, ending in a newline."""
    if output == "json":
        import json

        return json.dumps(value, indent=2, ensure_ascii=False) + "\n"
    import yaml

    return yaml.safe_dump(value, sort_keys=False, allow_unicode=True, width=10_000)


def _as_list(documents: list[dict[str, Any]]) -> dict[str, Any]:
    return {"apiVersion": "v1", "kind": "List", "items": documents}


def _follow(kind: type[Resource], events: Iterable[Event[Any]], output: str, *, is_everywhere: bool) -> None:
    """A row for each change; columns stay where the first rows put them, and only ever grow."""
    import json

    is_wide = output == "wide"
    names = headings(kind, is_wide=is_wide, is_everywhere=is_everywhere)
    widths = [len(name) for name in names]
    has_heading = False
    printed: dict[tuple[str, str], list[str]] = {}
    for event in events:
        if output == "json":
            click.echo(json.dumps({"type": event.type, "object": event.found.document}, ensure_ascii=False))
        elif output == "yaml":
            click.echo("---\n" + as_text(dict(event.found.document), output), nl=False)
        elif output == "name":
            click.echo(f"{kind.plural}/{event.found.resource.metadata.name}")
        else:
            cells = row(kind, event.found, time.time() * 1000, is_wide=is_wide, is_everywhere=is_everywhere)
            if event.type == "DELETED":
                cells[-1] = "deleted"
            # Much of a status is no column; a row that only grew older says nothing new.
            ref = event.found.resource.ref
            if event.type == "MODIFIED" and printed.get((ref.namespace, ref.name)) == cells[:-1]:
                continue
            printed[ref.namespace, ref.name] = cells[:-1]
            widths = [max(pair) for pair in zip(widths, column_widths(names, [cells]), strict=True)]
            for line in table(names, [cells], widths, cuts=not is_wide)[1 if has_heading else 0 :]:
                click.echo(line)
            has_heading = True


def _nothing(kind: type[Resource], selector: str, namespace: str) -> str:
    if selector:
        return f"No {kind.plural} with labels {selector}."
    inside = f" in namespace {namespace}" if kind.namespaced and namespace != "default" else ""
    return f"No {kind.plural}{inside} yet. {EMPTY.get(kind.__name__, '')}".rstrip()
