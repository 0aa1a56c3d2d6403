"""`batuta up`: a hub, in the foreground."""

from __future__ import annotations

import click

from batuta.cli.options import state_option

PORT = click.IntRange(0, 65_535)


@click.command()
@state_option
@click.option("--listen", metavar="ADDRESS", help="Take nodes and HTTPS from other machines at this address.")
@click.option(
    "--advertise", metavar="NAME", multiple=True, help="A name or address under which nodes find this hub. May repeat."
)
@click.option(
    "--http-port",
    metavar="PORT",
    type=PORT,
    help="HTTP on loopback; 0 takes any [default: 8400, or the next free one].",
)
@click.option(
    "--https-port", metavar="PORT", type=PORT, help="HTTPS; 0 takes any [default: 8443, or the next free one]."
)
@click.option(
    "--leaf-port", metavar="PORT", type=PORT, help="Links of nodes; 0 takes any [default: 7422, or the next free one]."
)
def up(state: str | None, *, advertise: tuple[str, ...], **options: object) -> int:
    """Start a hub and keep it running until Ctrl-C.

    Everything it knows is in the state directory: start it again and it goes on where it was. Nothing listens beyond
    this machine until --listen says so.
    """
    from pathlib import Path

    from batuta.config import default_state, load_hub_config
    from batuta.errors import BatutaError

    where = Path(state).expanduser() if state else default_state()
    config = load_hub_config(where.absolute(), {**options, "advertise": advertise or None})
    try:
        from batuta.hub.supervisor import up as run_hub
    except ModuleNotFoundError as error:
        if (error.name or "").partition(".")[0] == "batuta":
            raise
        raise BatutaError(
            f"a hub needs {error.name}, which is not installed", next_step="pip install 'batuta[hub]'"
        ) from None
    return run_hub(config, click.echo)
