"""A version of a model as one OCI artifact: CNCF ModelPack, with annotations for what ModelPack has no word for.

One manifest is one version. Every variant is a layer of raw bytes whose digest is the variant's own, so a registry
keeps a file once however many packages hold it, and a package that came through ten hands names the same bytes. Any
reader of ModelPack finds the files; Batuta finds in the annotations what it needs beyond them:


    on the manifest    dev.batuta.model.{signature,labels,before,after,task,golden,drift,provenance,transform,
                       transform.signatures}
    on a layer         dev.batuta.variant.{name,format,opset,runtime,memory,accelerator,precision,architectures,
                       quality,profiles,calibration,signatures,golden,provenance} and dev.batuta.role

Signatures (Sigstore bundles), golden inputs, drift sketch and provenance travel as layers of their own, marked by role.
Documents come from anybody: every size is bounded, and no path in them is ever followed.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Literal, NamedTuple

import msgspec

from batuta.errors import ArtifactRefused
from batuta.interop.oci import MANIFEST, Descriptor, decoded, digest_of, manifest_of
from batuta.kinds.base import Digest, decode_hook, encode_hook
from batuta.kinds.model import Golden, Signature, Variant, Version
from batuta.kinds.shaping import After, Before

if TYPE_CHECKING:
    from collections.abc import Mapping

ARTIFACT = "application/vnd.cncf.model.manifest.v1+json"
CONFIG = "application/vnd.cncf.model.config.v1+json"
WEIGHT = "application/vnd.cncf.model.weight.v1.raw"
DOC = "application/vnd.cncf.model.doc.v1.raw"
CODE = "application/vnd.cncf.model.code.v1.raw"
DATASET = "application/vnd.cncf.model.dataset.v1.raw"
FILEPATH = "org.cncf.model.filepath"
OURS = "dev.batuta."
ROLE = "dev.batuta.role"
RUNTIMES = {"onnx": "onnxruntime", "tflite": "litert", "pte": "executorch"}

Role = Literal["signature", "golden", "drift", "provenance", "transform"]
_MEDIA: dict[Role, str] = {
    "signature": DOC, "provenance": DOC, "golden": DATASET, "drift": DATASET, "transform": CODE,
}  # fmt: skip


class Beside(NamedTuple):
    """A file of a package that is no variant."""

    role: Role
    digest: str
    size_bytes: int


class Package(NamedTuple):
    """What a package says."""

    name: str
    version: Version
    task: str | None = None
    beside: tuple[Beside, ...] = ()

    @property
    def files(self) -> dict[str, int]:
        """Every file by digest, with its size: the layers, each once."""
        return {
            **{v.digest: int(v.size_bytes) for v in self.version.variants},
            **{b.digest: b.size_bytes for b in self.beside},
        }


class Documents(NamedTuple):
    """A package, written: the manifest names config and layers by digest."""

    manifest: bytes
    config: bytes


def write(package: Package, created_at: str = "") -> Documents:
    """The documents of a package. The same package gives the same bytes; `created_at` is RFC 3339, or left out."""
    version = package.version
    layers = [_weight_layer(v) for v in version.variants]
    names = {b.digest: f"{b.role}-{b.digest[7:19]}" for b in package.beside}
    layers += [_layer(_MEDIA[b.role], b.digest, b.size_bytes, names[b.digest], {ROLE: b.role}) for b in package.beside]
    formats, precisions = {v.format for v in version.variants}, {v.precision for v in version.variants}
    config = {
        "descriptor": _without_empty({"name": package.name, "version": version.version, "createdAt": created_at}),
        "config": _without_empty(
            {
                "format": formats.pop() if len(formats) == 1 else "",
                "precision": (precisions.pop() if len(precisions) == 1 else "") or "",
            }
        ),
        "modelfs": {"type": "layers", "diffIds": [layer["digest"] for layer in layers]},
    }
    written = msgspec.json.encode(config)
    annotations = _without_empty(
        {
            "org.opencontainers.image.title": package.name,
            "org.opencontainers.image.version": version.version,
            "org.opencontainers.image.created": created_at,
            "dev.batuta.model.task": package.task or "",
            "dev.batuta.model.signature": _json(version.signature) if version.signature is not None else "",
            "dev.batuta.model.labels": _json(version.labels) if version.labels else "",
            "dev.batuta.model.before": _json(version.before) if version.before is not None else "",
            "dev.batuta.model.after": _json(version.after) if version.after is not None else "",
            "dev.batuta.model.golden": _json(version.golden) if version.golden is not None else "",
            "dev.batuta.model.drift": version.drift or "",
            "dev.batuta.model.provenance": version.provenance or "",
            "dev.batuta.model.transform": version.transform or "",
            "dev.batuta.model.transform.signatures": (
                _json(version.transform_signatures) if version.transform_signatures else ""
            ),
        }
    )
    manifest = {
        "schemaVersion": 2,
        "mediaType": MANIFEST,
        "artifactType": ARTIFACT,
        "config": {"mediaType": CONFIG, "digest": digest_of(written), "size": len(written)},
        "layers": layers,
        "annotations": annotations,
    }
    return Documents(msgspec.json.encode(manifest), written)


def read(manifest: bytes, config: bytes) -> Package:
    """A package from its documents, of whoever's making. Raises ArtifactRefused when it is none."""
    found = manifest_of(manifest)
    if found.artifact_type != ARTIFACT and found.config.media_type != CONFIG:
        raise _refused(f"it is a {(found.artifact_type or found.config.media_type)[:80]}, not a ModelPack")
    if digest_of(config) != found.config.digest:
        raise ArtifactRefused("digest_mismatch", "the package's config is not the one that its manifest names")
    said = decoded(config, dict[str, Any], "config")
    descriptor = said.get("descriptor")
    descriptor = descriptor if isinstance(descriptor, dict) else {}
    weights = [layer for layer in found.layers if layer.media_type.startswith("application/vnd.cncf.model.weight.v1.")]
    if not weights:
        raise _refused("it has no weights")
    notes = found.annotations
    beside = tuple(
        Beside(layer.annotations[ROLE], layer.digest, layer.size)  # type: ignore[arg-type]
        for layer in found.layers
        if layer.annotations.get(ROLE) in _MEDIA
    )
    version = Version(
        version=str(descriptor.get("version") or notes.get("org.opencontainers.image.version") or ""),
        variants=tuple(_variant(layer) for layer in weights),
        signature=_noted(notes, "model.signature", Signature),
        golden=_noted(notes, "model.golden", Golden),
        labels=_noted(notes, "model.labels", tuple[str, ...]) or (),
        before=_noted(notes, "model.before", Before),
        after=_noted(notes, "model.after", After),
        drift=_noted_text(notes, "model.drift", Digest),
        provenance=_noted_text(notes, "model.provenance", Digest),
        transform=_noted_text(notes, "model.transform", Digest),
        transform_signatures=_noted(notes, "model.transform.signatures", tuple[Digest, ...]) or (),
    )
    name = str(descriptor.get("name") or notes.get("org.opencontainers.image.title") or "")
    package = Package(name, version, notes.get("dev.batuta.model.task"), beside)
    _check_whole(package)
    return package


def file_name(variant: Variant) -> str:
    return f"{variant.name}.{variant.format}"


def _weight_layer(variant: Variant) -> dict[str, Any]:
    needs = variant.needs
    notes = {
        "name": variant.name,
        "format": variant.format,
        "runtime": RUNTIMES[variant.format],
        "opset": str(variant.opset) if variant.opset is not None else "",
        "memory": str(needs.memory_bytes) if needs.memory_bytes is not None else "",
        "accelerator": needs.accelerator or "",
        "precision": variant.precision or "",
        "architectures": _json(variant.architectures) if variant.architectures else "",
        "quality": _json(variant.quality) if variant.quality else "",
        "profiles": _json(variant.profiles) if variant.profiles else "",
        "calibration": variant.calibration or "",
        "signatures": _json(variant.signatures) if variant.signatures else "",
        "golden": _json(variant.golden) if variant.golden is not None else "",
        "provenance": variant.provenance or "",
    }
    ours = {f"dev.batuta.variant.{key}": value for key, value in notes.items() if value}
    return _layer(WEIGHT, variant.digest, int(variant.size_bytes), file_name(variant), ours)


def _layer(media: str, digest: str, size: int, path: str, ours: Mapping[str, str]) -> dict[str, Any]:
    # The second is what every OCI tool shows, and by which `oras pull` names the file.
    notes = {FILEPATH: path, "org.opencontainers.image.title": path, **ours}
    return {"mediaType": media, "digest": digest, "size": size, "annotations": notes}


def _variant(layer: Descriptor) -> Variant:
    """A layer of weights; where it has no annotations of ours, its file name says what it is."""
    if not layer.media_type.endswith(".raw"):
        raise _refused("its weights are packed as tar; raw layers are read, which registries keep only once")
    notes = layer.annotations
    path = notes.get(FILEPATH) or notes.get("org.opencontainers.image.title") or ""
    stem, _, suffix = path.rpartition("/")[2].rpartition(".")
    memory = notes.get("dev.batuta.variant.memory")
    try:
        return msgspec.convert(
            {
                "name": notes.get("dev.batuta.variant.name") or name_of(stem),
                "format": notes.get("dev.batuta.variant.format") or suffix,
                "digest": layer.digest,
                "size": layer.size,
                "needs": {
                    "memory": memory,
                    "accelerator": notes.get("dev.batuta.variant.accelerator"),
                },
                "opset": int(notes["dev.batuta.variant.opset"]) if "dev.batuta.variant.opset" in notes else None,
                "precision": notes.get("dev.batuta.variant.precision"),
                "calibration": notes.get("dev.batuta.variant.calibration"),
                "provenance": notes.get("dev.batuta.variant.provenance"),
                **{
                    key: value
                    for key, kind in (
                        ("architectures", list[str]), ("quality", dict[str, float]),
                        ("profiles", list[dict[str, Any]]), ("signatures", list[str]),
                        ("golden", dict[str, Any]),
                    )
                    if (value := _noted(notes, f"variant.{key}", kind)) is not None
                },
            },
            Variant,
            dec_hook=decode_hook,
        )  # fmt: skip
    except (msgspec.ValidationError, ValueError) as error:
        raise _refused(f"layer {path[:80]!r}: {error}") from None


def _check_whole(package: Package) -> None:
    """What the annotations name is among the layers, and of the role that it is named for."""
    version = package.version
    there = {(b.role, b.digest) for b in package.beside}
    named: list[tuple[str, str | None]] = [
        ("golden", version.golden.digest if version.golden is not None else None),
        ("drift", version.drift),
        ("provenance", version.provenance),
        ("transform", version.transform),
        *(("signature", digest) for v in version.variants for digest in v.signatures),
        *(("signature", digest) for digest in version.transform_signatures),
        *(("golden", v.golden.digest if v.golden is not None else None) for v in version.variants),
        *(("provenance", v.provenance) for v in version.variants),
    ]
    for role, digest in named:
        if digest is not None and (role, digest) not in there:
            raise _refused(f"it names a {role} {digest[:19]}… that is not in it")
    names = [v.name for v in version.variants]
    if len(set(names)) < len(names):
        raise _refused("two of its variants have one name")


def _noted(notes: Mapping[str, str], key: str, kind: Any) -> Any:
    text = notes.get(OURS + key)
    return None if text is None else decoded(text.encode(), kind, f"annotation {OURS}{key}")


def _noted_text(notes: Mapping[str, str], key: str, kind: Any) -> Any:
    text = notes.get(OURS + key)
    try:
        return None if text is None else msgspec.convert(text, kind)
    except msgspec.ValidationError as error:
        raise _refused(f"annotation {OURS}{key}: {error}") from None


def name_of(stem: str) -> str:
    """A file's name as a variant may be called."""
    kept = "".join(c if c.isascii() and (c.isalnum() or c == "-") else "-" for c in stem.lower()).strip("-")
    return kept[:63].strip("-") or "model"


def _json(value: object) -> str:
    return msgspec.json.encode(value, enc_hook=encode_hook).decode()


def _without_empty(fields: Mapping[str, str]) -> dict[str, str]:
    return {key: value for key, value in fields.items() if value}


def _refused(why: str) -> ArtifactRefused:
    return ArtifactRefused("artifact_unreadable", f"this package cannot be read: {why}")
