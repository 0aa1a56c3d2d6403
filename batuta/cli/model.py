"""`batuta model`: a file becomes a version of a model."""

from __future__ import annotations

import sys
import tempfile
from contextlib import closing
from pathlib import Path
from typing import TYPE_CHECKING

import click

from batuta.cli import model_channel, model_describe, model_optimize, model_package, model_trust
from batuta.cli.model_describe import digest_of_file, lineage_of, shown
from batuta.cli.options import namespace_option, output_option, talks_to_hub
from batuta.cli.text import cell, size, table

if TYPE_CHECKING:
    from collections.abc import Callable

    from batuta.client import Client
    from batuta.model_push import Pushed


FILE = click.Path(exists=True, dir_okay=False, path_type=Path)
DATA = click.Path(exists=True, path_type=Path)
GOLDEN_SLACK = 0.05
"""How far golden outputs that somebody brings may be from what the file says here: they may be of another machine."""


@click.group()
def model() -> None:
    """Models: push, pack, optimise, sign, verify, name, list."""


for verb in (
    model_package.pack, model_package.export, model_package.pull, model_trust.key, model_trust.sign,
    model_trust.verify, model_describe.alias, model_channel.channel, model_describe.describe, model_optimize.optimize,
):  # fmt: skip
    model.add_command(verb)


@model.command()
@click.argument("source", metavar="FILE|DIR|oci://…")
@click.option("--name", default="", help="The model; made when it is not there yet. Packages say their own.")
@click.option("--version", default="", help="The version; made when it is not there yet. Packages say their own.")
@click.option("--variant", default="fp32", show_default=True, help="Which of the version's files this is.")
@click.option("--labels", default="", metavar="A,B,C", help="Names of the classes, in the order of the output.")
@click.option("--task", metavar="WORD", help="What it is for: classification, regression, detection, …")
@click.option("--memory", metavar="AMOUNT", help="Memory that it needs on a node: 64Mi.")
@click.option("--parent", default="", metavar="NAME:VERSION", help="The model that it grew from.")
@click.option("--data", multiple=True, metavar="FILE|sha256:…", help="Data that it was made from; several times.")
@click.option("--code", default="", metavar="URL@COMMIT", help="The code that made it.")
@click.option(
    "--golden", type=FILE, metavar="FILE", help="Inputs and the outputs they must give, .npz: nodes replay it."
)
@click.option(
    "--golden-from", type=DATA, metavar="DATA", help="Make them: what this file says now of some of the data."
)
@click.option(
    "--shaping", type=FILE, metavar="FILE", help="What is done before and after it: YAML, or a .py with both functions."
)
@click.option("--tolerance", default=0.001, show_default=True, help="How far golden numbers may be off on a node.")
@namespace_option
@talks_to_hub
def push(
    hub: Client,
    source: str,
    *,
    name: str,
    version: str,
    variant: str,
    labels: str,
    task: str | None,
    memory: str | None,
    parent: str,
    data: tuple[str, ...],
    code: str,
    golden: Path | None,
    golden_from: Path | None,
    shaping: Path | None,
    tolerance: float,
    namespace: str,
) -> None:
    """Bring a model to the hub as a version: a file, a directory of files, or a package.

    A file is .onnx, .tflite or .pte; of ONNX the signature is read, and nothing but Batuta is needed here. A package
    is an OCI layout or a place in a registry: a ModelPack, such as `batuta model pack` makes, or a ModelKit. A version
    never changes: the same file again is fine, another file under the same names is refused.
    """
    from batuta.model_layout import Layout
    from batuta.model_registry import SCHEME

    if source.startswith(SCHEME) or Layout(source).is_there:
        if labels or task or memory or parent or data or code or golden or golden_from or shaping:
            raise click.UsageError("a package says for itself what it is; only --name and --version may differ")
        model_package.bring(hub, source, name=name, version=version, namespace=namespace)
        return
    if not name or not version:
        raise click.UsageError("a file does not say what it is: give --name and --version")
    if not Path(source).exists():
        raise click.BadParameter(f"{source!r} is not there", param_hint="SOURCE")
    from batuta.interop.provenance import write
    from batuta.kinds.base import Bytes
    from batuta.model_package import files_of
    from batuta.model_push import push as push_file

    try:
        memory_bytes = Bytes.parse(memory) if memory else None
    except ValueError as error:
        raise click.BadParameter(str(error), param_hint="--memory") from None
    files = files_of(Path(source)) if Path(source).is_dir() else {variant: Path(source)}
    lineage = lineage_of(parent, data, code)
    proof = write(lineage, {path.name: digest_of_file(path) for path in files.values()}) if lineage else b""
    cases, usual = _golden(golden, golden_from, next(iter(files.values())), labels, shaping)
    for each, file in files.items():
        pushed = push_file(
            hub, file, name=name, version=version, variant=each, task=task, memory_bytes=memory_bytes,
            labels=[label.strip() for label in labels.split(",") if label.strip()],
            provenance=proof, golden=cases, drift=usual, tolerance=tolerance, shaping=shaping, namespace=namespace,
            on_progress=_progress(str(file)),
        )  # fmt: skip
        _say(pushed)


def _golden(
    file: Path | None, data: Path | None, model: Path, labels: str, shaping: Path | None = None
) -> tuple[bytes, bytes]:
    """Golden inputs as bytes: those that are there, or made of what the model says of some data. And what its inputs
    look like, where there is enough data to tell. Data with arrays `request.NAME` is what callers send."""
    if file is not None and data is not None:
        raise click.UsageError("give --golden or --golden-from, not both")
    if file is None and data is None:
        return b"", b""
    from batuta.model_push import read, shaping_of

    try:
        from batuta.dataflow.proving_served import ServedVersion
        from batuta.dataflow.proving_session import opened
        from batuta.tuning import data as data_of
        from batuta.tuning import golden, sketch
    except ImportError as error:
        from batuta.errors import BatutaError

        raise BatutaError(
            f"this needs packages that cannot be loaded here: {error}", next_step="pip install 'batuta[optimize]'"
        ) from None
    session = opened(model, read(model).format)
    usual, words = None, [label.strip() for label in labels.split(",") if label.strip()]
    around = shaping_of(shaping) if shaping is not None else (None, None, None)
    served = ServedVersion(session, around[0], around[1], words, around[2])
    with closing(served), tempfile.TemporaryDirectory(prefix="batuta-golden-") as directory:
        path = Path(directory) / "golden.npz" if file is None else file
        if data is not None:
            requests = golden.requests_in(data)
            if requests:
                golden.write(path, golden.answers(served.ask, requests))
            else:
                inputs = data_of.read(data, session.inputs, labels=words).inputs
                golden.write(path, golden.make(session, inputs))
                # Images that a version shapes in its own way are not what the model sees.
                usual = sketch.made(inputs) if not (shaping is not None and data.is_dir()) else None
        slack = 0.0 if data is not None else GOLDEN_SLACK
        replayed = golden.replay(session, golden.read(path), slack, served.ask)
        if replayed.wrong:
            raise click.BadParameter(f"the model itself does not answer so: {replayed.wrong}", param_hint="--golden")
        click.echo(f"golden inputs: {replayed.cases} cases", err=True)
        if usual is not None:
            click.echo(f"drift reference: {sum(usual.counts)} items", err=True)
        return path.read_bytes(), sketch.written(usual) if usual is not None else b""


def _say(pushed: Pushed) -> None:
    word = {"created": "created", "extended": "version added", "unchanged": "unchanged"}[pushed.action]
    size_said = size(pushed.size_bytes)
    click.echo(f"models/{pushed.name} {word}: version {pushed.version}, variant {pushed.variant}, {size_said}")
    for heading, tensors in (("in", pushed.signature.inputs), ("out", pushed.signature.outputs)):
        if tensors:
            click.echo(f"  {heading:<3}  {', '.join(shown(tensor) for tensor in tensors)}")
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
            str(len(w.signatures)),
            ",".join(sorted(a for a, number in f.resource.spec.aliases.items() if number == v.version)) or "-",
        ]
        for f in found
        for v in f.resource.spec.versions
        for w in v.variants
    ]
    if not rows:
        click.echo(f"No models yet. {EMPTY['Model']}", err=True)
        return
    for line in table(
        ["NAME", "VERSION", "VARIANT", "FORMAT", "SIZE", "DIGEST", "QUALITY", "SIGNATURES", "ALIASES"], rows
    ):
        click.echo(line)


def _short(digest: str, output: str) -> str:
    return digest if output == "wide" else digest[: len("sha256:") + 12]


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
