"""`batuta diff`: what manifests would change, field by field, and which instances would move."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import click

from batuta.cli.options import may_talk_to_hub, namespace_option

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping

    from batuta.client import Changed, Client, Foreseen

DIFFERS = 1
_SIGNS = {"start": ("+", "good"), "stop": ("-", "bad"), "move": (">", "wait"), "replace": ("~", "wait")}
_TONES = {"+": "good", "-": "bad", "~": "wait"}


@click.command()
@click.option(
    "-f", "--file", "files", multiple=True, required=True, metavar="FILE", help="A file, a directory, or - for stdin."
)
@namespace_option
@click.option("-o", "--output", type=click.Choice(["text", "json", "yaml"]), default="text", help="How to print it.")
@may_talk_to_hub
def diff(connect: Callable[[], Client], *, files: tuple[str, ...], namespace: str, output: str) -> int:
    """What would change, and which instances would move, if these manifests were applied now. Changes nothing.

    \b
    batuta diff -f examples/meter-reader.yaml
    + added   - gone   ~ changed or replaced   > moved
    Exit: 0 no difference, 1 differences, 3 refused.
    """
    from batuta.cli.manifests import joined

    manifest = joined(files)
    with connect() as hub:
        found = manifest.diff(hub, namespace=namespace)
    if output == "text":
        for line in told(found):
            click.echo(line)
    else:
        from batuta.cli.get import as_text

        click.echo(as_text(_plain(found), output), nl=False)
    return DIFFERS if found.differs else 0


def told(found: Foreseen) -> Iterator[str]:
    """All of it for people: resources first, then instances, then what would still be missing."""
    for item in found.items:
        yield from _resource(item)
    mine = [step for step in found.steps if not step.get("anyway")]
    if mine:
        yield f"{len(mine)} instance{'s' if len(mine) > 1 else ''} would change:"
        yield from moves(mine)
    elif found.differs and not found.hidden:
        yield "No instance would move."
    if found.hidden:
        yield f"{found.hidden} more in namespaces that your token does not see."
    anyway = len(found.steps) - len(mine)
    if anyway:
        yield f"{anyway} more change without this: they are on their way."
    for app, said in found.reasons.items():
        for reason in said:
            yield f"! {app.rpartition('/')[2]}: {reason.get('sentence', reason.get('code', ''))}"
    if not found.is_whole:
        yield "! more would follow than could be foreseen"


def moves(steps: list[Mapping[str, Any]]) -> Iterator[str]:
    """One line for each instance that starts, stops, moves or is replaced."""
    from batuta.cli.text import painted, table

    rows = []
    for step in steps:
        sign, _ = _SIGNS.get(step["action"], ("?", ""))
        was, will, before, after = (step.get(key, "") for key in ("was", "instance", "wasOn", "node"))
        what = f"{was} → {will}" if was and will and was != will else was or will
        where = f"{before} → {after}" if before and after and before != after else before or after
        rows.append([f"  {sign}", what, where, step["action"], f"({step.get('why', '')})"])
    for line in table([""] * 5, rows):
        yield painted(line, next((tone for sign, tone in _SIGNS.values() if line.strip().startswith(sign)), ""))


def _resource(item: Changed) -> Iterator[str]:
    from batuta.cli.text import painted
    from batuta.kinds import kind_called

    kind = kind_called(item.kind)
    name = f"{kind.plural if kind is not None else item.kind}/{item.name}"
    if item.action == "unchanged":
        return
    sign = "+" if item.action == "created" else "~"
    yield painted(f"{sign} {name} {'is new' if sign == '+' else 'changes'}", _TONES[sign])
    for field in item.fields:
        yield painted(f"    {field_line(field)}", _TONES[field["op"]])


def field_line(field: Mapping[str, Any]) -> str:
    before, after = _value(field.get("before")), _value(field.get("after"))
    said = {"+": after, "-": before}.get(field["op"], f"{before} → {after}")
    return f"{field['op']} {field['path']}: {said}"


def _value(value: Any) -> str:
    """As it would be written on one line of a manifest."""
    import json

    from batuta.cli.text import clean

    if isinstance(value, str):
        return clean(value) or '""'
    return clean(json.dumps(value, ensure_ascii=False))


def _plain(found: Foreseen) -> dict[str, Any]:
    return {
        "items": [item._asdict() | {"fields": list(item.fields)} for item in found.items],
        "steps": list(found.steps),
        "reasons": {app: list(said) for app, said in found.reasons.items()},
        "isWhole": found.is_whole,
        "hidden": found.hidden,
    }
