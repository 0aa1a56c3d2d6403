"""An OCI image manifest, as far as models go: what names a config and layers by digest."""

from __future__ import annotations

import hashlib
from typing import Annotated, Any

import msgspec
from msgspec import Meta

from batuta.errors import ArtifactRefused
from batuta.kinds.base import Digest, decode_hook

MANIFEST = "application/vnd.oci.image.manifest.v1+json"
DOCUMENT_BYTES_MAX = 4 << 20
LAYERS_MAX = 256


class Descriptor(msgspec.Struct, rename="camel"):
    """How OCI names bytes."""

    media_type: str
    digest: Digest
    size: Annotated[int, Meta(ge=0)]
    annotations: dict[str, str] = {}


class Manifest(msgspec.Struct, rename="camel"):
    """An artifact."""

    config: Descriptor
    layers: Annotated[list[Descriptor], Meta(max_length=LAYERS_MAX)]
    schema_version: int = 2
    media_type: str = MANIFEST
    artifact_type: str = ""
    annotations: dict[str, str] = {}

    @property
    def blobs(self) -> dict[str, int]:
        """All that it names, each once: size by digest."""
        return {blob.digest: blob.size for blob in (self.config, *self.layers)}


def manifest_of(document: bytes) -> Manifest:
    """Raises ArtifactRefused."""
    found: Manifest = decoded(document, Manifest, "manifest")
    if found.schema_version != 2:
        raise ArtifactRefused("artifact_unreadable", f"its manifest is of schema {found.schema_version}")
    return found


def decoded(document: bytes, kind: Any, what: str) -> Any:
    """A document of bounded size. Raises ArtifactRefused."""
    if len(document) > DOCUMENT_BYTES_MAX:
        raise ArtifactRefused("artifact_unreadable", f"its {what} has more than {DOCUMENT_BYTES_MAX} bytes")
    try:
        return msgspec.json.decode(document, type=kind, dec_hook=decode_hook)
    except (msgspec.DecodeError, ValueError) as error:
        raise ArtifactRefused("artifact_unreadable", f"its {what} cannot be read: {error}") from None


def digest_of(document: bytes) -> str:
    return f"sha256:{hashlib.sha256(document).hexdigest()}"
