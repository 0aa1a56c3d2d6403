"""`batuta twin record`: take what the hub decided of late home, to replay it elsewhere."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from batuta.cli.options import talks_to_hub

if TYPE_CHECKING:
    from batuta.client import Client


@click.command()
@click.argument("file", metavar="FILE", type=click.Path(dir_okay=False))
@talks_to_hub
def record(hub: Client, *, file: str) -> None:
    """Save what the hub has decided of late, and what it knew then. The hub records by itself, always.

    \b
    batuta twin record yesterday.jsonl.gz
    batuta twin replay yesterday.jsonl.gz
    """
    from batuta.errors import BatutaError

    path = Path(file)
    part = path.with_name(f"{path.name}.part")
    size = 0
    try:
        with part.open("wb") as out:
            part.chmod(0o600)  # it tells of every namespace
            for piece in hub.recording():
                size += out.write(piece)
        part.replace(path)
    except OSError as error:
        raise BatutaError(f"{file} cannot be written") from error
    finally:
        part.unlink(missing_ok=True)
    click.echo(f"{file}: {size / 1024:.0f} KiB. Next: batuta twin replay {file}")
