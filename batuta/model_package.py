"""Packages: a version of a model as one thing that can be carried, between hubs, registries and sticks.

`pack` makes one from files, without a hub; `export` from what a hub has; `bring` brings one to a hub: a ModelPack, with
all that Batuta wrote into it, or the model of somebody else's ModelPack or ModelKit. In between it is an OCI layout.
"""

from __future__ import annotations

import shutil
import tarfile
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Literal, NamedTuple

import msgspec

from batuta.errors import ArtifactRefused, BatutaError, NotFound
from batuta.interop import modelkit, modelpack, oci
from batuta.kinds.base import DEFAULT_NAMESPACE, Metadata
from batuta.kinds.model import Golden, Model, ModelSpec
from batuta.model_push import push_version, read, version_of, with_version

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from batuta.client import Client
    from batuta.interop.modelpack import Package, Role
    from batuta.kinds.model import Version
    from batuta.model_layout import Layout

KIT_FILE_BYTES_MAX = 16 << 30
SUFFIXES = (".onnx", ".tflite", ".pte")


class Brought(NamedTuple):
    """What became of a package at a hub."""

    action: Literal["created", "extended", "unchanged"]
    name: str
    version: Version
    left: tuple[str, ...]
    """Roles of what the package holds and the hub does not take yet."""


def pack(
    files: Mapping[str, Path],
    layout: Layout,
    *,
    name: str,
    version: str,
    task: str | None = None,
    labels: Sequence[str] = (),
    beside: Mapping[Role, Path] | None = None,
) -> bytes:
    """Make a package of files, by the name of each variant, and of what goes `beside` them; returns its manifest."""
    empty = Model(metadata=Metadata(name=name), spec=ModelSpec())
    for variant, path in files.items():
        empty = with_version(empty, version_of(path, version=version, variant=variant, labels=labels), task)
    made = empty.spec.version(version)
    if made is None:
        raise BatutaError("a package needs one file at least")
    layout.open()
    for path in files.values():
        layout.put(path)
    others: list[modelpack.Beside] = []
    for role, path in sorted((beside or {}).items()):
        digest, size = layout.put(path)
        others.append(modelpack.Beside(role, digest, size))
        match role:
            case "golden":
                made = msgspec.structs.replace(made, golden=Golden(digest=digest))
            case "drift":
                made = msgspec.structs.replace(made, drift=digest)
            case "provenance":
                made = msgspec.structs.replace(made, provenance=digest)
            case "transform":
                made = msgspec.structs.replace(made, transform=digest)
            case "signature":  # of whichever variant it is, the others say nothing of it
                signed = tuple(msgspec.structs.replace(v, signatures=(digest,)) for v in made.variants)
                made = msgspec.structs.replace(made, variants=signed)
    return kept(layout, modelpack.Package(name, made, task, tuple(others)))


def export(
    client: Client,
    layout: Layout,
    name: str,
    version: str,
    *,
    namespace: str = DEFAULT_NAMESPACE,
    told: Callable[[str, int], None] = lambda _digest, _size: None,
) -> bytes:
    """Make a package of a version, or of what an alias stands for, that a hub has; returns its manifest."""
    model = client.get(Model, name, namespace=namespace).resource
    found = model.spec.version(version)
    if found is None:
        there = ", ".join((*(v.version for v in model.spec.versions), *sorted(model.spec.aliases)))
        raise NotFound(f"{name} has no version {version!r}; there is: {there}", next_step="see `batuta model ls`")
    layout.open()
    beside: list[modelpack.Beside] = []
    wanted: list[tuple[Role | None, str]] = [(None, v.digest) for v in found.variants]
    wanted += [("signature", digest) for v in found.variants for digest in v.signatures]
    wanted += [("signature", digest) for digest in found.transform_signatures]
    goldens = (found.golden, *(v.golden for v in found.variants))
    wanted += [("golden", golden.digest) for golden in goldens if golden is not None]
    wanted += [("provenance", v.provenance) for v in found.variants if v.provenance is not None]
    once: tuple[tuple[Role, str | None], ...] = (
        ("drift", found.drift),
        ("provenance", found.provenance),
        ("transform", found.transform),
    )
    wanted += [(role, digest) for role, digest in once if digest is not None]
    for role, digest in dict.fromkeys(wanted):
        path = layout.blob(digest)
        told(digest, path.stat().st_size if path.exists() else 0)
        size = client.pull_artifact(digest, path)
        if role is not None:
            beside.append(modelpack.Beside(role, digest, size))
    return kept(layout, modelpack.Package(name, found, model.spec.task, tuple(beside)))


def bring(
    client: Client,
    layout: Layout,
    manifest: bytes,
    *,
    name: str = "",
    version: str = "",
    namespace: str = DEFAULT_NAMESPACE,
    on_progress: Callable[[int, int], None] | None = None,
) -> Brought:
    """Declare what a package holds and bring its files, under its own name and version or under these."""
    if modelkit.is_kit(oci.manifest_of(manifest)):
        return _bring_kit(client, layout, manifest, name, version, namespace=namespace, on_progress=on_progress)
    package = opened(layout, manifest)
    name, number = name or package.name, version or package.version.version
    _check_named(name, number)
    declared = msgspec.structs.replace(package.version, version=number)
    files = {digest: layout.whole(digest, size) for digest, size in package.files.items()}
    for variant in declared.variants:
        said = read(files[variant.digest])
        if said.format != variant.format:
            raise ArtifactRefused(
                "artifact_unreadable", f"variant {variant.name} is called {variant.format} and is {said.format}"
            )
        if said.signature is None:
            continue
        if declared.signature is None:
            declared = msgspec.structs.replace(declared, signature=said.signature)
        elif declared.signature != said.signature:
            raise ArtifactRefused(
                "artifact_unreadable", f"the inputs and outputs that the package states are not those of {variant.name}"
            )
    action = push_version(
        client, name, declared, files, task=package.task, namespace=namespace, on_progress=on_progress
    )  # fmt: skip
    return Brought(action, name, declared, ())


def opened(layout: Layout, manifest: bytes) -> Package:
    """What a ModelPack of a layout says."""
    return modelpack.read(manifest, layout.document(oci.manifest_of(manifest).config.digest))


def files_of(directory: Path) -> dict[str, Path]:
    """Files of models in a directory, each a variant named as the file is."""
    found = sorted(p for p in directory.iterdir() if p.suffix in SUFFIXES and p.is_file())
    named = {modelpack.name_of(p.stem): p for p in found}
    if len(named) < len(found):
        raise BatutaError(f"two files of {directory} would be one variant", next_step="name them apart")
    if not named:
        raise BatutaError(f"{directory} has no {', '.join(SUFFIXES)} files and is no OCI layout")
    return named


def _bring_kit(
    client: Client,
    layout: Layout,
    manifest: bytes,
    name: str,
    version: str,
    *,
    namespace: str,
    on_progress: Callable[[int, int], None] | None,
) -> Brought:
    said = oci.manifest_of(manifest)
    kit = modelkit.read(said, layout.document(said.config.digest))
    name, version = name or kit.name, version or kit.version
    _check_named(name, version)
    with tempfile.TemporaryDirectory(prefix="batuta-kit-") as directory:
        files: dict[str, Path] = {}
        for digest, size, zipped in kit.layers:
            files.update(_unpacked(layout.whole(digest, size), Path(directory), zipped=zipped))
        if not files:
            raise ArtifactRefused("artifact_unreadable", f"this ModelKit holds no {', '.join(SUFFIXES)} file")
        model = Model(metadata=Metadata(name=name), spec=ModelSpec())
        for stem, path in files.items():
            variant = "fp32" if len(files) == 1 else modelpack.name_of(stem)
            model = with_version(model, version_of(path, version=version, variant=variant))
        (made,) = model.spec.versions
        whole = {v.digest: path for v, path in zip(made.variants, files.values(), strict=True)}
        action = push_version(client, name, made, whole, namespace=namespace, on_progress=on_progress)
    return Brought(action, name, made, ())


def _unpacked(archive: Path, directory: Path, *, zipped: bool) -> dict[str, Path]:
    """The files of models in an archive. No path in it is followed: each gets a name of ours."""
    found: dict[str, Path] = {}
    try:
        with tarfile.open(archive, "r|gz" if zipped else "r|") as tar:
            for member in tar:
                stem, suffix = Path(member.name).stem, Path(member.name).suffix
                if suffix not in SUFFIXES or not member.isfile() or (source := tar.extractfile(member)) is None:
                    continue
                if member.size > min(KIT_FILE_BYTES_MAX, shutil.disk_usage(directory).free):
                    raise ArtifactRefused("disk_full", f"{member.name[:80]} has {member.size} bytes")
                path = directory / f"{len(list(directory.iterdir()))}{suffix}"
                with path.open("wb") as target:
                    shutil.copyfileobj(source, target)
                found[stem] = path
    except (tarfile.TarError, EOFError, OSError) as error:
        raise ArtifactRefused("artifact_unreadable", f"a layer of this ModelKit cannot be unpacked: {error}") from None
    return found


def _check_named(name: str, version: str) -> None:
    if not name or not version:
        raise BatutaError("the package does not say what it is", next_step="give --name and --version")


def kept(layout: Layout, package: Package) -> bytes:
    """The package, under its version's tag, in a layout that has its files; returns its manifest."""
    documents = modelpack.write(package)
    layout.put_document(documents.config)
    layout.name(documents.manifest, package.version.version)
    # Whatever is written can be read: a package that nobody could bring back would be found out too late.
    opened(layout, documents.manifest)
    return documents.manifest
