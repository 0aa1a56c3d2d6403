"""Image archives: which images a tar holds, and by which digests they may be called.

Two forms are about: the OCI layout in a tar (`podman save --format oci-archive`, newer `docker save`), with an
`index.json`, and the older one of Docker, with a `manifest.json` and no digest of a manifest. An image is known by the
digests of its index, of its manifest and of its configuration; the last is what engines call its ID. Documents are read
only after their bytes were compared with the digest that names them; layers are the engine's to verify, by the
configuration that is verified here.
"""

from __future__ import annotations

import hashlib
import tarfile
from typing import IO, TYPE_CHECKING, Any, NamedTuple

import msgspec

from batuta.errors import ArtifactRefused
from batuta.interop.oci import DOCUMENT_BYTES_MAX, digest_of

if TYPE_CHECKING:
    from collections.abc import Iterator

MEMBERS_MAX = 4096
IMAGES_MAX = 64
DEPTH_MAX = 3
REF = "org.opencontainers.image.ref.name"
NAMES = (REF, "io.containerd.image.name")


class Image(NamedTuple):
    """One image of an archive, for one sort of machine."""

    id: str
    """Digest of its configuration."""
    manifest: str
    """Digest of its manifest; empty where the archive's form has none."""
    indexes: tuple[str, ...]
    """Digests of the lists that lead to it, outermost first."""
    name: str
    os: str
    architecture: str

    @property
    def digests(self) -> tuple[str, ...]:
        """All that it may be called by, best first."""
        return tuple(d for d in (self.manifest, *self.indexes, self.id) if d)


def images(file: IO[bytes]) -> tuple[Image, ...]:
    """What an archive holds. Raises ArtifactRefused when it is none."""
    try:
        with tarfile.open(fileobj=file, mode="r:") as tar:
            archive = _Archive(tar)
            found = tuple(archive.oci() if "index.json" in archive else archive.docker())
    except (tarfile.TarError, EOFError, OSError, ValueError) as error:
        raise _unreadable(f"it is no uncompressed tar: {error}") from None
    if not found:
        raise _unreadable("it holds no image")
    return found


def chosen(found: tuple[Image, ...], digest: str, architecture: str) -> Image:
    """The image that is called by `digest`, for this sort of machine. Raises ArtifactRefused."""
    called = [image for image in found if digest in image.digests]
    if not called:
        there = ", ".join(sorted({image.digests[0][:19] + "…" for image in found}))
        raise ArtifactRefused("digest_mismatch", f"the archive has no image {digest[:19]}…; it has {there}")
    suited = [image for image in called if not architecture or image.architecture in ("", architecture)]
    if not suited:
        there = ", ".join(sorted({image.architecture for image in called}))
        raise ArtifactRefused("artifact_unreadable", f"the image is for {there}, and this machine is {architecture}")
    return suited[0]


class _Archive:
    def __init__(self, tar: tarfile.TarFile) -> None:
        self._tar = tar
        self._members: dict[str, tarfile.TarInfo] = {}
        for n, member in enumerate(tar):
            if n >= MEMBERS_MAX:
                raise _unreadable(f"it has more than {MEMBERS_MAX} members")
            self._members[member.name.removeprefix("./")] = member

    def __contains__(self, name: str) -> bool:
        return name in self._members

    def oci(self) -> Iterator[Image]:
        index = _mapping(self._document("index.json"))
        for entry in _entries(index, "manifests"):
            notes = _mapping(entry.get("annotations") or {})
            name = next((str(notes[key]) for key in NAMES if notes.get(key)), "")
            yield from self._described(entry, (), name)

    def docker(self) -> Iterator[Image]:
        if "manifest.json" not in self:
            raise _unreadable("it has neither index.json nor manifest.json")
        for entry in _entries({"images": _decoded(self._document("manifest.json"))}, "images"):
            tags = entry.get("RepoTags")
            config = self._document(str(entry.get("Config", "")))
            yield self._image(config, "", (), str(tags[0]) if isinstance(tags, list) and tags else "")

    def _described(self, entry: dict[str, Any], indexes: tuple[str, ...], name: str) -> Iterator[Image]:
        digest = str(entry.get("digest", ""))
        if f"blobs/{digest.replace(':', '/')}" not in self:
            return  # of another sort of machine, and left out of this archive
        document = _mapping(self._blob(digest))
        if "manifests" in document:
            if len(indexes) >= DEPTH_MAX:
                raise _unreadable(f"its lists lead to lists, {DEPTH_MAX} deep")
            for each in _entries(document, "manifests"):
                yield from self._described(each, (*indexes, digest), name)
        elif "config" in document:
            config = self._blob(str(_mapping(document["config"]).get("digest", "")))
            if "rootfs" in _mapping(config):
                yield self._image(config, digest, indexes, name)

    def _image(self, config: bytes, manifest: str, indexes: tuple[str, ...], name: str) -> Image:
        said = _mapping(config)
        return Image(
            digest_of(config), manifest, indexes, name, str(said.get("os", "")), str(said.get("architecture", ""))
        )

    def _blob(self, digest: str) -> bytes:
        document = self._document(f"blobs/{digest.replace(':', '/')}")
        if f"sha256:{hashlib.sha256(document).hexdigest()}" != digest:
            raise ArtifactRefused("digest_mismatch", f"in the archive, {digest[:19]}… has other bytes")
        return document

    def _document(self, name: str) -> bytes:
        member = self._members.get(name)
        file = self._tar.extractfile(member) if member is not None and member.isfile() else None
        if file is None or member is None or member.size > DOCUMENT_BYTES_MAX:
            raise _unreadable(f"{name[:80]!r} is missing from it, or too large")
        return file.read()


def _decoded(document: bytes) -> Any:
    try:
        return msgspec.json.decode(document)
    except msgspec.MsgspecError as error:
        raise _unreadable(f"a document of it is not JSON: {error}") from None


def _mapping(document: object) -> dict[str, Any]:
    found = _decoded(document) if isinstance(document, bytes) else document
    if not isinstance(found, dict):
        raise _unreadable("a document of it is no mapping")
    return found


def _entries(document: dict[str, Any], key: str) -> list[dict[str, Any]]:
    found = document.get(key)
    return [_mapping(each) for each in (found if isinstance(found, list) else [])[:IMAGES_MAX]]


def _unreadable(why: str) -> ArtifactRefused:
    return ArtifactRefused("artifact_unreadable", f"an image archive is needed: {why}")
