"""`batuta demo`: the main job, on real processes."""

from __future__ import annotations

import click


@click.command()
@click.option("--json", "as_json", is_flag=True, help="Print the measured figures as JSON, and nothing else.")
@click.option("--keep", is_flag=True, help="Leave everything running for a look, until Ctrl-C.")
@click.option(
    "--picture", metavar="FILE", type=click.Path(dir_okay=False), help="Keep what was shown as an SVG picture."
)
@click.option("--state", metavar="DIR", type=click.Path(file_okay=False), help="Play in this directory, and keep it.")
def demo(as_json: bool, keep: bool, picture: str | None, state: str | None) -> int:
    """See the main job done: a hub, six nodes, real digits, a dead node, a cut cable, a new model.

    It needs no network and no other program, and leaves nothing behind.
    """
    from pathlib import Path

    from batuta.errors import BatutaError

    try:
        from batuta.demo import run
    except ModuleNotFoundError as error:
        if (error.name or "").partition(".")[0] == "batuta":
            raise
        raise BatutaError(
            f"the demo needs {error.name}, which is not installed", next_step="pip install 'batuta[demo]'"
        ) from None
    return run(
        as_json=as_json, keep=keep, directory=Path(state) if state else None, picture=Path(picture) if picture else None
    )
