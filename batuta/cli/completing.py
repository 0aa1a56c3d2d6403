"""What a shell offers when the tab key is pressed: kinds, and the names of what there is. Quick; silent if it fails."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import click

    from batuta.kinds.base import Resource

PATIENCE_S = 1.0
"""Nobody waits longer for a key."""


def kinds(_context: click.Context, _argument: click.Parameter, incomplete: str) -> list[str]:
    from batuta.kinds import KINDS, SHOWN

    word, slash, start = incomplete.partition("/")
    if slash:
        return [f"{word}/{name}" for name in _named(_context, word, start)]
    return [kind.plural for kind in (*KINDS, *SHOWN) if kind.plural.startswith(incomplete)]


def names(context: click.Context, _argument: click.Parameter, incomplete: str) -> list[str]:
    """Of the kind that was written before."""
    return _named(context, str(context.params.get("kind") or ""), incomplete)


def nodes(context: click.Context, _argument: click.Parameter, incomplete: str) -> list[str]:
    return _named(context, "nodes", incomplete)


def flags(context: click.Context, _argument: click.Parameter, incomplete: str) -> list[str]:
    return _named(context, "flags", incomplete)


def applications(context: click.Context, _argument: click.Parameter, incomplete: str) -> list[str]:
    return _named(context, "applications", incomplete)


def _named(context: click.Context, word: str, incomplete: str) -> list[str]:
    from batuta.kinds import kind_called

    kind = kind_called(word)
    if kind is None:
        return []
    try:
        return [name for name in _all(kind, context.params) if name.startswith(incomplete)]
    except Exception:  # What is written here would land in the middle of a command line that is being typed.
        return []


def _all(kind: type[Resource], options: dict[str, Any]) -> list[str]:
    from batuta.client import Client
    from batuta.context import context

    where = context(options.get("state"), server=options.get("server"), token_file=options.get("token_file"))
    with Client(*where, timeout_s=PATIENCE_S) as hub:
        found = hub.list(kind, namespace=options.get("namespace") or "default")
    return [each.resource.metadata.name for each in found]
