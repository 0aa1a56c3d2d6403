"""`batuta delete`: take declarations back."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from batuta.cli.options import namespace_option, split_reference, talks_to_hub, the_kind

if TYPE_CHECKING:
    from batuta.client import Client
    from batuta.kinds.base import Resource


@click.command()
@click.argument("kind", required=False)
@click.argument("names", nargs=-1)
@click.option("-f", "--file", "files", multiple=True, metavar="FILE", help="Everything that FILE, DIR or - declares.")
@namespace_option
@click.option("--ignore-missing", is_flag=True, help="What is not there counts as deleted.")
@talks_to_hub
def delete(
    hub: Client,
    kind: str | None,
    names: tuple[str, ...],
    *,
    files: tuple[str, ...],
    namespace: str,
    ignore_missing: bool,
) -> None:
    """Take declarations back: by name, or all that a file declares.

    \b
    batuta delete application meter-reader
    batuta delete -f examples/meter-reader.yaml
    """
    from batuta.errors import NotFound

    if bool(files) == bool(kind):
        raise click.UsageError("say either KIND NAME or -f FILE")
    targets: list[tuple[type[Resource], str, str]] = []
    if files:
        from batuta.cli.manifests import joined

        # What was declared last may need what was declared first.
        targets += [
            (type(resource), resource.metadata.name, resource.metadata.namespace or namespace)
            for resource in reversed(joined(files).resources)
        ]
    else:
        assert kind is not None
        word, inline = split_reference(kind, None)
        every = (*((inline,) if inline else ()), *names)
        if not every:
            raise click.UsageError("which one? Give its NAME")
        targets = [(the_kind(word), name, namespace) for name in every]
    for what, name, space in targets:
        try:
            hub.delete(what, name, namespace=space)
        except NotFound:
            if not ignore_missing:
                raise
            continue
        click.echo(f"{what.plural}/{name} deleted")
