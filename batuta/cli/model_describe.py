"""`batuta model alias, describe`: the names that move from version to version, and all that is known of a model."""

from __future__ import annotations

import hashlib
import tempfile
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING

import click

from batuta.cli.options import namespace_option, talks_to_hub
from batuta.cli.text import cell, size, table

if TYPE_CHECKING:
    from collections.abc import Iterator

    from batuta.client import Client, Found
    from batuta.interop.provenance import Lineage
    from batuta.kinds.model import Model, Tensor, Version

WHEN = "%Y-%m-%dT%H:%M:%SZ"


@click.command()
@click.argument("name")
@click.argument("moves", nargs=-1, metavar="[ALIAS=VERSION]...")
@namespace_option
@talks_to_hub
def alias(hub: Client, name: str, moves: tuple[str, ...], *, namespace: str) -> None:
    """Let names stand for versions: `champion=3`; `champion=` takes one away.

    What asks for the model by such a name gets a new release; `batuta model channel` tells who does. When champion
    moves and nothing is said of previous, previous becomes what champion was.
    """
    from batuta.errors import BatutaError
    from batuta.kinds.model import Model
    from batuta.model_push import with_aliases

    wanted = wanted_of(moves, "ALIAS")
    if wanted:
        found = hub.update(Model, name, lambda model: with_aliases(model, wanted), namespace=namespace).resource
    else:
        found = hub.get(Model, name, namespace=namespace).resource
    if not found.spec.aliases and not wanted:
        raise BatutaError(f"{name} has no aliases", next_step=f"`batuta model alias {name} champion=VERSION`")
    for line in table(["ALIAS", "VERSION"], [[a, v] for a, v in sorted(found.spec.aliases.items())]):
        click.echo(line)


def wanted_of(moves: tuple[str, ...], what: str) -> dict[str, str]:
    """The version that each name is to stand for, as written: `stable=3`."""
    wanted: dict[str, str] = {}
    for move in moves:
        word, equals, version = move.partition("=")
        if not equals or not word:
            raise click.UsageError(f"{move!r} is not {what}=VERSION")
        wanted[word] = version
    return wanted


@click.command()
@click.argument("name")
@click.option("--version", default="", help="Only this version, or what this alias stands for.")
@namespace_option
@talks_to_hub
def describe(hub: Client, name: str, *, version: str, namespace: str) -> None:
    """All that is known of a model: what goes in and out, its variants, what they were made from, who signed."""
    from batuta.errors import NotFound
    from batuta.kinds.model import Model

    found = hub.get(Model, name, namespace=namespace)
    model = found.resource
    one = model.spec.version(version) if version else None
    if version and one is None:
        raise NotFound(f"{name} has no version {version!r}", next_step="see `batuta model ls`")
    click.echo(f"{name}  {model.spec.task or ''}".rstrip())
    for each in (one,) if one is not None else model.spec.versions:
        for line in _about(hub, found, each):
            click.echo(line)


def lineage_of(parent: str, data: tuple[str, ...], code: str) -> Lineage:
    """What the options of a push say of where the model comes from."""
    from batuta.interop.provenance import Lineage

    sets = tuple(
        ("", each) if each.startswith("sha256:") else (Path(each).name, digest_of_file(Path(each))) for each in data
    )
    where, at, revision = code.rpartition("@")
    return Lineage(parent, sets, where if at else code, revision if at else "")


def digest_of_file(path: Path) -> str:
    try:
        with path.open("rb") as file:
            return f"sha256:{hashlib.file_digest(file, 'sha256').hexdigest()}"
    except OSError as error:
        raise click.BadParameter(f"{path}: {error.strerror}", param_hint="--data") from None


def shown(tensor: Tensor) -> str:
    dimensions = ",".join("?" if size == -1 else str(size) for size in tensor.shape)
    return f"{tensor.name} {tensor.dtype}[{dimensions}]"


def _measured(version: Version, found: Found[Model]) -> Iterator[list[str]]:
    """What nodes found out, as the hub keeps it."""
    from batuta.kinds.base import Bytes

    for row in found.status.get("profiles", ()):
        if row.get("version") == version.version:
            when = datetime.fromtimestamp(int(row["at"]) / 1000, UTC).strftime(WHEN)
            yield [
                str(row["variant"]), str(row["hardware"]), _time(int(row["p50Us"])), _time(int(row["p99Us"])),
                size(int(Bytes.parse(row["memory"]))), when, str(row["by"]),
            ]  # fmt: skip


def _declared(version: Version) -> Iterator[list[str]]:
    """What came with the model."""
    for variant in version.variants:
        for p in variant.profiles:
            yield [
                variant.name, p.hardware, _time(p.p50_us) if p.p50_us is not None else "-",
                str(p.p99_ms) if p.p99_us is None else _time(p.p99_us),
                "-" if p.memory_bytes is None else size(p.memory_bytes), p.at or "-", p.by or "-",
            ]  # fmt: skip


def _time(us: int) -> str:
    return f"{us}us" if us < 1000 else f"{us / 1000:.3g}ms"


def _about(hub: Client, found: Found[Model], version: Version) -> Iterator[str]:
    model = found.resource
    names = sorted(a for a, v in model.spec.aliases.items() if v == version.version)
    yield ""
    yield f"version {version.version}" + (f" ({', '.join(names)})" if names else "")
    if version.signature is not None:
        for heading, tensors in (("in", version.signature.inputs), ("out", version.signature.outputs)):
            yield f"  {heading:<8}{', '.join(shown(tensor) for tensor in tensors)}"
    if version.labels:
        yield f"  labels  {', '.join(version.labels[:12])}" + (" …" if len(version.labels) > 12 else "")
    rows = [
        [v.name, v.format, size(v.size_bytes), v.precision or "-", "-" if v.opset is None else str(v.opset),
         cell(v.quality), str(len(v.signatures)), v.digest[:19]]
        for v in version.variants
    ]  # fmt: skip
    heads = ["VARIANT", "FORMAT", "SIZE", "PRECISION", "OPSET", "QUALITY", "SIGNATURES", "DIGEST"]
    yield from (f"  {line}" for line in table(heads, rows))
    profiles = [*_measured(version, found), *_declared(version)]
    if profiles:
        heads = ["VARIANT", "HARDWARE", "P50", "P99", "PEAK MEMORY", "WHEN", "BY"]
        yield from (f"  {line}" for line in table(heads, profiles))
    if version.provenance is not None:
        yield from _made_from(hub, version.provenance)
    for variant in version.variants:
        if variant.provenance is not None:
            yield f"  {variant.name}:"
            yield from (f"  {line}" for line in _made_from(hub, variant.provenance))


def _made_from(hub: Client, digest: str) -> Iterator[str]:
    from batuta.errors import ArtifactRefused, NotFound
    from batuta.interop.provenance import read

    with tempfile.TemporaryDirectory(prefix="batuta-describe-") as directory:
        path = Path(directory) / "statement"
        try:
            hub.pull_artifact(digest, path)
            lineage = read(path.read_bytes())
        except (ArtifactRefused, NotFound) as error:
            yield f"  made from {digest[:19]}…: {error.message}"
            return
    for heading, value in (
        ("parent", lineage.parent),
        ("code", lineage.code),
        ("commit", lineage.revision),
        ("made by", lineage.how),
    ):
        if value:
            yield f"  {heading:<8}{value}"
    for name, data in lineage.data:
        yield f"  data    {f'{name} ' if name else ''}{data}"
