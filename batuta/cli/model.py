"""`batuta model`: a file becomes a version of a model."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING

import click

from batuta.cli import model_trust
from batuta.cli.options import namespace_option, output_option, talks_to_hub
from batuta.cli.text import cell, size, table

if TYPE_CHECKING:
    from collections.abc import Callable

    from batuta.client import Client
    from batuta.kinds.model import Tensor


@click.group()
def model() -> None:
    """Models: push, sign, verify, list."""


for verb in (model_trust.key, model_trust.sign, model_trust.verify):
    model.add_command(verb)


@model.command()
@click.argument("file", type=click.Path(exists=True, dir_okay=False))
@click.option("--name", required=True, help="The model; made when it is not there yet.")
@click.option("--version", required=True, help="The version; made when it is not there yet.")
@click.option("--variant", default="fp32", show_default=True, help="Which of the version's files this is.")
@click.option("--labels", default="", metavar="A,B,C", help="Names of the classes, in the order of the output.")
@click.option("--task", metavar="WORD", help="What it is for: classification, regression, detection, …")
@click.option("--memory", metavar="AMOUNT", help="Memory that it needs on a node: 64Mi.")
@namespace_option
@talks_to_hub
def push(
    hub: Client,
    file: str,
    *,
    name: str,
    version: str,
    variant: str,
    labels: str,
    task: str | None,
    memory: str | None,
    namespace: str,
) -> None:
    """Upload an ONNX file as a version of a model.

    The signature is read from the file; nothing but Batuta is needed here. A version never changes: the same file again
    is fine, another file under the same names is refused.
    """
    from batuta.kinds.base import Bytes
    from batuta.model_push import push as push_file

    try:
        memory_bytes = Bytes.parse(memory) if memory else None
    except ValueError as error:
        raise click.BadParameter(str(error), param_hint="--memory") from None
    pushed = push_file(
        hub,
        file,
        name=name,
        version=version,
        variant=variant,
        labels=[label.strip() for label in labels.split(",") if label.strip()],
        task=task,
        memory_bytes=memory_bytes,
        namespace=namespace,
        on_progress=_progress(file),
    )
    word = {"created": "created", "extended": "version added", "unchanged": "unchanged"}[pushed.action]
    click.echo(f"models/{name} {word}: version {version}, variant {variant}, {size(pushed.size_bytes)}")
    for heading, tensors in (("in", pushed.signature.inputs), ("out", pushed.signature.outputs)):
        click.echo(f"  {heading:<3}  {', '.join(_shown(tensor) for tensor in tensors)}")
    click.echo(f"  {pushed.digest}")
    odd = [tensor for tensor in pushed.signature.outputs if tensor.dtype in ("sequence", "map", "optional", "sparse")]
    if odd:
        click.echo(
            f"warning: output {odd[0].name!r} is a {odd[0].dtype}, not a tensor; for scikit-learn models, export with "
            "options={'zipmap': False}",
            err=True,
        )


@model.command(name="ls")
@namespace_option
@output_option
@talks_to_hub
def ls(hub: Client, *, namespace: str, output: str) -> None:
    """Every version and variant, one line each."""
    from batuta.cli.get import print_found
    from batuta.cli.rows import EMPTY
    from batuta.kinds.model import Model

    found = hub.list(Model, namespace=namespace)
    if output in ("json", "yaml", "name"):
        print_found(Model, found, output)
        return
    rows = [
        [
            f.resource.metadata.name,
            v.version,
            w.name,
            w.format,
            size(w.size_bytes),
            _short(w.digest, output),
            cell(w.quality),
        ]
        for f in found
        for v in f.resource.spec.versions
        for w in v.variants
    ]
    if not rows:
        click.echo(f"No models yet. {EMPTY['Model']}", err=True)
        return
    for line in table(["NAME", "VERSION", "VARIANT", "FORMAT", "SIZE", "DIGEST", "QUALITY"], rows):
        click.echo(line)


def _short(digest: str, output: str) -> str:
    return digest if output == "wide" else digest[: len("sha256:") + 12]


def _shown(tensor: Tensor) -> str:
    dimensions = ",".join("?" if size == -1 else str(size) for size in tensor.shape)
    return f"{tensor.name} {tensor.dtype}[{dimensions}]"


def _progress(file: str) -> Callable[[int, int], None] | None:
    """A line that fills while a file travels; only at a terminal."""
    if not sys.stderr.isatty():
        return None

    def show(done_bytes: int, all_bytes: int) -> None:
        share = done_bytes / all_bytes if all_bytes else 1.0
        bar = "#" * int(share * 24)
        end = "\n" if done_bytes >= all_bytes else ""
        click.echo(
            f"\r{file}  [{bar:<24}] {share:4.0%}  {size(done_bytes)} of {size(all_bytes)}{end}", nl=False, err=True
        )

    return show
