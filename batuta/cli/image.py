"""`batuta image`: images of containers, for nodes that reach no registry."""

from __future__ import annotations

import re
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

import click

from batuta.cli.options import talks_to_hub
from batuta.cli.text import size

if TYPE_CHECKING:
    from collections.abc import Sequence

    from batuta.client import Client
    from batuta.interop.oci_archive import Image


@click.group()
def image() -> None:
    """Images of containers: push."""


@image.command()
@click.argument("archive", required=False, type=click.Path(exists=True, dir_okay=False))
@click.option("--from-engine", default="", metavar="NAME", help="Take it out of this machine's Podman or Docker.")
@click.option("--engine", default="", metavar="SOCKET", help="The engine's socket; found by itself.")
@click.option("--name", default="", help="What to call it; the archive's own name when left out.")
@click.option("--key", type=click.Path(exists=True, dir_okay=False), help="Vouch for it with this private key, PEM.")
@talks_to_hub
def push(hub: Client, archive: str | None, *, from_engine: str, engine: str, name: str, key: str | None) -> None:
    """Bring an image to the hub, and print what to write into a component.

    ARCHIVE is what `podman save --format oci-archive` or `docker save` writes. Nodes fetch it from the hub as they
    fetch models, verify every byte, and load it into their engine: no registry is needed. The same image again is fine.
    """
    if (archive is None) == (not from_engine):
        raise click.UsageError("say either ARCHIVE or --from-engine NAME")
    from batuta.cli.model import _progress

    with tempfile.TemporaryDirectory(prefix="batuta-image-") as directory:
        path = Path(archive) if archive is not None else Path(directory) / "image.tar"
        if from_engine:
            _save(from_engine, engine, path)
        found, digest = _image_of(path)
        digest_of_archive, size_bytes = hub.push_artifact(path, _progress(path.name))
        bundle = _signed(hub, path, key, Path(directory)) if key is not None else ""
    click.echo(f"pushed {digest_of_archive}, {size(size_bytes)}", err=True)
    signatures = f', signatures: ["{bundle}"]' if bundle else ""
    architectures = ", ".join(sorted({each.architecture for each in found if each.architecture}))
    click.echo("container:")
    click.echo(f"  image: {name or _name_of(found, path)}@{digest}")
    click.echo(f'  archive: {{digest: "{digest_of_archive}", size: {size_bytes}{signatures}}}')
    if architectures:
        click.echo(f"  architectures: [{architectures}]")


def _save(name: str, socket: str, path: Path) -> None:
    import asyncio

    from batuta.agent.engines import find
    from batuta.errors import BatutaError
    from batuta.runtimes.container_http import EngineSocket

    place = find(socket)
    if not place:
        raise BatutaError("no engine answers here", next_step="start Podman's or Docker's socket, or say --engine")

    async def fetch() -> None:
        async with EngineSocket(place).open("GET", f"/images/{name}/get") as answer:
            with path.open("wb") as file:
                async for piece in answer.pieces:
                    file.write(piece)

    asyncio.run(fetch())


def _image_of(path: Path) -> tuple[tuple[Image, ...], str]:
    """The image of an archive, for one sort of machine or several, and the digest that means it."""
    from batuta.errors import ArtifactRefused, BatutaError
    from batuta.interop.oci_archive import images

    try:
        with path.open("rb") as file:
            found = images(file)
    except ArtifactRefused as error:
        hint = "uncompressed, as `podman save --format oci-archive` or `docker save` writes it"
        raise BatutaError(f"{path}: {error.message}", next_step=hint) from None
    shared = set(found[0].digests).intersection(*(each.digests for each in found))
    best = next((digest for digest in found[0].digests if digest in shared), "")
    if not best:
        names = ", ".join(sorted({each.name or each.digests[0][:19] for each in found}))
        raise BatutaError(f"{path} holds several images: {names}", next_step="save the one that is meant by itself")
    return found, best


def _signed(hub: Client, path: Path, key: str, directory: Path) -> str:
    from batuta.model_sign import sign_file

    sign_file(path, key, directory / "image.sig")
    return hub.push_artifact(directory / "image.sig")[0]


def _name_of(found: Sequence[Image], path: Path) -> str:
    named = next((each.name for each in found if "/" in each.name), "")
    if named:
        return re.sub(r":[^/]*$", "", named)
    return f"localhost/{re.sub(r'[^a-z0-9]+', '-', path.stem.lower()).strip('-') or 'image'}"
