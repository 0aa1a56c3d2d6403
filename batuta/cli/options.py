"""Options that many verbs share, and the client that they lead to."""

from __future__ import annotations

import functools
from typing import TYPE_CHECKING, Any, TypeVar, cast

import click

if TYPE_CHECKING:
    from collections.abc import Callable

    from batuta.client import Client
    from batuta.kinds.base import Resource

F = TypeVar("F", bound="Callable[..., Any]")

state_option = click.option(
    "--state",
    metavar="DIR",
    type=click.Path(file_okay=False),
    help="Directory of contexts and state [default: $BATUTA_HOME or ~/.local/share/batuta].",
)
output_option = click.option(
    "-o",
    "--output",
    type=click.Choice(["table", "wide", "json", "yaml", "name"]),
    default="table",
    help="How to print it.",
)
namespace_option = click.option("-n", "--namespace", default="default", show_default=True, help="The tenant.")


def may_talk_to_hub(command: F) -> F:
    """Adds --state, --server and --token-file, and hands the verb `connect`, to be called when a hub is needed."""

    @state_option
    @click.option(
        "--server", metavar="URL", envvar="BATUTA_SERVER", help="The hub's address, instead of the known one."
    )
    @click.option("--token-file", metavar="FILE", envvar="BATUTA_TOKEN_FILE", help="File that holds the API token.")
    @functools.wraps(command)
    def connecting(*args: Any, state: str | None, server: str | None, token_file: str | None, **options: Any) -> Any:
        def connect() -> Client:
            from batuta import client

            return client.connect(state, server=server, token_file=token_file)

        return command(*args, connect=connect, **options)

    return cast("F", connecting)


def talks_to_hub(command: F) -> F:
    """As `may_talk_to_hub`, but hands the verb a client, `hub`."""

    @may_talk_to_hub
    @functools.wraps(command)
    def connected(*args: Any, connect: Callable[[], Client], **options: Any) -> Any:
        with connect() as hub:
            return command(*args, hub=hub, **options)

    return cast("F", connected)


def milliseconds(duration: str, option: str) -> int:
    """What people wrote as `5m`; a usage error that names the option when it is none."""
    from batuta.kinds.base import Millis

    try:
        return int(Millis.parse(duration))
    except ValueError as error:
        raise click.BadParameter(str(error), param_hint=option) from None


def the_kind(word: str) -> type[Resource]:
    """The kind that `word` means; a usage error with the near miss when there is none."""
    from batuta.kinds import KINDS, SHOWN, kind_called
    from batuta.kinds.nearest import did_you_mean

    kind = kind_called(word)
    if kind is not None:
        return kind
    plurals = tuple(k.plural for k in (*KINDS, *SHOWN))
    near = {"device": "nodes", "devices": "nodes", "deployment": "applications", "deployments": "applications"}
    hint = f"did you mean {near[word.lower()]!r}?" if word.lower() in near else did_you_mean(word, plurals)
    raise click.UsageError(f"there is no kind {word!r}; {hint}")


def split_reference(word: str, name: str | None) -> tuple[str, str | None]:
    """`nodes pi-4` and `nodes/pi-4` are the same."""
    kind, slash, inline = word.partition("/")
    if slash and name is not None:
        raise click.UsageError("name it once: KIND NAME or KIND/NAME")
    return kind, (inline or None) if slash else name
