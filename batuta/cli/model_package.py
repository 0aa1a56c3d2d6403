"""`batuta model pack, export, pull`: models as packages, in directories and in registries."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

import click

from batuta.cli.options import namespace_option, talks_to_hub
from batuta.cli.text import size

if TYPE_CHECKING:
    from batuta.client import Client
    from batuta.model_layout import Layout


@click.command()
@click.argument("files", nargs=-1, required=True, type=click.Path(exists=True))
@click.option("--name", required=True, help="The model.")
@click.option("--version", required=True, help="The version.")
@click.option("--to", required=True, metavar="DIR|oci://…", help="An OCI layout, or a place in a registry.")
@click.option("--labels", default="", metavar="A,B,C", help="Names of the classes, in the order of the output.")
@click.option("--task", metavar="WORD", help="What it is for: classification, regression, detection, …")
@click.option("--golden", type=click.Path(exists=True, dir_okay=False), help="Inputs and the outputs they must give.")
@click.option("--drift", type=click.Path(exists=True, dir_okay=False), help="What inputs looked like in training.")
@click.option("--provenance", type=click.Path(exists=True, dir_okay=False), help="An in-toto statement.")
@click.option("--bundle", type=click.Path(exists=True, dir_okay=False), help="A Sigstore bundle of the files.")
def pack(
    files: tuple[str, ...],
    *,
    name: str,
    version: str,
    to: str,
    labels: str,
    task: str | None,
    golden: str | None,
    drift: str | None,
    provenance: str | None,
    bundle: str | None,
) -> None:
    """Make a package of files; no hub is needed.

    One file is the variant fp32; several, or a directory, are variants named as the files are.
    """
    from batuta.interop.modelpack import name_of
    from batuta.model_package import files_of
    from batuta.model_package import pack as pack_files

    paths = [Path(file) for file in files]
    named: dict[str, Path] = {}
    for path in paths:
        named.update(files_of(path) if path.is_dir() else {"fp32" if len(paths) == 1 else name_of(path.stem): path})
    said = {"golden": golden, "drift": drift, "provenance": provenance, "signature": bundle}
    with _Target(to, version) as target:
        manifest = pack_files(
            named, target.layout, name=name, version=version, task=task,
            labels=[label.strip() for label in labels.split(",") if label.strip()],
            beside={role: Path(file) for role, file in said.items() if file is not None},  # type: ignore[misc]
        )  # fmt: skip
        target.finish(manifest)


@click.command()
@click.argument("name")
@click.option("--version", required=True, help="The version, or an alias.")
@click.option("--to", required=True, metavar="DIR|oci://…", help="An OCI layout, or a place in a registry.")
@namespace_option
@talks_to_hub
def export(hub: Client, name: str, *, version: str, to: str, namespace: str) -> None:
    """Make a package of a version that the hub has, with its signatures and provenance."""
    from batuta.model_package import export as export_version

    with _Target(to, version) as target:
        target.finish(export_version(hub, target.layout, name, version, namespace=namespace))


@click.command()
@click.argument("source", metavar="oci://HOST/REPOSITORY:TAG")
@click.argument("directory", type=click.Path(file_okay=False))
def pull(source: str, directory: str) -> None:
    """Fetch a package from a registry into an OCI layout; what is there already is not fetched again.

    `batuta model push` brings it to a hub, from the layout or straight from the registry. Needs batuta[oci].
    """
    from batuta.interop.oci import digest_of
    from batuta.model_layout import Layout
    from batuta.model_registry import place
    from batuta.model_registry import pull as pull_package

    manifest = pull_package(place(source), Layout(directory), _tell)
    click.echo(f"{directory}  {digest_of(manifest)}")


def bring(hub: Client, source: str, *, name: str, version: str, namespace: str) -> None:
    """A package, from a layout or a registry, to the hub; for `batuta model push`."""
    from batuta.model_layout import Layout
    from batuta.model_package import bring as bring_package
    from batuta.model_registry import SCHEME, place
    from batuta.model_registry import pull as pull_package

    with tempfile.TemporaryDirectory(prefix="batuta-package-") as directory:
        if source.startswith(SCHEME):
            layout = Layout(directory)
            manifest = pull_package(place(source), layout, _tell)
        else:
            layout = Layout(source)
            manifest = layout.manifest(version if version in {r.tag for r in layout.references()} else "")
        brought = bring_package(hub, layout, manifest, name=name, version=version, namespace=namespace)
    word = {"created": "created", "extended": "version added", "unchanged": "unchanged"}[brought.action]
    variants = ", ".join(v.name for v in brought.version.variants)
    click.echo(f"models/{brought.name} {word}: version {brought.version.version}, variants {variants}")
    for role in brought.left:
        click.echo(f"note: the package's {role} stays in it; the hub does not take one yet", err=True)


class _Target:
    """A layout to write to: the directory that was named, or one on the way to a registry."""

    def __init__(self, to: str, version: str) -> None:
        self.to = to
        self.version = version
        self._passing: tempfile.TemporaryDirectory[str] | None = None
        self.layout: Layout

    def __enter__(self) -> _Target:
        from batuta.model_layout import Layout
        from batuta.model_registry import SCHEME, place

        if self.to.startswith(SCHEME):
            place(self.to)  # refused before anything is done
            self._passing = tempfile.TemporaryDirectory(prefix="batuta-package-")
        self.layout = Layout(self._passing.name if self._passing is not None else self.to)
        return self

    def finish(self, manifest: bytes) -> None:
        from batuta.interop.oci import digest_of
        from batuta.model_registry import place, push

        if self._passing is not None:
            push(self.layout, manifest, place(self.to, self.version), _tell)
        click.echo(f"{self.to}  {digest_of(manifest)}")

    def __exit__(self, *_: object) -> None:
        if self._passing is not None:
            self._passing.cleanup()


def _tell(digest: str, size_bytes: int) -> None:
    click.echo(f"  {digest[:19]}  {size(size_bytes)}", err=True)
