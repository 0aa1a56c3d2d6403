"""Pushing a model: a file becomes a variant of a version, with the signature that the file itself states.

Shared by `batuta model push`, the demo and anybody's Python. A version is immutable: the same file again changes
nothing, another file under the same names is refused before anything is uploaded.
"""

from __future__ import annotations

import hashlib
import mmap
from pathlib import Path
from typing import TYPE_CHECKING, Literal, NamedTuple, TypeVar

import msgspec

from batuta.errors import ArtifactRefused, NotFound, Refused
from batuta.interop import executorch_program, onnx_header
from batuta.kinds.base import DEFAULT_NAMESPACE, Bytes, Metadata, Problem, Record, decode_hook
from batuta.kinds.model import Format, Golden, Model, ModelSpec, Needs, Signature, Variant, Version
from batuta.kinds.shaping import After, Before

if TYPE_CHECKING:
    import os
    from collections.abc import Callable, Mapping, Sequence

    from batuta.client import Client


T = TypeVar("T")


class Pushed(NamedTuple):
    """What became of a file."""

    action: Literal["created", "extended", "unchanged"]
    name: str
    version: str
    variant: str
    digest: str
    size_bytes: int
    signature: Signature
    """Empty for a format that says nothing of it."""


class Said(NamedTuple):
    """What a file says of itself."""

    format: Format
    signature: Signature | None = None
    opset: int | None = None


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
    provenance: bytes = b"",
    golden: bytes = b"",
    drift: bytes = b"",
    shaping: Path | None = None,
    tolerance: float = 0.001,
    namespace: str = DEFAULT_NAMESPACE,
    on_progress: Callable[[int, int], None] | None = None,
) -> Pushed:
    """Upload `file` unless the hub has it, then create the model or append the version. Raises Refused.

    `golden` is an .npz of inputs and the outputs they must give (`batuta.tuning.golden`); nodes replay it. `drift` says
    what inputs look like (`batuta.tuning.sketch`); nodes compare theirs with it, and the first that a version is given
    stays. `shaping` is a .py file with `before` and `after`, or YAML that says them.
    """
    path = Path(file)
    addition = version_of(path, version=version, variant=variant, labels=labels, memory_bytes=memory_bytes)
    (mine,) = addition.variants
    if provenance:
        addition = msgspec.structs.replace(addition, provenance=f"sha256:{hashlib.sha256(provenance).hexdigest()}")
        client.push_bytes(provenance)
    if golden:
        proof = Golden(digest=f"sha256:{hashlib.sha256(golden).hexdigest()}", tolerance=tolerance)
        addition = msgspec.structs.replace(addition, golden=proof)
        client.push_bytes(golden)
    if drift:
        addition = msgspec.structs.replace(addition, drift=f"sha256:{hashlib.sha256(drift).hexdigest()}")
        client.push_bytes(drift)
    if shaping is not None:
        addition = _shaped(client, addition, shaping)
    action = push_version(
        client, name, addition, {mine.digest: path}, task=task, namespace=namespace, on_progress=on_progress
    )
    return Pushed(action, name, version, variant, mine.digest, int(mine.size_bytes), addition.signature or Signature())


class _Shaping(Record):
    before: Before | None = None
    after: After | None = None


def _shaped(client: Client, addition: Version, path: Path) -> Version:
    """The version, and what is done before and after it."""
    before, after, text = shaping_of(path)
    if text is not None:
        client.push_bytes(text)
        return msgspec.structs.replace(addition, transform=f"sha256:{hashlib.sha256(text).hexdigest()}")
    return msgspec.structs.replace(addition, before=before, after=after)


def shaping_of(path: Path) -> tuple[Before | None, After | None, bytes | None]:
    """What a file declares, or the file itself where it is Python. Raises Refused."""
    text = path.read_bytes()
    if path.suffix == ".py":
        return None, None, text
    try:
        said = msgspec.yaml.decode(text, type=_Shaping, dec_hook=decode_hook)
    except (msgspec.MsgspecError, ValueError) as error:
        message = f"{path} does not say what is done before and after: {error}"
        raise _refused(message, "see `batuta explain model.spec.versions.before`") from None
    return said.before, said.after, None


def push_version(
    client: Client,
    name: str,
    addition: Version,
    files: Mapping[str, Path],
    *,
    task: str | None = None,
    namespace: str = DEFAULT_NAMESPACE,
    on_progress: Callable[[int, int], None] | None = None,
) -> Literal["created", "extended", "unchanged"]:
    """Declare a version whose files, by digest, are here. Refused before anything is uploaded."""
    try:
        before: Model | None = client.get(Model, name, namespace=namespace).resource
    except NotFound:
        before = None
    model = before or Model(metadata=Metadata(name=name, namespace=namespace), spec=ModelSpec())
    after = with_version(model, addition, task)
    # Also when nothing is new to declare: the hub may have lost a file, and pushing again is how it gets it back.
    for path in files.values():
        client.push_artifact(path, on_progress)
    if after == before:
        return "unchanged"
    client.apply([after])
    return "created" if before is None else "extended"


def version_of(
    path: Path, *, version: str, variant: str = "fp32", labels: Sequence[str] = (), memory_bytes: int | None = None
) -> Version:
    """A version of one variant, as the file says. Raises ArtifactRefused when it is no whole model."""
    said = read(path)
    with path.open("rb") as opened:
        digest = f"sha256:{hashlib.file_digest(opened, 'sha256').hexdigest()}"
        size_bytes = opened.tell()
    needs = Needs(memory_bytes=Bytes(memory_bytes) if memory_bytes is not None else None)
    mine = Variant(
        name=variant, format=said.format, digest=digest, size_bytes=Bytes(size_bytes), needs=needs, opset=said.opset
    )
    return Version(version=version, variants=(mine,), signature=said.signature, labels=tuple(labels))


def read(path: Path) -> Said:
    """What kind of model a file is, by its first bytes, and its signature where it is known how to read it."""
    with path.open("rb") as file:
        head = file.read(8)
    # FlatBuffers have their kind in bytes 4 to 8; ONNX is protobuf, which has no mark.
    if head[4:] == b"TFL3":
        return Said("tflite")
    if len(head) == 8 and head[4:6] == b"ET" and head[6:].isdigit():
        return Said("pte", _mapped(path, executorch_program.read).signature)
    if path.suffix in (".tflite", ".pte"):
        raise ArtifactRefused("artifact_unreadable", f"{path.name} is no {path.suffix[1:]} model by its first bytes")
    header = _onnx(path)
    return Said("onnx", header.signature, header.opset or None)


def signature_of(path: Path) -> Signature:
    """What the file says goes in and comes out. Raises ArtifactRefused when it is not one whole ONNX model."""
    return _onnx(path).signature


def _mapped(path: Path, read: Callable[[bytes | memoryview], T]) -> T:
    with path.open("rb") as file:
        empty = path.stat().st_size == 0
        return read(b"" if empty else memoryview(mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)))


def _onnx(path: Path) -> onnx_header.OnnxHeader:
    header = _mapped(path, onnx_header.read)
    if header.external:
        raise ArtifactRefused(
            "artifact_unreadable",
            f"{path.name} keeps {len(header.external)} of its weights in other files, such as {header.external[0]!r}",
            next_step="save it as one file: onnx.save(onnx.load(FILE), NEW_FILE, save_as_external_data=False)",
        )
    return header


def with_version(model: Model, addition: Version, task: str | None = None) -> Model:
    """`model` with that version; `model` itself when it has it. Raises Refused when it has another."""
    spec = model.spec
    there = next((v for v in spec.versions if v.version == addition.version), None)
    if there is None:
        versions = (*spec.versions, addition)
    else:
        versions = tuple(_extended(v, addition) if v is there else v for v in spec.versions)
    after = msgspec.structs.replace(spec, task=task or spec.task, versions=versions)
    # The hub's own stamps stay as they came: it knows by them whether somebody else wrote in between.
    return model if after == spec else msgspec.structs.replace(model, spec=after)


def with_aliases(model: Model, wanted: Mapping[str, str]) -> Model:
    """`model` with aliases moved; an empty version takes one away. `previous` follows `champion` by itself."""
    aliases = dict(model.spec.aliases)
    was = aliases.get("champion", "")
    if was and "previous" not in wanted and wanted.get("champion", was) not in ("", was):
        wanted = {**wanted, "previous": was}
    for alias, version in wanted.items():
        if version:
            # An alias of an alias is what that one stands for now.
            aliases[alias] = model.spec.aliases.get(version, version)
        else:
            aliases.pop(alias, None)
    return msgspec.structs.replace(model, spec=msgspec.structs.replace(model.spec, aliases=aliases))


def _extended(version: Version, addition: Version) -> Version:
    variants = {v.name: v for v in version.variants}
    for variant in addition.variants:
        same_name = variants.get(variant.name)
        if same_name is None:
            variants[variant.name] = variant
            continue
        if same_name.digest != variant.digest:
            raise _refused(
                f"version {version.version!r} has a variant {variant.name!r} with other bytes "
                f"({same_name.digest[:19]}…)",
                "versions are immutable: push it as a new --version, or another --variant",
            )
        variants[variant.name] = _known_better(same_name, variant)
    if not _share_signature(version, addition):
        raise _refused(
            f"its inputs and outputs are not those of version {version.version!r}",
            "all variants of a version share one signature: push it as a new --version",
        )
    if addition.labels and version.labels and addition.labels != version.labels:
        raise _refused(
            f"version {version.version!r} has other labels", "versions are immutable: push it as a new --version"
        )
    if addition.golden and version.golden and addition.golden != version.golden:
        raise _refused(
            f"version {version.version!r} has other golden inputs", "versions are immutable: push it as a new --version"
        )
    return msgspec.structs.replace(
        version,
        variants=tuple(variants.values()),
        signature=version.signature or addition.signature,
        labels=version.labels or addition.labels,
        before=version.before or addition.before,
        after=version.after or addition.after,
        transform=version.transform or addition.transform,
        transform_signatures=tuple(dict.fromkeys((*version.transform_signatures, *addition.transform_signatures))),
        golden=version.golden or addition.golden,
        drift=version.drift or addition.drift,
        provenance=version.provenance or addition.provenance,
    )


def _share_signature(version: Version, addition: Version) -> bool:
    """Files of ExecuTorch name nothing: what fits place by place takes the version's names."""
    there, new = version.signature, addition.signature
    if there is None or new is None or there == new:
        return True
    return all(each.format == "pte" for each in addition.variants) and executorch_program.fits(new, there)


def _known_better(before: Variant, now: Variant) -> Variant:
    """The same bytes, of which more is known: who vouches for them, how good and how fast they are."""
    profiles = {p.hardware: p for p in (*before.profiles, *now.profiles)}
    return msgspec.structs.replace(
        before,
        signatures=tuple(dict.fromkeys((*before.signatures, *now.signatures))),
        quality={**before.quality, **now.quality},
        profiles=tuple(profiles.values()),
        precision=before.precision or now.precision,
        calibration=before.calibration or now.calibration,
        golden=before.golden or now.golden,
        provenance=before.provenance or now.provenance,
    )


def _refused(message: str, hint: str) -> Refused:
    return Refused([Problem(path="spec.versions", code="immutable", message=message, hint=hint)])
