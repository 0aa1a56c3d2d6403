"""Pushing a model: a file becomes a variant of a version, with the signature that the file itself states.

Shared by `batuta model push`, the demo and anybody's Python. A version is immutable: the same file again changes
nothing, another file under the same names is refused before anything is uploaded.
"""

from __future__ import annotations

import hashlib
import mmap
from pathlib import Path
from typing import TYPE_CHECKING, Literal, NamedTuple

import msgspec

from batuta.errors import ArtifactRefused, NotFound, Refused
from batuta.interop import onnx_header
from batuta.kinds.base import DEFAULT_NAMESPACE, Bytes, Metadata, Problem
from batuta.kinds.model import Model, ModelSpec, Needs, Signature, Variant, Version

if TYPE_CHECKING:
    import os
    from collections.abc import Callable, Sequence

    from batuta.client import Client


class Pushed(NamedTuple):
    """What became of a file."""

    action: Literal["created", "extended", "unchanged"]
    name: str
    version: str
    variant: str
    digest: str
    size_bytes: int
    signature: Signature


def push(
    client: Client,
    file: str | os.PathLike[str],
    *,
    name: str,
    version: str,
    variant: str = "fp32",
    labels: Sequence[str] = (),
    task: str | None = None,
    memory_bytes: int | None = None,
    namespace: str = DEFAULT_NAMESPACE,
    on_progress: Callable[[int, int], None] | None = None,
) -> Pushed:
    """Upload `file` unless the hub has it, then create the model or append the version. Raises Refused."""
    path = Path(file)
    signature = signature_of(path)
    with path.open("rb") as opened:
        digest = f"sha256:{hashlib.file_digest(opened, 'sha256').hexdigest()}"
        size_bytes = opened.tell()
    needs = Needs(memory_bytes=Bytes(memory_bytes) if memory_bytes is not None else None)
    mine = Variant(name=variant, format="onnx", digest=digest, size_bytes=Bytes(size_bytes), needs=needs)
    try:
        before: Model | None = client.get(Model, name, namespace=namespace).resource
    except NotFound:
        before = None
    model = before or Model(metadata=Metadata(name=name, namespace=namespace), spec=ModelSpec())
    addition = Version(version=version, variants=(mine,), signature=signature, labels=tuple(labels))
    after = with_version(model, addition, task)
    action: Literal["created", "extended", "unchanged"] = "created" if before is None else "extended"
    if after == before:
        action = "unchanged"
    # Also when nothing is new to declare: the hub may have lost the file, and pushing again is how it gets it back.
    client.push_artifact(path, on_progress)
    if action != "unchanged":
        client.apply([after])
    return Pushed(action, name, version, variant, digest, size_bytes, signature)


def signature_of(path: Path) -> Signature:
    """What the file says goes in and comes out. Raises ArtifactRefused when it is not one whole ONNX model."""
    with path.open("rb") as file:
        empty = path.stat().st_size == 0
        header = onnx_header.read(b"" if empty else memoryview(mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)))
    if header.external:
        raise ArtifactRefused(
            "artifact_unreadable",
            f"{path.name} keeps {len(header.external)} of its weights in other files, such as {header.external[0]!r}",
            next_step="save it as one file: onnx.save(onnx.load(FILE), NEW_FILE, save_as_external_data=False)",
        )
    return header.signature


def with_version(model: Model, addition: Version, task: str | None = None) -> Model:
    """`model` with that version of one variant; `model` itself when it has it. Raises Refused when it has another."""
    spec = model.spec
    there = next((v for v in spec.versions if v.version == addition.version), None)
    if there is None:
        versions = (*spec.versions, addition)
    else:
        versions = tuple(_extended(v, addition) if v is there else v for v in spec.versions)
    after = ModelSpec(task=task or spec.task, versions=versions)
    # The hub's own stamps stay as they came: it knows by them whether somebody else wrote in between.
    return model if after == spec else msgspec.structs.replace(model, spec=after)


def _extended(version: Version, addition: Version) -> Version:
    (variant,) = addition.variants
    same_name = next((v for v in version.variants if v.name == variant.name), None)
    if same_name is not None and same_name.digest != variant.digest:
        raise _refused(
            f"version {version.version!r} has a variant {variant.name!r} with other bytes ({same_name.digest[:19]}…)",
            "versions are immutable: push it as a new --version, or another --variant",
        )
    if version.signature is not None and version.signature != addition.signature:
        raise _refused(
            f"its inputs and outputs are not those of version {version.version!r}",
            "all variants of a version share one signature: push it as a new --version",
        )
    if addition.labels and version.labels and addition.labels != version.labels:
        raise _refused(
            f"version {version.version!r} has other labels", "versions are immutable: push it as a new --version"
        )
    if same_name is not None:
        return version
    return msgspec.structs.replace(
        version,
        variants=(*version.variants, variant),
        signature=addition.signature,
        labels=version.labels or addition.labels,
    )


def _refused(message: str, hint: str) -> Refused:
    return Refused([Problem(path="spec.versions", code="immutable", message=message, hint=hint)])
