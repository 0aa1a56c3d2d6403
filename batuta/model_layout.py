"""An OCI image layout on disk: a directory of blobs by digest, and an index that names the manifests.

It is what `oras`, `skopeo` and registries exchange, and it can be carried on a stick. Writing keeps whatever blob is
there already; reading believes nothing that it has not hashed.
"""

from __future__ import annotations

import hashlib
import os
from pathlib import Path
from typing import Any, NamedTuple

import msgspec

from batuta.errors import ArtifactRefused, NotFound
from batuta.interop import modelpack, oci

LAYOUT = b'{"imageLayoutVersion":"1.0.0"}'
REF = "org.opencontainers.image.ref.name"


class Reference(NamedTuple):
    """A manifest of a layout, and what it is called."""

    tag: str
    digest: str


class Layout:
    """One directory."""

    def __init__(self, directory: str | os.PathLike[str]) -> None:
        self.directory = Path(directory)

    @property
    def is_there(self) -> bool:
        return (self.directory / "oci-layout").is_file() and (self.directory / "index.json").is_file()

    def blob(self, digest: str) -> Path:
        algorithm, _, word = digest.partition(":")
        if algorithm != "sha256" or len(word) != 64 or not set(word) <= set("0123456789abcdef"):
            raise ArtifactRefused("digest_malformed", f"{digest[:80]!r} is not a digest: sha256: and 64 hex digits")
        return self.directory / "blobs" / "sha256" / word

    # --- Reading ---

    def references(self) -> list[Reference]:
        entries = self._index().get("manifests")
        found = []
        for entry in entries if isinstance(entries, list) else []:
            if isinstance(entry, dict) and isinstance(entry.get("digest"), str):
                notes = entry.get("annotations")
                tag = notes.get(REF, "") if isinstance(notes, dict) else ""
                found.append(Reference(str(tag), entry["digest"]))
        return found

    def manifest(self, tag: str = "") -> bytes:
        """The manifest of that tag, or the only one there is. Raises NotFound."""
        found = [r for r in self.references() if tag in ("", r.tag)]
        if len({r.digest for r in found}) != 1:
            there = ", ".join(sorted(r.tag or r.digest[:19] for r in self.references())) or "nothing"
            raise NotFound(f"{self.directory} has {len(found)} manifests that may be meant; there is: {there}")
        return self.document(found[0].digest)

    def document(self, digest: str) -> bytes:
        """A small blob, hashed."""
        with self._open(digest) as file:
            read: bytes = file.read(oci.DOCUMENT_BYTES_MAX + 1)
        if oci.digest_of(read) != digest:
            raise ArtifactRefused("digest_mismatch", f"blob {digest[:19]}… of {self.directory} is damaged")
        return read

    def whole(self, digest: str, size_bytes: int) -> Path:
        """The path of a blob that was looked at, whole. Raises ArtifactRefused."""
        with self._open(digest) as file:
            found = f"sha256:{hashlib.file_digest(file, 'sha256').hexdigest()}"
            size = file.tell()
        if found != digest or size != size_bytes:
            raise ArtifactRefused(
                "digest_mismatch", f"blob {digest[:19]}… of {self.directory} has {size} bytes that are {found[:19]}…"
            )
        return self.blob(digest)

    # --- Writing ---

    def open(self) -> None:
        (self.directory / "blobs" / "sha256").mkdir(parents=True, exist_ok=True)
        if not self.is_there:
            _write(self.directory / "oci-layout", LAYOUT)
            _write(self.directory / "index.json", b'{"schemaVersion":2,"manifests":[]}')

    def put(self, file: str | os.PathLike[str]) -> tuple[str, int]:
        """Copies a file in; returns digest and size of what was copied."""
        fresh = self.directory / "blobs" / f".{os.getpid()}.part"
        sha, size = hashlib.sha256(), 0
        try:
            with Path(file).open("rb") as source, fresh.open("wb") as target:
                while block := source.read(1 << 20):
                    sha.update(block)
                    size += len(block)
                    target.write(block)
            digest = f"sha256:{sha.hexdigest()}"
            fresh.replace(self.blob(digest))
        finally:
            fresh.unlink(missing_ok=True)
        return digest, size

    def put_document(self, document: bytes) -> str:
        digest = oci.digest_of(document)
        _write(self.blob(digest), document)
        return digest

    def name(self, manifest: bytes, tag: str) -> str:
        """Keeps a manifest under a tag, in place of what had it before; returns its digest."""
        digest = self.put_document(manifest)
        entry = {
            "mediaType": oci.MANIFEST,
            "artifactType": modelpack.ARTIFACT,
            "digest": digest,
            "size": len(manifest),
            "annotations": {REF: tag},
        }
        others = [e for e in self._index().get("manifests", []) if (e.get("annotations") or {}).get(REF) != tag]
        _write(self.directory / "index.json", msgspec.json.encode({"schemaVersion": 2, "manifests": [*others, entry]}))
        return digest

    def _index(self) -> dict[str, Any]:
        try:
            with (self.directory / "index.json").open("rb") as file:
                return msgspec.json.decode(file.read(oci.DOCUMENT_BYTES_MAX), type=dict[str, Any])
        except (OSError, msgspec.DecodeError) as error:
            raise ArtifactRefused("artifact_unreadable", f"{self.directory} is no OCI layout: {error}") from None

    def _open(self, digest: str) -> Any:
        try:
            return self.blob(digest).open("rb")
        except FileNotFoundError:
            raise ArtifactRefused("artifact_missing", f"{self.directory} has no blob {digest[:19]}…") from None


def _write(path: Path, data: bytes) -> None:
    fresh = path.with_name(f".{path.name}.part")
    fresh.write_bytes(data)
    fresh.replace(path)
